"""How much of a query one sentence of a passage says: words that stand together mean more."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from promptflow.retrieval.text import Word, sentence_spans, words


class Asked:
    """A query as sentences are compared with it: its words, and each with the one that follows."""

    def __init__(self, query: Sequence[Word], rarity: Sequence[float], *, pairs: bool) -> None:
        """Take the words in their order and how rare each is; ``pairs`` says if those count."""
        self._words: dict[tuple[str, ...], float] = {}
        self._pairs: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
        weighed = [(word.terms, weight) for word, weight in zip(query, rarity, strict=True)]
        for terms, weight in weighed:
            self._words[terms] = weight
        for (terms, weight), (after, following) in pairwise(weighed if pairs else ()):
            self._pairs[terms, after] = math.sqrt(weight * following)
        self._all = sum(self._words.values())
        self._all_pairs = sum(self._pairs.values())

    def closeness(self, heading: str, text: str, language: str) -> float:
        """Return the share of the query, from 0 to 1, that the best sentence of ``text`` holds.

        Its words count by their rarity, and as much again its pairs of words that follow one
        another, where it has any. The heading stands with every sentence.
        """
        if self._all <= 0:
            return 0.0
        above = words(heading, language)
        return max(
            (self._share(above, words(text[start:end], language))
             for start, end in sentence_spans(text, language)),
            default=0.0,
        )  # fmt: skip

    def _share(self, above: Sequence[str], said: Sequence[str]) -> float:
        held = {*above, *said}
        share = sum(w for terms, w in self._words.items() if not held.isdisjoint(terms)) / self._all
        if self._all_pairs <= 0:
            return share
        together = {*pairwise(above), *pairwise(said)}
        pairs = sum(w for pair, w in self._pairs.items() if _follow(*pair, held, together))
        return (share + pairs / self._all_pairs) / 2


def _follow(
    first: Collection[str],
    second: Collection[str],
    held: Collection[str],
    together: Collection[tuple[str, str]],
) -> bool:
    """Return whether a term of ``second`` stands right after one of ``first``."""
    return any((one, other) in together for one in first if one in held for other in second)
