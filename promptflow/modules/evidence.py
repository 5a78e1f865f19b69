"""Evidence for an answer: which quotes of passages speak of a text, by its words and its numbers.

Words are the terms of the text's language, each weighted by its rarity among the quotes. Nothing
here refuses an answer for a word: it orders quotes, and compares numbers by value.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptflow.normal import is_unspaced, words
from promptflow.numerals import (
    Number,
    date_numbers,
    number_spans,
    numbers_in,
    read_number,
    spelled_numbers,
)
from promptflow.retrieval import Citation, Passage, Reading, read_passage
from promptflow.retrieval.quotes import shown
from promptflow.retrieval.text import content_words, normal
from promptflow.storage import read_text, toml_loads


@dataclass(frozen=True, slots=True)
class Evidence:
    """A quote that may support an answer, with the headings that it stands under.

    ``score`` is the share of the wanted words found here, each weighted by its rarity among the
    quotes; ``place`` is the rank of its passage, from 0.
    """

    citation: Citation
    heading: str
    score: float
    place: int = 0

    @property
    def text(self) -> str:
        """Return the quote as a prompt shows it."""
        return shown(self.citation.quote)


def rank(wanted: str, passages: Sequence[Passage], count: int) -> list[Evidence]:
    """Return the ``count`` quotes that say most of what is ``wanted``, best first."""
    return ranked(wanted, [read_passage(passage) for passage in passages])[:count]


def ranked(wanted: str, readings: Sequence[Reading]) -> list[Evidence]:
    """Return the quotes of readings by the words of ``wanted`` in them, best first.

    Quotes that say the same are given once.
    """
    quoted: dict[str, tuple[int, Citation]] = {}
    for place, reading in enumerate(readings):
        for citation in reading.quotes():
            quoted.setdefault(shown(citation.quote).casefold(), (place, citation))
    scores = overlaps(wanted, [citation for _, citation in quoted.values()])
    found = [Evidence(c, c.heading, scores[c], place) for place, c in quoted.values()]
    # A stable sort: of equal quotes that of the better passage, then the earlier one.
    return sorted(found, key=lambda evidence: -evidence.score)


def overlaps(wanted: str, citations: Sequence[Citation]) -> dict[Citation, float]:
    """Return the share of the words of ``wanted`` in each quote, weighted by rarity among them.

    From 0 to 1. A heading counts for the quotes under it.
    """
    held = [set(content_words(f"{c.heading}\n{c.quote}")) for c in citations]
    frequency = Counter(term for terms in held for term in terms)
    weights = {
        term: math.log((1 + len(held)) / (1 + frequency[term])) + 1e-9
        for term in set(content_words(wanted))
    }
    total = math.fsum(weights.values()) or 1.0
    shares = (math.fsum(weights[t] for t in weights.keys() & terms) / total for terms in held)
    return dict(zip(citations, shares, strict=True))


def best_place(
    scores: Mapping[Citation, float], reading: Reading, answer: str
) -> tuple[int, int] | None:
    """Return where in a reading an answer stands: in the quote of the highest score.

    What breaks off within a number or a word goes on to its end: "3" of "3 million" is another
    number. None where the answer does not stand there.
    """
    places = [_whole(reading.text, *place) for place in reading.places(answer)]
    quoted = [(place, reading.cited(*place)) for place in places]
    known = [(max(scores.get(c, 0.0) for c in cited), place) for place, cited in quoted if cited]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def _whole(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span with the whole of the numbers and the words of an alphabet that it cuts."""
    for first, last in number_spans(text):
        if first < end and start < last:
            start, end = min(start, first), max(end, last)
    while start and _goes_on(text[start - 1 : start + 1]):
        start -= 1
    while end < len(text) and _goes_on(text[end - 1 : end + 1]):
        end += 1
    return start, end


def _goes_on(pair: str) -> bool:
    """Say whether two characters are of one word; words that no space parts are never cut."""
    return len(pair) == 2 and all(c.isalpha() and ord(c) < 0x0E00 for c in pair)


def agreements(answers: Sequence[tuple[str, float]]) -> list[float]:
    """Return of each answer how far all of them say the same: the mean F1 of their words, 0 to 1.

    Each counts by its probability, whose logarithm is given with it. Where words are not told by
    spaces, or have particles behind them, of their characters.
    """
    if not answers:
        return []
    most = max(logprob for _, logprob in answers)
    weights = [math.exp(logprob - most) for _, logprob in answers]
    total = math.fsum(weights)
    return [
        math.fsum(w * _f1(one, other) for w, (other, _) in zip(weights, answers, strict=True))
        / total
        for one, _ in answers
    ]


def _f1(one: str, other: str) -> float:
    apart = is_unspaced(one)
    own, said = (Counter(words(text, apart=apart)) for text in (one, other))
    both = (own & said).total()
    return 2.0 * both / (own.total() + said.total()) if both else 0.0


def repeated(question: str, answer: str) -> float:
    """Return the share of an answer's words that its question holds already, 0 to 1."""
    said = set(content_words(answer))
    return len(said & set(content_words(question))) / len(said) if said else 0.0


def nearness(question: str, answer: str, quotes: Iterable[str]) -> float | None:
    """Return how near the question's words stand to an answer in the best of quotes, 0 to 1.

    Each word counts one over the square root of its distance in words; those that are missing, and
    those within the answer, nothing. None where no quote holds the answer as whole words.
    """
    wanted = frozenset(content_words(question))
    shares = [_near(wanted, answer, quote) for quote in quotes]
    return max((share for share in shares if share is not None), default=None)


_WORD = re.compile(r"\w+")


def _near(wanted: frozenset[str], answer: str, quote: str) -> float | None:
    at = quote.find(answer)
    found = list(_WORD.finditer(quote))
    inside = [n for n, word in enumerate(found) if at <= word.start() < at + len(answer)]
    if at < 0 or not inside or not wanted:
        return None
    first, last = inside[0], inside[-1]
    nearest: dict[str, int] = {}
    for number, word in enumerate(found):
        distance = max(first - number, number - last)
        if distance > 0:
            for term in wanted.intersection(content_words(word[0])):
                nearest[term] = min(distance, nearest.get(term, distance))
    return math.fsum(distance**-0.5 for distance in nearest.values()) / len(wanted)


def strange_numbers(answer: str, texts: Iterable[str]) -> list[str]:
    """Return the numbers of an answer that no text holds; 3 million is 3,000,000.

    Those in dates, times and versions do not count.
    """
    held = {value for text in texts for value in _values(normal(text))}
    answer = normal(answer)
    found = (answer[start:end] for start, end in number_spans(answer))
    return [number for number in found if not held.issuperset(numbers_in(number))]


def _values(text: str) -> Iterator[Number]:
    """Give the numbers of a text, in digits, in words and in dates; 0125 is a name."""
    for start, end in number_spans(text):
        reading = read_number(text[start:end])
        if reading is not None and reading.sure:
            yield reading.value
    yield from spelled_numbers(text)
    yield from date_numbers(text)


@functools.cache
def _explanations() -> tuple[re.Pattern[str], ...]:
    table = toml_loads(read_text(Path(__file__).with_name("explanations.toml")))
    return tuple(re.compile(pattern) for patterns in table.values() for pattern in patterns)


def asks_to_explain(question: str) -> bool:
    """Say whether a question asks for more than a name, a number, a date or a phrase.

    By the words of ``explanations.toml``: English, German, French, Spanish, Korean, Japanese and
    Chinese. It decides how an answer is written and checked, never whether there is one.
    """
    text = " ".join(shown(question).casefold().split())
    return any(pattern.search(text) for pattern in _explanations())
