"""Search by words: BM25, the only import of bm25s."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import bm25s
import numpy as np

from promptflow.errors import StoreCorrupt

Ranking = list[tuple[int, float]]


def words(texts: list[str]) -> list[list[str]]:
    """Return the words of each text: lower case, two letters or more, no English stop words."""
    found: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en", return_ids=False, show_progress=False
    )
    return found


def build_sparse(texts: Iterable[str]) -> bytes:
    """Return a BM25 segment over ``texts``; their places are the ids."""
    tokens = words(list(texts))
    # Numbered in order, since the order of a set of words differs from run to run.
    vocabulary = {word: at for at, word in enumerate(sorted({w for text in tokens for w in text}))}
    arrays: dict[str, Any] = {
        "data": np.zeros(0, np.float32),
        "indices": np.zeros(0, np.int32),
        "indptr": np.zeros(1, np.int64),
    }
    if vocabulary:
        index = bm25s.BM25(backend="numpy")
        ids = [[vocabulary[word] for word in text] for text in tokens]
        index.index((ids, dict(vocabulary)), create_empty_token=False, show_progress=False)
        arrays = {name: index.scores[name] for name in arrays}
    named = json.dumps(sorted(vocabulary)).encode()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        vocabulary=np.frombuffer(named, np.uint8),
        number=np.array(len(tokens)),
        **arrays,
    )
    return buffer.getvalue()


class Sparse:
    """A BM25 segment in memory."""

    def __init__(self, data: bytes) -> None:
        """Read what ``build_sparse`` wrote. Raises StoreCorrupt."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                self.number = int(arrays["number"])
                names = json.loads(arrays["vocabulary"].tobytes())
                scores = {name: arrays[name] for name in ("data", "indices", "indptr")}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StoreCorrupt(f"not a BM25 segment: {error}") from error
        self._vocabulary = {word: at for at, word in enumerate(names)}
        self._scores, self._texts, self._first = scores.values()
        if len(self._first) != len(names) + 1 or len(self._scores) != len(self._texts):
            raise StoreCorrupt("not a BM25 segment: its tables are not of one length")

    def search(self, query: str, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, BM25 score), best first, of texts that share a word."""
        scores = np.zeros(self.number, np.float32)
        for word in words([query])[0]:
            if (at := self._vocabulary.get(word)) is not None:
                # One column: the texts that have the word, each once, and what it adds to them.
                column = slice(self._first[at], self._first[at + 1])
                scores[self._texts[column]] += self._scores[column]
        if allowed is not None:
            outside = np.ones(self.number, bool)
            outside[list(allowed)] = False
            scores[outside] = 0.0
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(at), float(scores[at])) for at in order if scores[at] > 0]
