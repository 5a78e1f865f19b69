"""Metrics of labels: accuracy, macro-F1, the confusion table, and how sure a program was.

Labels are options of a Literal, an Enum or a bool, or any short text. The probabilities of options
are those of a ``Predict(..., weigh=True)``; where the output was not weighed, a number from 0 to 1
in the field ``confidence`` stands in for the probability of what was said.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import numpy as np

from promptflow.errors import DataError
from promptflow.evaluation.corpus import Corpus, mean_of
from promptflow.evaluation.meaning import is_nothing, same, text_of
from promptflow.evaluation.metrics import FIELD, annotation_of, field_of, graded, needs
from promptflow.normal import normalize

BINS = 15
"""Bins of the calibration error, as in Guo and others 2017 (arXiv 1706.04599)."""


@needs(FIELD)
def accuracy(
    example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
) -> float:
    """Return 1.0 where the label is the gold label, else 0.0, as ``exact_match`` compares them.

    Raises NoGold, and DataError where the field has options and the gold label is none of them:
    every run would be wrong, whatever it said.
    """
    value, golds = graded(example, prediction, field)
    options = options_of(annotation_of(prediction, field_of(example, prediction, field)))
    if options and not any(same(option, gold) for option in options for gold in golds):
        raise DataError(
            f"the gold label {text_of(golds[0])!r:.80} is none of the options "
            f"{', '.join(repr(text_of(option)) for option in options)}; rename the labels of the "
            "data, or the options"
        )
    return float(any(same(value, gold) for gold in golds))


def options_of(annotation: Any) -> list[Any]:
    """Return the options of a type: of a Literal, an Enum, a bool, with None where it may be."""
    if annotation is bool:
        return [True, False]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if parts and len(parts) < len(get_args(annotation)):
        found = [options_of(part) for part in parts]
        return [*(one for options in found for one in options), None] if all(found) else []
    return []


def _labels(example: Any, prediction: Any, *, field: str | None = None) -> list[str]:
    """Return the gold label and the predicted one as texts; equal in meaning, equal as texts."""
    value, golds = graded(example, prediction, field)
    accuracy(example, prediction, field=field)  # refuses labels that no run could have
    gold = next((gold for gold in golds if same(value, gold)), golds[0])
    options = options_of(annotation_of(prediction, field_of(example, prediction, field)))
    name = next((text_of(o) for o in options if same(o, gold)), normalize(text_of(gold)))
    return [name, name if same(value, gold) else _spelled(value, options)]


def _spelled(value: Any, options: Sequence[Any]) -> str:
    named = next((text_of(option) for option in options if same(option, value)), None)
    return normalize(text_of(value)) if named is None else named


def confusion(pairs: Iterable[Sequence[str]]) -> dict[str, dict[str, int]]:
    """Return how often each gold label was called what, from pairs (gold, predicted).

    The rows are gold labels, the columns all labels that occur, both in alphabetical order.
    """
    counted = Counter((gold, said) for gold, said in pairs)
    names = sorted({name for pair in counted for name in pair})
    golds = sorted({gold for gold, _ in counted})
    return {gold: {name: counted[gold, name] for name in names} for gold in golds}


def macro_f1_of(pairs: Sequence[Sequence[str]]) -> float:
    """Return the mean over labels of each label's F1, from pairs (gold, predicted).

    Labels that occur on either side count alike, however rare, as in scikit-learn's ``f1_score``.
    """
    right = Counter(gold for gold, said in pairs if gold == said)
    golds, saids = Counter(gold for gold, _ in pairs), Counter(said for _, said in pairs)
    return mean_of([2 * right[n] / (golds[n] + saids[n]) for n in golds.keys() | saids.keys()])


def _sureness(example: Any, prediction: Any, *, field: str | None = None) -> list[float]:
    """Return the probability of what was said, and 1.0 where that was right."""
    shares, value = _probabilities(prediction, field_of(example, prediction, field))
    right = float(accuracy(example, prediction, field=field))
    said = next((share for option, share in shares.items() if same(option, value)), None)
    if said is None:
        raise DataError(f"the probabilities {dict(shares)!r:.120} do not have {value!r:.40}")
    return [said, right]


def _probabilities(prediction: Any, name: str) -> tuple[Mapping[Any, float], Any]:
    """Return the probability of each option of a field, and what the field holds."""
    value = prediction[name]
    if shares := (getattr(prediction, "_weighed", None) or {}).get(name):
        return shares, value
    stated = prediction.get("confidence")
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated <= 1:
        return {text_of(value): float(stated)}, value
    raise DataError(
        f"no probabilities of the options of {name!r}: make the program with Predict(..., "
        "weigh=True), or have it put out confidence: float(ge=0, le=1)"
    )


def expected_calibration_error(sure: Sequence[Sequence[float]], bins: int = BINS) -> float:
    """Return how far confidence and accuracy differ, from pairs (confidence 0 to 1, right 0 or 1).

    The mean over ``bins`` equal bins of the confidence, (0, 1/bins] first, weighted by their runs
    (Naeini and others 2015; Guo and others 2017, arXiv 1706.04599).
    """
    values = np.asarray(sure, dtype=np.float64).reshape(-1, 2)
    place = np.clip(np.ceil(values[:, 0] * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=values[:, 0] - values[:, 1], minlength=bins)
    return float(np.abs(gaps).sum() / len(values))


def _squared(example: Any, prediction: Any, *, field: str | None = None) -> float:
    """Return the Brier score of one run."""
    shares, _ = _probabilities(prediction, field_of(example, prediction, field))
    _, golds = graded(example, prediction, field)
    right = accuracy(example, prediction, field=field)
    if len(shares) < 2:  # the probability of what was said alone
        [share] = shares.values()
        return (share - right) ** 2
    gold = [float(any(same(option, one) for one in golds)) for option in shares]
    if len(gold) == 2:
        return (next(iter(shares.values())) - gold[0]) ** 2
    return math.fsum((p - y) ** 2 for p, y in zip(shares.values(), gold, strict=True))


def has_labels(annotation: Any) -> bool:
    """Say whether a field of this type holds one of a few options, or nothing."""
    return bool(options_of(annotation)) and not is_nothing(options_of(annotation))


macro_f1 = Corpus("macro_f1", _labels, macro_f1_of)
"""The mean of each label's F1 over all runs."""

ece = Corpus("ece", _sureness, expected_calibration_error, lower_is_better=True)
"""The expected calibration error of what the program said, over all runs."""

brier = Corpus("brier", _squared, mean_of, lower_is_better=True, bounds=(0.0, 2.0))
"""The mean squared error of the probabilities (Brier 1950).

Of two options that of the first, from 0 to 1; of more the sum over all of them, from 0 to 2, as in
scikit-learn's ``brier_score_loss``.
"""
