"""Sample a module several times and choose: by vote (self-consistency) or by reward (best of n).

The samples are the module's own flows advanced together, so that each step of all of them is one
engine batch behind one shared prefill. Votes go to parsed values: 3.5 is not 35, and "-5" is not 5.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import dspy
from pydantic import BaseModel

from promptflow.errors import ProgramError, PromptflowError, UnknownField, names_options
from promptflow.flow import Call, Chosen, Flow, Module, Prediction, changed, together
from promptflow.lm import is_local, seed_of
from promptflow.lm.remote import WHOLE

Weighting = Literal["count", "logprob"]
Reward = Callable[[Mapping[str, Any], Prediction], float]


def sample_of(
    module: Any,
    inputs: Mapping[str, Any],
    number: int,
    temperature: float,
    *,
    weighed: bool = False,
) -> Flow:
    """Return the flow of ``module`` for sample ``number``, every call at ``temperature``.

    ``weighed`` asks for the log-probabilities that ``mean_logprob`` needs. Raises ProgramError
    where the module has no flow.
    """
    if not hasattr(module, "flow"):
        raise ProgramError(
            f"{type(module).__name__} has no flow, so its samples cannot share a batch; "
            "write it as a promptflow.Module with flow(self, **inputs)"
        )

    def heated(call: Call, step: int, position: int) -> Call:
        config = {**call.config, "temperature": temperature}
        if weighed and not is_local(call.lm or call.predictor.lm or dspy.settings.lm):
            config["logprobs"] = True  # what our own engine tells in any case
        # What was seeded for one call alone would give as many equal samples.
        seed = None if call.seed is None else seed_of(call.seed, number)
        return dataclasses.replace(call, config=config, seed=seed, sampled=True)

    return changed(module.flow(**inputs), heated, quiet=True)


def mean_logprob(prediction: Prediction) -> float:
    """Return the mean natural-log probability of the tokens sampled on the way to ``prediction``.

    Under the model before temperature; over all calls of the flow; 0 where nothing was sampled.
    Raises ProgramError where a remote model did not tell them.
    """
    answers = [answer for _, _, answer in prediction._trace]
    wholes = [answer._fills[WHOLE] for answer in answers if WHOLE in answer._fills]
    if any(whole.text and not whole.logprobs for whole in wholes):
        raise ProgramError(
            "the model gives no log-probabilities: vote by 'count', or pass reward=a function"
        )
    fills = [fill for answer in answers for fill in answer._fills.values()]
    tokens = sum(fill.generated for fill in fills)
    return math.fsum(fill.logprob for fill in fills) / tokens if tokens else 0.0


def vote_key(value: Any) -> Hashable:
    """Return what makes two values the same vote.

    Numbers agree by value (3 and 3.0), strings without regard to case and white space, containers
    item by item. Values of different kinds never agree: 5, "5" and True are three votes.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return ("constant", value)
    if isinstance(value, int | float):
        return ("number", Fraction(value) if math.isfinite(value) else repr(value))
    if isinstance(value, str):
        return ("text", " ".join(value.casefold().split()))
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return ("mapping", frozenset((str(key), vote_key(item)) for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(map(vote_key, value)))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(vote_key, value)))
    return (type(value).__name__, repr(value))


def _shown(value: Any) -> Hashable:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, Hashable):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Votes:
    """A count of votes in the order in which the values were first seen.

    ``weights`` and ``values`` are parallel: the weight of each distinct value and its first
    spelling. ``first`` and ``keys`` say which sample brought it and what it compares as.
    """

    keys: tuple[Hashable, ...]
    values: tuple[Any, ...]
    weights: tuple[float, ...]
    first: tuple[int, ...]

    def table(self) -> dict[Any, float]:
        """Return the weight of each value, heaviest first; unhashable values as JSON text."""
        order = sorted(range(len(self.weights)), key=lambda i: (-self.weights[i], i))
        return {_shown(self.values[i]): self.weights[i] for i in order}

    @property
    def leader(self) -> int:
        """Return the position of the heaviest value; of equal ones the first seen."""
        return max(range(len(self.weights)), key=lambda i: (self.weights[i], -i))

    @property
    def agreement(self) -> float:
        """Return the leader's share of all weight, 0 to 1."""
        total = math.fsum(self.weights)
        return self.weights[self.leader] / total if total else 0.0

    def decided(self, remaining: int) -> bool:
        """Say whether ``remaining`` further votes of weight 1 at most could not change the leader.

        Ties go to the first seen, so a value seen later must overtake the leader.
        """
        if not self.weights:
            return remaining == 0
        lead = self.leader
        if remaining > self.weights[lead]:
            return False
        rivals = (i for i in range(len(self.weights)) if i != lead)
        return all(
            self.weights[i] + remaining < self.weights[lead]
            or (self.weights[i] + remaining == self.weights[lead] and i > lead)
            for i in rivals
        )


def count_votes(samples: Sequence[Prediction], field: str, weighting: Weighting) -> Votes:
    """Return the votes of ``samples`` for the values of ``field``.

    A vote weighs 1, or under ``logprob`` the geometric mean probability of the sample's tokens:
    the normalised weighting of Wang et al. 2022, table 1. Raises UnknownField.
    """
    order: dict[Hashable, int] = {}
    values: list[Any] = []
    weights: list[float] = []
    first: list[int] = []
    for number, sample in enumerate(samples):
        if field not in sample:
            raise UnknownField(
                f"the vote is on the field {field!r}, but the module returns "
                f"{', '.join(sample.keys())}; pass field=... to SelfConsistency"
            )
        value = sample[field]
        place = order.setdefault(vote_key(value), len(order))
        if place == len(values):
            values.append(value)
            weights.append(0.0)
            first.append(number)
        weights[place] += math.exp(mean_logprob(sample)) if weighting == "logprob" else 1.0
    return Votes(tuple(order), tuple(values), tuple(weights), tuple(first))


class SelfConsistency(Module):
    """Sample a module ``n`` times and return the answer that most samples agree on.

    Wang et al. 2022. ``module`` is anything with a flow; its calls are sampled at ``temperature``,
    all samples of a step in one batch behind one prefill. ``vote`` weighs samples by ``count`` or
    ``logprob``. With ``batch`` below ``n``, samples are drawn in rounds until the vote is decided.
    """

    @names_options
    def __init__(
        self,
        module: Any,
        n: int = 5,
        temperature: float = 0.7,
        vote: Weighting = "count",
        field: str = "answer",
        batch: int | None = None,
    ) -> None:
        super().__init__()
        _check_numbers("SelfConsistency", n, batch, temperature)
        if vote not in ("count", "logprob"):
            raise ValueError(f"SelfConsistency: vote={vote!r} is neither 'count' nor 'logprob'")
        self.module = module
        self.n = n
        self.temperature = temperature
        self.vote: Weighting = vote
        self.field = field
        self.batch = batch

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings, without the module."""
        return _settings(self, ("n", "temperature", "vote", "field", "batch"))

    def flow(self, **inputs: Any) -> Flow:
        """Return the first sample of the winning value, and how the vote went.

        Added to its fields: ``votes`` (value -> weight, heaviest first), ``agreement`` (the share
        of the winner), ``samples`` (drawn) and ``failed`` (of these, ended in an error: no vote).
        Of equal values the first seen wins. Raises the first error where all failed.
        """
        samples: list[Prediction] = []
        errors: list[PromptflowError] = []
        drawn, weighed = 0, self.vote == "logprob"
        while drawn < self.n:
            size = min(self.batch or self.n, self.n - drawn)
            flows = [
                sample_of(self.module, inputs, drawn + k, self.temperature, weighed=weighed)
                for k in range(size)
            ]
            drawn += size
            for result in (yield from together(flows)):
                if isinstance(result, PromptflowError):
                    errors.append(result)
                else:
                    samples.append(result)
            votes = count_votes(samples, self.field, self.vote)
            if votes.decided(self.n - drawn):
                break
        if not samples:
            raise errors[0]
        winner = samples[votes.first[votes.leader]]
        yield Chosen(winner)
        chosen = winner.extended(
            votes=votes.table(),
            agreement=votes.agreement,
            samples=drawn,
            failed=len(errors),
        )
        chosen._completions = _completions(samples)
        chosen._told = winner._told or winner._trace
        return chosen


class BestOf(Module):
    """Sample a module ``n`` times and return the sample of the highest reward.

    ``reward`` is a callable (inputs, prediction) -> float, ``logprob`` (the mean log-probability of
    a sample's tokens) or ``first``. Samples that ``valid`` refuses lose to those that it accepts.
    With ``batch`` below ``n``, samples are drawn in rounds until one is valid and reaches
    ``threshold``; without a threshold that holds only for ``first``.
    """

    @names_options
    def __init__(
        self,
        module: Any,
        n: int = 5,
        reward: Reward | Literal["logprob", "first"] = "logprob",
        *,
        valid: Callable[[Prediction], bool] | None = None,
        threshold: float | None = None,
        temperature: float = 0.7,
        batch: int | None = None,
    ) -> None:
        super().__init__()
        _check_numbers("BestOf", n, batch, temperature)
        if not callable(reward) and reward not in ("logprob", "first"):
            raise ValueError(f"BestOf: reward={reward!r} is no callable, 'logprob' or 'first'")
        self.module = module
        self.n = n
        self.reward = reward
        self.valid = valid
        self.threshold = threshold
        self.temperature = temperature
        self.batch = batch

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings, without the module; functions by their names."""
        return _settings(self, ("n", "reward", "valid", "threshold", "temperature", "batch"))

    def flow(self, **inputs: Any) -> Flow:
        """Return the best sample with ``reward``, ``valid``, ``samples`` and ``failed`` added.

        Of equal rewards the first sample wins. Raises the first error where all samples failed.
        """
        scored: list[tuple[bool, float, Prediction]] = []
        errors: list[PromptflowError] = []
        drawn, weighed = 0, self.reward == "logprob"
        while drawn < self.n and not self._satisfied(scored):
            size = min(self.batch or self.n, self.n - drawn)
            flows = [
                sample_of(self.module, inputs, drawn + k, self.temperature, weighed=weighed)
                for k in range(size)
            ]
            drawn += size
            for result in (yield from together(flows)):
                if isinstance(result, PromptflowError):
                    errors.append(result)
                else:
                    valid = self.valid is None or bool(self.valid(result))
                    scored.append((valid, self._reward(inputs, result), result))
        if not scored:
            raise errors[0]
        valid, reward, best = max(scored, key=lambda entry: entry[:2])
        yield Chosen(best)
        chosen = best.extended(reward=reward, valid=valid, samples=drawn, failed=len(errors))
        chosen._told = best._told or best._trace
        return chosen

    def _reward(self, inputs: Mapping[str, Any], prediction: Prediction) -> float:
        if callable(self.reward):
            return float(self.reward(inputs, prediction))
        return mean_logprob(prediction) if self.reward == "logprob" else 0.0

    def _satisfied(self, scored: Sequence[tuple[bool, float, Prediction]]) -> bool:
        threshold = 0.0 if self.reward == "first" else self.threshold
        if threshold is None:
            return False
        return any(valid and reward >= threshold for valid, reward, _ in scored)


def _completions(samples: Sequence[Prediction]) -> Any:
    """Return the samples as DSPy's completions, on which ``dspy.majority`` votes."""
    if any(sample.keys() != samples[0].keys() for sample in samples):
        return None
    return Prediction.from_completions([dict(sample.items()) for sample in samples]).completions


def _check_numbers(name: str, n: int, batch: int | None, temperature: float) -> None:
    if n < 1 or (batch is not None and batch < 1):
        raise ValueError(f"{name}: n={n} and batch={batch} must be at least 1")
    if n > 1 and temperature <= 0:
        raise ValueError(f"{name}: temperature={temperature} gives {n} equal samples; use 0.7")


def _settings(module: Module, names: Sequence[str]) -> dict[str, Any]:
    given = {name: getattr(module, name) for name in names}
    return {
        name: code_name(value) if callable(value) else value
        for name, value in given.items()
        if value is not None
    }


def code_name(function: Any) -> dict[str, str]:
    """Return what settings hold of a function: its name. Loading a program needs it again."""
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    return {"code": f"{function.__module__}:{qualified}"}
