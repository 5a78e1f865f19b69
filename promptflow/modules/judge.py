"""Model judges: rubric scores weighted by token probability, and pairs judged in both orders.

G-Eval (Liu and others 2023) weighs each level by the probability of its token, which gives fine
scores from one call. A pair is judged twice, with the answers exchanged: what changes with the
order is no preference but position bias (Zheng and others 2023), and counts as a tie. Since both
orders give probabilities, the part of the log-odds that stays with the place is known, and taken
off (as PriDe does by permuting options: Zheng, Zhou and others 2024, arXiv 2309.03882).
"""

from __future__ import annotations

import copy
import math
import re
import statistics
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from promptflow.engine.request import Sampling
from promptflow.errors import PromptflowError, SignatureError, UnknownField, names_options
from promptflow.flow import Call, Flow, Module, Prediction, run_many, together
from promptflow.lm import lm_of
from promptflow.modules.predict import Predict
from promptflow.modules.reliability import Reliability, Watch, reliability
from promptflow.signatures import document_of
from promptflow.storage import find_document

CERTAIN = 40.0
"""Log-odds of what is certain: a model that tells no probabilities is sure of what it says."""


def shares(prediction: Prediction, field: str, options: Sequence[str]) -> dict[str, float]:
    """Return the probability of each option of an output that was weighed, in their order.

    From a model that gives none, the option that was chosen has probability 1.
    """
    weighed = prediction._weighed.get(field) or {str(prediction[field]): 1.0}
    return {option: weighed.get(option, 0.0) for option in options}


def _predictor(signature: Any, own: str, reasons: bool, lm: Any) -> Predict:
    """Return a judge's predictor; the bundled document gives its reason only where asked to."""
    if signature is None:
        signature = document_of(_own(own)).signature
        signature = signature if reasons else signature.delete("reason")
    elif reasons:
        raise SignatureError("reasons=True is for the bundled signature: add an output of your own")
    predictor = Predict(signature, sampling=Sampling(), weigh=True)
    predictor.lm = None if lm is None else lm_of(lm)
    return predictor


def _asked(predictor: Predict, inputs: Mapping[str, Any]) -> Call:
    """Return the call for these inputs; without a reference answer the prompt has none."""
    signature = predictor.signature
    if "reference" in signature.input_fields and inputs.get("reference") is None:
        given = {name: value for name, value in inputs.items() if name != "reference"}
        return predictor.call(signature=signature.delete("reference"), **given)
    return predictor.call(**inputs)


def _is_own(predictor: Predict, writers: Iterable[Any]) -> bool:
    """Say whether one of the models that wrote is the model that judges."""
    judge = model_name(predictor.lm or dspy.settings.lm)
    return any(same_model(str(writer), judge) for writer in writers if writer)


def model_name(lm: Any) -> str:
    """Return the name of an LM's model."""
    engine = getattr(lm, "text_engine", None)
    return str(engine.info.name if engine is not None else getattr(lm, "model", ""))


def same_model(one: str, other: str) -> bool:
    """Say whether two names are of one model: provider, build, ending, quantization aside."""
    return bool(one) and _bare(one) == _bare(other)


def _bare(model: str) -> str:
    name = model.split("@")[0].rsplit("/", 1)[-1].casefold()
    return re.sub(r"(\.gguf)?$|[-.:](i?q\d\w*|f16|bf16|f32)(\.gguf)?$", "", name)


class Judge(Module):
    """Score an answer against a rubric with the probabilities of the levels.

    ``rubric`` is the criterion in words. The last output of ``signature`` (left out: the bundled
    ``judge``) is the score: a Literal of ascending numbers. ``reasons``: the judge says why before
    it scores. ``lm`` is the model that judges, the configured one if left out. Raises
    SignatureError for any other score.
    """

    @names_options
    def __init__(
        self,
        rubric: str,
        signature: str | Path | type[Any] | None = None,
        *,
        reasons: bool = False,
        lm: Any = None,
    ) -> None:
        super().__init__()
        self.rubric = rubric
        self.score = _predictor(signature, "judge", reasons, lm)
        self.levels = _levels(self.score.signature)

    def settings(self) -> dict[str, Any]:
        """Return the rubric."""
        return {"rubric": self.rubric}

    def flow(self, **inputs: Any) -> Flow:
        """Return ``score`` (the expected level), ``unit``, ``level`` and ``probabilities``.

        ``inputs`` are the signature's without the rubric; ``reference``, a right answer, may be
        left out. ``unit`` is the score on a scale from 0 to 1, ``level`` the level that the model
        wrote, ``own`` whether ``model``, the name of the model that wrote the answer, is the one
        that judges.
        """
        own = _is_own(self.score, [inputs.pop("model", None)])
        [prediction] = yield [_asked(self.score, {"rubric": self.rubric, **inputs})]
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
            own=own,
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
    ``B`` or ``tie`` for its inputs ``answer_a`` and ``answer_b``. ``prior`` is taken off the
    log-odds of the first place before a verdict is read: see ``calibrated``. ``reasons`` and ``lm``
    as for ``Judge``. A judge whose verdicts change with the order too often warns, once.
    """

    @names_options
    def __init__(
        self,
        signature: str | Path | type[Any] | None = None,
        *,
        prior: float = 0.0,
        reasons: bool = False,
        lm: Any = None,
    ) -> None:
        super().__init__()
        self.compare = _predictor(signature, "judge_pair", reasons, lm)
        self.prior = prior
        self.seen = Watch()

    def settings(self) -> dict[str, Any]:
        """Return the prior of the first place."""
        return {"prior": self.prior} if self.prior else {}

    @property
    def reliability(self) -> Reliability:
        """Return how consistent this judge was in all that it judged so far."""
        return reliability(self.seen.given)

    def flow(self, **inputs: Any) -> Flow:
        """Return ``winner`` (first, second or tie), ``consistent``, ``verdicts``, ``preference``.

        Of ``inputs``, ``first`` and ``second`` are the answers, ``reference`` a right one, if there
        is one, and ``first_model`` and ``second_model`` who wrote them. ``verdicts`` are the
        winners in the given and in the exchanged order; different ones are a tie.
        ``probabilities`` are those of both orders. ``preference`` is the probability that ``first``
        is better, ties counting half, with what goes with the place in this pair taken off;
        ``place`` is that part, the log-odds of the answer that stands first. ``own``: one of the
        answers is of the judge's own model, which may prefer it.
        """
        if missing := [name for name in ("first", "second") if name not in inputs]:
            raise UnknownField(f"PairJudge needs {missing}; call it with first=... and second=...")
        first, second = inputs.pop("first"), inputs.pop("second")
        writers = [inputs.pop(f"{name}_model", None) for name in ("first", "second")]
        own = _is_own(self.compare, writers)
        orders = ((first, second), (second, first))
        given = yield [
            _asked(self.compare, {"answer_a": a, "answer_b": b, **inputs}) for a, b in orders
        ]
        field = list(self.compare.signature.output_fields)[-1]
        weighed = [shares(prediction, field, ("A", "B", "tie")) for prediction in given]
        names = ({"A": "first", "B": "second"}, {"A": "second", "B": "first"})
        verdicts = []
        for prediction, share, named in zip(given, weighed, names, strict=True):
            said = self._verdict(share) if self.prior else str(prediction[field])
            verdicts.append(named.get(said, "tie"))
        consistent = verdicts[0] == verdicts[1]
        odds = [_odds(share) for share in weighed]
        tie = (weighed[0]["tie"] + weighed[1]["tie"]) / 2
        result = Prediction(
            winner=verdicts[0] if consistent else "tie",
            consistent=consistent,
            verdicts=tuple(verdicts),
            preference=tie / 2 + (1 - tie) * _share_of((odds[0] - odds[1]) / 2),
            place=(odds[0] + odds[1]) / 2,
            probabilities=tuple(
                {named.get(option, "tie"): share for option, share in weights.items()}
                for weights, named in zip(weighed, names, strict=True)
            ),
            own=own,
            **_reasons(given),
        )
        self.seen.add(result)
        return result

    def _verdict(self, share: Mapping[str, float]) -> str:
        """Return the verdict of one order with the prior of the places taken off."""
        off = {"A": -self.prior / 2, "B": self.prior / 2, "tie": 0.0}
        return max(share, key=lambda option: _log(share[option]) + off[option])

    def calibrated(
        self, pairs: Sequence[Mapping[str, Any]], *, lm: Any = None, seed: int = 0
    ) -> PairJudge:
        """Return this judge with the prior of the first place that it shows on some pairs.

        No one has to have judged them. It is the median of ``place`` over the pairs: what the judge
        adds to the first answer, whichever it is. Raises the first error if no pair was judged.
        """
        fresh = copy.copy(self)
        fresh.seen, fresh.prior = Watch(), 0.0
        fresh.seen.warned = True  # of what is taken off here
        given = run_many(fresh, [dict(pair) for pair in pairs], lm=lm, seed=seed)
        judged = [one for one in given if not isinstance(one, PromptflowError)]
        if not judged:
            raise next(iter(given), PromptflowError("PairJudge.calibrated: give it some pairs"))
        fresh.prior = statistics.median(one.place for one in judged)
        fresh.seen = Watch()
        return fresh


def _reasons(given: Sequence[Prediction]) -> dict[str, Any]:
    found = tuple(one["reason"] for one in given if "reason" in one)
    return {"reasons": found} if found else {}


def _log(share: float) -> float:
    return max(-CERTAIN, math.log(share)) if share else -CERTAIN


def _odds(share: Mapping[str, float]) -> float:
    """Return the log-odds of A over B."""
    return _log(share["A"]) - _log(share["B"])


def _share_of(odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-CERTAIN, min(CERTAIN, odds))))


class Panel(Module):
    """Several judges at once: the mean of their scores, or the verdict of most of them.

    ``judges`` are all a ``Judge`` or all a ``PairJudge``, best with models of different families
    (Verga and others 2024, arXiv 2404.18796). Warns once where they agree too little.
    """

    def __init__(self, judges: Sequence[Judge] | Sequence[PairJudge]) -> None:
        super().__init__()
        if len(judges) < 2 or len({isinstance(judge, PairJudge) for judge in judges}) != 1:
            raise SignatureError("a Panel needs two judges or more, all of one kind")
        self.judges = list(judges)
        self.seen = Watch()

    @property
    def reliability(self) -> Reliability:
        """Return how far the judges agreed in all that they judged so far."""
        return reliability(self.seen.given)

    def flow(self, **inputs: Any) -> Flow:
        """Return what the judges say together, and ``ratings``, what each of them says.

        Of judges of rubrics ``score`` and ``unit`` are means. Of judges of pairs ``winner`` is what
        most of them say, none of them more than another being a tie, and ``preference`` the mean.
        """
        given = yield from together([judge.flow(**inputs) for judge in self.judges])
        for one in given:
            if isinstance(one, PromptflowError):
                raise one
        own = any(one.own for one in given)
        if isinstance(self.judges[0], Judge):
            units = tuple(one.unit for one in given)
            score = math.fsum(one.score for one in given) / len(given)
            mean = math.fsum(units) / len(units)
            result = Prediction(score=score, unit=mean, ratings=units, own=own)
        else:
            votes = Counter(one.winner for one in given).most_common()
            tied = len(votes) > 1 and votes[0][1] == votes[1][1]
            result = Prediction(
                winner="tie" if tied else votes[0][0],
                ratings=tuple(one.winner for one in given),
                verdicts=tuple(verdict for one in given for verdict in one.verdicts),
                preference=math.fsum(one.preference for one in given) / len(given),
                own=own,
            )
        self.seen.add(result)
        return result


def yes(prediction: Prediction, field: str) -> float:
    """Return the probability of a verdict's Yes."""
    return shares(prediction, field, ("Yes", "No"))["Yes"]


def _own(name: str) -> Path:
    """Return promptflow's own document, which no document of the project's replaces."""
    return find_document("signatures", name, bundled_only=True)
