"""Demos: solved examples for prompts, from gold answers or from runs that the metric accepts.

All runs of a bootstrap go to the engine in batches. A run that passes leaves one demo a predictor,
with everything the predictor wrote, its reasoning included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np
from dspy.adapters.utils import annotation_allows_none
from pydantic import TypeAdapter, ValidationError

from promptflow.engine.request import Usage
from promptflow.evaluation.data import plain
from promptflow.evaluation.meaning import parsed
from promptflow.evaluation.metrics import Metric, alternatives, final_number
from promptflow.evaluation.scoring import Job, Outcome, check_excluded, score_jobs
from promptflow.optimization.study import Spent, Study
from promptflow.optimization.variant import Demos

CHUNK = 16
"""Runs of one bootstrap batch: few, so that it can stop when it has enough."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A solved example of one predictor, as JSON data; ``index`` is its example's number.

    ``complete`` is false where some field was cut off at its token limit.
    """

    index: int
    fields: dict[str, Any]
    complete: bool = True


Pool = Mapping[str, Sequence[Demo]]
"""Demos by the name of their predictor."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How demos are collected: runs that score ``threshold`` or more, until ``wanted`` passed.

    At most ``limit`` runs, and no batch after ``share`` of the study's budget is spent.
    """

    threshold: float = 1.0
    wanted: int = 24
    limit: int = 96
    share: float = 0.25


def bootstrap(
    study: Study,
    program: Any,
    data: Sequence[dspy.Example],
    metric: Metric,
    settings: Bootstrap = Bootstrap(),
    *,
    lm: Any = None,
    seed: int = 0,
    advance: Callable[[float, str], None] | None = None,
) -> dict[str, list[Demo]]:
    """Run ``program`` on ``data`` and return the demos of the runs that the metric accepts."""
    pool: dict[str, list[Demo]] = {name: [] for name, _ in program.named_predictors()}
    limit = min(len(data), settings.limit)
    passed = 0
    for start in range(0, limit, CHUNK):
        if passed >= settings.wanted or study.used() >= settings.share:
            break
        jobs = [Job(0, i, data[i]) for i in range(start, min(start + CHUNK, limit))]

        def work(jobs: list[Job] = jobs) -> tuple[Any, Spent]:
            outcomes = score_jobs([program], jobs, metric, lm=lm, seed=seed, traced=True)
            check_excluded(outcomes, limit, "Run the same again to continue.")
            kept = [o for o in outcomes if (o.record.score or 0.0) >= settings.threshold]
            rows = [[o.record.index, *_demos_of(program, o, seed)] for o in kept]
            return rows, spent_on(outcomes)

        for _, *demos in study.step("bootstrap", [settings.threshold, start, len(jobs)], work):
            passed += 1
            for name, demo in demos:
                pool[name].append(Demo(**demo))
        if advance is not None:
            advance(study.spent.calls, f"{passed} demos")
    return pool


def spent_on(outcomes: Sequence[Outcome]) -> Spent:
    """Return what a batch of runs cost."""
    usage = sum((o.record.usage for o in outcomes), Usage())
    tokens = usage.prefilled + usage.generated + usage.forced
    return Spent(len(outcomes), tokens, sum(o.record.seconds for o in outcomes))


def _demos_of(program: Any, outcome: Outcome, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Return one demo a predictor: of several calls the last, or a seeded one of the others.

    Calls that write one answer step by step, in outputs that the signature does not have, are told
    by the last, which holds what the others wrote.
    """
    names = {id(predictor): name for name, predictor in program.named_predictors()}
    signatures = {name: predictor.signature for name, predictor in program.named_predictors()}
    calls: dict[str, list[tuple[Mapping[str, Any], Any]]] = {}
    for predictor, inputs, prediction in outcome.trace:
        if id(predictor) in names:
            calls.setdefault(names[id(predictor)], []).append((inputs, prediction))
    random = np.random.default_rng([seed, outcome.record.index])
    demos = []
    for name, made in calls.items():
        own = signatures[name].fields
        is_stepwise = any({*inputs, *given.keys()} - set(own) for inputs, given in made)
        early = len(made) > 1 and random.random() < 0.5 and not is_stepwise
        inputs, prediction = made[random.integers(len(made) - 1)] if early else made[-1]
        cut = any(fill.finish == "length" for fill in getattr(prediction, "_fills", {}).values())
        fields = {**plain(dict(inputs)), **plain(prediction)}
        demos.append((name, {"index": outcome.record.index, "fields": fields, "complete": not cut}))
    return demos


def labelled(program: Any, data: Sequence[dspy.Example]) -> dict[str, list[Demo]]:
    """Return demos from gold answers, for predictors whose fields the examples hold.

    A gold value is converted to its field's type; ``answers`` may stand for ``answer``, and text
    that ends in a number for a number. Reasoning may be missing; such a demo shows only the answer.
    """
    pool: dict[str, list[Demo]] = {}
    for name, predictor in program.named_predictors():
        pool[name] = []
        for index, example in enumerate(data):
            fields = _gold_fields(predictor.signature, example)
            if fields is not None:
                pool[name].append(
                    Demo(index, fields, "reasoning" in fields or not _thinks(predictor))
                )
    return pool


def _thinks(predictor: Any) -> bool:
    return "reasoning" in predictor.signature.output_fields


def _gold_fields(signature: Any, example: dspy.Example) -> dict[str, Any] | None:
    fields = {}
    for name, field in signature.fields.items():
        value = _gold(name, example)
        if value is not None:
            fitted = _fitted(field.annotation, value)
            if fitted is None:
                return None
            fields[name] = plain(fitted)
        elif annotation_allows_none(field.annotation) and (
            name in example or name in signature.input_fields
        ):
            fields[name] = None
        elif name != "reasoning" or name not in signature.output_fields:
            return None
    return fields


def _gold(name: str, example: dspy.Example) -> Any:
    """Return an example's value of a field, or the first of several; None where it has none."""
    if example.get(name) is not None:
        return example[name]
    golds = example.get(f"{name}s")
    return None if golds is None else (alternatives("", golds)[0] or None)


def _fitted(annotation: Any, value: Any) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        if isinstance(value, str) and (inner := parsed(value)) is not None:  # a cell of a table
            return _fitted(annotation, inner)
        number = final_number(value) if annotation in (int, float) else None
        if annotation is int and number is not None:
            return int(number) if number == int(number) else None
        if number is None and annotation is str:
            return str(value)
        return None if number is None else float(number)


def draw(pool: Pool, size: int, random: np.random.Generator) -> dict[str, Demos]:
    """Return up to ``size`` demos a predictor, of the same examples where they have them.

    Complete demos come first; the last demo drawn stands nearest to the question.
    """
    complete: dict[int, int] = {}
    for demos in pool.values():
        for demo in demos:
            complete[demo.index] = min(complete.get(demo.index, 1), int(demo.complete))
    order = [int(i) for i in random.permutation(sorted(complete))]
    order.sort(key=lambda index: -complete[index])
    chosen = order[:size]
    drawn = {}
    for name, demos in pool.items():
        by_index = {demo.index: demo.fields for demo in demos}
        drawn[name] = tuple(by_index[index] for index in chosen if index in by_index)
    return drawn
