"""Why a search found what it found: the ranks of a passage in each way, and the words it shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from promptflow.retrieval.passages import Passage
from promptflow.retrieval.text import Word, words


@dataclass(frozen=True, slots=True)
class Found:
    """A passage of an explanation.

    ``ranks`` counts from 1: "dense", "sparse", "fused" and "reranked", where it was among the best
    that were looked at. ``words`` are those of the query that it holds, as the query writes them.
    """

    passage: Passage
    ranks: Mapping[str, int]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a search looked for and found, best first.

    ``language`` is that of the query, ``words`` are what it was searched by, without function
    words, and ``missing`` those of them that no document has.
    """

    query: str
    mode: str
    language: str
    words: tuple[str, ...]
    missing: tuple[str, ...]
    found: tuple[Found, ...]


def ranks(ranked: Mapping[str, Iterable[int]]) -> dict[int, dict[str, int]]:
    """Return each chunk's ranks by name, from rankings of chunks, best first."""
    places: dict[int, dict[str, int]] = {}
    for name, chunks in ranked.items():
        for rank, chunk in enumerate(chunks, 1):
            places.setdefault(chunk, {})[name] = rank
    return places


def held(query: str, asked: Sequence[Word], text: str, languages: Iterable[str]) -> tuple[str, ...]:
    """Return the words of ``query`` that ``text`` holds in one of these languages."""
    terms = {term for language in languages for term in words(text, language)}
    return written(query, [word for word in asked if not terms.isdisjoint(word.terms)])


def written(query: str, found: Sequence[Word]) -> tuple[str, ...]:
    """Return words as ``query`` writes them, each once; pairs that overlap become one."""
    spans: list[tuple[int, int]] = []
    for word in found:
        if spans and word.start < spans[-1][1]:
            spans[-1] = spans[-1][0], max(word.end, spans[-1][1])
        else:
            spans.append((word.start, word.end))
    return tuple(dict.fromkeys(query[start:end] for start, end in spans))
