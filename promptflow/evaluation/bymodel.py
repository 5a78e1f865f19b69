"""Metrics whose scores a model gives: all runs are asked in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from promptflow.evaluation.metrics import unbound
from promptflow.flow import Flow, answered


@dataclass(frozen=True, slots=True)
class ByModel:
    """A metric that asks a model: ``ask(example, prediction, field=None)`` is a flow.

    What the flow returns has a ``score`` from 0 to 1. ``lm`` is the model that is asked; left out,
    the one that is configured, which is then the judge of its own text. ``asked`` are the models
    where the flow asks others, None standing for the configured one.
    """

    name: str
    ask: Callable[..., Flow]
    lm: Any = None
    asked: tuple[Any, ...] = ()
    needs: str = ""

    @property
    def __name__(self) -> str:
        """Return the name, as functions have it."""
        return self.name

    def flow(self, example: Any, prediction: Any, *, field: str | None = None) -> Flow:
        """Return the flow that asks for one run."""
        return self.ask(example, prediction, field=field)

    def __call__(
        self, example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
    ) -> float:
        """Return the score of one run, in DSPy's form. Raises what the model raised."""
        flow = self.ask(example, prediction, field=field)
        return float(answered(flow, lm=self.lm).score)


def asked_flow(metric: Any, example: Any, prediction: Any) -> Flow | None:
    """Return the flow of a metric that asks a model, bound to a field or not; None for others."""
    function, keywords = unbound(metric)
    return function.flow(example, prediction, **keywords) if isinstance(function, ByModel) else None
