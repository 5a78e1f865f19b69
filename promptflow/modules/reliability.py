"""How far a judge can be trusted: agreement beyond chance, and what changes with the order.

Cohen's kappa (1960) compares two raters, Krippendorff's alpha (2004) any number with gaps; both
are 1 for full agreement and 0 for what chance would give.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy

BOUND = 0.65
"""The share of pairs in which GPT-4 kept its verdict (Zheng and others 2023); below, one warns."""

ALPHA_BOUND = 2 / 3
"""Krippendorff's lowest alpha for tentative conclusions: several judges below it warn."""

LEAST = 4
"""Pairs from which on a judge may warn."""

Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Return Cohen's kappa of two raters' labels of the same items, -1 to 1.

    NaN without items, and where chance alone would make them agree in all.
    """
    pairs = list(zip(one, other, strict=True))
    if not pairs:
        return math.nan
    seen = sum(a == b for a, b in pairs) / len(pairs)
    counts = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = math.fsum(n * counts[1][label] for label, n in counts[0].items()) / len(pairs) ** 2
    return (seen - chance) / (1.0 - chance) if chance < 1.0 else math.nan


def krippendorff_alpha(ratings: Iterable[Sequence[Any]], level: Level = "nominal") -> float:
    """Return Krippendorff's alpha; ``ratings`` holds the raters' values of each item, None a gap.

    ``level`` says how values differ: as names, as ranks, or as numbers. NaN where no item has two
    values, or all values are the same.
    """
    units = [[value for value in unit if value is not None] for unit in ratings]
    units = [unit for unit in units if len(unit) > 1]
    values = Counter(value for unit in units for value in unit)
    distance = _distance(level, values)
    seen = math.fsum(
        distance(a, b) * m * n / (len(unit) - 1)
        for unit in units
        for a, m in Counter(unit).items()
        for b, n in Counter(unit).items()
    )
    total = values.total()
    chance = math.fsum(distance(a, b) * m * n for a, m in values.items() for b, n in values.items())
    return 1.0 - (total - 1) * seen / chance if chance else math.nan


def _distance(level: Level, values: Counter[Any]) -> Callable[[Any, Any], float]:
    """Return the squared difference of two values; of ranks by how many values lie between."""
    if level == "nominal":
        return lambda a, b: float(a != b)
    if level == "interval":
        return lambda a, b: float(a - b) ** 2
    places, before = {}, 0.0
    for value in sorted(values):
        places[value] = before + values[value] / 2
        before += values[value]
    return lambda a, b: (places[a] - places[b]) ** 2


def wilson(count: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927); NaN without items."""
    if not n:
        return math.nan, math.nan
    share, squared = count / n, z * z / n
    middle = (share + squared / 2) / (1 + squared)
    half = z * math.sqrt(share * (1 - share) / n + squared / (4 * n)) / (1 + squared)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Reliability:
    """What stands beside every score of a judge, over ``n`` judged pairs or items.

    ``consistency``, from ``low`` to ``high`` at 95 %, is the share of pairs with the same verdict
    in both orders; ``first`` the share of decided verdicts for the answer that stood first, 0.5
    without position bias. ``kappa`` and ``alpha`` compare the two orders, or, of several
    ``judges``, ``alpha`` the judges. ``failed`` were not judged; ``own`` were texts of the judge's
    own model. NaN is what these predictions do not tell.
    """

    n: int
    consistency: float = math.nan
    low: float = math.nan
    high: float = math.nan
    first: float = math.nan
    kappa: float = math.nan
    alpha: float = math.nan
    judges: int = 1
    failed: int = 0
    own: int = 0

    @property
    def warning(self) -> str:
        """Return what speaks against trusting the scores; empty where nothing does."""
        faults = []
        if self.n >= LEAST and self.high < BOUND:
            faults.append(
                f"the judge kept its verdict in {self.consistency:.0%} of {self.n} pairs when the "
                f"answers changed places ({self.first:.0%} of its verdicts went to the first)"
            )
        if self.judges > 1 and self.n >= 2 * LEAST and self.alpha < ALPHA_BOUND:
            faults.append(f"the {self.judges} judges agree with alpha {self.alpha:.2f}")
        if self.own:
            faults.append(f"{self.own} of {self.n} judged the model's own text")
        return "; ".join(faults)

    def __str__(self) -> str:
        """Return the figures in one line."""
        shown = [f"n={self.n}"]
        if not math.isnan(self.consistency):
            shown.append(f"consistency {self.consistency:.2f} ({self.low:.2f} to {self.high:.2f})")
            shown.append(f"first place {self.first:.2f}")
            shown.append(f"kappa {self.kappa:.2f}")
        shown.append(f"alpha {self.alpha:.2f}")
        return ", ".join(shown)


def reliability(predictions: Iterable[Any]) -> Reliability:
    """Return how reliable a ``PairJudge`` or a ``Panel`` was in what it returned over many items.

    Errors among ``predictions`` count as failed.
    """
    given = list(predictions)
    judged = [one for one in given if isinstance(one, dspy.Prediction)]
    failed, own = len(given) - len(judged), sum(bool(one.get("own")) for one in judged)
    pairs = [tuple(one.verdicts) for one in judged if "verdicts" in one]
    panels = [tuple(one.ratings) for one in judged if "ratings" in one]
    alpha = math.nan
    if panels:
        named = all(isinstance(value, str) for ratings in panels for value in ratings)
        alpha = krippendorff_alpha(panels, "nominal" if named else "interval")
    judges = len(panels[0]) if panels else 1
    if not pairs:
        return Reliability(len(judged), alpha=alpha, judges=judges, failed=failed, own=own)
    flat = [pair[i : i + 2] for pair in pairs for i in range(0, len(pair), 2)]
    kept = sum(given == exchanged for given, exchanged in flat)
    places = Counter(_place(verdict, k) for pair in flat for k, verdict in enumerate(pair))
    decided = places["first"] + places["second"]
    low, high = wilson(kept, len(flat))
    return Reliability(
        n=len(flat),
        consistency=kept / len(flat),
        low=low,
        high=high,
        first=places["first"] / decided if decided else math.nan,
        kappa=cohen_kappa(*zip(*flat, strict=True)),
        alpha=alpha if panels else krippendorff_alpha(flat),
        judges=judges,
        failed=failed,
        own=own,
    )


def _place(verdict: str, order: int) -> str:
    """Return which place a verdict went to; in the second order the answers are exchanged."""
    return {"first": "second", "second": "first"}.get(verdict, verdict) if order else verdict


class Watch:
    """What a judge said so far, and whether it has warned of itself."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.warned = False

    def add(self, prediction: Any) -> None:
        """Note what a judge said; warn once when it is inconsistent beyond the bound."""
        names = ("verdicts", "ratings", "own")
        self.given.append(dspy.Prediction(**{n: prediction[n] for n in names if n in prediction}))
        count = len(self.given)
        due = count >= LEAST and (count < 4 * LEAST or count % (4 * LEAST) == 0)
        found = reliability(self.given) if due and not self.warned else None
        if found is not None and (found.high < BOUND or found.judges > 1) and found.warning:
            self.warned = True
            warnings.warn(
                f"{found.warning}: its scores say little. Calibrate it (PairJudge.calibrated), "
                "give a reference, or take a larger model",
                stacklevel=2,
            )
