"""The answer that a text states first, read by its kind: for what follows "the answer is"."""

from __future__ import annotations

import re
from typing import Any, Literal

from promptflow.evaluation.meaning import text_of
from promptflow.evaluation.metrics import FIELD, graded, needs
from promptflow.normal import folded
from promptflow.numerals import number_of, numbers_in, read_number

Kind = Literal["number", "option", "yes or no", "text"]

_LATIN = r"A-Za-z0-9\u00c0-\u024f"  # in Korean and Japanese a word goes on after an option
_OPTION = re.compile(rf"(?<![{_LATIN}])[A-Z](?![{_LATIN}]|['\u2019][a-z])")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_DRESS = re.compile(r"[\s.\"'\u2018\u2019\u201c\u201d]+")  # spaces, full stops, quotation marks


def kind_of(gold: Any) -> Kind:
    """Return what kind of answer a gold value is: a number, an option's letter, yes or no, text."""
    if isinstance(gold, bool):
        return "yes or no"
    text = text_of(gold).strip()
    if number_of(gold) is not None or read_number(text) is not None:
        return "number"
    if _OPTION.fullmatch(text):
        return "option"
    return "yes or no" if _YES_NO.fullmatch(text) else "text"


def stated_in(text: str, kind: Kind) -> Any:
    """Return the first answer of a kind that a text states, or None.

    As Kojima et al. 2022 (arXiv 2205.11916, appendix A.6) read what follows their second trigger: a
    number, a capital letter that stands alone, yes or no, or all of it. A number is one by value;
    an option's letter is upper case, yes or no lower; text is without case, spaces, full stops and
    quotation marks.

    >>> stated_in("C) stagger, or D", "option"), stated_in(' "n a o a".', "text")
    ('C', 'naoa')
    """
    text = folded(text)
    if kind == "number":
        return next(iter(numbers_in(text)), None)
    if kind == "text":
        return _DRESS.sub("", text).casefold() or None
    found = (_OPTION if kind == "option" else _YES_NO).search(text)
    return found and (found.group() if kind == "option" else found.group().lower())


def states(value: Any, gold: Any) -> bool:
    """Say whether the first answer of the gold value's kind that a value states is that one."""
    kind = kind_of(gold)
    told = ("no", "yes")[gold] if isinstance(gold, bool) else text_of(gold)
    answer = number_of(gold) if kind == "number" else None
    answer = stated_in(told, kind) if answer is None else answer
    said = ("no", "yes")[value] if isinstance(value, bool) else text_of(value)
    return answer is not None and stated_in(said, kind) == answer


@needs(FIELD)
def stated(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return 1.0 if the first answer that the value states is a gold value, else 0.0.

    For what a model wrote after "the answer is", with more behind it: of the gold value's kind, the
    first number, capital letter that stands alone, or yes or no; else the whole text without
    spaces, full stops and quotation marks. Raises NoGold, and DataError as ``graded`` does.
    """
    value, golds = graded(example, prediction, field)
    return float(any(states(value, gold) for gold in golds))
