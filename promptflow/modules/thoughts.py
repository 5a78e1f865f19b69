"""Tree of thoughts: propose next steps, value the states they lead to, search (Yao et al. 2023).

A problem, a proposer, a valuer, and a search over the tree that grows of them: see ``tree`` and
``search``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import dspy

from promptflow.errors import names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.predict import Predict
from promptflow.modules.search import breadth_first
from promptflow.modules.settings import code_name
from promptflow.modules.tree import Growing, Growth, Problem
from promptflow.storage import find_document


class TreeOfThoughts(Module):
    """Search over thoughts, breadth-first, with a proposer and a valuer.

    ``propose`` and ``value`` are modules, signatures or document names; left out, the bundled
    ``propose_step`` and ``value_state`` for a ``problem`` in words. Each is given ``state`` and
    those of the flow's inputs that its signature has. ``proposals`` calls for a kept state and
    ``samples`` calls for a new one are sampled at ``temperature``.
    """

    @names_options
    def __init__(
        self,
        propose: Any = None,
        value: Any = None,
        *,
        problem: Problem | None = None,
        depth: int = 3,
        breadth: int = 5,
        proposals: int = 5,
        samples: int = 3,
        temperature: float = 0.7,
    ) -> None:
        """Refuse a search without a level, a kept state, a proposal or a valuation."""
        super().__init__()
        for name, number in (
            ("depth", depth),
            ("breadth", breadth),
            ("proposals", proposals),
            ("samples", samples),
        ):
            if number < 1:
                raise ValueError(f"TreeOfThoughts: {name}={number} is below 1")
        self.propose = _module(propose, "propose_step")
        self.value = _module(value, "value_state")
        self.problem = problem or Problem()
        self.depth = depth
        self.breadth = breadth
        self.proposals = proposals
        self.samples = samples
        self.temperature = temperature

    def settings(self) -> dict[str, Any]:
        """Return the constructor's numbers, and the names of the problem's own functions."""
        names = ("depth", "breadth", "proposals", "samples", "temperature")
        numbers = {name: getattr(self, name) for name in names}
        own = [
            code_name(function)["code"]
            for f in dataclasses.fields(Problem)
            if (function := getattr(self.problem, f.name)) is not f.default
        ]
        return {**numbers, "problem": {"code": ", ".join(own)}} if own else numbers

    def flow(self, **inputs: Any) -> Flow:
        """Return ``answer`` (the thoughts), ``state``, ``value``, ``solved`` and ``tree``.

        The search ends at the first state that is done; failing that, the best of the deepest level
        is the answer and ``solved`` is false. An error of every call of a step is raised.
        """
        names = [f.name for f in dataclasses.fields(Growing)]
        growth = Growth(Growing(**{name: getattr(self, name) for name in names}), inputs)
        best = yield from breadth_first(growth)
        tree = growth.finished(best)
        found = tree.thoughts[best]
        return Prediction(
            answer="\n".join(thought.text for thought in tree.path()),
            state=found.state,
            value=found.value,
            solved=found.terminal,
            tree=tree,
        )


def _module(given: Any, own: str) -> Any:
    if isinstance(given, dspy.Module):
        return given
    return Predict(given or find_document("signatures", own, bundled_only=True))
