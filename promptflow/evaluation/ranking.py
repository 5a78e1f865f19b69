"""Metrics of what was found and cited: mean reciprocal rank, nDCG, citation precision and recall.

The example's ``documents`` are the names of the right documents, or a mapping of names to grades.
A document that stands several times in a ranking counts at its first place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from promptflow.errors import DataError, NoGold
from promptflow.evaluation.meaning import parsed
from promptflow.evaluation.metrics import DOCUMENTS, needs
from promptflow.normal import normalize, stands_in


@needs(DOCUMENTS)
def mrr(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return 1 / the place of the first right document among ``prediction.passages``, 0 if none."""
    grades, ranked = _grades(example), _ranked(example, prediction)
    places = (place for place, name in enumerate(ranked, 1) if grades.get(name, 0) > 0)
    return 1.0 / place if (place := next(places, 0)) else 0.0


@needs(DOCUMENTS)
def ndcg(example: Any, prediction: Any, trace: Any = None, *, k: int = 10) -> float:
    """Return the normalised discounted cumulative gain of the first ``k`` documents, 0 to 1.

    Jarvelin and Kekalainen 2002, with grades as gains and log2(place + 1) as discount: what TREC
    and BEIR report.
    """
    grades, ranked = _grades(example), _ranked(example, prediction)
    best = _gain(sorted(grades.values(), reverse=True)[:k])
    return _gain(grades.get(name, 0.0) for name in ranked[:k]) / best if best else 0.0


def _gain(grades: Iterable[float]) -> float:
    return math.fsum(grade / math.log2(place + 1) for place, grade in enumerate(grades, 1))


@needs(DOCUMENTS)
def retrieved(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return the share of the example's ``documents`` among those of ``prediction.passages``."""
    names = _grades(example)
    return len(names.keys() & set(_ranked(example, prediction))) / len(names) if names else 1.0


@needs(DOCUMENTS)
def citation_precision(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return the share of ``prediction.citations`` that are right.

    A citation is right where its document is one of the example's ``documents`` and, where the
    example has ``quotes``, its quote shares the words of one of them: the one stands in the other.
    Without citations 1.0 where no document is right, else 0.0.
    """
    names, quotes = _grades(example), _quotes(example)
    cited = _items(_field(example, prediction, "citations"))
    if not cited:
        return float(not names)
    return sum(_is_right(one, names, quotes) for one in cited) / len(cited)


@needs(DOCUMENTS)
def citation_recall(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return the share of what should be cited that ``prediction.citations`` has.

    Of the example's ``quotes`` where it has them, else of its ``documents``. 1.0 where nothing
    should be.
    """
    names, quotes = _grades(example), _quotes(example)
    cited = [
        one
        for one in _items(_field(example, prediction, "citations"))
        if _is_right(one, names, quotes)
    ]
    if quotes:
        met = (any(_meet(_quote(one), quote) for one in cited) for quote in quotes)
        return sum(met) / len(quotes)
    found = {_name(one) for one in cited}
    return len(found & names.keys()) / len(names) if names else 1.0


def _is_right(citation: Any, names: Mapping[str, float], quotes: list[str]) -> bool:
    right = names.get(_name(citation), 0.0) > 0
    return right and (not quotes or any(_meet(_quote(citation), quote) for quote in quotes))


def _meet(one: str, other: str) -> bool:
    one, other = normalize(one), normalize(other)
    return bool(one and other) and (stands_in(one, other) or stands_in(other, one))


def _grades(example: Any) -> dict[str, float]:
    given = example.get("documents")
    given = parsed(given) or given if isinstance(given, str) else given  # a table's cell
    if given is None:
        raise NoGold(f"the example has no 'documents' to be found; it has {', '.join(example)}")
    if isinstance(given, Mapping):
        return {str(name): float(grade) for name, grade in given.items() if float(grade) > 0}
    return dict.fromkeys((str(name) for name in _items(given)), 1.0)


def _quotes(example: Any) -> list[str]:
    given = example.get("quotes")
    given = parsed(given) or given if isinstance(given, str) else given
    return [str(quote) for quote in _items(given)]


def _ranked(example: Any, prediction: Any) -> list[str]:
    return list(dict.fromkeys(map(_name, _items(_field(example, prediction, "passages")))))


def _field(example: Any, prediction: Any, name: str) -> Any:
    if name not in prediction:
        raise DataError(
            f"the metric needs {name!r} in the prediction, which has {', '.join(prediction)}"
        )
    return prediction[name]


def _items(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _name(item: Any) -> str:
    return str(item["document"] if isinstance(item, Mapping) else getattr(item, "document", item))


def _quote(item: Any) -> str:
    return str(item["quote"] if isinstance(item, Mapping) else getattr(item, "quote", ""))
