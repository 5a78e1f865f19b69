"""Hops: what one search finds makes the query of the next, for questions that no passage answers.

The model writes the query from the quotes that it has (as IRCoT and Baleen do: Trivedi et al. 2023,
arXiv:2212.10509); the rankings of all hops are fused, so that ``k`` passages stay ``k`` passages.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from promptflow.engine.request import Sampling
from promptflow.flow import Call
from promptflow.modules.evidence import rank
from promptflow.modules.predict import Predict
from promptflow.retrieval import Passage, Retriever
from promptflow.storage import find_document

QUOTES = 3
"""Sentences of the passages so far that the next query is written from."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Passages of all hops, best first, and what was asked for: the question, then the queries."""

    passages: tuple[Passage, ...]
    queries: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """Return all that was asked for as one text, to rank sentences by."""
        return "\n".join(self.queries)


def follow_up() -> Predict:
    """Return the predictor that writes the query of a further hop."""
    own = find_document("signatures", "follow_up_query", bundled_only=True)
    return Predict(own, sampling=Sampling())


def gathered(
    index: Retriever, writer: Any, question: str, k: int, hops: int
) -> Generator[list[Call], list[Any], Gathered]:
    """Search for ``question``, then ``hops - 1`` times for what ``writer`` asks after the quotes.

    Inside a flow: ``found = yield from gathered(...)``. One hop asks no model.
    """
    rankings, queries = [list(index.search(question, k=k))], [question]
    for _ in range(hops - 1):
        best = rank("\n".join(queries), fused(rankings, k), QUOTES)
        if not best:
            break
        texts = [f"{e.heading}: {e.text}" if e.heading else e.text for e in best]
        [written] = yield [writer.call(quotes=texts, question=question)]
        query = " ".join(str(written.query).split())
        if not query or query in queries:
            break
        queries.append(query)
        rankings.append(list(index.search(query, k=k)))
    return Gathered(tuple(fused(rankings, k)), tuple(queries))


def fused(rankings: Sequence[Sequence[Passage]], k: int) -> list[Passage]:
    """Return ``k`` passages of several rankings by reciprocal ranks; each once, as best scored."""
    if len(rankings) == 1:
        return list(rankings[0][:k])
    best: dict[tuple[str, int], Passage] = {}
    worth: dict[tuple[str, int], float] = {}
    for ranking in rankings:
        for place, passage in enumerate(ranking):
            key = (passage.document, passage.chunk)
            worth[key] = worth.get(key, 0.0) + 1.0 / (1 + place)
            if key not in best or passage.score > best[key].score:
                best[key] = passage
    # A stable sort: of equal passages that of the earlier hop.
    return [best[key] for key in sorted(best, key=lambda key: -worth[key])[:k]]
