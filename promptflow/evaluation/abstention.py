"""When to abstain, fitted on questions with answers: signals, calibration, risk-coverage curve.

Each question is asked twice: of the documents, and of the same without those that hold its answer.
What is answered then is wrong, however likely it sounds.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from promptflow.errors import DataError, PromptflowError, names_options
from promptflow.evaluation.evaluate import opened_journal
from promptflow.evaluation.identity import data_hash, language_model
from promptflow.evaluation.metrics import Metric, contains, f1
from promptflow.evaluation.registry import find_metric
from promptflow.flow import Prediction, run_many
from promptflow.modules.abstention import (
    Calibration,
    Point,
    choose_threshold,
    embedder_of,
    file_of,
    fit_logistic,
    risk_coverage,
)
from promptflow.modules.grounded import UNKNOWN, GroundedQA
from promptflow.normal import normalize, stands_in
from promptflow.program.identity import hash_of, program_identity
from promptflow.progress import bar
from promptflow.retrieval import Passage, Retriever
from promptflow.storage import Journal

CHUNK = 4
"""Questions that are asked together, and that an interruption can lose."""

FOLDS = 5
"""Parts of the questions: each is judged by a calibration that was fitted on the others."""

DEPTH = 30
"""Passages beyond those wanted that are looked at for ones that hold no answer."""

LEAST = 20
"""Questions below which nothing is fitted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that was compared with others, its signals, and whether it is right."""

    answer: str = UNKNOWN
    right: bool = False
    signals: Mapping[str, float] = field(default_factory=dict)
    citations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question asked once, with the candidates of an answer.

    ``answerable`` is False where the documents that hold the answer were hidden. ``best`` is what a
    calibration would answer, and ``chance`` the probability that it is right, by one that was
    fitted on other questions.
    """

    question: str
    golds: tuple[str, ...]
    answerable: bool
    candidates: tuple[Candidate, ...]
    best: Candidate = Candidate()
    chance: float = 0.0

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Asked:
        """Return what ``asdict`` made a table of."""
        candidates = tuple(Candidate(**one) for one in row["candidates"])
        return cls(**{**row, "candidates": candidates, "best": Candidate(**row["best"])})

    def judged(self, calibration: Calibration) -> Asked:
        """Return it with the candidate that a calibration finds most probable."""
        chances = [calibration.probability(one.signals) for one in self.candidates]
        if not chances:
            return self
        chance = max(chances)
        return replace(self, best=self.candidates[chances.index(chance)], chance=chance)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a threshold has to hold: how much of what is answered may be wrong, 0 to 1.

    ``risk`` is of the questions that the documents answer, ``false_answers`` is the share of the
    others that may be answered.
    """

    risk: float = 0.2
    false_answers: float = 0.15


@dataclass(frozen=True, slots=True)
class Tuned:
    """A calibration, its risk-coverage curve, the point that was chosen, and all that was asked.

    ``chosen`` is None where no threshold is within the bounds: then nothing was written.
    """

    calibration: Calibration
    curve: tuple[Point, ...]
    chosen: Point | None
    asked: tuple[Asked, ...]
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "path": None if self.path is None else str(self.path),
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "calibration": asdict(self.calibration),
            "curve": [asdict(point) for point in self.curve],
        }


@dataclass(frozen=True, slots=True)
class Hidden:
    """A retriever without the documents that hold the answer of a question.

    ``golds`` are the answers of each question, ``documents`` those that are known to hold it.
    """

    retriever: Retriever
    golds: Mapping[str, tuple[str, ...]]
    documents: Mapping[str, tuple[str, ...]]

    def search(self, query: str, k: int = 5) -> list[Passage]:
        """Return the ``k`` best passages of documents that do not hold the answer of ``query``."""
        golds = [normalize(gold) for gold in self.golds.get(query, ())]
        holds = dict.fromkeys(self.documents.get(query, ()), True)
        kept: list[Passage] = []
        for passage in self.retriever.search(query, k + DEPTH):
            name = passage.document
            if name not in holds:
                text = normalize(self.retriever.text(name))
                holds[name] = any(stands_in(gold, text) for gold in golds)
            if not holds[name]:
                kept.append(passage)
        return kept[:k]

    def text(self, document: str) -> str:
        """Return the text of a document. Raises StoreNotFound."""
        return self.retriever.text(document)


def is_right(example: Any, prediction: Any) -> float:
    """Return 1.0 for an answer that holds a gold one, or half of whose words are a gold one's."""
    return float(contains(example, prediction) > 0.0 or f1(example, prediction) >= 0.5)


@names_options
def tune_abstention(
    program: GroundedQA,
    data: Sequence[dspy.Example],
    metric: Metric | str = is_right,
    *,
    bounds: Bounds = Bounds(),
    lm: Any = None,
    seed: int = 0,
    journal: Journal | str | Path | None = None,
    progress: bool = True,
) -> Tuned:
    """Fit when a program abstains with its index and this model, and keep it beside the index.

    ``data`` has questions with their ``answer`` or ``answers``, and may name the ``documents`` that
    hold them. The threshold answers as many as it can within ``bounds``. An answer is right where
    the ``metric`` gives 0.5 or more. ``journal`` keeps what was asked: the same call continues.
    Nothing is kept where no threshold is within both. Raises DataError for less than 20 examples.
    """
    examples = _usable(data)
    metric = find_metric(metric) if isinstance(metric, str) else metric
    lm = language_model(lm, None)
    hidden = Hidden(
        program.index,
        {e.question: _golds(e) for e in examples},
        {e.question: tuple(e.get("documents") or ()) for e in examples},
    )
    arms = [answering(program, source) for source in (program.index, hidden)]
    asked: list[Asked] = []
    with (
        opened_journal(journal) as kept,
        bar("tune abstention", 2 * len(examples), progress) as advance,
    ):
        about = [hash_of(lm), data_hash(examples), *map(program_identity, arms), seed]
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            key = f"abstention/{hash_of(about)}/{start}"
            rows = None if kept is None else kept.get(key)
            if rows is None:
                made = ask(arms, chunk, metric, lm, seed)
                rows = {"asked": [asdict(one) for one in made]}
                if kept is not None:
                    kept.append(key, rows)
            asked += map(Asked.from_json, rows["asked"])
            advance(2 * (start + len(chunk)))
    return fitted(program.index, asked, lm, bounds, seed)


def answering(program: GroundedQA, index: Any) -> GroundedQA:
    """Return a program that answers from ``index`` however unsure it is, its quotes unchecked."""
    made = copy.deepcopy(program)
    made.index, made.threshold, made.check = index, 0.0, None
    return made


def ask(
    arms: Sequence[GroundedQA], examples: Sequence[dspy.Example], metric: Metric, lm: Any, seed: int
) -> list[Asked]:
    """Ask questions of each program: of the documents, and of those without the answers."""
    asked: list[Asked] = []
    for arm, answerable in zip(arms, (True, False), strict=True):
        inputs = [{"question": example.question} for example in examples]
        for example, given in zip(examples, run_many(arm, inputs, lm=lm, seed=seed), strict=True):
            if isinstance(given, PromptflowError):
                raise given
            asked.append(
                Asked(
                    example.question, _golds(example), answerable, _graded(example, given, metric)
                )
            )
    return asked


def _graded(example: dspy.Example, given: Any, metric: Metric) -> tuple[Candidate, ...]:
    """Return the candidates of an answer, each graded as if it had been given."""
    return tuple(
        Candidate(
            one["answer"],
            metric(example, Prediction(citations=one["citations"], answer=one["answer"])) >= 0.5,
            one["signals"],
            tuple(asdict(citation) for citation in one["citations"]),
        )
        for one in given.get("candidates", ())
    )


def fitted(
    index: Retriever, asked: Sequence[Asked], lm: Any, bounds: Bounds, seed: int = 0
) -> Tuned:
    """Fit a calibration on what was asked, judge it on questions it has not seen, and keep it."""
    if len({one.right for each in asked for one in each.candidates}) < 2:
        raise DataError(
            "tune-abstention: all answers are right, or all are wrong, so that nothing tells them "
            "apart; give more questions, some of which the model gets wrong"
        )
    questions = sorted({one.question for one in asked})
    random.Random(seed).shuffle(questions)
    fold = {question: number % FOLDS for number, question in enumerate(questions)}
    calibrations = [
        _fit([one for one in asked if fold[one.question] != part]) for part in range(FOLDS)
    ]
    judged = [one.judged(calibrations[fold[one.question]]) for one in asked]
    curve = risk_coverage(
        [(one.chance, one.best.right) for one in judged if one.answerable],
        [one.chance for one in judged if not one.answerable],
    )
    chosen = choose_threshold(curve, bounds.risk, bounds.false_answers)
    info = lm.text_engine.info
    calibration = replace(
        _fit(asked),
        threshold=1.0 if chosen is None else chosen.threshold,
        model=info.sha256,
        embedder=embedder_of(index),
        source=f"fitted on {len(questions)} questions",
        about={
            "model": info.identity,
            "questions": len(questions),
            "bounds": asdict(bounds),
            "chosen": None if chosen is None else asdict(chosen),
            "seed": seed,
        },
    )
    path = file_of(index, info.sha256)
    if path is not None and chosen is not None:
        calibration.save(path)
    return Tuned(calibration, tuple(curve), chosen, tuple(judged), path if chosen else None)


def _fit(asked: Sequence[Asked]) -> Calibration:
    """Fit on all candidates: the one that is chosen and those that are not are told apart."""
    seen = [one for each in asked for one in each.candidates]
    names = sorted({name for one in seen for name in one.signals})
    means = {}
    for name in names:
        known = [one.signals[name] for one in seen if name in one.signals]
        means[name] = sum(known) / len(known)
    rows = [{**means, **one.signals} for one in seen]
    weights, bias = fit_logistic(rows, [one.right for one in seen], names)
    return Calibration(weights, means, bias, 1.0, "", "", "")


def _usable(data: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Return the examples with a question and an answer. Raises DataError for too few."""
    found = [e for e in data if str(e.get("question") or "").strip() and _golds(e)]
    if len(found) < LEAST:
        raise DataError(
            f"tune-abstention: {len(found)} of {len(data)} examples have a question and an answer; "
            f"give at least {LEAST}, in columns question and answer (--column NAME=question)"
        )
    return found


def _golds(example: dspy.Example) -> tuple[str, ...]:
    given = example.get("answer") or example.get("answers") or ()
    return tuple(str(gold) for gold in (given if isinstance(given, list | tuple) else [given]))
