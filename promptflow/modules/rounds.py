"""Rounds: samples of one module, drawn a batch at a time until a module has what it needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from promptflow.errors import ProgramError, PromptflowError
from promptflow.flow import Call, Chosen, Flow, Prediction, changed, flow_of, together
from promptflow.lm import Posted, is_local, seed_of
from promptflow.lm.remote import WHOLE


@dataclass(slots=True)
class Rounds:
    """Samples of ``module`` on one input, all of a round in one batch behind one prefill.

    ``most`` samples at ``temperature`` and no more, ``size`` a round (None: all at once).
    ``weighed`` asks for the log-probabilities that ``mean_logprob`` needs. ``errors`` are those of
    the samples that failed.
    """

    module: Any
    inputs: Mapping[str, Any]
    most: int
    temperature: float
    size: int | None = None
    weighed: bool = False
    drawn: int = 0
    samples: list[Prediction] = field(default_factory=list)
    errors: list[PromptflowError] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Return how many more samples may be drawn."""
        return self.most - self.drawn

    def draw(self) -> Generator[list[Call], list[Any], None]:
        """Draw one round."""
        size = min(self.size or self.most, self.left)
        flows = [
            sample_of(
                self.module, self.inputs, self.drawn + k, self.temperature, weighed=self.weighed
            )
            for k in range(size)
        ]
        self.drawn += size
        for result in (yield from together(flows)):
            if isinstance(result, PromptflowError):
                self.errors.append(result)
            else:
                self.samples.append(result)

    def chosen(self, best: Prediction, **fields: Any) -> Flow:
        """Tell of the sample that was chosen, and return it with ``fields`` and counts added."""
        counts = {"samples": self.drawn, "failed": len(self.errors)}
        return (yield from chosen(best, **fields, **counts))


def chosen(best: Prediction, **fields: Any) -> Flow:
    """Tell of the sample or attempt that was chosen, and return it with ``fields`` added."""
    yield Chosen(best)
    made = best.extended(**fields)
    made._told = best._told or best._trace
    return made


def check_rounds(name: str, n: int, batch: int | None, temperature: float) -> None:
    """Raise ValueError for numbers by which nothing can be sampled."""
    if n < 1 or (batch is not None and batch < 1):
        raise ValueError(f"{name}: n={n} and batch={batch} must be at least 1")
    if n > 1 and temperature <= 0:
        raise ValueError(f"{name}: temperature={temperature} gives {n} equal samples; use 0.7")


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
    where a module without a flow has models or temperatures that samples cannot have apart.
    """

    def heated(call: Call | Posted, step: int, position: int) -> Call | Posted:
        if isinstance(call, Posted):
            return call.heated(temperature, number)
        config = {**call.config, "temperature": temperature}
        if weighed and not is_local(call.lm or call.predictor.lm or dspy.settings.lm):
            config["logprobs"] = True  # what our own engine tells in any case
        # What was seeded for one call alone would give as many equal samples.
        seed = None if call.seed is None else seed_of(call.seed, number)
        return dataclasses.replace(call, config=config, seed=seed, sampled=True)

    return changed(flow_of(module, inputs, sample=(number, temperature)), heated, quiet=True)


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
