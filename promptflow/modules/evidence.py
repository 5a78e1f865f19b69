"""Evidence for an answer: sentences of passages as exact spans, ranked and checked by code.

A small model is a poor judge of what its passages say. What code can decide is decided here: which
sentences speak of the question, whether a name or a number occurs in them, and whether a quote is
the text of its span.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from promptflow.retrieval import Citation, Passage, read_passage

_WORD = re.compile(r"[^\W_]+(?:[-.'][^\W_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_EMPTY_WORDS = frozenset(
    word
    for line in (
        "a about an and any are as at be been by can could did do does for from had has have how",
        "if in into is it its many may me more most much my no not of on or our shall should so",
        "some than that the their them then there these they this those to was we were what when",
        "where which who whom whose why will with would you your",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A sentence that may support an answer, with the headings that it stands under.

    ``score`` adds the passage's similarity to the share of the question's words found here, each
    weighted by its rarity among the sentences.
    """

    citation: Citation
    heading: str
    score: float

    @property
    def text(self) -> str:
        """Return the quote on one line."""
        return " ".join(self.citation.quote.split())


def rank(question: str, passages: Sequence[Passage], count: int) -> list[Evidence]:
    """Return the ``count`` sentences that say most about ``question``, best first."""
    quoted = [
        (passage, citation) for passage in passages for citation in read_passage(passage).quotes()
    ]
    held = [stems(f"{p.heading} {c.quote}") for p, c in quoted]
    frequency = Counter(stem for one in held for stem in one)
    wanted = {s: math.log((1 + len(held)) / (1 + frequency[s])) + 1e-9 for s in stems(question)}
    total = math.fsum(wanted.values()) or 1.0
    found = [
        Evidence(c, p.heading, p.score + math.fsum(wanted.get(s, 0.0) for s in one) / total)
        for (p, c), one in zip(quoted, held, strict=True)
    ]
    # A stable sort: of equal sentences the one of the better passage, then the earlier one.
    return sorted(found, key=lambda evidence: -evidence.score)[:count]


def stems(text: str) -> set[str]:
    """Return the words of ``text`` that carry meaning, cut to six letters."""
    words = (word.casefold() for word in _WORD.findall(text))
    return {word.removesuffix("'s")[:6] for word in words if word not in _EMPTY_WORDS}


def named_terms(question: str) -> set[str]:
    """Return the names and numbers in a question, case-folded: what an answer must be about.

    Names are capitalised words after the first, and words with digits or inner capitals.
    """
    terms = set()
    for number, word in enumerate(_WORD.findall(question)):
        inner = any(c.isupper() or c.isdigit() for c in word[1:]) or word[:1].isdigit()
        if inner or (number and word[:1].isupper() and word.casefold() not in _EMPTY_WORDS):
            terms.add(word.casefold().removesuffix("'s"))
    return terms


def missing_terms(question: str, texts: Iterable[str]) -> set[str]:
    """Return the named terms of ``question`` that ``texts`` do not hold; plurals may differ."""
    whole = "\n".join(texts).casefold()
    return {term for term in named_terms(question) if not _holds(whole, term)}


def _holds(text: str, term: str) -> bool:
    pattern = rf"(?<![^\W_]){re.escape(term.removesuffix('s'))}s?(?![^\W_])"
    return re.search(pattern, text) is not None


def missing_numbers(answer: str, texts: Iterable[str]) -> set[str]:
    """Return the numbers in ``answer`` that ``texts`` do not hold, compared by value."""
    held = {_value(number) for text in texts for number in _NUMBER.findall(text)}
    return {number for number in _NUMBER.findall(answer) if _value(number) not in held}


def _value(number: str) -> str:
    plain = number.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
