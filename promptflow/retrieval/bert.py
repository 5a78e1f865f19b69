"""The forward pass of a BERT sentence encoder in numpy, and the shapes that are known.

Importing torch takes seconds, one short text takes milliseconds: a query is embedded here, many
passages by ``bert_batches``. The tests hold both against sentence-transformers. Known are BERT and
XLM-RoBERTa with GELU and absolute positions, the mean of the tokens or the first one, unit length.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float32]
SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
FIRST_POSITION = {"bert": 0, "xlm-roberta": 2, "roberta": 2}
"""By model type: RoBERTa counts from behind the number of its padding."""
POOLINGS = {"mean_tokens": "mean", "cls_token": "cls"}
PLAIN = {"F32", "F16", "I64", "I32", "BOOL"}
"""Types of tensors that numpy has."""
WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Shape:
    """What beside its weights decides the vectors of an encoder. ``pooling`` is mean or cls."""

    weights: Path
    layers: int
    heads: int
    epsilon: float
    first_position: int
    pooling: str

    @property
    def is_plain(self) -> bool:
        """Whether numpy can read the weights."""
        return self.weights.name == SAFE and _types(self.weights) <= PLAIN


def read_json_file(path: Path) -> Any:
    """Return what the JSON file ``path`` holds, an empty dict if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _types(path: Path) -> set[str]:
    """Return the types of the tensors in a file of safetensors; "" for one that is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 26)))
        return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # whoever loads it says what is wrong


def shape_of(folder: Path) -> Shape | None:
    """Return the shape of the encoder in a sentence-transformers folder; None for another one."""
    config = read_json_file(folder / "config.json")
    modules = read_json_file(folder / "modules.json")
    text = read_json_file(folder / "sentence_bert_config.json")
    kinds = [module.get("type", "").rpartition(".")[2] for module in modules]
    pooling = _pooling(read_json_file(folder / "1_Pooling" / "config.json"))
    weights = next((folder / n for n in (SAFE, TORCH) if (folder / n).is_file()), None)
    known = (
        config.get("model_type") in FIRST_POSITION
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and kinds[:2] == ["Transformer", "Pooling"]
        and kinds[2:] in ([], ["Normalize"])
        and not text.get("do_lower_case")
        and not read_json_file(folder / "config_sentence_transformers.json").get("truncate_dim")
        and (folder / "tokenizer.json").is_file()
    )
    if not known or not pooling or weights is None:
        return None
    return Shape(
        weights,
        int(config["num_hidden_layers"]),
        int(config["num_attention_heads"]),
        float(config["layer_norm_eps"]),
        FIRST_POSITION[config["model_type"]],
        pooling,
    )


def _pooling(config: dict[str, Any]) -> str:
    """Return how the tokens' vectors become one, empty for a way that is not known here."""
    if config.get("include_prompt") is False:
        return ""
    modes = pooling_modes(config)
    return modes[0] if len(modes) == 1 and modes[0] in POOLINGS.values() else ""


def pooling_modes(config: dict[str, Any]) -> list[str]:
    """Return the ways of pooling whose vectors a model joins, mean and cls among them."""
    if "pooling_mode" in config:  # as sentence-transformers writes it since version 6
        mode = config["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    start = "pooling_mode_"
    used = [name.removeprefix(start) for name, value in config.items()
            if name.startswith(start) and value is True]  # fmt: skip
    return [POOLINGS.get(name, name) for name in used]


def plain_name(name: str) -> str:
    """Return the name of a tensor without the model's own in front."""
    return name.removeprefix("bert.").removeprefix("roberta.")


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let numpy multiply in the calling thread.

    Its other threads would spin for milliseconds after the last product, on the cores that the
    search which follows waits for.
    """
    with _alone, _blas().limit(limits=1):
        yield


_alone = threading.Lock()
"""Of two that limit the threads at once, the last to end would leave them limited."""


class Bert:
    """A sentence encoder: one text at a time."""

    def __init__(self, shape: Shape) -> None:
        """Load the weights of a plain ``shape``."""
        self._shape = shape
        self._weights: dict[str, Array] = {}
        file: Any = safe_open(shape.weights, framework="numpy")
        names = file.keys()
        for name in names:
            if plain_name(name) == WORDS:
                # Half of a model, or more, of which a text needs a few rows.
                self._words: Any = file.get_slice(name)
            elif (value := file.get_tensor(name)).dtype.kind == "f":
                # A few tokens times a matrix that lies the other way take twice as long.
                turned = value.T if plain_name(name).startswith("encoder.") else value
                self._weights[plain_name(name)] = np.ascontiguousarray(turned, np.float32)
        for layer in range(shape.layers):
            self._join(f"encoder.layer.{layer}.attention.self.")

    def _join(self, at: str) -> None:
        """Make one matrix of three that have the same input."""
        for kind in ("weight", "bias"):
            parts = [self._weights.pop(f"{at}{n}.{kind}") for n in ("query", "key", "value")]
            self._weights[f"{at}all.{kind}"] = np.concatenate(parts, axis=-1)

    def encode(self, ids: Sequence[int]) -> Array:
        """Return the unit vector (hidden size,) of a text given as token numbers, float32."""
        with one_thread():
            return self._encoded(ids)

    def _encoded(self, ids: Sequence[int]) -> Array:
        at = "embeddings."
        first = self._shape.first_position
        state = (
            self._rows(ids)
            + self._weights[at + "position_embeddings.weight"][first : first + len(ids)]
            + self._weights[at + "token_type_embeddings.weight"][0]
        )
        state = self._norm(state, at + "LayerNorm")
        for layer in range(self._shape.layers):
            state = self._layer(state, f"encoder.layer.{layer}.")
        pooled: Array = state[0] if self._shape.pooling == "cls" else state.mean(axis=0)
        return pooled / max(float(np.linalg.norm(pooled)), 1e-12)

    def _rows(self, ids: Sequence[int]) -> Array:
        return np.concatenate([self._words[i : i + 1] for i in ids]).astype(np.float32)

    def _layer(self, state: Array, at: str) -> Array:
        length, width = state.shape
        size = width // self._shape.heads

        full = self._linear(state, at + "attention.self.all")
        query, key, value = full.reshape(length, 3, self._shape.heads, size).transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(size))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ value).transpose(1, 0, 2).reshape(length, width)
        mixed = self._linear(mixed, at + "attention.output.dense")
        state = self._norm(state + mixed, at + "attention.output.LayerNorm")
        inner = _gelu(self._linear(state, at + "intermediate.dense"))
        return self._norm(state + self._linear(inner, at + "output.dense"), at + "output.LayerNorm")

    def _linear(self, state: Array, name: str) -> Array:
        product: Array = state @ self._weights[name + ".weight"]
        return product + self._weights[name + ".bias"]

    def _norm(self, state: Array, name: str) -> Array:
        centred = state - state.mean(axis=-1, keepdims=True)
        scale = np.sqrt(
            (centred * centred).mean(axis=-1, keepdims=True) + np.float32(self._shape.epsilon)
        )
        normal: Array = centred / scale * self._weights[name + ".weight"]
        return normal + self._weights[name + ".bias"]


def _gelu(x: Array) -> Array:
    """Return x times the normal distribution at x; erf by Abramowitz and Stegun 7.1.26."""
    # numpy has no erf; this one is off by at most 1.5e-7, below what float32 resolves near 1.
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    gelu: Array = np.float32(0.5) * x * (1 + erf)
    return gelu
