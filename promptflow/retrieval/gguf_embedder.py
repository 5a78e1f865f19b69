"""A GGUF file as an embedder of an index, by the engine."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow.catalog import model_sha256, read_gguf
from promptflow.engine.embedding import EmbeddingEngine
from promptflow.errors import ModelInvalid
from promptflow.retrieval.prefixes import Prefixes, family_prefixes, least_tokens

Array = NDArray[np.float32]
Progress = Callable[[int], object]
BLOCK = 32
"""Texts of one message, after which there is progress to tell."""


class GgufEmbedder:
    """A GGUF embedder: its pooling is that of its file, its tokens those of its vocabulary.

    ``prefixes`` stand in for those of its family. The child of the engine starts with the first
    call that needs it.
    """

    precision = "as its file says"

    def __init__(
        self, path: str | Path, *, name: str | None = None, prefixes: Prefixes | None = None
    ) -> None:
        """Read the header of the file at ``path``. Raises ModelInvalid."""
        header = read_gguf(path)
        self.path = header.path
        self.name = name or str(path)
        said = header.metadata
        width = said.get(f"{header.architecture}.embedding_length")
        width = said.get(f"{header.architecture}.embedding_length_out") or width
        if not isinstance(width, int):
            raise ModelInvalid(f"{path}: it does not say how long its vectors are")
        self.dimension = width
        self._given = prefixes
        titles = (str(said.get("general.name", "")), self.name, self.path.name)
        own = next((found for one in titles if (found := family_prefixes(one))), ("", ""))
        self.prefixes = prefixes or own
        weights = model_sha256(self.path)
        self.sha256 = hashlib.sha256(f"{weights}\n{self.prefixes!r}".encode()).hexdigest()
        self._engine = EmbeddingEngine(self.path, self.name, weights, trained=header.context_length)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process by its file."""
        return _gguf_embedder, (self.path, self.name, self._given)

    def __deepcopy__(self, memo: dict[int, Any]) -> GgufEmbedder:
        """Return itself: copies of a program share the child."""
        return self

    @functools.cached_property
    def max_tokens(self) -> int:
        """The longest text that is read whole beside its prefix and marks."""
        return self._engine.max_tokens - max(self._engine.count(self.prefixes))

    def count(self, text: str) -> int:
        """Return the length of ``text`` in tokens, at least one for every 12 characters."""
        marks, tokens = self._engine.count(["", text])
        return max(tokens - marks, least_tokens(text))

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> Array:
        """Return unit vectors (len(texts), dimension), float32, of passages."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for first in range(0, len(order), BLOCK):
            places = order[first : first + BLOCK]
            prefixed = [self.prefixes[1] + texts[place] for place in places]
            vectors[places] = self._engine.encode(prefixed)
            if progress is not None:
                progress(len(places))
        return vectors

    def encode_query(self, text: str) -> Array:
        """Return the unit vector (dimension,) of a query."""
        vector: Array = self._engine.encode([self.prefixes[0] + text])[0]
        return vector

    def close(self) -> None:
        """End the child."""
        self._engine.close()


def _gguf_embedder(path: Path, name: str, prefixes: Prefixes | None) -> GgufEmbedder:
    return GgufEmbedder(path, name=name, prefixes=prefixes)
