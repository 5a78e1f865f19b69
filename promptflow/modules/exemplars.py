"""Demos chosen from a pool: for each input the nearest by embedding, or as many of every label."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import ProgramError, UnknownOption, names_options
from promptflow.fields import to_text
from promptflow.modules.votes import vote_key
from promptflow.retrieval.embed import open_embedder
from promptflow.signatures import Document

Demo = Mapping[str, Any]
Chooser = Callable[[Mapping[str, Any]], Sequence[Demo]]
"""The inputs of a call to the demos that it shows, the last nearest to the question."""

EMBEDDER = "all-minilm-l6-v2"
KINDS = ("nearest", "balanced")
OPTIONS = ("pool", "k", "embedder", "label")


class Nearest:
    """The ``k`` demos of a pool whose inputs are nearest to those of the call, the nearest last.

    Liu et al. 2022, arXiv 2101.06804 (KATE). ``embedder`` is a name of the catalogue, an object
    with ``encode``, or a function of texts, such as a ``dspy.Embedder``; cosines count. With
    ``label``, an output, the labels of the pool take turns, each with its nearest. A demo with the
    very inputs of the call is left out: it would tell the answer.
    """

    @names_options
    def __init__(
        self,
        pool: Sequence[Demo],
        k: int = 4,
        embedder: Any = EMBEDDER,
        *,
        label: str | None = None,
    ) -> None:
        self.pool = _checked("Nearest", pool, k, label)
        self.k = k
        self.embedder = embedder
        self.label = label
        self._vectors: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Nearest:
        """Return itself: copies of a program share pool and embedder."""
        return self

    def __call__(self, inputs: Mapping[str, Any]) -> list[Demo]:
        """Return the demos for these inputs."""
        names = tuple(name for name in inputs if any(name in demo for demo in self.pool))
        if not names:
            raise ProgramError(
                f"Nearest: no demo of the pool has any of the inputs {', '.join(inputs)}"
            )
        if names not in self._vectors:
            self._vectors[names] = self._encode([_text(demo, names) for demo in self.pool])
        asked = _text(inputs, names)
        cosines = self._vectors[names] @ self._encode([asked])[0]
        ranked = [
            int(place)
            for place in np.argsort(-cosines, kind="stable")
            if _text(self.pool[place], names) != asked
        ]
        chosen = ranked[: self.k] if self.label is None else self._balanced(ranked)
        return [self.pool[place] for place in sorted(chosen, key=ranked.index, reverse=True)]

    def _balanced(self, ranked: list[int]) -> list[int]:
        assert self.label is not None
        labels = [vote_key(self.pool[place][self.label]) for place in ranked]
        return [ranked[n] for n in in_turns(labels, self.k)]

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return unit vectors."""
        if isinstance(self.embedder, str):
            self.embedder = open_embedder(self.embedder)
        encode = getattr(self.embedder, "encode", self.embedder)
        vectors = np.asarray(encode(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ProgramError(
                f"Nearest: the embedder gave {vectors.shape} for {len(texts)} texts; expected a "
                "vector each"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
        return unit


class Balanced:
    """The same ``k`` demos for every input: the labels of the pool take turns, in its order.

    A majority label among the demos draws answers to it (Zhao et al. 2021, arXiv 2102.09690).
    """

    @names_options
    def __init__(self, pool: Sequence[Demo], k: int = 4, *, label: str) -> None:
        self.pool = _checked("Balanced", pool, k, label)
        self.k = k
        self.label = label
        labels = [vote_key(demo[label]) for demo in self.pool]
        self._chosen = [self.pool[place] for place in in_turns(labels, k)]

    def __call__(self, inputs: Mapping[str, Any]) -> list[Demo]:
        """Return the demos; one with the very inputs of the call is left out."""
        return [
            demo
            for demo in self._chosen
            if any(name in demo and demo[name] != value for name, value in inputs.items())
        ]


def in_turns(labels: Sequence[Hashable], k: int) -> list[int]:
    """Return ``k`` places or fewer: each label's first, then each one's second, and so on."""
    seen: dict[Hashable, int] = {}
    turns = []
    for place, label in enumerate(labels):
        turns.append((seen.get(label, 0), place))
        seen[label] = seen.get(label, 0) + 1
    return [place for _, place in sorted(turns)[:k]]


def demos_of(
    document: Document,
    demos: Sequence[Demo] | Chooser | str,
    options: dict[str, Any],
) -> list[Demo] | Chooser:
    """Return a predictor's demos with those of its document, or what chooses them.

    ``nearest`` and ``balanced`` choose from ``pool``, by default the document's; the options for
    them are taken out of ``options``. Raises UnknownOption and ProgramError.
    """
    given = {name: options.pop(name) for name in OPTIONS if name in options}
    if not isinstance(demos, str):
        if given:
            raise UnknownOption(
                f"{', '.join(given)} belong to demos='nearest' or demos='balanced': write one of "
                "them, or leave them out"
            )
        return demos if callable(demos) else [*document.demos, *demos]
    pool = given.pop("pool", document.demos)
    if demos == "nearest":
        return Nearest(pool, **given)
    if demos == "balanced":
        given.setdefault("label", list(document.signature.output_fields)[-1])
        return Balanced(pool, **given)
    raise ValueError(f"demos={demos!r}: give demos, a function of the inputs, or {KINDS}")


def _checked(name: str, pool: Sequence[Demo], k: int, label: str | None) -> list[Demo]:
    pool = [dict(demo) for demo in pool]
    if not pool:
        raise ProgramError(f"{name}: the pool is empty: give pool=[...], demos to choose from")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"{name}: k={k!r}: give a whole number from 1")
    if label is not None and (lacking := [demo for demo in pool if label not in demo]):
        raise ProgramError(f"{name}: the demo {lacking[0]} of the pool has no {label!r}")
    return pool


def _text(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    return "\n".join(to_text(fields[name]) for name in names if name in fields)
