"""Search for a better prompt: demo sets and instructions, raced, then confirmed on held-out data.

Three disjoint parts of the data: a pool that demos are taken from, a part that candidates race on,
and a held-out part that is touched once. The winner of the race replaces the start only if it is
better there beyond chance.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from promptflow.errors import (
    DataError,
    PromptflowError,
    SignatureError,
    UnsupportedOption,
    names_options,
)
from promptflow.evaluation.corpus import corpus_of
from promptflow.evaluation.data import plain, split
from promptflow.evaluation.evaluate import (
    Comparison,
    Evaluation,
    describe,
    none_graded,
    summarize,
)
from promptflow.evaluation.identity import (
    data_hash,
    language_model,
    metric_name,
    model_identity,
    versions,
)
from promptflow.evaluation.inputs import output_types
from promptflow.evaluation.metrics import Metric, bound, has_gold
from promptflow.evaluation.registry import find_metric
from promptflow.evaluation.renewal import Exact
from promptflow.layout import find_layout, layout_identity
from promptflow.lm import is_local
from promptflow.optimization.demos import Bootstrap, Pool, bootstrap, draw, labelled
from promptflow.optimization.instructions import additions, propose, with_addition
from promptflow.optimization.plan import LEAST, Plan, fitting, make_plan
from promptflow.optimization.race import Candidate, Scorer, compared, race
from promptflow.optimization.study import UNLIMITED, Budget, Spent, Study
from promptflow.optimization.variant import Variant, copied, start_of
from promptflow.program.classes import named_classes
from promptflow.program.folder import check_savable
from promptflow.program.identity import hash_of, program_identity
from promptflow.progress import bar
from promptflow.signatures import Document, dump_document
from promptflow.storage import toml_dumps

SHARES = (0.3, 0.4, 0.3)
"""Pool, race and held-out part where no dev data is given."""


@names_options
@dataclass(frozen=True, slots=True)
class Search:
    """What is searched.

    ``candidates`` counts challengers of the start. ``demos`` are the numbers of demos to try.
    ``proposals`` asks the model for that many instructions a predictor. ``layouts`` are tried for
    all predictors together, with and without other changes: names, or paths of .jinja files.
    """

    candidates: int = 12
    demos: tuple[int, ...] = (1, 2, 4, 8)
    instructions: bool = True
    proposals: int = 0
    layouts: tuple[str, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def settings(self) -> dict[str, Any]:
        """Return what decides the result, as JSON data."""
        tried = [[name, layout_identity(name)] for name in self.layouts]
        return {
            "candidates": self.candidates,
            "demos": list(self.demos),
            "instructions": self.instructions,
            "proposals": self.proposals,
            **({"layouts": tried} if tried else {}),
            "bootstrap": asdict(self.bootstrap),
        }


@dataclass(frozen=True, slots=True)
class Optimization:
    """A search's result. ``program`` is the winner, or the start where ``kept_start``.

    ``start`` and ``winner`` are scored on held-out data, the winner being the race's best
    even where it was not taken; ``reason`` says which and why. ``compiled`` is the table that its
    documents get. ``exactness`` says what it took that a killed run ends as this one.
    """

    program: Any
    start: Evaluation
    winner: Evaluation
    comparison: Comparison
    kept_start: bool
    reason: str
    candidates: tuple[Candidate, ...]
    plan: Plan
    spent: Spent
    compiled: dict[str, Any]
    prompts: tuple[dict[str, str], dict[str, str]]
    about: dict[str, Any] = field(default_factory=dict)
    exactness: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data, without the per-example records."""
        return {
            "kept_start": self.kept_start,
            "reason": self.reason,
            "start": self.start.to_json(),
            "winner": self.winner.to_json(),
            "comparison": self.comparison.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "plan": asdict(self.plan),
            "spent": asdict(self.spent),
            "compiled": self.compiled,
            "about": self.about,
        }


@dataclass(frozen=True, slots=True)
class _Parts:
    pool: list[dspy.Example]
    race: list[dspy.Example]
    held: list[dspy.Example]


@names_options
def optimize(
    program: Any,
    train: Sequence[dspy.Example],
    dev: Sequence[dspy.Example] | None = None,
    metric: Metric | str = "exact_match",
    *,
    lm: Any = None,
    budget: Budget = UNLIMITED,
    seed: int = 0,
    journal: str | Path | None = None,
    search: Search = Search(),
    progress: bool = True,
    announce: Callable[[Plan], None] | None = None,
) -> Optimization:
    """Search for demos and instructions that score better, and confirm them on held-out data.

    ``lm`` stands in for the configured LM; a predictor's own comes first. ``dev`` is held out;
    without it a seeded part of ``train`` is. ``journal`` keeps every finished step: the same call
    continues a killed run and ends as it would have. ``announce`` is told the plan before anything
    is spent. Examples without a gold value for the metric are left out. Raises BudgetExceeded for
    a budget below the smallest search, ResumeMismatch for a journal of another run, DataError for
    too few examples.
    """
    metric = find_metric(metric) if isinstance(metric, str) else metric
    if corpus_of(metric) is not None:
        raise DataError(
            f"{metric_name(metric)!r} is a score of all runs together, and a search compares them "
            "one by one: use a metric of single runs, such as accuracy, f1 or rouge_l"
        )
    lm = language_model(lm, program)
    start = start_of(program)
    _check_layouts(program, search.layouts, lm)
    train, dev = _graded(program, metric, train), dev and _graded(program, metric, dev)
    parts = _parts(train, dev, seed)
    sizes = (len(parts.pool), len(parts.race), len(parts.held))
    estimate = make_plan(sizes, search.candidates, search.bootstrap.limit, budget)
    if announce is not None:
        announce(estimate)
    _warn_unsavable(program)
    fingerprint = _fingerprint(program, train, dev, metric, lm)
    fingerprint["settings"] = {"seed": seed, "budget": asdict(budget), **search.settings()}
    shown = bar("optimize", estimate.calls, progress)
    exact = Exact(program, metric, lm)
    most = estimate.calls
    with exact, Study(journal, fingerprint, budget, exact.begin, most) as study, shown as advance:
        scorer = Scorer(study, program, metric, lm, seed, estimate.calls, advance)
        challengers = _challengers(scorer, start, parts.pool, search, estimate)
        runs = study.affordable()
        keep = min(2 * len(parts.held), max(2 * LEAST, runs / 3))
        rungs = fitting(len(challengers), len(parts.race), runs - keep) if challengers else []
        running = challengers[: rungs[0][0]] if rungs else []
        candidates = race(scorer, start, running, parts.race, rungs, 2 * LEAST)
        best = next((c.variant for c in candidates[1:] if c.rungs and not c.unfit), start)
        count = int(min(len(parts.held), study.affordable() // 2))
        # Examples outside, variants inside: a budget that ends early leaves whole pairs.
        pairs = [(variant, index) for index in range(count) for variant in (start, best)]
        scorer.score("held", parts.held, pairs)
        result = _result(scorer, (start, best), parts.held[:count], candidates, estimate)
    return replace(result, exactness=str(exact))


def _check_layouts(program: Any, layouts: Sequence[str], lm: Any) -> None:
    """Refuse layouts that are not there, or that a predictor cannot be given, by name."""
    for layout in layouts:
        find_layout(layout)
    if not layouts:
        return
    theirs = [n for n, p in program.named_predictors() if not hasattr(p, "decoding")]
    if theirs or not is_local(lm):
        what = f"{theirs[0]} is a dspy.Predict" if theirs else f"{lm.model} is no local model"
        raise UnsupportedOption(
            f"layouts={list(layouts)}: {what}, whose prompts DSPy's adapter lays out; leave it out"
        )


def _warn_unsavable(program: Any) -> None:
    """Say before anything is spent that ``save_program`` will refuse what is found."""
    try:
        check_savable(program)
    except PromptflowError as error:
        warnings.warn(f"what this search finds cannot be saved: {error}", stacklevel=4)


def _fingerprint(
    program: Any,
    train: Sequence[dspy.Example],
    dev: Sequence[dspy.Example] | None,
    metric: Metric,
    lm: Any,
) -> dict[str, Any]:
    """Return what a search depends on beside its settings, part by part."""
    with dspy.context(lm=lm):
        identity = program_identity(program)
    return {
        "model": [model_identity(lm), hash_of(lm)],
        "program": identity,
        "train": data_hash(train),
        "dev": None if dev is None else data_hash(dev),
        "metric": [metric_name(metric), hash_of(metric)],
        "versions": versions(),
    }


def _graded(program: Any, metric: Metric, data: Sequence[dspy.Example]) -> Sequence[dspy.Example]:
    """Leave out what has no gold value. Raises DataError where nothing has one."""
    outputs = output_types(program)
    metric = bound(metric, data, outputs)
    kept = [example for example in data if has_gold(metric, example, outputs)]
    if data and not kept:
        raise none_graded(data, outputs)
    return kept


def _parts(train: Sequence[dspy.Example], dev: Sequence[dspy.Example] | None, seed: int) -> _Parts:
    """Cut the data; an example whose inputs stand twice is used once, in ``dev`` if it is there."""
    held = _distinct(dev or (), set())
    train = _distinct(train, {hash_of(example.inputs()) for example in held})
    least = 2 + LEAST if dev is not None else 2 + 2 * LEAST
    if len(train) < least or (dev is not None and len(held) < LEAST):
        raise DataError(
            f"{len(train)} different training examples"
            + ("" if dev is None else f" and {len(held)} held-out ones")
            + f" are too few to search on: give at least {least}"
            + ("" if dev is None else f" and {LEAST}")
        )
    if dev is not None:
        pool, raced = split(train, [share / sum(SHARES[:2]) for share in SHARES[:2]], seed)
        return _Parts(pool, raced, split(held, [1.0], seed)[0])
    return _Parts(*split(train, SHARES, seed))


def _distinct(data: Sequence[dspy.Example], seen: set[str]) -> list[dspy.Example]:
    kept = []
    for example in data:
        key = hash_of(example.inputs())
        if key not in seen:
            seen.add(key)
            kept.append(example)
    return kept


def _challengers(
    scorer: Scorer, start: Variant, pool: list[dspy.Example], search: Search, estimate: Plan
) -> list[Variant]:
    """Return the variants to race, all different, the kinds in turn."""
    settings = replace(search.bootstrap, limit=estimate.bootstrap)
    study, program, lm, seed = scorer.study, scorer.program, scorer.lm, scorer.seed
    made = bootstrap(
        study, program, pool, scorer.metric, settings, lm=lm, seed=seed, advance=scorer.advance
    )
    pools = {"bootstrapped": made, "labelled": labelled(program, pool)}
    wordings = []
    if search.instructions:
        wordings = [(f"+{n}", with_addition(start.instructions, t)) for n, t in additions().items()]
    if search.proposals:
        proposed = propose(study, program, pool, search.proposals, lm=lm, seed=seed)
        for number, one in enumerate(proposed, 1):
            wordings.append((f"proposed {number}", {**start.instructions, **one}))
    usable = {kind: demos for kind, demos in pools.items() if any(demos.values())}
    return _combined(start, usable, wordings, search, np.random.default_rng(seed))


def _combined(
    start: Variant,
    pools: Mapping[str, Pool],
    wordings: Sequence[tuple[str, dict[str, str]]],
    search: Search,
    random: np.random.Generator,
) -> list[Variant]:
    """Return up to ``search.candidates`` different combinations of demos and instructions."""
    found = {start.key: start}
    order = itertools.cycle(random.permutation(len(wordings)).tolist() or [0])
    for attempt in range(20 * search.candidates):
        if len(found) > search.candidates:
            break
        label, instructions, demos = "", dict(start.instructions), dict(start.demos)
        # Demos matter most to a small model: only every third challenger leaves them alone.
        if pools and not (wordings and attempt % 3 == 2):
            kind = list(pools)[attempt % len(pools)]
            size = search.demos[int(random.integers(len(search.demos)))]
            demos = draw(pools[kind], size, random)
            label = f"{max(map(len, demos.values()))} {kind}"
        if wordings and (not label or attempt % 4 == 3):
            name, instructions = wordings[next(order)]
            label = f"{label} {name}".strip()
        # Every other challenger tries a layout too; those that change nothing else come first.
        layouts: dict[str, str] = {}
        if search.layouts and (attempt < len(search.layouts) or attempt % 2):
            chosen = search.layouts[attempt % len(search.layouts)]
            layouts = dict.fromkeys(start.instructions, chosen)
            if attempt < len(search.layouts):
                label, instructions, demos = "", dict(start.instructions), dict(start.demos)
            label = f"{label} in {chosen}".strip()
        variant = Variant(label or start.label, instructions, demos, layouts)
        if variant.key not in found:
            taken = sum(other.label.split(" #")[0] == label for other in found.values())
            again = replace(variant, label=f"{label} #{taken + 1}")
            found[variant.key] = again if taken else variant
    return [variant for key, variant in found.items() if key != start.key]


def _result(
    scorer: Scorer,
    pair: tuple[Variant, Variant],
    held: list[dspy.Example],
    candidates: list[Candidate],
    estimate: Plan,
) -> Optimization:
    start, best = pair
    comparison = compared(scorer, best, start, "held")
    taken = best.key != start.key and comparison.better
    programs = [copied(scorer.program), best.apply(scorer.program)]
    evaluations = []
    for variant, program in zip(pair, programs, strict=True):
        about = describe(program, held, scorer.metric, lm=scorer.lm, seed=scorer.seed)
        records = scorer.of(variant, "held")
        evaluations.append(summarize(records, sum(r.seconds for r in records), about))
    compiled = _compiled(scorer, held, evaluations, comparison) if taken else {}
    for _, predictor in programs[1].named_predictors() if taken else ():
        predictor.compiled = compiled
    return Optimization(
        program=programs[1 if taken else 0],
        start=evaluations[0],
        winner=evaluations[1],
        comparison=comparison,
        kept_start=not taken,
        reason=_reason(pair, comparison, taken),
        candidates=tuple(candidates),
        plan=estimate,
        spent=scorer.study.spent,
        compiled=compiled,
        prompts=(prompts_of(programs[0]), prompts_of(programs[1])),
        about={**evaluations[0].about, "budget": asdict(scorer.study.budget)},
    )


def _reason(pair: tuple[Variant, Variant], comparison: Comparison, taken: bool) -> str:
    start, best = pair
    if best.key == start.key:
        return "The start is kept: no candidate could be raced within the budget."
    if comparison.n < LEAST:
        return (
            f"The start is kept: the budget ended before {best.label!r}, the best of the race, "
            "could be confirmed."
        )
    shown = (
        f"{comparison.difference:+.3f} on {comparison.n} held-out examples (95 % interval "
        f"{comparison.low:+.3f} to {comparison.high:+.3f}, p {comparison.p:.3f})"
    )
    if taken:
        return f"{best.label!r} is better than the start by {shown}."
    return f"The start is kept: {best.label!r}, the best of the race, differs by {shown}."


def _compiled(
    scorer: Scorer,
    held: list[dspy.Example],
    evaluations: Sequence[Evaluation],
    comparison: Comparison,
) -> dict[str, Any]:
    """Return the ``[compiled]`` table, without times: equal searches write equal bytes."""
    start, best = (
        {
            "score": round(one.score, 4),
            "low": round(one.low, 4),
            "high": round(one.high, 4),
            "n": one.n,
        }
        for one in evaluations
    )
    return {
        "optimizer": "race",
        "model": model_identity(scorer.lm),
        "metric": metric_name(scorer.metric),
        "seed": scorer.seed,
        "data": data_hash(held)[:12],
        "start": start,
        "dev": best,
        "gain": {
            name: round(getattr(comparison, name), 4) for name in ("difference", "low", "high", "p")
        },
    }


def prompts_of(program: Any) -> dict[str, str]:
    """Return the signature document of each predictor as text, for people to compare."""
    texts = {}
    named = named_classes(program)
    for name, predictor in program.named_predictors():
        demos = tuple(plain(dict(demo)) for demo in predictor.demos)
        try:
            layout = getattr(getattr(predictor, "decoding", None), "layout", None) or ""
            texts[name] = dump_document(Document(predictor.signature, demos, layout), named)
        except SignatureError:
            tables = {"instructions": predictor.signature.instructions, "demos": list(demos)}
            texts[name] = toml_dumps(tables)
    return texts
