"""The forward pass of a BERT sentence encoder over many texts at once: the only import of torch.

Texts of like length share a batch, so that next to nothing is computed for padding, and matrices
are multiplied in bfloat16 where that is measured to be faster and near enough: see ``faster``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch.nn import functional

from promptflow.child import usable_cores
from promptflow.retrieval.bert import SAFE, WORDS, Shape, plain_name

Array = NDArray[np.float32]
NEAR = 0.999
"""The least cosine between a vector in bfloat16 and the same in float32."""
FASTER = 1.15
"""How much faster it has to be."""
TRIES = 2


class Batches:
    """An encoder of token numbers, in one ``precision``: "float32" or "bfloat16"."""

    def __init__(self, shape: Shape, precision: str = "float32") -> None:
        """Load the weights of ``shape``."""
        self.precision = precision
        self._shape = shape
        self._type = getattr(torch, precision)
        self._weights: dict[str, torch.Tensor] = {}
        for name, value in _read(shape).items():
            if value.is_floating_point() and name != WORDS:
                linear = name.startswith("encoder.") and "LayerNorm" not in name
                value = value.to(self._type if linear else torch.float32)
            self._weights[name] = value
        for layer in range(shape.layers):
            self._join(f"encoder.layer.{layer}.attention.self.")

    def _join(self, at: str) -> None:
        """Make one matrix of three that have the same input."""
        for kind in ("weight", "bias"):
            parts = [self._weights.pop(f"{at}{n}.{kind}") for n in ("query", "key", "value")]
            self._weights[f"{at}all.{kind}"] = torch.cat(parts)

    def encode(self, texts: Sequence[Sequence[int]]) -> Array:
        """Return the unit vectors (len(texts), hidden size) of texts given as token numbers."""
        with torch.inference_mode():
            vectors: Array = self._pooled(texts).numpy()
        return vectors

    def _pooled(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(ids) for ids in texts])
        longest = int(lengths.max())
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, numbers in enumerate(texts):
            ids[row, : len(numbers)] = torch.tensor(numbers)
        there = torch.arange(longest) < lengths[:, None]
        at = "embeddings."
        first = self._shape.first_position
        state = (
            self._weights[WORDS][ids].float()
            + self._weights[at + "position_embeddings.weight"][first : first + longest]
            + self._weights[at + "token_type_embeddings.weight"][0]
        )
        state = self._norm(state, at + "LayerNorm")
        mask = None if bool(there.all()) else there[:, None, None, :]
        for layer in range(self._shape.layers):
            state = self._layer(state, mask, f"encoder.layer.{layer}.")
        if self._shape.pooling == "cls":
            pooled = state[:, 0]
        else:
            pooled = (state * there[..., None]).sum(1) / lengths[:, None]
        return functional.normalize(pooled, dim=1)

    def _layer(self, state: torch.Tensor, mask: torch.Tensor | None, at: str) -> torch.Tensor:
        texts, length, width = state.shape
        full = self._linear(state, at + "attention.self.all")
        query, key, value = full.view(texts, length, 3, self._shape.heads, -1).permute(
            2, 0, 3, 1, 4
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = self._linear(mixed.transpose(1, 2).reshape(texts, length, width),
                             at + "attention.output.dense")  # fmt: skip
        state = self._norm(state + mixed, at + "attention.output.LayerNorm")
        inner = functional.gelu(self._linear(state, at + "intermediate.dense"))
        return self._norm(state + self._linear(inner, at + "output.dense"), at + "output.LayerNorm")

    def _linear(self, state: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return functional.linear(state.to(self._type), weight, bias)

    def _norm(self, state: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return functional.layer_norm(state, weight.shape, weight, bias, self._shape.epsilon)


HOME = os.getpid()


@contextmanager
def own_threads(count: int = 0) -> Iterator[None]:
    """Let torch use ``count`` cores, or all that this process may use; then as many as before.

    A forked child has one thread: it would wait for ever for those that stayed in its parent.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(count or (usable_cores() if os.getpid() == HOME else 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def each(
    encoder: Batches, batches: Sequence[tuple[list[int], list[list[int]]]]
) -> Iterator[tuple[list[int], Array]]:
    """Yield the places of each batch and the vectors of its texts, in the order they are ready.

    A core has a batch of its own. Cores that share one wait for each other several times a layer,
    and spin: a neighbour that takes one of them makes all of it ten times slower.
    """
    if len(batches) == 1:
        with own_threads():
            yield batches[0][0], encoder.encode(batches[0][1])
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(usable_cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting = {pool.submit(encoder.encode, texts): places for places, texts in batches}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _read(shape: Shape) -> dict[str, torch.Tensor]:
    if shape.weights.name == SAFE:
        file: Any = safe_open(shape.weights, framework="pt")
        names = file.keys()
        return {plain_name(name): file.get_tensor(name) for name in names}
    # Tensors only: with weights_only nothing of the file is run.
    found: dict[str, Any] = torch.load(shape.weights, map_location="cpu", weights_only=True)
    return {plain_name(name): value for name, value in found.items()}


def faster(
    shape: Shape, exact: Batches, sample: Sequence[Sequence[int]]
) -> tuple[Batches, dict[str, float]]:
    """Return ``exact`` or an encoder in bfloat16, whichever is to be used, and what was measured.

    The ``sample`` is embedded by both. Keys: ``speedup`` and ``cosine``, the least one. Time is
    that of one core at work, which others that use the machine hardly change.
    """
    with own_threads(1):
        return _compared(shape, exact, sample)


def _compared(
    shape: Shape, exact: Batches, sample: Sequence[Sequence[int]]
) -> tuple[Batches, dict[str, float]]:
    quick = Batches(shape, "bfloat16")
    for encoder in (exact, quick):
        encoder.encode(sample[:2])  # the first call sets up more than it computes
    vectors: list[Array] = []
    seconds = [math.inf, math.inf]
    for _ in range(TRIES):
        vectors = []
        for at, encoder in enumerate((exact, quick)):
            begun = time.thread_time()
            vectors.append(encoder.encode(sample))
            seconds[at] = min(seconds[at], time.thread_time() - begun)
    cosine = float((vectors[0] * vectors[1]).sum(1).min())
    speedup = seconds[0] / seconds[1]
    measured = {"speedup": round(speedup, 2), "cosine": round(cosine, 6)}
    return (quick if cosine >= NEAR and speedup >= FASTER else exact), measured
