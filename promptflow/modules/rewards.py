"""Best of n: sample a module several times and take the sample of the highest reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from promptflow.errors import ProgramError, names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.rounds import Rounds, check_rounds, mean_logprob
from promptflow.modules.settings import settings_of

Reward = Callable[[Mapping[str, Any], Prediction], float]


def reward_of(reward: Reward, inputs: Mapping[str, Any], prediction: Prediction) -> float:
    """Return what a function gives a prediction. Raises ProgramError for what is no number."""
    given = float(reward(inputs, prediction))
    if math.isnan(given):
        raise ProgramError(f"the reward {reward!r} is no number: return one, or -inf")
    return given


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
        check_rounds("BestOf", n, batch, temperature)
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
        return settings_of(self, ("n", "reward", "valid", "threshold", "temperature", "batch"))

    def flow(self, **inputs: Any) -> Flow:
        """Return the best sample with ``reward``, ``valid``, ``samples`` and ``failed`` added.

        Of equal rewards the first sample wins. Raises the first error where all samples failed.
        """
        rounds = Rounds(
            self.module, inputs, self.n, self.temperature, self.batch, self.reward == "logprob"
        )
        scored: list[tuple[bool, float, Prediction]] = []
        while rounds.left and not self._satisfied(scored):
            yield from rounds.draw()
            for sample in rounds.samples[len(scored) :]:
                valid = self.valid is None or bool(self.valid(sample))
                scored.append((valid, self._reward(inputs, sample), sample))
        if not scored:
            raise rounds.errors[0]
        valid, reward, best = max(scored, key=lambda entry: entry[:2])
        return (yield from rounds.chosen(best, reward=reward, valid=valid))

    def _reward(self, inputs: Mapping[str, Any], prediction: Prediction) -> float:
        if callable(self.reward):
            return reward_of(self.reward, inputs, prediction)
        return mean_logprob(prediction) if self.reward == "logprob" else 0.0

    def _satisfied(self, scored: Sequence[tuple[bool, float, Prediction]]) -> bool:
        threshold = 0.0 if self.reward == "first" else self.threshold
        if threshold is None:
            return False
        return any(valid and reward >= threshold for valid, reward, _ in scored)
