"""Refine: attempts one after the other, each told what was wrong with the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from promptflow.errors import ProgramError, PromptflowError, names_options
from promptflow.fields import to_text
from promptflow.flow import (
    Call,
    Flow,
    Module,
    Prediction,
    changed,
    flow_of,
    together,
    within,
)
from promptflow.lm import Posted
from promptflow.modules.predict import Predict
from promptflow.modules.rewards import Reward, reward_of
from promptflow.modules.rounds import chosen
from promptflow.modules.settings import settings_of
from promptflow.modules.stepwise import with_input
from promptflow.modules.transcript import written
from promptflow.signatures import plain_label, read_document

Feedback = Callable[[Mapping[str, Any], Prediction, float], str]
"""Inputs, an attempt and its reward to what the next attempt is told."""


HINTS = ("attempt", "feedback")
"""What an attempt after the first reads beside its inputs."""


class Refine(Module):
    """Attempt, be told what was wrong, and attempt again, until a reward reaches ``threshold``.

    Self-Refine (Madaan et al. 2023, arXiv 2303.17651) with a reward that ends it. ``reward`` is a
    function (inputs, prediction) -> float. ``feedback`` is a document by which the model says what
    is to be better, or a function (inputs, prediction, reward) -> text. At most ``n`` attempts;
    every predictor of ``module`` reads the last one and the feedback after its own inputs, so that
    what comes before stays in the cache.
    """

    @names_options
    def __init__(
        self,
        module: Any,
        reward: Reward,
        threshold: float = 1.0,
        *,
        n: int = 3,
        feedback: Feedback | str | Path = "refine",
    ) -> None:
        super().__init__()
        if not callable(reward):
            raise ValueError(f"Refine: reward={reward!r} is no function of inputs and prediction")
        if n < 1:
            raise ValueError(f"Refine: n={n} must be at least 1")
        for path, predictor in module.named_predictors():
            if taken := [name for name in HINTS if name in predictor.signature.fields]:
                raise ProgramError(
                    f"Refine adds the inputs {' and '.join(HINTS)}, and {path or 'the predictor'} "
                    f"has a field {taken[0]!r}: rename it"
                )
        self.module = module
        self.reward = reward
        self.threshold = threshold
        self.n = n
        self.feedback = feedback if callable(feedback) else str(feedback)
        name = "refine" if callable(feedback) else feedback
        self.criticize = Predict(read_document(name, bundled_only=name == "refine").signature)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings, without the module; functions by their names."""
        return settings_of(self, ("reward", "threshold", "n", "feedback"))

    def flow(self, **inputs: Any) -> Flow:
        """Return the best attempt with ``reward``, ``attempts``, ``failed`` and ``feedback`` added.

        ``attempts`` counts them, ``failed`` those that ended in an error, ``feedback`` is what the
        last one was told. Of equal rewards the first attempt wins. An attempt that fails ends it;
        its error is raised where none succeeded.
        """
        best: tuple[float, Prediction] | None = None
        hints: dict[str, str] = {}
        for number in range(1, self.n + 1):
            [made] = yield from together([self._attempt(inputs, hints)])
            if isinstance(made, PromptflowError):
                if best is None:
                    raise made
                break
            reward = reward_of(self.reward, inputs, made)
            if best is None or reward > best[0]:
                best = reward, made
            if reward >= self.threshold or number == self.n:
                break
            told = yield from self._feedback(inputs, made, reward)
            hints = {"attempt": written(made), "feedback": told}
        assert best is not None
        counts = {"attempts": number, "failed": int(isinstance(made, PromptflowError))}
        told = hints.get("feedback", "")
        return (yield from chosen(best[1], reward=best[0], **counts, feedback=told))

    def _attempt(self, inputs: Mapping[str, Any], hints: Mapping[str, str]) -> Flow:
        """Return the flow of an attempt that reads ``hints``."""

        def hinted(call: Call | Posted, step: int, position: int) -> Call | Posted:
            if isinstance(call, Posted):
                return call  # its program has read them, through its adapter
            signature, given = self.hinted(
                call.signature or call.predictor.signature, call.inputs, hints
            )
            return replace(call, signature=signature, inputs=given, sampled=True)

        flow = changed(flow_of(self.module, inputs), hinted, quiet=True)
        if not hints:
            return flow
        return within(flow, lambda: dspy.context(adapter=_Hinting(self, hints)))

    def hinted(
        self, signature: Any, inputs: Mapping[str, Any], hints: Mapping[str, str]
    ) -> tuple[Any, dict[str, Any]]:
        """Return a signature and its inputs with the hints as last inputs."""
        for name in hints:
            signature = with_input(signature, name, self.criticize.signature.fields[name])
        return signature, {**inputs, **hints}

    def _feedback(self, inputs: Mapping[str, Any], attempt: Prediction, reward: float) -> Flow:
        if callable(self.feedback):
            return str(self.feedback(inputs, attempt, reward))
        task = "\n".join(f"{plain_label(k)} {to_text(v)}" for k, v in inputs.items())
        call = self.criticize.call(task=task, attempt=written(attempt))
        [said] = yield [replace(call, sampled=True)]
        return str(said.feedback)


class _Hinting(dspy.Adapter):
    """The adapter in force, with hints among the inputs of every call of a plain program."""

    def __init__(self, refine: Refine, hints: Mapping[str, str]) -> None:
        super().__init__()
        self._refine, self._hints = refine, hints
        self._inner = dspy.settings.adapter or dspy.ChatAdapter()

    def __call__(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        """Call with the hints."""
        signature, given = self._refine.hinted(signature, inputs, self._hints)
        made: list[dict[str, Any]] = self._inner(lm, lm_kwargs, signature, demos, given)
        return made

    async def acall(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        signature, given = self._refine.hinted(signature, inputs, self._hints)
        made: list[dict[str, Any]] = await self._inner.acall(lm, lm_kwargs, signature, demos, given)
        return made
