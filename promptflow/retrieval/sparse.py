"""Search by words: BM25 over whole documents and over the chunks within them.

A chunk loses to its neighbours' words, a document does not say where: a chunk's score is a weighted
sum of both. Segments hold counts alone; what is rare is decided over all segments together when a
query is asked (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework").
"""

from __future__ import annotations

import io
import json
import zipfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt
from promptflow.retrieval.text import Word, language_of, query_words, words

Ranking = list[tuple[int, float]]
Floats = NDArray[np.float32]

PART = 1000
"""Terms after which the next chunk of a long document begins another part of it: what is scored as
a whole must be about one thing."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How words are scored: BM25's ``k1`` and ``b``, and the share that the whole document has."""

    k1: float = 1.0
    b: float = 0.5
    whole: float = 0.6


WEIGHTS = Weights()
"""Chosen on SciFact's train claims and SQuAD's other articles (benchmarks/retrieval.py --tune).
There k1 of 0.9 to 1.5, b of 0.4 to 0.75 and a share of 0.3 to 1 differ by less than 0.01; chunks
alone lose 0.025 nDCG@10 on SciFact."""


class SparseWriter:
    """Counts the terms of documents as they come, for one segment."""

    def __init__(self) -> None:
        """Start an empty segment."""
        self._vocabulary: dict[str, int] = {}
        self._languages: dict[str, int] = {}
        self._terms, self._counts = array("i"), array("H")
        self._distinct, self._lengths, self._parts = array("i"), array("i"), array("i")
        self._spoken = array("H")
        self._part = -1

    def add(self, text: str, chunks: Sequence[str]) -> None:
        """Add a document and its chunks, which get the next ids."""
        language = language_of(text)
        spoken = self._languages.setdefault(language, len(self._languages))
        vocabulary = self._vocabulary
        room = -1
        for chunk in chunks:
            found = words(chunk, language)
            if room < len(found):
                self._part += 1
                room = PART
            room -= len(found)
            held = Counter(found)
            for word, count in held.items():
                self._terms.append(vocabulary.setdefault(word, len(vocabulary)))
                self._counts.append(min(count, 65535))
            self._distinct.append(len(held))
            self._lengths.append(len(found))
            self._parts.append(self._part)
            self._spoken.append(spoken)

    def finish(self) -> bytes:
        """Return the segment."""
        names = sorted(self._vocabulary)
        place = np.zeros(len(names), np.int32)
        place[[self._vocabulary[name] for name in names]] = np.arange(len(names))
        terms = place[np.frombuffer(self._terms, np.int32)] if names else np.zeros(0, np.int32)
        chunks = np.repeat(
            np.arange(len(self._lengths), dtype=np.int32), np.asarray(self._distinct, np.int32)
        )
        order = np.argsort(terms, kind="stable")
        buffer = io.BytesIO()
        np.savez(
            buffer,
            vocabulary=np.frombuffer(json.dumps(names).encode(), np.uint8),
            languages=np.frombuffer(json.dumps(list(self._languages)).encode(), np.uint8),
            spoken=np.asarray(self._spoken, np.uint16),
            first=np.searchsorted(terms[order], np.arange(len(names) + 1)).astype(np.int64),
            chunks=chunks[order],
            counts=np.asarray(self._counts, np.uint16)[order],
            lengths=np.asarray(self._lengths, np.int32),
            parts=np.asarray(self._parts, np.int32),
        )
        return buffer.getvalue()


class Postings:
    """Where each term stands among the units of one segment: its chunks, or parts of documents."""

    def __init__(self, first: NDArray[Any], units: NDArray[Any], counts: NDArray[Any]) -> None:
        """Take the postings sorted by term and unit; those of term t begin at ``first[t]``."""
        self.first, self.units, self.counts = first, units, counts

    def kept(self, keep: NDArray[np.bool_]) -> Postings:
        """Return the postings that ``keep`` marks."""
        before = np.concatenate([[0], np.cumsum(keep)])
        return Postings(before[self.first], self.units[keep], self.counts[keep])

    def grouped(self, groups: NDArray[Any]) -> Postings:
        """Return the postings of groups of consecutive units; ``groups[unit]`` is its group."""
        number = len(self.units)
        terms = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        units = groups[self.units] if number else self.units
        new = np.ones(number, bool)
        new[1:] = (np.diff(terms) != 0) | (np.diff(units) != 0)
        starts = np.flatnonzero(new)
        counts = np.add.reduceat(self.counts.astype(np.int64), starts) if number else self.counts
        before = np.concatenate([[0], np.cumsum(new)])
        return Postings(before[self.first], units[starts], counts)


class Segment:
    """One segment in memory; ``live`` marks the chunks that were not removed since."""

    def __init__(self, data: bytes, live: NDArray[np.bool_] | None = None) -> None:
        """Read what ``SparseWriter`` made. Raises StoreCorrupt."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                names = json.loads(arrays["vocabulary"].tobytes())
                languages: list[str] = json.loads(arrays["languages"].tobytes())
                spoken = arrays["spoken"]
                first, units, counts = arrays["first"], arrays["chunks"], arrays["counts"]
                self.lengths, self.parts = arrays["lengths"], arrays["parts"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StoreCorrupt(f"not a BM25 segment: {error}") from error
        number = len(self.lengths)
        whole = (len(first) - 1, first[-1] if len(first) else -1, len(self.parts), len(spoken))
        if whole != (len(names), len(units), number, number) or len(counts) != len(units):
            raise StoreCorrupt("not a BM25 segment: its tables are not of one length")
        if len(units) and not 0 <= units.min() <= units.max() < number:
            raise StoreCorrupt("not a BM25 segment: it names chunks that it does not have")
        steps = np.diff(self.parts, prepend=0)
        if number and not (steps.min() >= 0 and self.parts[-1] < number):
            raise StoreCorrupt("not a BM25 segment: its documents are not in order")
        self.live = np.ones(number, bool) if live is None else live
        if len(self.live) != number:
            raise StoreCorrupt(f"holds {number} texts, expected {len(self.live)}")
        if number and not spoken.max() < len(languages):
            raise StoreCorrupt("not a BM25 segment: it names languages that it does not have")
        self.languages = [languages[at] for at in np.unique(spoken[self.live])]
        self._names: list[str] = languages
        self._spoken = spoken
        self.vocabulary = {name: at for at, name in enumerate(names)}
        chunks = Postings(first, units, counts)
        if live is not None and not live.all():
            chunks = chunks.kept(live[units])
        self.chunks = chunks
        self.whole = chunks.grouped(self.parts)

    def language(self, chunk: int) -> str:
        """Return the language by whose stems a chunk was counted."""
        return self._names[int(self._spoken[chunk])]


Places = Sequence[Sequence[tuple[int, int]]]
"""For each segment, (word, its number in the segment) of the words that it holds."""


class _Level:
    """Units of one kind over all segments, numbered through: chunks, or parts of documents."""

    def __init__(self, postings: Sequence[Postings], lengths: Sequence[NDArray[Any]]) -> None:
        self._postings = postings
        sizes = [len(length) for length in lengths]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._lengths = np.concatenate([np.zeros(0), *lengths])
        self._number = int(np.count_nonzero(self._lengths))
        self._mean = float(self._lengths.sum()) / max(1, self._number)

    def rarity(self, places: Places, number: int) -> NDArray[np.float64]:
        """Return the weight of each of so many words: the rarer, the more; 0 if none has it."""
        frequency = np.zeros(number)
        for postings, held in zip(self._postings, places, strict=True):
            for word, at in held:
                frequency[word] += postings.first[at + 1] - postings.first[at]
        rare: NDArray[np.float64] = np.log1p((self._number - frequency + 0.5) / (frequency + 0.5))
        return np.where(frequency > 0, rare, 0)

    def scores(self, places: Places, repeats: NDArray[Any], k1: float, b: float) -> Floats:
        """Return the BM25 score of every unit; ``repeats`` says how often a word is asked for."""
        rarity = repeats * self.rarity(places, len(repeats))
        norm = k1 * (1 - b + b * self._lengths / max(self._mean, 1e-9))
        scores = np.zeros(len(self._lengths), np.float32)
        for postings, held, offset in zip(self._postings, places, self._offsets, strict=False):
            if not held:
                continue
            slices = [slice(postings.first[at], postings.first[at + 1]) for _, at in held]
            units = np.concatenate([postings.units[piece] for piece in slices]) + offset
            counts = np.concatenate([postings.counts[piece] for piece in slices])
            weights = np.repeat(rarity[[word for word, _ in held]], [_size(s) for s in slices])
            gains = weights * counts * (k1 + 1) / (counts + norm[units])
            scores += np.bincount(units, gains, len(scores)).astype(np.float32)
        return scores


def _size(piece: slice) -> int:
    return int(piece.stop - piece.start)


class Sparse:
    """The BM25 segments of an index in memory. A chunk's id counts through the segments."""

    def __init__(self, segments: Sequence[Segment], weights: Weights = WEIGHTS) -> None:
        """Take the segments in their order."""
        self._segments = segments
        self._weights = weights
        self.languages = sorted({code for segment in segments for code in segment.languages})
        self.number = sum(len(segment.lengths) for segment in segments)
        lengths = [segment.lengths * segment.live for segment in segments]
        self._chunks = _Level([segment.chunks for segment in segments], lengths)
        whole = [
            np.bincount(segment.parts, length, int(segment.parts[-1]) + 1 if len(length) else 0)
            for segment, length in zip(segments, lengths, strict=True)
        ]
        self._whole = _Level([segment.whole for segment in segments], whole)
        before = np.concatenate([[0], np.cumsum([len(parts) for parts in whole])]).astype(np.int64)
        self._parts = np.concatenate(
            [np.zeros(0, np.int64)]
            + [segment.parts + start for segment, start in zip(segments, before, strict=False)]
        )
        self._firsts = np.cumsum([0, *(len(length) for length in lengths)])

    def language(self, chunk: int) -> str:
        """Return the language by whose stems a chunk was counted."""
        at = int(np.searchsorted(self._firsts, chunk, side="right")) - 1
        return self._segments[at].language(chunk - int(self._firsts[at]))

    def scores(self, query: str) -> Floats:
        """Return the score of every chunk, 0 for those that share no word with ``query``."""
        terms = Counter(term for word in query_words(query, self.languages) for term in word.terms)
        repeats = np.array(list(terms.values()), np.float64)
        places = self._places(list(terms))
        k1, b, share = self._weights.k1, self._weights.b, self._weights.whole
        within = self._chunks.scores(places, repeats, k1, b)
        whole = self._whole.scores(places, repeats, k1, b)
        scores: Floats = np.where(within > 0, share * whole[self._parts] + (1 - share) * within, 0)
        return scores.astype(np.float32)

    def rarity(self, asked: Sequence[Word]) -> list[float]:
        """Return how rare each word is among the chunks, that of its rarest term; 0 if in none."""
        terms = list(dict.fromkeys(term for word in asked for term in word.terms))
        rare = dict(zip(terms, self._chunks.rarity(self._places(terms), len(terms)), strict=True))
        return [float(max(rare[term] for term in word.terms)) for word in asked]

    def _places(self, terms: Sequence[str]) -> Places:
        return [
            [(at, segment.vocabulary[t]) for at, t in enumerate(terms) if t in segment.vocabulary]
            for segment in self._segments
        ]

    def search(self, query: str, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, BM25 score), best first, of texts that share a word."""
        return ranked(self.scores(query), k, allowed)


def ranked(scores: Floats, k: int, allowed: Sequence[int] | None = None) -> Ranking:
    """Return the ``k`` best (id, score) above 0 of the ``allowed`` ids, ties by id."""
    if allowed is not None:
        inside = np.zeros(len(scores), bool)
        inside[list(allowed)] = True
        scores = np.where(inside, scores, 0)
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        # Everything that ties with the k-th stays, so that ties are by id however many there are.
        least = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= least]
    order = found[np.argsort(-scores[found], kind="stable")][:k]
    return [(int(at), float(scores[at])) for at in order]
