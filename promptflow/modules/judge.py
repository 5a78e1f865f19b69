"""Model judges: rubric scores weighted by token probability, and pairs judged in both orders.

G-Eval (Liu et al. 2023) weighs each level by the probability of its token, which gives fine scores
from one call. A pair is judged twice, with the answers exchanged: what changes with the order is
no preference but position bias (Zheng et al. 2023), and counts as a tie.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from promptflow.engine.request import Sampling
from promptflow.errors import PromptflowError, SignatureError, UnknownField, names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.predict import Predict
from promptflow.storage import find_document


def shares(prediction: Prediction, field: str, options: Sequence[str]) -> dict[str, float]:
    """Return the probability of each option of an output that was weighed, in their order.

    From a model that gives none, the option that was chosen has probability 1.
    """
    weighed = prediction._weighed.get(field) or {str(prediction[field]): 1.0}
    return {option: weighed.get(option, 0.0) for option in options}


class Judge(Module):
    """Score an answer against a rubric with the probabilities of the levels.

    ``rubric`` is the criterion in words. The last output of ``signature`` (left out: the bundled
    ``judge``) is the score: a Literal of ascending numbers. Raises SignatureError for any other.
    """

    @names_options
    def __init__(self, rubric: str, signature: str | Path | type[Any] | None = None) -> None:
        super().__init__()
        self.rubric = rubric
        self.score = Predict(signature or _own("judge"), sampling=Sampling(), weigh=True)
        self.levels = _levels(self.score.signature)

    def settings(self) -> dict[str, Any]:
        """Return the rubric."""
        return {"rubric": self.rubric}

    def flow(self, **inputs: Any) -> Flow:
        """Return ``score`` (the expected level), ``unit``, ``level`` and ``probabilities``.

        ``inputs`` are the signature's without the rubric. ``unit`` is the score on a scale from 0
        to 1, ``level`` the level that the model wrote.
        """
        [prediction] = yield [self.score.call(rubric=self.rubric, **inputs)]
        field = list(self.score.signature.output_fields)[-1]
        texts = [str(level) for level in self.levels]
        weighted = dict(zip(self.levels, shares(prediction, field, texts).values(), strict=True))
        expected = math.fsum(level * share for level, share in weighted.items())
        low, high = self.levels[0], self.levels[-1]
        return prediction.extended(
            score=expected,
            unit=(expected - low) / (high - low),
            level=prediction[field],
            probabilities=weighted,
        )


def _levels(signature: Any) -> tuple[float, ...]:
    name, info = list(signature.output_fields.items())[-1]
    options = typing.get_args(info.annotation)
    numbers = [o for o in options if isinstance(o, int | float) and not isinstance(o, bool)]
    if len(numbers) < 2 or len(numbers) < len(options) or sorted(numbers) != numbers:
        raise SignatureError(
            f"a judge's last output must be a Literal of ascending numbers, and {name!r} is not; "
            f'write {name} = "Literal[1, 2, 3, 4, 5]"'
        )
    return tuple(numbers)


class PairJudge(Module):
    """Say which of two answers is better, judged in both orders.

    The last output of ``signature`` (left out: the bundled ``judge_pair``) is the verdict: ``A``,
    ``B`` or ``tie`` for its inputs ``answer_a`` and ``answer_b``.
    """

    @names_options
    def __init__(self, signature: str | Path | type[Any] | None = None) -> None:
        super().__init__()
        self.compare = Predict(signature or _own("judge_pair"), sampling=Sampling(), weigh=True)

    def flow(self, **inputs: Any) -> Flow:
        """Return ``winner`` (first, second or tie), ``consistent``, ``verdicts``, ``preference``.

        Of ``inputs``, ``first`` and ``second`` are the answers. ``verdicts`` are the winners in the
        given and in the exchanged order; different ones are a tie. ``preference`` is the mean
        probability that ``first`` is better, ties counting half.
        """
        if missing := [name for name in ("first", "second") if name not in inputs]:
            raise UnknownField(f"PairJudge needs {missing}; call it with first=... and second=...")
        first, second = inputs.pop("first"), inputs.pop("second")
        orders = [
            (first, second, {"A": "first", "B": "second"}),
            (second, first, {"A": "second", "B": "first"}),
        ]
        predictions = yield [
            self.compare.call(answer_a=a, answer_b=b, **inputs) for a, b, _ in orders
        ]
        field = list(self.compare.signature.output_fields)[-1]
        verdicts, preferences = [], []
        for prediction, (_, _, names) in zip(predictions, orders, strict=True):
            weighed = shares(prediction, field, ("A", "B", "tie"))
            won = {names.get(option, option): share for option, share in weighed.items()}
            verdicts.append(names.get(prediction[field], "tie"))
            preferences.append(won["first"] + won["tie"] / 2)
        consistent = verdicts[0] == verdicts[1]
        return Prediction(
            winner=verdicts[0] if consistent else "tie",
            consistent=consistent,
            verdicts=tuple(verdicts),
            preference=math.fsum(preferences) / len(preferences),
        )


@dataclass(frozen=True, slots=True)
class Consistency:
    """How often a pairwise judge kept its verdict when the answers were exchanged.

    Of ``n`` judged pairs ``consistent`` kept it, ``first`` went to whichever answer stood first,
    ``second`` to whichever stood second, the rest to a tie in one order. ``failed`` pairs gave no
    verdict and are not in ``n``.
    """

    n: int
    consistent: int
    first: int
    second: int
    failed: int

    @property
    def rate(self) -> float:
        """Return the share of consistent pairs, 0 where none was judged."""
        return self.consistent / self.n if self.n else 0.0


def consistency(predictions: Iterable[Prediction | PromptflowError]) -> Consistency:
    """Count what ``PairJudge`` returned over many pairs."""
    judged = list(predictions)
    verdicts = [tuple(p.verdicts) for p in judged if isinstance(p, dspy.Prediction)]
    return Consistency(
        n=len(verdicts),
        consistent=sum(given == exchanged for given, exchanged in verdicts),
        first=verdicts.count(("first", "second")),
        second=verdicts.count(("second", "first")),
        failed=len(judged) - len(verdicts),
    )


def yes(prediction: Prediction, field: str) -> float:
    """Return the probability of a verdict's Yes."""
    return shares(prediction, field, ("Yes", "No"))["Yes"]


def _own(name: str) -> Path:
    """Return promptflow's own document, which no document of the project's replaces."""
    return find_document("signatures", name, bundled_only=True)
