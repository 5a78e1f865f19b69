"""Metrics of texts by the words and characters that they share: ROUGE, BLEU, chrF.

ROUGE (Lin 2004) is counted here, since the tokenizer of the published package drops all letters
outside a to z; on English text the numbers are the same. BLEU (Papineni and others 2002) and chrF
(Popovic 2015) are sacrebleu's (Post 2018): ``pip install 'promptflow-local[metrics]'``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from promptflow.errors import MissingDependency
from promptflow.evaluation.corpus import Corpus
from promptflow.evaluation.meaning import text_of
from promptflow.evaluation.metrics import FIELD, graded, needs
from promptflow.normal import is_unspaced


def tokens(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    In Korean, Chinese, Japanese, Thai, Lao, Khmer and Burmese every character is one.
    """
    words = _words(text.isascii()).findall(unicodedata.normalize("NFC", text).lower())
    apart = [re.findall(r"\w|\W+", word) if is_unspaced(word) else [word] for word in words]
    return [token for part in apart for token in part]


@cache
def _words(plain: bool) -> re.Pattern[str]:
    """Return what finds words; a mark such as a vowel of Devanagari is part of its word."""
    if plain:
        return re.compile(r"[^\W_]+")
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
    return re.compile(f"(?:[^\\W_][{re.escape(marks)}]*)+")


@needs(FIELD)
def rouge_1(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return the F1 of the words that the text and a gold text share, 0 to 1, of the best gold."""
    return _best(example, prediction, field, lambda one, other: shared_ngrams(one, other, 1))


@needs(FIELD)
def rouge_2(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return the F1 of the pairs of neighbouring words that both texts have, 0 to 1."""
    return _best(example, prediction, field, lambda one, other: shared_ngrams(one, other, 2))


@needs(FIELD)
def rouge_l(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return the F1 of the longest common subsequence of words, 0 to 1, of the best gold text."""
    return _best(example, prediction, field, shared_sequence)


def _best(
    example: Any,
    prediction: Any,
    field: str | None,
    score: Callable[[Sequence[str], Sequence[str]], float],
) -> float:
    value, golds = graded(example, prediction, field)
    said = tokens(text_of(value))
    return max(score(said, tokens(text_of(gold))) for gold in golds)


def shared_ngrams(one: Sequence[str], other: Sequence[str], size: int) -> float:
    """Return the F1 of the runs of ``size`` tokens that two texts share, each as often as both."""
    counts = [
        Counter(tuple(text[i : i + size]) for i in range(len(text) - size + 1))
        for text in (one, other)
    ]
    return _f1((counts[0] & counts[1]).total(), counts[0].total(), counts[1].total())


def shared_sequence(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of two lists of tokens."""
    return _f1(longest_common(one, other), len(one), len(other))


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the table is a whole number of one bit a token (Crochemore and others 2001; Hyyro
    2004), so that a pool of thousands of texts is compared in a moment.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    row = whole = (1 << len(one)) - 1
    for token in other:
        met = row & places.get(token, 0)
        row = (row + met | row - met) & whole
    return len(one) - row.bit_count()


def _f1(common: int, first: int, second: int) -> float:
    return 2.0 * common / (first + second) if common else 0.0


@cache
def _scorer(name: str, *, spaced: bool = True, short: bool = False) -> Any:
    """Return sacrebleu's metric; characters are counted where no spaces part words."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingDependency(
            f"the metric {name!r} needs sacrebleu: pip install 'promptflow-local[metrics]'"
        ) from error
    if name == "chrf":
        return CHRF()
    return BLEU(tokenize="13a" if spaced else "char", effective_order=short)


def _counts(name: str) -> Callable[..., list[int]]:
    def statistic(example: Any, prediction: Any, *, field: str | None = None) -> list[int]:
        value, golds = graded(example, prediction, field)
        references = [text_of(gold) for gold in golds]
        scorer = _scorer(name, spaced=not any(map(is_unspaced, references)))
        # What sacrebleu's own bootstrap resamples: counts of one segment, which add up.
        [counts] = scorer._extract_corpus_statistics([text_of(value)], [[r] for r in references])
        return [int(count) for count in counts]

    return statistic


def _of_counts(name: str, **settings: bool) -> Callable[[Sequence[Sequence[int]]], float]:
    def score(statistics: Sequence[Sequence[int]]) -> float:
        summed = np.asarray(statistics).sum(axis=0).tolist()
        return float(_scorer(name, **settings)._compute_score_from_stats(summed).score) / 100.0

    return score


bleu = Corpus("bleu", _counts("bleu"), _of_counts("bleu"), alone=_of_counts("bleu", short=True))
"""BLEU of all runs, 0 to 1: sacrebleu's with its 13a tokenizer, or by characters without spaces.

Of one run alone its sentence BLEU: orders of n-grams that a short text does not have are left out.
"""

chrf = Corpus("chrf", _counts("chrf"), _of_counts("chrf"))
"""chrF2 of all runs, 0 to 1: the F2 of character n-grams up to six."""
