"""A tree of thoughts and how it grows: next steps are proposed, the states they lead to valued.

What a state is and where a thought leads is a ``Problem``: functions of text, no model. A step of
growth is one list of calls: all proposals for several states, or all valuations of new ones. Which
states grow is a search's affair. The tree is a record that a report can draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from promptflow.errors import PromptflowError
from promptflow.flow import Call, Prediction, together
from promptflow.modules.options import confined
from promptflow.modules.rounds import sample_of
from promptflow.storage import canonical

VERDICTS = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
"""What a verdict on a state is worth (Yao et al. 2023, Game of 24)."""

Steps = Generator[list[Call], list[Any], Any]


def first_output(prediction: Prediction) -> list[str]:
    """Return the last output as thoughts: the items of a list, or one text."""
    value = prediction[list(prediction.keys())[-1]]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def append_line(state: str, thought: str) -> str:
    """Return ``state`` with the thought as its last line."""
    return f"{state}\n{thought}".strip()


def verdict_worth(prediction: Prediction) -> float:
    """Return the worth of the last output: a verdict of ``VERDICTS``, or a number."""
    value = prediction[list(prediction.keys())[-1]]
    return VERDICTS[value] if value in VERDICTS else float(value)


def _nothing(inputs: Mapping[str, Any]) -> str:
    return ""


def _never(state: str) -> bool:
    return False


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
    """A node: the thought that led from its parent to ``state``; ``value`` None if never valued."""

    number: int
    parent: int | None
    depth: int
    text: str
    state: str
    value: float | None = None
    kept: bool = False
    terminal: bool = False


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
    """How a tree grows: who proposes and who values, of what, how often, how warm, how far."""

    propose: Any
    value: Any
    problem: Problem
    depth: int
    breadth: int
    proposals: int
    samples: int
    temperature: float


class Growth:
    """A tree while it grows, as a search sees it.

    ``thoughts`` are those so far, the root first; ``depth`` is how deep the tree may be, and
    ``breadth`` how many states a search keeps at a time.
    """

    def __init__(self, how: Growing, inputs: Mapping[str, Any]) -> None:
        """Begin with the problem's first state."""
        root = Thought(ROOT, None, 0, "", how.problem.start(inputs), kept=True)
        self.how = how
        self.inputs = inputs
        self.thoughts = [root]
        self.depth, self.breadth = how.depth, how.breadth
        self._seen = {root.state}
        self._values: dict[str, float] = {}
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._error: PromptflowError | None = None

    def expand(self, numbers: Sequence[int]) -> Steps:
        """Propose from every state in one list of calls; return the numbers of the new states."""
        how = self.how
        parents, flows = [], []
        for number in numbers:
            parent = self.thoughts[number]
            given = _known_inputs(how.propose, {**self.inputs, "state": parent.state})
            if how.problem.options is not None:
                options = tuple(how.problem.options(parent.state))
                if not options:
                    continue
                given |= _confined(how.propose, options)
            for k in range(how.proposals):
                parents.append(parent)
                flows.append(sample_of(how.propose, given, k, how.temperature))
        results = yield from together(flows)
        predictions = [self._succeeded(result) for result in results]
        if self._error is not None and not any(predictions):
            raise self._error
        fresh = []
        for parent, prediction in zip(parents, predictions, strict=True):
            for text in how.problem.thoughts(prediction) if prediction else ():
                node = self._add(parent, text)
                if node is not None:
                    fresh.append(node.number)
        return fresh

    def value(self, numbers: Sequence[int]) -> Steps:
        """Value every state in one list of calls; equal questions are asked once."""
        how = self.how
        asked: dict[str, dict[str, Any]] = {}
        keys = {}
        for number in numbers:
            state = self.thoughts[number].state
            known = how.problem.worth(state) if how.problem.worth else None
            keys[number] = state
            if known is not None:
                self._values[state] = known
            elif state not in self._values:
                given = _known_inputs(how.value, {**self.inputs, "state": state})
                keys[number] = canonical(given)
                if keys[number] not in self._values:
                    asked[keys[number]] = given
        flows = [
            sample_of(how.value, given, k, how.temperature)
            for given in asked.values()
            for k in range(how.samples)
        ]
        results = yield from together(flows)
        for place, key in enumerate(asked):
            share = results[place * how.samples : (place + 1) * how.samples]
            values = [how.problem.value(p) for p in map(self._succeeded, share) if p is not None]
            if values:
                self._values[key] = math.fsum(values) / len(values)
        for number in numbers:
            value = self._values.get(keys[number])
            self.thoughts[number] = dataclasses.replace(self.thoughts[number], value=value)

    def solved(self, numbers: Sequence[int]) -> list[int]:
        """Return those of ``numbers`` whose states solve the problem."""
        return [n for n in numbers if self.thoughts[n].terminal]

    def keep(self, numbers: Sequence[int], breadth: int) -> list[int]:
        """Mark the ``breadth`` most valuable of ``numbers`` as kept and return them, best first."""
        best = sorted(numbers, key=lambda n: (-self.worth(n), n))[:breadth]
        for number in best:
            self.thoughts[number] = dataclasses.replace(self.thoughts[number], kept=True)
        return best

    def worth(self, number: int) -> float:
        """Return the value of a state; of one that has none, less than any."""
        value = self.thoughts[number].value
        return -math.inf if value is None else value

    def finished(self, best: int) -> Tree:
        """Return the record of a search that ended with the thought ``best``."""
        return Tree(tuple(self.thoughts), best, **self._counts)

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
        return node

    def _succeeded(self, result: Prediction | PromptflowError) -> Prediction | None:
        """Return a prediction as it is; count an error and keep the first."""
        if isinstance(result, Prediction):
            return result
        self._counts["failed"] += 1
        self._error = self._error or result
        return None


def _known_inputs(module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that a predictor's signature names; all of them for any other module."""
    if not isinstance(module, dspy.Predict):
        return dict(inputs)
    return {name: inputs[name] for name in module.signature.input_fields if name in inputs}


def _confined(module: Any, options: tuple[str, ...]) -> dict[str, Any]:
    """Return the input that confines a predictor's last output to ``options``.

    Any other module is told them as its input ``options``.
    """
    if not isinstance(module, dspy.Predict):
        return {"options": list(options)}
    last = list(module.signature.output_fields)[-1]
    return {"signature": confined(module.signature, last, options)}
