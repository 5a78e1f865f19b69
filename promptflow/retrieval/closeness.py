"""How much of a query one sentence of a passage says: words that stand together mean more."""

from __future__ import annotations

from collections.abc import Sequence

from promptflow.retrieval.text import Word, language_of, sentence_spans, words


def closeness(asked: Sequence[Word], rarity: Sequence[float], heading: str, text: str) -> float:
    """Return the share of the words ``asked`` for that the best sentence of ``text`` holds.

    Each word counts by its ``rarity``; the words of the heading stand with every sentence.
    """
    weights = {word.terms: weight for word, weight in zip(asked, rarity, strict=True)}
    total = sum(weights.values())
    if total <= 0:
        return 0.0
    language = language_of(text)
    above = set(words(heading, language))
    best = 0.0
    for start, end in sentence_spans(text, language):
        held = above.union(words(text[start:end], language))
        best = max(best, sum(w for terms, w in weights.items() if not held.isdisjoint(terms)))
    return best / total
