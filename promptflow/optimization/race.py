"""Racing: all candidates on few examples, the better half on twice as many, until one is left.

Successive halving with a paired test: what is clearly worse than the leader leaves at once. The
runs of a rung go to the engine together, one candidate's examples next to each other, so that they
share its prompt's prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dspy

from promptflow.evaluation.evaluate import Comparison, compare_scores, scores_of
from promptflow.evaluation.metrics import Metric
from promptflow.evaluation.scoring import (
    CHUNK,
    EXCLUDED,
    LASTING,
    Job,
    Outcome,
    Record,
    check_excluded,
    score_jobs,
)
from promptflow.evaluation.stats import bootstrap_interval
from promptflow.optimization.demos import spent_on
from promptflow.optimization.plan import Rungs
from promptflow.optimization.study import Spent, Study
from promptflow.optimization.variant import Variant

_LASTING_NAMES = tuple(error.__name__ for error in LASTING)


@dataclass(slots=True)
class Scorer:
    """Run variants on examples through a study's steps, and remember every record.

    ``total`` is the number of runs planned: 2 % of them may stay without a score.
    """

    study: Study
    program: Any
    metric: Metric
    lm: Any = None
    seed: int = 0
    total: int = 1
    advance: Callable[[float, str], None] | None = None
    variants: dict[str, Variant] = field(default_factory=dict)
    records: dict[tuple[str, str, int], Record] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)

    def score(
        self,
        part: str,
        data: Sequence[dspy.Example],
        pairs: Sequence[tuple[Variant, int]],
    ) -> bool:
        """Score the pairs of variant and example number in ``data`` that have no record yet.

        ``part`` names the data. Returns False if the budget ended before all were scored.
        """
        self.variants |= {variant.key: variant for variant, _ in pairs}
        asked = dict.fromkeys((variant.key, index) for variant, index in pairs)
        pending = [pair for pair in asked if (pair[0], part, pair[1]) not in self.records]
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            if self.study.used() >= 1.0 or self.study.affordable() < len(chunk):
                return False
            rows = self.study.step("score", [part, chunk], partial(self._run, data, chunk))
            for key, row in rows:
                record = Record.from_json(row)
                self.records[key, part, record.index] = record
            if self.advance is not None:
                self.advance(self.study.spent.calls, f"{len(self.variants)} candidates")
        return True

    def _run(
        self, data: Sequence[dspy.Example], chunk: Sequence[tuple[str, int]]
    ) -> tuple[Any, Spent]:
        keys = list(dict.fromkeys(key for key, _ in chunk))
        programs = [self.variants[key].apply(self.program) for key in keys]
        jobs = [Job(keys.index(key), index, data[index]) for key, index in chunk]
        outcomes = score_jobs(programs, jobs, self.metric, lm=self.lm, seed=self.seed)
        self.failures += [
            o for o in outcomes if o.failure is not None and not isinstance(o.failure, LASTING)
        ]
        check_excluded(self.failures, self.total, "Run the same again to continue.")
        rows = [
            [key, outcome.record.to_json()]
            for (key, _), outcome in zip(chunk, outcomes, strict=True)
        ]
        return rows, spent_on(outcomes)

    def of(self, variant: Variant, part: str) -> list[Record]:
        """Return a variant's records on a part of the data, in the order of the examples."""
        found = [r for (key, p, _), r in self.records.items() if (key, p) == (variant.key, part)]
        return sorted(found, key=lambda record: record.index)

    def unfit(self, variant: Variant, part: str) -> str:
        """Return why a variant cannot run at all (a prompt too long, say), or nothing."""
        records = self.of(variant, part)
        errors = [r.error for r in records if r.score is None and r.error is not None]
        lasting = [error for error in errors if error.startswith(_LASTING_NAMES)]
        if len(lasting) <= EXCLUDED * len(records):
            return ""
        [(error, count)] = Counter(lasting).most_common(1)
        return f"{count} of {len(records)} runs: {error}"


@dataclass(frozen=True, slots=True)
class Rung:
    """A candidate's mean score with its interval after ``n`` examples of the race."""

    n: int
    score: float
    low: float
    high: float


@dataclass(slots=True)
class Candidate:
    """A variant in the race, its score at each rung, and why it left, if it did."""

    variant: Variant
    rungs: list[Rung] = field(default_factory=list)
    left: str = ""
    unfit: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON data."""
        return {
            "label": self.variant.label,
            "key": self.variant.key,
            "demos": self.variant.size,
            "rungs": [[r.n, r.score, r.low, r.high] for r in self.rungs],
            "left": self.left,
        }


def race(
    scorer: Scorer,
    start: Variant,
    challengers: Sequence[Variant],
    data: Sequence[dspy.Example],
    rungs: Rungs,
    reserve: int = 0,
) -> list[Candidate]:
    """Race the challengers and return all candidates: the start, then the best first.

    ``reserve`` runs are left in the budget for what comes after. A rung that cannot be paid is not
    begun, and the order of the one before stands.
    """
    first = Candidate(start)
    running = [Candidate(variant) for variant in challengers]
    out: list[Candidate] = []
    for place, (_, size) in enumerate(rungs):
        pairs = [(c.variant, index) for c in (first, *running) for index in range(size)]
        new = sum((v.key, "race", i) not in scorer.records for v, i in pairs)
        if scorer.study.affordable() < new + reserve or not scorer.score("race", data, pairs):
            break
        for candidate in (first, *running):
            candidate.rungs.append(_rung(scorer, candidate.variant, size))
        following = rungs[place + 1][0] if place + 1 < len(rungs) else len(running)
        running, gone = _survivors(scorer, running, following)
        out = gone + out
        if len(running) <= 1:
            break
    return [first, *running, *out]


def _rung(scorer: Scorer, variant: Variant, size: int) -> Rung:
    scores = list(scores_of(scorer.of(variant, "race")).values())
    interval = bootstrap_interval(scores, seed=scorer.seed)
    return Rung(size, interval.mean, interval.low, interval.high)


def _survivors(
    scorer: Scorer, running: Sequence[Candidate], following: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the candidates that stay, best first, and those that leave, best first."""
    unfit = {c.variant.key: scorer.unfit(c.variant, "race") for c in running}
    ranked = sorted(running, key=lambda c: (bool(unfit[c.variant.key]), _rank(c)))
    stay: list[Candidate] = []
    gone: list[Candidate] = []
    for candidate in ranked:
        n = candidate.rungs[-1].n
        if unfit[candidate.variant.key]:
            candidate.left = f"cannot run: {unfit[candidate.variant.key]}"
            candidate.unfit = True
        elif stay and _decided(scorer, stay[0].variant, candidate.variant):
            candidate.left = f"worse than {stay[0].variant.label} after {n} examples"
        elif len(stay) >= following:
            candidate.left = f"not among the best {following} after {n} examples"
        (gone if candidate.left else stay).append(candidate)
    return stay, gone


def _rank(candidate: Candidate) -> tuple[float, int]:
    """Order by score; of equal ones the shorter prompt comes first."""
    return (-candidate.rungs[-1].score, candidate.variant.size)


def _decided(scorer: Scorer, leader: Variant, other: Variant) -> bool:
    return compared(scorer, leader, other, "race").better


def compared(scorer: Scorer, a: Variant, b: Variant, part: str) -> Comparison:
    """Return the paired difference ``a - b`` of two variants on a part of the data."""
    scores: list[Mapping[int, float]] = [scores_of(scorer.of(v, part)) for v in (a, b)]
    return compare_scores(dict(scores[0]), dict(scores[1]), seed=scorer.seed)
