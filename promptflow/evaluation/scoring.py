"""Run programs on examples in one engine batch and score what comes back.

An engine's failure is tried again, then left without a score; it is never a wrong answer. Output
that does not fit its fields is a wrong answer. Seeds follow from the example's number alone, so
that every program meets the same chance and nothing depends on what else is in the batch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import dspy

from promptflow import errors
from promptflow.engine.request import Usage
from promptflow.errors import (
    Cancelled,
    ConstraintDeadEnd,
    ConstraintError,
    ContextOverflow,
    EngineError,
    ForkedUse,
    ParseError,
    PromptflowError,
)
from promptflow.evaluation.corpus import corpus_of
from promptflow.evaluation.data import plain
from promptflow.evaluation.measuring import Measure, measure, measure_unread
from promptflow.evaluation.metrics import Metric
from promptflow.flow import Call, Flow, changed, flow_of, run_flows, usage_of_answer
from promptflow.lm import lm_of, seed_of

CHUNK = 64
"""Runs that go to the engine together, and that an interruption can lose."""

RETRIES = 2
EXCLUDED = 0.02
"""The share of runs that may stay without a score."""

OWN = "score"
"""Under this name a record keeps the statistic of the metric that the score is of."""

LASTING = (ContextOverflow, ConstraintError, ConstraintDeadEnd, ForkedUse, Cancelled)
"""Engine errors that the same request would meet again."""

Progress = Callable[[float], None]
Trace = tuple[tuple[Any, Mapping[str, Any], Any], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One run: which program, on which example, which has number ``index`` in its data."""

    program: int
    index: int
    example: dspy.Example


@dataclass(frozen=True, slots=True)
class Record:
    """One run's inputs, gold values, predicted fields and score, all JSON data.

    ``score`` is None where ``error`` kept the run from being scored, or, without an error, where
    the example has no gold value; a wrong answer that could not be read has both. ``seconds`` is
    the run's share of its batch's wall time, ``cut`` says that an answer on its way ended at its
    token limit. ``statistics`` holds what a corpus metric keeps of the run, under OWN, and what
    metrics beside it keep or score, by their names.
    """

    index: int
    inputs: dict[str, Any]
    gold: dict[str, Any]
    fields: dict[str, Any]
    score: float | None
    error: str | None = None
    usage: Usage = field(default_factory=Usage)
    calls: int = 0
    seconds: float = 0.0
    cut: bool = False
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def ungraded(self) -> bool:
        """Say whether the run has no score because its example has no gold value."""
        return self.score is None and self.error is None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Return the record that ``to_json`` gave."""
        return cls(**{**data, "usage": Usage(**data["usage"])})


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record with what does not go to disk: the calls that led to it, and its failure."""

    record: Record
    trace: Trace = ()
    failure: PromptflowError | None = None


def _seeded(program: Any, job: Job, seed: int) -> Flow:
    """Return the flow of a job, its calls seeded by the example's number, not by the batch."""

    def change(call: Call, step: int, position: int) -> Call:
        if call.seed is not None:
            return call
        return replace(call, seed=seed_of(seed, job.index, step, position))

    return changed(flow_of(program, dict(job.example.inputs())), change)


def score_jobs(
    programs: Sequence[Any],
    jobs: Sequence[Job],
    metric: Metric,
    *,
    lm: Any = None,
    seed: int = 0,
    traced: bool = False,
    beside: Mapping[str, Metric] = MappingProxyType({}),
    progress: Progress | None = None,
) -> list[Outcome]:
    """Run each job and score it, all jobs in one batch a step; the outcomes are in order.

    ``beside`` are further metrics of the same runs, by the names under which a record keeps them.
    ``traced`` hands the calls to the metric, which tells it that demos are being collected.
    ``progress`` is given the share of the calls known so far that are answered, 0 to 1.
    """
    start = time.perf_counter()
    results: list[Any] = [None] * len(jobs)
    pending = list(range(len(jobs)))
    for _ in range(1 + RETRIES):
        chosen = [jobs[place] for place in pending]
        answers = run_flows(
            (_seeded(programs[job.program], job, seed) for job in chosen),
            lm=lm,
            seed=seed,
            progress=None if progress is None else lambda done, known: progress(done / known),
        )
        for place, answer in zip(pending, answers, strict=True):
            results[place] = answer
        pending = [place for place in pending if _passing(results[place])]
        if not pending:
            break
    share = (time.perf_counter() - start) / max(len(jobs), 1)
    with nullcontext() if lm is None else dspy.context(lm=lm_of(lm)):
        own, *others = (
            _measures(m, jobs, results, traced, seed) for m in (metric, *beside.values())
        )
    outcomes = []
    for place, (job, result) in enumerate(zip(jobs, results, strict=True)):
        further = {name: scores[place] for name, scores in zip(beside, others, strict=True)}
        if corpus_of(metric) is not None:
            further[OWN] = own[place]
        trace = getattr(result, "_trace", ()) if traced else ()
        outcomes.append(_outcome(job, result, own[place], further, (trace, share)))
    return outcomes


def _measures(
    metric: Metric, jobs: Sequence[Job], results: Sequence[Any], traced: bool, seed: int
) -> list[Measure]:
    """Return what a metric says of each run; of one that failed, why, and of an unread one, 0."""
    said = [
        measure_unread(metric, job.example)
        if isinstance(result, ParseError)
        else Measure(failure=result)
        for job, result in zip(jobs, results, strict=True)
    ]
    good = [n for n, result in enumerate(results) if not isinstance(result, PromptflowError)]
    runs = [
        (jobs[n].example, results[n], getattr(results[n], "_trace", ()) if traced else None)
        for n in good
    ]
    for place, one in zip(good, measure(metric, runs, seed=seed), strict=True):
        said[place] = one
    return said


def _passing(result: Any) -> bool:
    return isinstance(result, EngineError) and not isinstance(result, LASTING)


def ungraded(index: int, example: dspy.Example) -> Outcome:
    """Return the outcome of an example that has no gold value and was not run."""
    return Outcome(_record(index, example))


def _record(index: int, example: dspy.Example, seconds: float = 0.0) -> Record:
    inputs, gold = plain(example.inputs()), plain(example.labels())
    return Record(index, inputs, gold, fields={}, score=None, seconds=seconds)


def _outcome(
    job: Job,
    result: Any,
    said: Measure,
    further: Mapping[str, Measure],
    how: tuple[Trace, float],
) -> Outcome:
    trace, seconds = how
    record = _record(job.index, job.example, seconds)
    if isinstance(result, PromptflowError):
        record = replace(record, error=_shown(result), usage=usage_of_answer(result))
    else:
        record = replace(
            record,
            fields=plain(result),
            usage=result._usage,
            calls=max(1, len(result._trace)),
            cut=result._was_cut(),
        )
    failed = next((m.failure for m in (said, *further.values()) if m.failure is not None), None)
    if failed is not None:
        return Outcome(replace(record, error=_shown(failed)), failure=failed)
    if said.score is None:
        return Outcome(record)
    kept = {name: one.kept for name, one in further.items() if one.score is not None}
    return Outcome(replace(record, score=said.score, statistics=kept), trace)


def _shown(error: PromptflowError) -> str:
    return f"{type(error).__name__}: {error}"


def check_excluded(outcomes: Sequence[Outcome], total: int, kept: str) -> None:
    """Raise the commonest failure's type if more than 2 % of ``total`` runs have no score.

    ``kept`` ends the message: what is kept, and what to type next.
    """
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    if len(failures) <= EXCLUDED * total:
        return
    [(kind, _)] = Counter(map(type, failures)).most_common(1)
    number, first = next((o.record.index, o.failure) for o in outcomes if type(o.failure) is kind)
    # An error may be one of DSPy's as well, which is made in other ways.
    own = next(cls for cls in kind.__mro__ if vars(errors).get(cls.__name__) is cls)
    raise own(
        f"{len(failures)} of {total} runs have no score (at most {EXCLUDED:.0%} may be left out). "
        f"The first, on example {number}: {first}. {kept}"
    ) from first
