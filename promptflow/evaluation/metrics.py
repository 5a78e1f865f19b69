"""Metrics: ``metric(example, prediction, trace=None) -> float`` in 0 to 1, DSPy's convention.

A metric reads one field of the prediction and its gold value in the example: ``answer`` if there is
one, else the only field that has a gold value, else the one named by ``field=``. The gold value of
``answer`` may also stand in ``answers``. A list of gold values means alternatives: the best counts.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from promptflow.errors import DataError

Metric = Callable[..., Any]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A minus is a sign only where no digit, letter or closing bracket stands before it: 5-3 holds 5, 3.
_NUMBER = re.compile(r"(?<![\w.)])-?\$?\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+|\d[\d,]*(?:\.\d+)?")


def exact_match(
    example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
) -> float:
    """Return 1.0 if the value equals a gold value, else 0.0.

    Text is compared as SQuAD 1.1 does: without case, punctuation, articles and extra white space.
    Two values that are not text must be equal.
    """
    value, golds = graded(example, prediction, field)
    return max(_equal(value, gold) for gold in golds)


def f1(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return the largest token F1 with a gold value, 0.0 to 1.0.

    Normalised as in ``exact_match``. Where either side is empty the score is 1.0 if both are, as in
    SQuAD 2.0. A predicted list is scored item by item.
    """
    value, golds = graded(example, prediction, field)
    return max(_overlap(_tokens(value), _tokens(gold)) for gold in golds)


def numeric(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return 1.0 if the number in the value is the gold number, else 0.0.

    Of text the last number counts, or the first one after ``####`` (GSM8K). Thousands separators
    and a dollar sign are dropped. Raises DataError if no gold value holds a number.
    """
    value, golds = graded(example, prediction, field)
    numbers = [number for number in map(final_number, golds) if number is not None]
    if not numbers:
        raise DataError(
            f"metric 'numeric': no number in the gold value {golds[0]!r:.80}; "
            "give the example a number, or use 'exact_match'"
        )
    found = final_number(value)
    return float(found is not None and any(abs(found - gold) <= 1e-6 for gold in numbers))


def contains(
    example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
) -> float:
    """Return 1.0 if a gold value stands in the value as whole words, normalised, else 0.0."""
    value, golds = graded(example, prediction, field)
    text = f" {normalize(_text(value))} "
    return float(any(f" {normalize(_text(gold))} " in text for gold in golds))


def retrieved(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return the share of the example's ``documents`` among those of ``prediction.passages``."""
    return _recall(example, prediction, "passages")


def cited(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return the share of the example's ``documents`` among those of ``prediction.citations``."""
    return _recall(example, prediction, "citations")


METRICS: dict[str, Metric] = {
    metric.__name__: metric for metric in (exact_match, f1, numeric, contains, retrieved, cited)
}


def find_metric(name: str) -> Metric:
    """Return a metric by name: ``f1``, ``f1:field`` or ``module:function``.

    Raises DataError naming the metrics that exist.
    """
    head, _, tail = name.partition(":")
    if head in METRICS:
        return partial(METRICS[head], field=tail) if tail else METRICS[head]
    if tail:
        try:
            metric = getattr(importlib.import_module(head), tail)
        except (ImportError, AttributeError) as error:
            raise DataError(f"metric {name!r}: {error}; expected module:function") from error
        if not callable(metric):
            raise DataError(f"metric {name!r} is {type(metric).__name__}, not a function")
        return metric  # type: ignore[no-any-return]
    near = get_close_matches(name, METRICS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise DataError(f"no metric {name!r}. {hint}There are {', '.join(METRICS)}, or module:function")


def graded(example: Any, prediction: Any, field: str | None = None) -> tuple[Any, list[Any]]:
    """Return the predicted value and the gold values that it is compared with, at least one.

    Raises DataError if no field of the prediction has a gold value, or several have and ``field``
    does not choose.
    """
    names = [field] if field else [name for name in prediction if _gold_of(example, name)]
    if not field and "answer" in names:
        names = ["answer"]
    if len(names) != 1 or names[0] not in prediction or not (gold := _gold_of(example, names[0])):
        raise DataError(
            f"no single field to grade: the prediction has {', '.join(prediction)}, the "
            f"example {', '.join(example)}; name a field of both: --metric f1:FIELD, or "
            "f1(example, prediction, field=...)"
        )
    value = prediction[names[0]]
    golds = example[gold]
    if isinstance(golds, Mapping) and "text" in golds:
        golds = golds["text"]  # SQuAD on the hub: {"text": [...], "answer_start": [...]}
    alternatives = isinstance(golds, list | tuple) and not isinstance(value, list | tuple)
    golds = list(golds) if alternatives else [golds]
    if not golds:
        raise DataError(f"the gold field {gold!r} of an example is an empty list")
    return value, golds


def _gold_of(example: Any, name: str) -> str:
    inputs = getattr(example, "_input_keys", None) or ()
    for gold in (name, f"{name}s"):
        if gold in example and gold not in inputs:
            return gold
    return ""


def normalize(text: str) -> str:
    """Return ``text`` in SQuAD's normal form: no case, punctuation, articles or extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def final_number(value: Any) -> float | None:
    """Return a number as it is, of text the last number (after ``####`` the first), else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    text = str(value)
    _, mark, solution = text.rpartition("####")
    found = _NUMBER.findall(solution if mark else text)
    if not found:
        return None
    return float(found[0 if mark else -1].replace(",", "").replace("$", ""))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        return " ".join(map(str, value))
    return str(value)


def _equal(value: Any, gold: Any) -> float:
    if isinstance(value, str) or isinstance(gold, str):
        return float(normalize(_text(value)) == normalize(_text(gold)))
    return float(value == gold)


def _tokens(value: Any) -> list[str]:
    if isinstance(value, list | tuple | set | frozenset):
        return [normalize(str(item)) for item in value]
    return normalize(_text(value)).split()


def _overlap(value: list[str], gold: list[str]) -> float:
    if not value or not gold:
        return float(value == gold)
    common = sum((Counter(value) & Counter(gold)).values())
    return 2.0 * common / (len(value) + len(gold))


def _recall(example: Any, prediction: Any, field: str) -> float:
    if "documents" not in example or field not in prediction:
        raise DataError(
            f"the example needs 'documents' (names of the right documents) and the prediction "
            f"{field!r}; there are {', '.join(example)} and {', '.join(prediction)}"
        )
    gold = {str(name) for name in _listed(example["documents"])}
    found = {str(_document(item)) for item in _listed(prediction[field])}
    return len(gold & found) / len(gold) if gold else 1.0


def _listed(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, str) else value


def _document(item: Any) -> Any:
    return item["document"] if isinstance(item, Mapping) else getattr(item, "document", item)
