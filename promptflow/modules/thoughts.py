"""Tree of thoughts: propose next steps, value the states they lead to, search (Yao et al. 2023).

A problem, a proposer, a valuer, and a search over the tree that grows of them: see ``tree`` and
``search``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import dspy

from promptflow.errors import ProgramError, names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.asking import check_goal, check_part, is_function, weighs
from promptflow.modules.predict import Predict
from promptflow.modules.search import TreeSearch, find_search, search_settings
from promptflow.modules.settings import code_name, settings_of
from promptflow.modules.tree import ROOT, Growing, Growth, Problem
from promptflow.storage import find_document


class TreeOfThoughts(Module):
    """Search over thoughts with a proposer and a valuer (Yao et al., 2023, arXiv:2305.10601).

    ``propose``, ``value`` and ``goal`` are modules, signatures or document names, or functions of a
    state; left out, the bundled ``propose_step`` and ``value_state`` for a ``problem`` in words,
    and no goal but the problem's own. Each is given ``state`` and those of the flow's inputs that
    it names. ``proposals`` calls for a state and ``samples`` calls for a new one are sampled at
    ``temperature``; a predictor made with ``weigh=True`` is asked once: its most probable options
    are the proposals, the mean over its verdicts by their probability is the value. With ``votes``
    the valuer, ``vote_state`` where it is left out, is given all new ``states`` and answers with
    the number of the best one; a function returns the worth of each.

    ``search`` is ``breadth_first``, ``depth_first``, ``best_first`` or ``monte_carlo``, one of
    these with its options (``pf.DepthFirst(steps=20)``), or any function of a ``Growth``.
    """

    @names_options
    def __init__(
        self,
        propose: Any = None,
        value: Any = None,
        *,
        goal: Any = None,
        problem: Problem | None = None,
        search: str | Mapping[str, Any] | TreeSearch = "breadth_first",
        depth: int = 3,
        breadth: int = 5,
        proposals: int = 5,
        samples: int = 3,
        votes: bool = False,
        temperature: float = 0.7,
    ) -> None:
        """Refuse a search without a level, a kept state, a proposal or a valuation.

        Raises ValueError, also for votes where a search compares states that were valued apart.
        """
        super().__init__()
        for name, number in (
            ("depth", depth),
            ("breadth", breadth),
            ("proposals", proposals),
            ("samples", samples),
        ):
            if number < 1:
                raise ValueError(f"TreeOfThoughts: {name}={number} is below 1")
        self.propose = _part(propose or _bundled("propose_step"))
        self.value = _part(value or _bundled("vote_state" if votes else "value_state"))
        self.goal = None if goal is None else _part(goal)
        self.problem = problem or Problem()
        self.search = find_search(search)
        if votes and not getattr(self.search, "takes_votes", True):
            raise ValueError(
                f"TreeOfThoughts: search={search!r} compares states that were not voted on "
                "together; use votes=False, 'breadth_first' or 'depth_first'"
            )
        check_part("propose", self.propose, self.problem.options is not None)
        check_part("value", self.value, votes, "states" if votes else None)
        if self.goal is not None:
            check_goal(self.goal)
        times = {"proposals": (self.propose, proposals), "samples": (self.value, samples)}
        for name, (part, number) in times.items():
            if temperature <= 0 and number > 1 and not (is_function(part) or weighs(part)):
                raise ValueError(
                    f"TreeOfThoughts: temperature={temperature} gives {number} equal {name}; "
                    f"use 0.7, or {name}=1"
                )
        self.depth = depth
        self.breadth = breadth
        self.proposals = proposals
        self.samples = samples
        self.votes = votes
        self.temperature = temperature

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings; functions, and the problem's own, by their names."""
        names = ["depth", "breadth", "proposals", "samples", "votes", "temperature"]
        parts = ("propose", "value", "goal")
        names += [n for n in parts if is_function(getattr(self, n))]
        made = settings_of(self, names)
        made["search"] = search_settings(self.search) or code_name(self.search)
        own = [
            code_name(function)["code"]
            for f in dataclasses.fields(Problem)
            if (function := getattr(self.problem, f.name)) is not f.default
        ]
        return {**made, "problem": {"code": ", ".join(own)}} if own else made

    def flow(self, **inputs: Any) -> Flow:
        """Return ``answer`` (the thoughts), ``state``, ``value``, ``solved`` and ``tree``.

        The search ends at the first state that is done; failing that, at its answer, and ``solved``
        is false. An error of every call of a step is raised.
        """
        names = [f.name for f in dataclasses.fields(Growing)]
        growth = Growth(Growing(**{name: getattr(self, name) for name in names}), inputs)
        best = ROOT if growth.thoughts[ROOT].terminal else (yield from self.search(growth))
        if not isinstance(best, int) or not 0 <= best < len(growth.thoughts):
            raise ProgramError(
                f"search={self.search!r} returned {best!r}: it returns the number of a thought, "
                f"0 to {len(growth.thoughts) - 1}"
            )
        tree = growth.finished(best)
        found = tree.thoughts[best]
        return Prediction(
            answer="\n".join(thought.text for thought in tree.path()),
            state=found.state,
            value=found.value,
            solved=found.terminal,
            tree=tree,
        )


def _bundled(name: str) -> Any:
    return find_document("signatures", name, bundled_only=True)


def _part(given: Any) -> Any:
    """Return a module or a function as it is, and a predictor of a signature."""
    if isinstance(given, dspy.Module) or (callable(given) and not isinstance(given, type)):
        return given
    return Predict(given)
