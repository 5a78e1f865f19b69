"""Score a program on data with an interval, and compare two scores example by example.

Runs go to the engine in chunks; with a journal a chunk that is finished is never run again. What
could not be scored is counted beside the score, never in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import dspy

from promptflow.engine.request import Usage
from promptflow.errors import DataError, names_options
from promptflow.evaluation.identity import (
    data_hash,
    language_model,
    metric_name,
    model_identity,
    versions,
)
from promptflow.evaluation.inputs import output_types
from promptflow.evaluation.metrics import Metric, bound, find_metric, has_gold, no_gold
from promptflow.evaluation.renewal import Exact
from promptflow.evaluation.scoring import (
    CHUNK,
    Job,
    Outcome,
    Record,
    check_excluded,
    score_jobs,
    ungraded,
)
from promptflow.evaluation.stats import bootstrap_interval, paired_interval, permutation_p
from promptflow.program.identity import hash_of, program_identity
from promptflow.progress import bar
from promptflow.storage import Journal


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A mean score with its 95 % interval, and what each run gave.

    ``n`` runs were scored; ``errors`` more were left out because the engine or the metric failed,
    and ``ungraded`` examples because they have no gold value. In ``cut`` runs an answer, the
    reasoning say, ended at its token limit.
    ``seconds`` is wall time, of resumed runs the time of both. ``about`` says what the score
    belongs to: model, metric, hashes of program and data, seed, versions. ``exactness`` says what
    it took that a killed run ends as this one, where a journal was kept.
    """

    score: float
    low: float
    high: float
    n: int
    errors: int
    records: tuple[Record, ...]
    usage: Usage
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)
    ungraded: int = 0
    cut: int = 0
    exactness: str = ""

    def to_json(self, *, records: bool = False) -> dict[str, Any]:
        """Return the evaluation as JSON data, with its records if asked."""
        data: dict[str, Any] = {
            "score": self.score,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "errors": self.errors,
            "ungraded": self.ungraded,
            "cut": self.cut,
            "tokens": asdict(self.usage),
            "seconds": round(self.seconds, 3),
            "about": self.about,
        }
        if records:
            data["records"] = [record.to_json() for record in self.records]
        return data


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference of two scores, first minus second, over the ``n`` examples of both.

    ``low`` and ``high`` bound it at 95 %; ``p`` is the two-sided sign-flip test's. ``better`` needs
    both to say so: the bootstrap alone is too sure of itself on few examples.
    """

    difference: float
    low: float
    high: float
    n: int
    p: float
    wins: int
    losses: int

    @property
    def ties(self) -> int:
        """Return the number of examples with equal scores."""
        return self.n - self.wins - self.losses

    @property
    def better(self) -> bool:
        """Say whether the first is better beyond chance."""
        return self.low > 0.0 and self.p <= 0.05

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON data."""
        return {**asdict(self), "ties": self.ties, "better": self.better}


@names_options
def evaluate(
    program: Any,
    data: Sequence[dspy.Example],
    metric: Metric | str,
    *,
    lm: Any = None,
    seed: int = 0,
    journal: Journal | str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Run ``program`` on every example and return the mean score with its interval.

    ``metric`` is a function or a name of ``METRICS``. ``journal`` keeps finished chunks: the same
    call with the same journal continues, and ends as it would have: each chunk begins with a fresh
    engine. Raises the commonest failure's type when more than 2 % of
    the runs have no score, and DataError for no data. Examples without a gold value for the metric
    are left out and counted; DataError where all are.
    """
    if not data:
        raise DataError("evaluate: there are no examples; pass a list of dspy.Example")
    metric = find_metric(metric) if isinstance(metric, str) else metric
    outputs = output_types(program)
    about = describe(program, data, metric, lm=lm, seed=seed)
    metric = bound(metric, data, outputs)
    if not any(has_gold(metric, example, outputs) for example in data):
        raise none_graded(data, outputs)
    outcomes: list[Outcome] = []
    seconds = 0.0
    exact = Exact(program, metric, language_model(lm, program))
    with opened_journal(journal) as kept, exact, bar("evaluate", len(data), progress) as advance:
        begin = None if kept is None else exact.begin
        for start in range(0, len(data), CHUNK):
            chunk = list(enumerate(data))[start : start + CHUNK]
            key = f"evaluate/{hash_of(about)}/{start}"
            known = {} if kept is None else (kept.get(key) or {})
            found, spent = _chunk(program, chunk, metric, known, (lm, seed, advance, begin))
            seconds += spent
            outcomes += found
            done = [o.record for o in found if o.record.score is not None or o.record.ungraded]
            scored = [record.to_json() for record in done]
            if kept is not None and len(scored) > len(known.get("records", ())):
                kept.append(key, {"records": scored, "seconds": spent})
            advance(start + len(chunk), _running_score(outcomes))
            check_excluded(outcomes, len(data), _remedy(kept))
    if outcomes and all(outcome.record.ungraded for outcome in outcomes):
        raise none_graded(data, outcomes[0].record.fields)
    result = summarize([outcome.record for outcome in outcomes], seconds, about)
    return replace(result, exactness=str(exact))


def _chunk(
    program: Any,
    chunk: Sequence[tuple[int, dspy.Example]],
    metric: Metric,
    known: dict[str, Any],
    how: tuple[Any, int, Any, Any],
) -> tuple[list[Outcome], float]:
    """Score what of a chunk is not known yet; return all of it and the seconds both times took."""
    lm, seed, advance, begin = how
    records = [Record.from_json(data) for data in known.get("records", ())]
    outcomes = {record.index: Outcome(record) for record in records}
    outputs = output_types(program)
    for index, example in chunk:
        if index not in outcomes and not has_gold(metric, example, outputs):
            outcomes[index] = ungraded(index, example)
    jobs = [Job(0, index, example) for index, example in chunk if index not in outcomes]
    if not jobs:
        return [outcomes[index] for index, _ in chunk], float(known.get("seconds", 0.0))
    first, count = chunk[0][0], len(jobs)
    began = time.perf_counter()
    if begin is not None:
        begin()
    fresh = score_jobs(
        [program],
        jobs,
        metric,
        lm=lm,
        seed=seed,
        progress=lambda share: advance(first + share * count, ""),
    )
    outcomes.update({outcome.record.index: outcome for outcome in fresh})
    spent = time.perf_counter() - began + float(known.get("seconds", 0.0))
    return [outcomes[index] for index, _ in chunk], spent


def none_graded(data: Sequence[dspy.Example], fields: Iterable[str] | None) -> DataError:
    """Return the error of data in which no example has a gold value for any of ``fields``."""
    shown = no_gold(data[0], fields or ["a field of the program"])
    return DataError(f"none of {len(data)} examples can be graded: {shown}")


def _running_score(outcomes: Sequence[Outcome]) -> str:
    scores = [o.record.score for o in outcomes if o.record.score is not None]
    return f"score {sum(scores) / len(scores):.3f}" if scores else ""


def _remedy(journal: Journal | None) -> str:
    if journal is None:
        return "Pass journal=PATH to keep what is finished, and run again."
    return f"What is finished is kept in {journal.path}: run the same again to continue."


@contextmanager
def opened_journal(journal: Journal | str | Path | None) -> Iterator[Journal | None]:
    """Give an open journal, or none; one that is given as a path is closed afterwards."""
    if journal is None or isinstance(journal, Journal):
        yield journal
        return
    with Journal(journal) as opened:
        yield opened


def describe(
    program: Any, data: Sequence[dspy.Example], metric: Metric, *, lm: Any, seed: int
) -> dict[str, Any]:
    """Return what a score belongs to, as JSON data; equal descriptions may share results."""
    lm = language_model(lm, program)
    with dspy.context(lm=lm):
        program = program_identity(program)
    return {
        "model": model_identity(lm),
        "model_settings": hash_of(lm),
        "program": program,
        "data": data_hash(data),
        "metric": metric_name(metric),
        "metric_source": hash_of(metric),
        "seed": seed,
        "versions": versions(),
    }


def summarize(records: Sequence[Record], seconds: float, about: dict[str, Any]) -> Evaluation:
    """Return the evaluation of finished records; the interval is seeded by ``about['seed']``."""
    scores = [record.score for record in records if record.score is not None]
    interval = bootstrap_interval(scores, seed=about.get("seed", 0))
    return Evaluation(
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        errors=sum(record.score is None and not record.ungraded for record in records),
        ungraded=sum(record.ungraded for record in records),
        cut=sum(record.cut for record in records),
        records=tuple(records),
        usage=reduce(add, (record.usage for record in records), Usage()),
        seconds=seconds,
        about=about,
    )


def compare(a: Evaluation, b: Evaluation, *, seed: int = 0) -> Comparison:
    """Return the paired difference ``a - b`` over the examples that both scored.

    Raises DataError if the two were not scored on the same data by the same metric.
    """
    for key, what in (("data", "data"), ("metric_source", "metric")):
        if a.about.get(key) != b.about.get(key):
            raise DataError(
                f"compare: the evaluations differ in their {what} ({a.about.get(key)!s:.20} and "
                f"{b.about.get(key)!s:.20}); evaluate both programs on the same"
            )
    return compare_scores(scores_of(a.records), scores_of(b.records), seed=seed)


def scores_of(records: Sequence[Record]) -> dict[int, float]:
    """Return the score of each example that has one, by the example's number."""
    return {record.index: record.score for record in records if record.score is not None}


def compare_scores(a: dict[int, float], b: dict[int, float], *, seed: int = 0) -> Comparison:
    """Return the paired difference ``a - b`` over the examples that both have."""
    both = sorted(a.keys() & b.keys())
    first, second = [a[i] for i in both], [b[i] for i in both]
    interval = paired_interval(first, second, seed=seed)
    pairs = list(zip(first, second, strict=True))
    return Comparison(
        difference=interval.mean if both else math.nan,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        p=permutation_p(first, second, seed=seed),
        wins=sum(x > y for x, y in pairs),
        losses=sum(x < y for x, y in pairs),
    )
