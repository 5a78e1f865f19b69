"""Score a program on data with an interval, and compare two scores example by example.

Runs go to the engine in chunks; with a journal a chunk that is finished is never run again. What
could not be scored is counted beside the score, never in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dspy

from promptflow.engine.request import Usage
from promptflow.errors import DataError, names_options
from promptflow.evaluation.corpus import Corpus, corpus_of
from promptflow.evaluation.identity import (
    data_hash,
    judges_itself,
    language_model,
    metric_name,
    model_identity,
    versions,
)
from promptflow.evaluation.inputs import output_types
from promptflow.evaluation.labels import accuracy, confusion, macro_f1
from promptflow.evaluation.metrics import Metric, bound, has_gold, no_gold, unbound
from promptflow.evaluation.registry import as_metric, default_metric
from promptflow.evaluation.renewal import Exact
from promptflow.evaluation.scoring import (
    CHUNK,
    OWN,
    Job,
    Outcome,
    Record,
    check_excluded,
    score_jobs,
    ungraded,
)
from promptflow.evaluation.stats import (
    Interval,
    bootstrap_interval,
    paired_interval,
    permutation_p,
)
from promptflow.modules import Judge, Panel
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
    it took that a killed run ends as this one, where a journal was kept. ``beside`` holds the
    scores of further metrics of the same runs by their names, each with its interval and its own
    ``n``; ``corpus`` is the metric where the score is one of all runs together and no mean.
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
    beside: dict[str, Interval] = field(default_factory=dict)
    corpus: Corpus | None = None

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """Return how often each gold label was called what, where ``macro_f1`` was asked."""
        own = OWN if self.corpus is macro_f1 else ""
        name = own or next((name for name in self.beside if name.startswith("macro_f1")), "")
        return confusion(_kept(self.records, name))

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
        if self.beside:
            data["beside"] = {name: asdict(interval) for name, interval in self.beside.items()}
        if table := self.confusion:
            data["confusion"] = table
        if records:
            data["records"] = [record.to_json() for record in self.records]
        return data


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference of two scores, first minus second, over the ``n`` examples of both.

    ``low`` and ``high`` bound it at 95 %; ``p`` is the two-sided sign-flip test's. ``better`` needs
    both to say so: the bootstrap alone is too sure of itself on few examples. Of a corpus metric
    the difference is one of two scores of all runs, and ``p`` that of exchanged runs (Riezler and
    Maxwell 2005); ``lower_is_better`` where it is an error.
    """

    difference: float
    low: float
    high: float
    n: int
    p: float
    wins: int
    losses: int
    lower_is_better: bool = False

    @property
    def ties(self) -> int:
        """Return the number of examples with equal scores."""
        return self.n - self.wins - self.losses

    @property
    def better(self) -> bool:
        """Say whether the first is better beyond chance."""
        beyond = self.high < 0.0 if self.lower_is_better else self.low > 0.0
        return beyond and self.p <= 0.05

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON data."""
        return {**asdict(self), "ties": self.ties, "better": self.better}


@names_options
def evaluate(
    program: Any,
    data: Sequence[dspy.Example],
    metric: Metric | Judge | Panel | str | None = None,
    *,
    beside: Sequence[Metric | Judge | Panel | str] = (),
    lm: Any = None,
    seed: int = 0,
    journal: Journal | str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Run ``program`` on every example and return the mean score with its interval.

    ``metric`` is a function, a judge, or a name of ``METRICS``; left out, the output's type
    decides: see ``default_metric``. ``beside`` are further ones of the same runs; with ``accuracy``
    macro-F1 is always given. A ``Corpus`` metric is scored over all runs together. ``journal``
    keeps finished chunks: the same call with the same journal continues, and ends as it would have,
    since each chunk begins with a fresh engine. Raises the commonest failure's type when more than
    2 % of the runs have no score, and DataError for no data. Examples without a gold value for the
    metric are left out and counted; DataError where all are.
    """
    if not data:
        raise DataError("evaluate: there are no examples; pass a list of dspy.Example")
    outputs = output_types(program)
    metric, others = _chosen(metric, beside, data, outputs)
    about = describe(program, data, metric, lm=lm, seed=seed)
    if own := [metric_name(m) for m in (metric, *others.values()) if judges_itself(m, lm, program)]:
        about["self_judged"] = own
    if others:
        about["beside"] = {name: hash_of(other) for name, other in others.items()}
    metric = bound(metric, data, outputs)
    if not any(has_gold(metric, example, outputs) for example in data):
        raise none_graded(data, outputs)
    outcomes: list[Outcome] = []
    seconds = 0.0
    exact = Exact(program, metric, *others.values(), language_model(lm, program))
    with opened_journal(journal) as kept, exact, bar("evaluate", len(data), progress) as advance:
        begin = None if kept is None else exact.begin
        for start in range(0, len(data), CHUNK):
            chunk = list(enumerate(data))[start : start + CHUNK]
            key = f"evaluate/{hash_of(about)}/{start}"
            known = {} if kept is None else (kept.get(key) or {})
            how = (lm, seed, advance, begin)
            found, spent = _chunk(program, chunk, (metric, others), known, how)
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
    result = summarize([outcome.record for outcome in outcomes], seconds, about, (metric, others))
    return replace(result, exactness=str(exact))


def _chosen(
    metric: Metric | Judge | Panel | str | None,
    beside: Sequence[Metric | Judge | Panel | str],
    data: Sequence[dspy.Example],
    outputs: Mapping[str, Any] | None,
) -> tuple[Metric, dict[str, Metric]]:
    """Return the metric, and those beside it by their names, bound to their fields."""
    if metric is None:
        metric = default_metric(outputs, data)
    first, others = as_metric(metric), [as_metric(one) for one in beside]
    if not any(corpus_of(other) is macro_f1 for other in others):
        function, keywords = unbound(first)
        if function is accuracy:
            others.append(partial(macro_f1, **keywords) if keywords else macro_f1)
    named = {metric_name(other): other for other in others if other is not first}
    return first, {name: bound(other, data, outputs) for name, other in named.items()}


def _chunk(
    program: Any,
    chunk: Sequence[tuple[int, dspy.Example]],
    metrics: tuple[Metric, Mapping[str, Metric]],
    known: dict[str, Any],
    how: tuple[Any, int, Any, Any],
) -> tuple[list[Outcome], float]:
    """Score what of a chunk is not known yet; return all of it and the seconds both times took."""
    lm, seed, advance, begin = how
    metric, beside = metrics
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
        beside=beside,
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


def summarize(
    records: Sequence[Record],
    seconds: float,
    about: dict[str, Any],
    metrics: tuple[Metric | None, Mapping[str, Metric]] = (None, MappingProxyType({})),
) -> Evaluation:
    """Return the evaluation of finished records; the interval is seeded by ``about['seed']``."""
    metric, others = metrics
    seed = about.get("seed", 0)
    corpus = corpus_of(metric)
    if corpus is not None:
        interval = corpus.interval(_kept(records, OWN), seed=seed)
    else:
        scores = [record.score for record in records if record.score is not None]
        interval = bootstrap_interval(scores, seed=seed)
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
        beside={name: _beside(records, name, other, seed) for name, other in others.items()},
        corpus=corpus,
    )


def _kept(records: Sequence[Record], name: str) -> list[Any]:
    return [record.statistics[name] for record in records if name in record.statistics]


def _beside(records: Sequence[Record], name: str, metric: Metric, seed: int) -> Interval:
    corpus = corpus_of(metric)
    interval = bootstrap_interval if corpus is None else corpus.interval
    return interval(_kept(records, name), seed=seed)


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
    result = compare_scores(scores_of(a.records), scores_of(b.records), seed=seed)
    if a.corpus is None:
        return result
    kept = [
        {r.index: r.statistics[OWN] for r in side.records if OWN in r.statistics} for side in (a, b)
    ]
    both = sorted(kept[0].keys() & kept[1].keys())
    one, other = ([side[index] for index in both] for side in kept)
    interval = a.corpus.difference(one, other, seed=seed)
    wins, losses = result.wins, result.losses
    if a.corpus.lower_is_better:
        wins, losses = losses, wins
    return Comparison(
        interval.mean,
        interval.low,
        interval.high,
        interval.n,
        p=a.corpus.p_value(one, other, seed=seed),
        wins=wins,
        losses=losses,
        lower_is_better=a.corpus.lower_is_better,
    )


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
