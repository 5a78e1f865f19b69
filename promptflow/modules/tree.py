"""Tree of thoughts: propose next steps, value the states they lead to, keep the best, go deeper.

Breadth-first as in Yao et al. 2023. A level is two lists of calls: all proposals for all kept
states, then all valuations of all new states; each list is one engine batch behind shared prefixes.
What a state is and where a thought leads is a ``Problem``: functions of text, no model. The tree is
a record that a report can draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from promptflow.errors import PromptflowError, names_options
from promptflow.flow import Call, Flow, Module, Prediction, together
from promptflow.modules.options import confined
from promptflow.modules.predict import Predict
from promptflow.modules.rounds import sample_of
from promptflow.modules.settings import code_name
from promptflow.storage import canonical, find_document

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


_COUNTS = ("proposed", "merged", "illegal", "failed")


@dataclass(slots=True)
class _Growth:
    """The tree while it grows; ``values`` remembers what equal valuations gave."""

    thoughts: list[Thought]
    seen: set[str]
    values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    error: PromptflowError | None = None

    def add(self, parent: Thought, text: str, problem: Problem) -> Thought | None:
        """Add the state that a thought leads to; None where it is illegal or already there."""
        self.counts["proposed"] += 1
        state = problem.step(parent.state, text)
        if state is None:
            self.counts["illegal"] += 1
            return None
        if state in self.seen:
            self.counts["merged"] += 1
            return None
        self.seen.add(state)
        node = Thought(
            len(self.thoughts),
            parent.number,
            parent.depth + 1,
            text,
            state,
            terminal=problem.done(state),
        )
        self.thoughts.append(node)
        return node

    def succeeded(self, result: Prediction | PromptflowError) -> Prediction | None:
        """Return a prediction as it is; count an error and keep the first."""
        if isinstance(result, Prediction):
            return result
        self.counts["failed"] += 1
        self.error = self.error or result
        return None

    def keep(self, numbers: Sequence[int], breadth: int) -> list[int]:
        """Mark the ``breadth`` most valuable of ``numbers`` as kept and return them, best first."""
        best = sorted(numbers, key=lambda n: (-_worth(self.thoughts[n]), n))[:breadth]
        for number in best:
            self.thoughts[number] = dataclasses.replace(self.thoughts[number], kept=True)
        return best


def _worth(thought: Thought) -> float:
    return -math.inf if thought.value is None else thought.value


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
        problem: Problem = Problem(),
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
        self.problem = problem
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
        root = Thought(0, None, 0, "", self.problem.start(inputs), kept=True)
        growth = _Growth([root], {root.state})
        kept, best = [0], 0
        for _ in range(self.depth):
            fresh = yield from self._grow(growth, kept, inputs)
            if not fresh:
                break
            solved = [n for n in fresh if growth.thoughts[n].terminal]
            if solved:
                best = growth.keep(solved, 1)[0]
                break
            yield from self._judge(growth, fresh, inputs)
            kept = growth.keep(fresh, self.breadth)
            best = kept[0]
        tree = Tree(tuple(growth.thoughts), best, **growth.counts)
        found = tree.thoughts[best]
        return Prediction(
            answer="\n".join(thought.text for thought in tree.path()),
            state=found.state,
            value=found.value,
            solved=found.terminal,
            tree=tree,
        )

    def _grow(self, growth: _Growth, kept: Sequence[int], inputs: Mapping[str, Any]) -> Steps:
        """Propose from every kept state in one list of calls; return the numbers of new states."""
        parents, flows = [], []
        for number in kept:
            parent = growth.thoughts[number]
            given = _known_inputs(self.propose, {**inputs, "state": parent.state})
            if self.problem.options is not None:
                options = tuple(self.problem.options(parent.state))
                if not options:
                    continue
                given |= _confined(self.propose, options)
            for k in range(self.proposals):
                parents.append(parent)
                flows.append(sample_of(self.propose, given, k, self.temperature))
        results = yield from together(flows)
        predictions = [growth.succeeded(result) for result in results]
        if growth.error is not None and not any(predictions):
            raise growth.error
        fresh = []
        for parent, prediction in zip(parents, predictions, strict=True):
            for text in self.problem.thoughts(prediction) if prediction else ():
                node = growth.add(parent, text, self.problem)
                if node is not None:
                    fresh.append(node.number)
        return fresh

    def _judge(self, growth: _Growth, fresh: Sequence[int], inputs: Mapping[str, Any]) -> Steps:
        """Value every new state in one list of calls; equal questions are asked once."""
        asked: dict[str, dict[str, Any]] = {}
        keys = {}
        for number in fresh:
            state = growth.thoughts[number].state
            known = self.problem.worth(state) if self.problem.worth else None
            keys[number] = state
            if known is not None:
                growth.values[state] = known
            elif state not in growth.values:
                given = _known_inputs(self.value, {**inputs, "state": state})
                keys[number] = canonical(given)
                if keys[number] not in growth.values:
                    asked[keys[number]] = given
        flows = [
            sample_of(self.value, given, k, self.temperature)
            for given in asked.values()
            for k in range(self.samples)
        ]
        results = yield from together(flows)
        for place, key in enumerate(asked):
            share = results[place * self.samples : (place + 1) * self.samples]
            values = [self.problem.value(p) for p in map(growth.succeeded, share) if p is not None]
            if values:
                growth.values[key] = math.fsum(values) / len(values)
        for number in fresh:
            value = growth.values.get(keys[number])
            growth.thoughts[number] = dataclasses.replace(growth.thoughts[number], value=value)


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


def _module(given: Any, own: str) -> Any:
    if isinstance(given, dspy.Module):
        return given
    return Predict(given or find_document("signatures", own, bundled_only=True))
