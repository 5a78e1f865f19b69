"""The forward pass of a BERT sentence encoder in numpy.

Importing torch and sentence-transformers takes seconds, one short text takes milliseconds. A query
is embedded here; the tests hold the result against sentence-transformers. Knows the one shape that
the MiniLM family has: BERT with GELU and absolute positions, mean pooling, unit length.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[np.float32]


def read_json_file(path: Path) -> Any:
    """Return what the JSON file ``path`` holds, an empty dict if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def is_plain_bert(folder: Path) -> bool:
    """Tell whether ``folder`` holds an encoder that this module computes."""
    config = read_json_file(folder / "config.json")
    modules = read_json_file(folder / "modules.json")
    pooling = read_json_file(folder / "1_Pooling" / "config.json")
    kinds = [module.get("type", "").rpartition(".")[2] for module in modules]
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and kinds == ["Transformer", "Pooling", "Normalize"]
        and pooling.get("pooling_mode_mean_tokens") is True
        and not any(
            value is True
            for name, value in pooling.items()
            if name.startswith("pooling_mode_") and name != "pooling_mode_mean_tokens"
        )
        and (folder / "model.safetensors").is_file()
        and (folder / "tokenizer.json").is_file()
    )


class Bert:
    """A BERT sentence encoder: one text at a time."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Load the weights of ``folder``; texts are cut to ``max_tokens`` tokens."""
        config = read_json_file(folder / "config.json")
        self._weights: dict[str, Array] = {
            name.removeprefix("bert."): np.asarray(value, np.float32)
            for name, value in load_file(folder / "model.safetensors").items()
            if value.dtype.kind == "f"
        }
        self._layers = int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def encode(self, text: str) -> Array:
        """Return the unit vector (hidden size,) of a text, float32."""
        ids = self._tokenizer.encode(text).ids
        embeddings = "embeddings."
        state = (
            self._weights[embeddings + "word_embeddings.weight"][ids]
            + self._weights[embeddings + "position_embeddings.weight"][: len(ids)]
            + self._weights[embeddings + "token_type_embeddings.weight"][0]
        )
        state = self._norm(state, embeddings + "LayerNorm")
        for layer in range(self._layers):
            state = self._layer(state, f"encoder.layer.{layer}.")
        mean: Array = state.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def _layer(self, state: Array, at: str) -> Array:
        length, width = state.shape
        size = width // self._heads

        def split(name: str) -> Array:
            full = self._linear(state, f"{at}attention.self.{name}")
            return full.reshape(length, self._heads, size).transpose(1, 0, 2)

        scores = split("query") @ split("key").transpose(0, 2, 1) / np.float32(math.sqrt(size))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ split("value")).transpose(1, 0, 2).reshape(length, width)
        mixed = self._linear(mixed, at + "attention.output.dense")
        state = self._norm(state + mixed, at + "attention.output.LayerNorm")
        inner = _gelu(self._linear(state, at + "intermediate.dense"))
        return self._norm(state + self._linear(inner, at + "output.dense"), at + "output.LayerNorm")

    def _linear(self, state: Array, name: str) -> Array:
        product: Array = state @ self._weights[name + ".weight"].T
        return product + self._weights[name + ".bias"]

    def _norm(self, state: Array, name: str) -> Array:
        centred = state - state.mean(axis=-1, keepdims=True)
        scale = np.sqrt(
            (centred * centred).mean(axis=-1, keepdims=True) + np.float32(self._epsilon)
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
