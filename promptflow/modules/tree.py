"""A tree of thoughts and how it grows: next steps are proposed, the states they lead to valued.

What a state is and where a thought leads is a ``Problem``: functions of text, no model. A step of
growth is one list of calls: all proposals for several states, or all valuations of new ones. Which
states grow is a search's affair. The tree is a record that a report draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptflow.errors import ProgramError, PromptflowError, names_options
from promptflow.flow import Call, Prediction, together
from promptflow.modules.asking import (
    asked,
    ballot,
    confined_to,
    is_function,
    question,
    reached,
    weighs,
)

VERDICTS = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
"""What a verdict on a state is worth (Yao et al. 2023, Game of 24)."""

Steps = Generator[list[Call], list[Any], Any]


def first_output(prediction: Prediction) -> list[str]:
    """Return the last output as thoughts: the items of a list, or one text; None is no thought."""
    value = prediction[list(prediction.keys())[-1]]
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def append_line(state: str, thought: str) -> str:
    """Return ``state`` with the thought as its last line."""
    return f"{state}\n{thought}".strip()


def verdict_worth(prediction: Prediction) -> float:
    """Return the worth of the last output: a verdict of ``VERDICTS``, or a number.

    Of one that was weighed, the mean over its options by their probability.
    """
    last = list(prediction.keys())[-1]
    if not (shares := prediction.weighed.get(last)):
        return _worth_of(prediction[last])
    return math.fsum(share * _worth_of(verdict) for verdict, share in shares.items())


def _worth_of(verdict: Any) -> float:
    try:
        worth = VERDICTS[verdict] if verdict in VERDICTS else float(verdict)
    except (TypeError, ValueError):
        worth = math.nan
    if math.isnan(worth):
        raise ProgramError(
            f"value= said {verdict!r}: its last output is a number or one of {', '.join(VERDICTS)}"
        )
    return worth


def _nothing(inputs: Mapping[str, Any]) -> str:
    return ""


def _never(state: str) -> bool:
    return False


@names_options
@dataclass(frozen=True, slots=True)
class Problem:
    """What is searched: plain functions of a state's text.

    ``start(inputs)`` is the first state; ``step(state, thought)`` is the state that a thought leads
    to, or None for an illegal thought; ``done(state)`` says that a state solves the problem.
    ``options`` lists the legal thoughts of a state: a proposing predictor can write no other as its
    last output, and a state without any is a dead end. ``worth(state)`` values a state without the
    model; None asks the model. ``thoughts`` and ``value`` read the predictions of both.
    """

    start: Callable[[Mapping[str, Any]], str] = _nothing
    step: Callable[[str, str], str | None] = append_line
    done: Callable[[str], bool] = _never
    options: Callable[[str], Sequence[str]] | None = None
    worth: Callable[[str], float | None] | None = None
    thoughts: Callable[[Prediction], Sequence[str]] = first_output
    value: Callable[[Prediction], float] = verdict_worth


@dataclass(frozen=True, slots=True)
class Thought:
    """A node: the thought that led from its parent to ``state``; ``value`` None if never valued.

    ``kept`` tells that a search chose it, ``pruned`` that it gave it up for its value, ``terminal``
    that it solves the problem.
    """

    number: int
    parent: int | None
    depth: int
    text: str
    state: str
    value: float | None = None
    kept: bool = False
    terminal: bool = False
    pruned: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """A finished search. Thoughts are in the order of their making; the first is the root.

    ``proposed`` counts all thoughts proposed, of which ``merged`` led to a state already there and
    ``illegal`` nowhere; ``failed`` counts calls that ended in an error.
    """

    thoughts: tuple[Thought, ...]
    best: int
    proposed: int = 0
    merged: int = 0
    illegal: int = 0
    failed: int = 0

    def path(self, number: int | None = None) -> tuple[Thought, ...]:
        """Return the thoughts from below the root to ``number`` (default: the best)."""
        node = self.thoughts[self.best if number is None else number]
        path = []
        while node.parent is not None:
            path.append(node)
            node = self.thoughts[node.parent]
        return tuple(reversed(path))

    def rows(self) -> list[dict[str, Any]]:
        """Return the thoughts as JSON data."""
        return [dataclasses.asdict(thought) for thought in self.thoughts]


ROOT = 0
"""The number of a tree's first thought."""

_COUNTS = ("proposed", "merged", "illegal", "failed")


@dataclass(frozen=True, slots=True)
class Growing:
    """How a tree grows: who proposes and values, of what, how often, how warm, how far.

    ``propose``, ``value`` and ``goal`` are modules, or functions of a state and of those of the
    inputs that they name; ``votes`` has ``value`` compare states instead of valuing each.
    """

    propose: Any
    value: Any
    goal: Any
    problem: Problem
    depth: int
    breadth: int
    proposals: int
    samples: int
    votes: bool
    temperature: float


class Growth:
    """A tree while it grows, as a search sees it.

    ``thoughts`` are those so far, the root first; ``depth`` is how deep the tree may be, and
    ``breadth`` how many states a search may follow at a time.
    """

    def __init__(self, how: Growing, inputs: Mapping[str, Any]) -> None:
        """Begin with the problem's first state."""
        start = how.problem.start(inputs)
        root = Thought(ROOT, None, 0, "", start, kept=True, terminal=how.problem.done(start))
        self.how = how
        self.inputs = inputs
        self.thoughts = [root]
        self.depth, self.breadth = how.depth, how.breadth
        self._seen = {root.state}
        self._children: dict[int, list[int]] = {}
        self._values: dict[str, float] = {}
        self._counts = dict.fromkeys(_COUNTS, 0)

    def expand(self, numbers: Sequence[int]) -> Steps:
        """Propose from states in one list of calls; return the numbers of the new states.

        A state at the depth limit, or without a legal step, brings none. Raises the first error
        where all calls failed.
        """
        how = self.how
        parents, flows = [], []
        for number in numbers:
            parent = self.thoughts[number]
            given: dict[str, Any] = {}
            if how.problem.options is not None:
                options = tuple(how.problem.options(parent.state))
                if not options:
                    continue
                given = confined_to(how.propose, options)
            if parent.depth >= self.depth:
                continue
            inputs = self._with(state=parent.state)
            for flow in asked(how.propose, inputs, how.proposals, how.temperature, **given):
                parents.append(parent)
                flows.append(flow)
        results = self._succeeded((yield from together(flows)))
        fresh = []
        for parent, prediction in zip(parents, results, strict=True):
            for text in self._thoughts_of(prediction) if prediction else ():
                if (node := self._add(parent, text)) is not None:
                    fresh.append(node.number)
        yield from self._look_for_goal(fresh)
        return fresh

    def value(self, numbers: Sequence[int]) -> Steps:
        """Value states in one list of calls; equal questions are asked once.

        Raises the first error where all calls failed.
        """
        states = dict.fromkeys(self.thoughts[n].state for n in numbers)
        known = self.how.problem.worth or _unknown
        worths = {state: known(state) for state in states}
        left = [state for state, worth in worths.items() if worth is None]
        ask = self._vote if self.how.votes else self._judge
        worths |= (yield from ask(left)) if left else {}
        for number in numbers:
            thought = self.thoughts[number]
            self.thoughts[number] = replace(thought, value=worths[thought.state])

    def solved(self, numbers: Sequence[int]) -> list[int]:
        """Return those of ``numbers`` whose states solve the problem."""
        return [n for n in numbers if self.thoughts[n].terminal]

    def ranked(self, numbers: Sequence[int]) -> list[int]:
        """Return ``numbers`` by their worth, best first; equal ones as they were made."""
        return sorted(numbers, key=lambda n: (-self.worth(n), n))

    def keep(self, numbers: Sequence[int]) -> list[int]:
        """Mark ``numbers`` as those that the search follows, and return them."""
        for number in numbers:
            self.thoughts[number] = replace(self.thoughts[number], kept=True)
        return list(numbers)

    def prune(self, numbers: Sequence[int], threshold: float) -> list[int]:
        """Give up what is worth ``threshold`` or less, and return the rest; None is no value."""
        hopeless = {n for n in numbers if -math.inf < self.worth(n) <= threshold}
        for number in hopeless:
            self.thoughts[number] = replace(self.thoughts[number], pruned=True)
        return [n for n in numbers if n not in hopeless]

    def worth(self, number: int) -> float:
        """Return the value of a state; of one that has none, less than any."""
        value = self.thoughts[number].value
        return -math.inf if value is None else value

    def children(self, number: int) -> list[int]:
        """Return the numbers of the states that were found from a state."""
        return self._children.get(number, [])

    def best(self) -> int:
        """Return the number of the most valuable of the deepest states that were not pruned."""
        left = [thought.number for thought in self.thoughts if not thought.pruned]
        return max(left, key=lambda n: (self.thoughts[n].depth, self.worth(n), -n))

    def finished(self, best: int) -> Tree:
        """Return the record of a search that ended with the thought ``best``."""
        self.keep([best])
        return Tree(tuple(self.thoughts), best, **self._counts)

    def _thoughts_of(self, prediction: Prediction) -> Sequence[str]:
        """Return the thoughts of a proposal; of a weighed choice the most probable options."""
        shares = prediction.weighed.get(list(prediction.keys())[-1])
        if weighs(self.how.propose) and shares:
            return sorted(shares, key=lambda text: -shares[text])[: self.how.proposals]
        return self.how.problem.thoughts(prediction)

    def _add(self, parent: Thought, text: str) -> Thought | None:
        """Add the state that a thought leads to; None where it is illegal or already there."""
        self._counts["proposed"] += 1
        state = self.how.problem.step(parent.state, text)
        if state is None:
            self._counts["illegal"] += 1
            return None
        if state in self._seen:
            self._counts["merged"] += 1
            return None
        self._seen.add(state)
        number, depth = len(self.thoughts), parent.depth + 1
        done = self.how.problem.done(state)
        node = Thought(number, parent.number, depth, text, state, terminal=done)
        self.thoughts.append(node)
        self._children.setdefault(parent.number, []).append(number)
        return node

    def _look_for_goal(self, fresh: Sequence[int]) -> Steps:
        """Ask of new states whether they solve the problem, where a module says so."""
        goal, left = self.how.goal, [n for n in fresh if not self.thoughts[n].terminal]
        if goal is None or not left:
            return
        flows = []
        for number in left:
            inputs = self._with(state=self.thoughts[number].state)
            flows += asked(goal, inputs, 1, None)
        for number, result in zip(left, self._succeeded((yield from together(flows))), strict=True):
            if result is not None:
                done = reached(result)
                self.thoughts[number] = replace(self.thoughts[number], terminal=done)

    def _judge(self, states: Sequence[str]) -> Steps:
        """Ask of each state on its own what it is worth, on average over the samples."""
        how = self.how
        keys = {s: question(how.value, self._with(state=s)) for s in states}
        flows, of = [], []
        for key, state in {key: state for state, key in keys.items()}.items():
            if key not in self._values:
                inputs = self._with(state=state)
                mine = asked(how.value, inputs, how.samples, how.temperature)
                flows += mine
                of += [key] * len(mine)
        results = self._succeeded((yield from together(flows)))
        given: dict[str, list[float]] = {}
        for key, result in zip(of, results, strict=True):
            if result is not None:
                given.setdefault(key, []).append(how.problem.value(result))
        self._values |= {key: math.fsum(v) / len(v) for key, v in given.items()}
        return {state: self._values.get(key) for state, key in keys.items()}

    def _vote(self, states: Sequence[str]) -> Steps:
        """Have all states compared at once; a state is worth its share of the votes, 0 to 1."""
        if len(states) == 1:
            return {states[0]: 1.0}
        how, names = self.how, [str(n) for n in range(1, len(states) + 1)]
        inputs = self._with(states=list(states))
        given = confined_to(how.value, tuple(names))
        flows = asked(how.value, inputs, how.samples, how.temperature, **given)
        results = [r for r in self._succeeded((yield from together(flows))) if r is not None]
        if is_function(how.value):
            return dict(zip(states, map(float, results[0].value), strict=True))
        shares = dict.fromkeys(names, 0.0)
        for result in results:
            for name, share in ballot(result).items():
                if name not in shares:
                    raise ProgramError(
                        f"a vote among the states 1 to {len(states)} was {name!r}: the last output "
                        "of value= is the number of the best one"
                    )
                shares[name] += share / len(results)
        return dict(zip(states, shares.values(), strict=True))

    def _with(self, **subject: Any) -> dict[str, Any]:
        """Return the flow's inputs, and after them what is asked about."""
        return {k: v for k, v in self.inputs.items() if k not in subject} | subject

    def _succeeded(self, results: Sequence[Any]) -> list[Prediction | None]:
        """Return the predictions, None for what failed; raise where nothing else is there."""
        errors = [result for result in results if isinstance(result, PromptflowError)]
        self._counts["failed"] += len(errors)
        if errors and len(errors) == len(results):
            raise errors[0]
        return [None if isinstance(result, PromptflowError) else result for result in results]


def _unknown(state: str) -> None:
    return None
