"""Metrics: ``metric(example, prediction, trace=None) -> float`` in 0 to 1, DSPy's convention.

A metric reads one field of the prediction and its gold value in the example: ``answer`` if there is
one, else the only field that has a gold value, else the one named by ``field=``. The gold value of
``answer`` may also stand in ``answers``. A list of gold values means alternatives: the best counts;
an empty one, or empty text, means that there is no answer, as in SQuAD 2.0. Where the example has
no gold value at all, ``NoGold`` is raised, and ``evaluate`` leaves the example out and counts it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from promptflow.errors import DataError, NoGold
from promptflow.evaluation.meaning import (
    has_fields,
    is_many,
    is_nothing,
    overlap,
    parsed,
    same,
    text_of,
)
from promptflow.normal import normalize, stands_in
from promptflow.numerals import Number, number_of, numbers_in, read_number

Metric = Callable[..., Any]

M = TypeVar("M", bound=Metric)

FIELD, DOCUMENTS = "field", "documents"


def needs(what: str) -> Callable[[M], M]:
    """Mark what a metric needs of an example: a gold value of a FIELD, or the right DOCUMENTS.

    An example without it is left out of a score before anything is run.
    """

    def marked(metric: M) -> M:
        vars(metric)["needs"] = what
        return metric

    return marked


@needs(FIELD)
def exact_match(
    example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
) -> float:
    """Return 1.0 if the value means what a gold value means, else 0.0.

    A gold value of a file is read as the field's type: an Enum by value or name, a model, list or
    dict from JSON, a bool from yes and no, a date from any form that means one day. Numbers are
    compared exactly, floats by their shortest decimal, also where both sides are text and nothing
    but a number. Other text is compared as SQuAD 1.1 does, in any script: without case,
    punctuation, articles, extra white space and Unicode's variants; marks between digits and a
    minus before them count. Raises NoGold, and DataError for a date that may be two days.
    """
    value, golds = graded(example, prediction, field)
    return float(any(same(value, gold) for gold in golds))


@needs(FIELD)
def f1(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return the largest F1 with a gold value, 0.0 to 1.0; 1.0 wherever ``exact_match`` is.

    Of text the words count, normalised as there; where either side is Korean, Chinese, Japanese,
    Thai, Lao, Khmer or Burmese, each character does, as in KorQuAD (Lim and others, 2019, arXiv
    1909.07005), but for words in other scripts. Lists are scored item by item, models and
    mappings field by field; other types are right or wrong. Raises as ``exact_match`` does.
    """
    value, golds = graded(example, prediction, field)
    return max(overlap(value, gold) for gold in golds)


@needs(FIELD)
def numeric(example: Any, prediction: Any, trace: Any = None, *, field: str | None = None) -> float:
    """Return 1.0 if the number in the value is the gold number, else 0.0.

    Of text the last number counts, or the first one after ``####`` (GSM8K): see ``final_number``.
    Numbers are equal exactly, or where one is a float to 12 digits. Raises NoGold, and DataError if
    no gold value holds a number.
    """
    value, golds = graded(example, prediction, field)
    pairs = [(gold, number) for gold in golds if (number := final_number(gold)) is not None]
    if not pairs:
        raise DataError(
            f"metric 'numeric': no number in the gold value {golds[0]!r:.80}; "
            "give the example a number, or use 'exact_match'"
        )
    found = final_number(value)
    if found is None:
        return 0.0
    return float(
        any(
            found == number
            or (
                (isinstance(value, float) or isinstance(gold, float))
                and abs(float(found) - float(number)) <= 1e-12 * abs(float(number))
            )
            for gold, number in pairs
        )
    )


@needs(FIELD)
def contains(
    example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
) -> float:
    """Return 1.0 if a gold value stands in the value as whole words, normalised, else 0.0.

    Korean words may go on after it; in scripts without spaces it may stand anywhere. Of a list of
    golds for a list, every item must.
    """
    value, golds = graded(example, prediction, field)
    return float(any(_contains(value, gold) for gold in golds))


def graded(example: Any, prediction: Any, field: str | None = None) -> tuple[Any, list[Any]]:
    """Return the predicted value and the gold values that it is compared with, at least one.

    Raises NoGold where no field of the prediction has a gold value, and DataError where several
    have and ``field`` does not choose, or the prediction lacks ``field``.
    """
    name = field_of(example, prediction, field)
    gold = _gold_of(example, name)
    annotation = annotation_of(prediction, name)
    if not gold or not _may_be(example[gold], annotation):
        raise no_gold(example, [name])
    value = prediction[name]
    golds = alternatives(value, example[gold])
    if all(_are_unlike(value, one, annotation) for one in golds):
        raise DataError(
            f"the gold value of {name!r}, {golds[0]!r:.80}, cannot be compared with "
            f"{value!r:.80}: give the field the type of the gold value, or name another column"
        )
    return value, golds


def field_of(example: Any, prediction: Any, field: str | None = None) -> str:
    """Return the field that is graded: ``field``, else ``answer``, else the only one with a gold.

    Raises as ``graded`` does.
    """
    if field is not None and field not in prediction:
        raise DataError(f"no field {field!r} to grade: the prediction has {', '.join(prediction)}")
    names = [field] if field else [name for name in prediction if _gold_of(example, name)]
    if not field and "answer" in names:
        names = ["answer"]
    if len(names) > 1:
        raise _several(prediction, example)
    if not names:
        raise no_gold(example, prediction)
    return names[0]


def _several(outputs: Iterable[str], example: Any) -> DataError:
    return DataError(
        f"no single field to grade: the prediction has {', '.join(outputs)}, the "
        f"example {', '.join(example)}; name a field of both: --metric f1:FIELD, or "
        "f1(example, prediction, field=...)"
    )


def no_gold(example: Any, names: Iterable[str]) -> NoGold:
    """Return the error of an example in which none of the fields ``names`` has a gold value."""
    looked = ", ".join(repr(name) for name in names)
    return NoGold(
        f"the example has no gold value for {looked}; it has {', '.join(example)}. Name the "
        "field: --metric f1:FIELD, or the column: --column 'COLUMN=FIELD'"
    )


def bound(metric: Metric, data: Sequence[Any], outputs: Mapping[str, Any] | None) -> Metric:
    """Return a metric of this module bound to the one field that it grades in all of ``data``.

    ``outputs`` are the fields that the program puts out, with their types, None where that is not
    known; the metric is then what it was, and so are those of others. Raises DataError where
    several fields have gold values, or the field is none of the program's.
    """
    function, keywords = unbound(metric)
    field = keywords.get("field")
    if _needed(function) != FIELD or outputs is None:
        return metric
    if field is not None:
        if field not in outputs:
            raise DataError(
                f"no field {field!r} to grade: the program puts out {', '.join(outputs)}"
            )
        return metric
    names = [name for name in outputs if any(_gold_of(example, name) for example in data)]
    if "answer" in names:
        names = ["answer"]
    if len(names) > 1:
        raise _several(outputs, data[0])
    return partial(metric, field=names[0]) if names else metric


def unbound(metric: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the function of a metric, and what it is bound to, such as its ``field``."""
    return (metric.func, metric.keywords) if isinstance(metric, partial) else (metric, {})


def has_gold(metric: Metric, example: Any, outputs: Mapping[str, Any] | None = None) -> bool:
    """Say before a program runs whether a metric can find a gold value in an example.

    ``outputs`` as for ``bound``. True for metrics of others.
    """
    function, keywords = unbound(metric)
    field = keywords.get("field")
    if _needed(function) == DOCUMENTS:
        return "documents" in example
    if _needed(function) != FIELD:
        return True
    if field is None and outputs is None:
        return bool(set(example) - set(_inputs(example)) - {"id"})
    types = outputs or {}
    golds = [(_gold_of(example, n), types.get(n, _Unknown)) for n in ([field] if field else types)]
    return any(gold and _may_be(example[gold], annotation) for gold, annotation in golds)


def _needed(function: Any) -> str:
    return str(getattr(function, "needs", ""))


class _Unknown:
    """Stands for the type of a field of which nothing is known."""


def _inputs(example: Any) -> Iterable[str]:
    return getattr(example, "_input_keys", None) or ()


def _gold_of(example: Any, name: str) -> str:
    """Return the name under which an example has a field's gold value, one with a value first."""
    found = [g for g in (name, f"{name}s") if g in example and g not in _inputs(example)]
    return next((gold for gold in found if example[gold] is not None), (found or [""])[0])


def annotation_of(prediction: Any, name: str) -> Any:
    """Return the type of a field in the last call that put it out, on the way to a prediction.

    None where the calls did not; ``_Unknown`` without calls.
    """
    trace = getattr(prediction, "_trace", ())
    outputs = (predictor.signature.output_fields for predictor, _, _ in reversed(trace))
    missing = None if trace else _Unknown
    return next((fields[name].annotation for fields in outputs if name in fields), missing)


def _may_be(gold: Any, annotation: Any) -> bool:
    """Say whether what an example holds is a gold value of a field of this type.

    Where there is none, files hold null or an empty cell. Such a one is a value only for a field
    that may be empty; empty text is the right answer where there is none, as in SQuAD 2.0.
    """
    if annotation is _Unknown or not is_nothing(gold):
        return True
    null = gold is None or gold != gold
    if annotation is None or annotation is str:
        return not null
    empties: tuple[Any, ...] = (None,) if null else (None, "", [], {})
    return any(_accepts(annotation, empty) for empty in empties)


def _are_unlike(value: Any, gold: Any, annotation: Any) -> bool:
    """Say whether one side has fields and the other never can, so that all would score 0."""
    if is_nothing(gold) or value is None:
        return False
    if has_fields(gold):
        plain = annotation in (str, int, float, bool, _Unknown)
        written = isinstance(value, str) and value.lstrip().startswith("{")
        return plain and not has_fields(value) and not is_many(value) and not written
    if not isinstance(gold, str) or parsed(gold) is not None:
        return False
    record = isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or is_dataclass(annotation)
    )
    return record and not _accepts(annotation, gold)


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    except (PydanticUserError, TypeError):
        return True
    return True


def alternatives(value: Any, gold: Any) -> list[Any]:
    """Return the gold values that a value is compared with, at least one.

    A list holds alternatives unless the value is one, in a table's cell too; SQuAD and TriviaQA on
    the hub have objects of lists. Where there is no answer the one gold value is empty text.
    """
    value = value.value if isinstance(value, enum.Enum) else value
    if isinstance(gold, str) and not is_many(value) and not has_fields(value):
        inner = parsed(gold)  # a list in the cell of a table
        return [gold] if inner is None else [*alternatives(value, inner), gold]
    if isinstance(gold, str) and is_many(value) and is_many(inner := parsed(gold)):
        return alternatives(value, inner) if _are_lists(inner, value) else [gold]
    if isinstance(gold, Mapping) and not has_fields(value):
        if "text" in gold:  # SQuAD on the hub: {"text": [...], "answer_start": [...]}
            return alternatives(value, gold["text"])
        if "aliases" in gold:  # TriviaQA on the hub
            return [gold[key] for key in ("value",) if key in gold] + list(gold["aliases"])
    if not is_many(gold) or (is_many(value) and not _are_lists(gold, value)):
        return [gold]
    if has_fields(gold):  # a named tuple
        return [gold]
    return list(gold) or [""]


def _are_lists(gold: Any, value: Any) -> bool:
    """Say whether a gold value holds several lists, and the predicted list none."""
    return bool(gold) and all(map(is_many, gold)) and not any(map(is_many, value))


def final_number(value: Any) -> Number | None:
    """Return a number as it is, of text the last number (after ``####`` the first), else None.

    ``$1,234.50``, ``-5``, ``1e3``, ``6 x 10^23``, ``1/2``, ``5 million`` and ``3만 5천`` are
    numbers; dates, times and versions are none.
    """
    if (number := number_of(value)) is not None:
        return number
    text = text_of(value)
    if (whole := read_number(text)) is not None:
        return whole.value
    _, mark, solution = text.rpartition("####")
    found = numbers_in(solution if mark else text)
    return found[0 if mark else -1] if found else None


def _contains(value: Any, gold: Any) -> bool:
    if is_nothing(gold) or is_nothing(value) or same(value, gold):
        return same(value, gold)
    if is_many(value) and isinstance(gold, str) and is_many(inner := parsed(gold)):
        gold = inner
    if is_many(gold):
        return all(_contains(value, item) for item in gold)
    asked, said = text_of(gold), text_of(value)
    if normalize(asked) in ("a", "an", "the"):  # the option A, not any article
        return re.search(rf"\b{re.escape(asked.strip())}\b", said) is not None
    return stands_in(normalize(asked), normalize(said))
