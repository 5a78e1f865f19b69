"""What a search returns, and what of searching needs no index: fusion, filters, reranking."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from promptflow.errors import PromptflowError
from promptflow.retrieval.documents import glob_pattern

if TYPE_CHECKING:
    from promptflow.retrieval.store import Row

Mode = Literal["dense", "sparse", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "sparse", "hybrid")
Ranking = list[tuple[int, float]]
Where = Mapping[str, Any] | Callable[[Mapping[str, Any]], bool]
Rerank = Callable[[str, "Sequence[Passage]"], Sequence[float]]
RANK_CONSTANT = 60
"""Of reciprocal rank fusion, as in Cormack, Clarke and Buettcher (SIGIR 2009)."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found: ``text`` is characters [start, end) of ``document``.

    ``score`` is what the passages of one search are ordered by. ``scores`` says what is known of
    it: "dense" (a cosine, which alone can be compared between searches), "sparse" (BM25), "rerank".
    """

    document: str
    chunk: int
    start: int
    end: int
    text: str
    score: float
    heading: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    def prompt_text(self) -> str:
        """Return what a prompt shows of it."""
        return self.text


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found, by its id, before it is read; ``scores`` as a passage has them."""

    chunk: int
    score: float
    scores: Mapping[str, float]


def passage_of(row: Row, hit: Hit) -> Passage:
    """Return the passage of a stored chunk; of a PDF, with the page that it starts on."""
    metadata = dict(row.metadata)
    pages = metadata.pop("pages", None)
    if pages:
        metadata["page"] = bisect.bisect_right(pages, row.start)
    place = (row.document, row.id, row.start, row.end, row.text)
    return Passage(*place, hit.score, row.heading, metadata, hit.scores)


def single(name: str, ranking: Ranking) -> list[Hit]:
    """Return what one way of searching found, as hits."""
    return [Hit(chunk, score, {name: score}) for chunk, score in ranking]


def fuse(dense: Mapping[int, float], sparse: Mapping[int, float], weight: float) -> list[Hit]:
    """Return chunks by a weighted sum of their cosine and their BM25 score, best first, ties by id.

    ``weight`` is the share of the cosines, which are taken between their least and their greatest;
    BM25 scores, whose least is 0, against their greatest. An unknown score is the least (Bruch, Gai
    and Ingber 2023, "An Analysis of Fusion Functions for Hybrid Retrieval").
    """
    chunks = sorted({*dense, *sparse})
    least = min(dense.values(), default=0.0)
    near = _shares([dense.get(chunk, least) - least for chunk in chunks])
    shared = _shares([sparse.get(chunk, 0.0) for chunk in chunks])
    hits = [
        Hit(chunk, weight * one + (1 - weight) * other, _scores(chunk, dense, sparse))
        for chunk, one, other in zip(chunks, near, shared, strict=True)
    ]
    return sorted(hits, key=lambda hit: -hit.score)


def raised(hits: Sequence[Hit], shares: Sequence[float], weight: float) -> list[Hit]:
    """Return ``hits`` with ``weight`` times its share added to each of the first, best first.

    Scores stay between 0 and 1, ties by id.
    """
    gains = [*shares, *[0.0] * (len(hits) - len(shares))]
    made = [
        replace(hit, score=(hit.score + weight * gain) / (1 + weight))
        for hit, gain in zip(hits, gains, strict=True)
    ]
    return sorted(made, key=lambda hit: (-hit.score, hit.chunk))


def _scores(
    chunk: int, dense: Mapping[int, float], sparse: Mapping[int, float]
) -> dict[str, float]:
    return {
        name: scores[chunk]
        for name, scores in (("dense", dense), ("sparse", sparse))
        if chunk in scores
    }


def _shares(scores: Sequence[float]) -> list[float]:
    greatest = max(scores, default=0.0)
    return [score / greatest if greatest > 0 else 0.0 for score in scores]


def matching(documents: Sequence[Mapping[str, Any]], where: Where) -> list[str]:
    """Return the paths of the documents that ``where`` allows.

    A mapping names metadata and the value it must have, or a list of values of which it must have
    one; ``document`` takes globs, and of metadata that is a list one entry is enough. A callable is
    given each document's metadata. Raises PromptflowError for a key that no document has.
    """
    tables = {
        str(entry["path"]): {
            **entry["metadata"],
            "kind": entry["kind"],
            "document": entry["path"],
            "also": entry.get("also", ()),
        }
        for entry in documents
    }
    if callable(where):
        return [path for path, table in tables.items() if where(table)]
    known = {key for table in tables.values() for key in table} - {"pages", "also"}
    for key in where:
        if key not in known:
            raise PromptflowError(
                f"where: no document has {key!r}. Known: {', '.join(sorted(known))}."
            )
    return [
        path
        for path, table in tables.items()
        if all(_has(table, key, wanted) for key, wanted in where.items())
    ]


def _has(table: Mapping[str, Any], key: str, wanted: Any) -> bool:
    choices = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
    if key == "document":
        globs = [glob_pattern(str(glob)) for glob in choices]
        places = (table[key], *table["also"])
        return any(glob.fullmatch(path) for glob in globs for path in places)
    held = table.get(key)
    return key in table and any(
        one in choices for one in (held if isinstance(held, list) else [held])
    )


def reranked(query: str, passages: Sequence[Passage], rerank: Rerank) -> list[Passage]:
    """Return the passages by the scores that ``rerank`` gives them, best first."""
    scores = [float(score) for score in rerank(query, passages)]
    if len(scores) != len(passages):
        raise PromptflowError(
            f"rerank returned {len(scores)} scores for {len(passages)} passages: one each is needed"
        )
    scored = [
        replace(passage, score=score, scores={**passage.scores, "rerank": score})
        for passage, score in zip(passages, scores, strict=True)
    ]
    return sorted(scored, key=lambda passage: -passage.score)
