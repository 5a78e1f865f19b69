"""Hops: what one search finds makes the query of the next, for questions that no passage answers.

The model writes the query from the quotes that it has (as IRCoT and Baleen do: Trivedi et al. 2023,
arXiv:2212.10509); the rankings of all hops take turns, so that ``k`` passages stay ``k`` passages.
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

LINKING = 2
"""Passages of the first ranking whose text is looked at for the headings of others."""

SHORTEST = 3
"""Characters of a heading that can be a name."""


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
    """Search for ``question``, then ``hops - 1`` times for what the quotes lead to.

    ``writer`` writes those queries; without one (None) the best quote is the query. Inside a flow:
    ``found = yield from gathered(...)``. One hop asks no model. Of ``k`` passages the rankings of
    all hops have their turn, and so have those under a heading that the best passages name.
    """
    if hops == 1:
        return Gathered(tuple(index.search(question, k=k)), (question,))
    wide = list(index.search(question, k=2 * k))
    rankings, queries = [wide], [question]
    for _ in range(hops - 1):
        best = rank("\n".join(queries), fused(rankings, k), QUOTES)
        if not best:
            break
        if writer is None:
            query = best[0].text
        else:
            texts = [f"{e.heading}: {e.text}" if e.heading else e.text for e in best]
            [written] = yield [writer.call(quotes=texts, question=question)]
            query = " ".join(str(written.query).split())
        if not query or query in queries:
            break
        queries.append(query)
        rankings.append(list(index.search(query, k=k)))
    rankings.insert(1, linked(question, [p for ranking in rankings for p in ranking]))
    return Gathered(tuple(fused(rankings, k)), tuple(queries))


def linked(question: str, passages: Sequence[Passage]) -> list[Passage]:
    """Return passages whose heading one of the first two names, and the question does not."""
    named = "\n".join(passage.text for passage in passages[:LINKING]).casefold()
    found = []
    for passage in passages[LINKING:]:
        # What a title says in parentheses tells it from others of its name.
        title = passage.heading.rpartition(" > ")[2].partition(" (")[0].casefold()
        if len(title) >= SHORTEST and title in named and title not in question.casefold():
            found.append(passage)
    return found


def fused(rankings: Sequence[Sequence[Passage]], k: int) -> list[Passage]:
    """Return ``k`` passages: the next new one of each ranking in turn, with its best score.

    A second query finds much of what the first one found again: what is new in it is what counts.
    """
    best: dict[tuple[str, int], Passage] = {}
    for passage in (passage for ranking in rankings for passage in ranking):
        key = (passage.document, passage.chunk)
        if key not in best or passage.score > best[key].score:
            best[key] = passage
    chosen: list[tuple[str, int]] = []
    waiting = [iter([(p.document, p.chunk) for p in ranking]) for ranking in rankings]
    while waiting and len(chosen) < k:
        for keys in list(waiting):
            fresh = next((key for key in keys if key not in chosen), None)
            if fresh is None:
                waiting.remove(keys)
            else:
                chosen.append(fresh)
    return [best[key] for key in chosen[:k]]
