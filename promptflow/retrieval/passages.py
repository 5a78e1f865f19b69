"""What a search returns, and what of searching needs no index: fusion, filters, reranking."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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

    ``score`` is a cosine (dense), a BM25 score (sparse), a sum of reciprocal ranks (hybrid), or
    what the reranker said: comparable within one search only, cosines also between searches.
    """

    document: str
    chunk: int
    start: int
    end: int
    text: str
    score: float
    heading: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def prompt_text(self) -> str:
        """Return what a prompt shows of it."""
        return self.text


def passage_of(row: Row, score: float) -> Passage:
    """Return the passage of a stored chunk; of a PDF, with the page that it starts on."""
    metadata = dict(row.metadata)
    pages = metadata.pop("pages", None)
    if pages:
        metadata["page"] = bisect.bisect_right(pages, row.start)
    return Passage(row.document, row.id, row.start, row.end, row.text, score, row.heading, metadata)


def fuse(rankings: Sequence[Ranking], k: int) -> Ranking:
    """Return the ``k`` best ids by the sum of 1 / (60 + rank) over the rankings, ties by id."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (chunk, _) in enumerate(ranking, 1):
            scores[chunk] = scores.get(chunk, 0.0) + 1.0 / (RANK_CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def matching(documents: Sequence[Mapping[str, Any]], where: Where) -> list[str]:
    """Return the paths of the documents that ``where`` allows.

    A mapping names metadata and the value, or the list of values, it must have; ``document`` takes
    globs. A callable is given each document's metadata. Raises PromptflowError for a key that no
    document has.
    """
    tables = {
        str(entry["path"]): {**entry["metadata"], "kind": entry["kind"], "document": entry["path"]}
        for entry in documents
    }
    if callable(where):
        return [path for path, table in tables.items() if where(table)]
    known = {key for table in tables.values() for key in table} - {"pages"}
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
        return any(glob_pattern(str(glob)).fullmatch(table[key]) for glob in choices)
    return key in table and table[key] in choices


def reranked(query: str, passages: Sequence[Passage], rerank: Rerank) -> list[Passage]:
    """Return the passages by the scores that ``rerank`` gives them, best first."""
    scores = [float(score) for score in rerank(query, passages)]
    if len(scores) != len(passages):
        raise PromptflowError(
            f"rerank returned {len(scores)} scores for {len(passages)} passages: one each is needed"
        )
    scored = [
        Passage(p.document, p.chunk, p.start, p.end, p.text, score, p.heading, p.metadata)
        for p, score in zip(passages, scores, strict=True)
    ]
    return sorted(scored, key=lambda passage: -passage.score)
