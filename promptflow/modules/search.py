"""Tree searches: which states of a growing tree go on, and which of them is the answer.

A search is a function of a ``Growth``: it yields the lists of calls that the growth makes and
returns the number of the best thought. Ours stand in ``SEARCHES`` by their names; any other
callable of the same kind goes in their place.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from promptflow.errors import names_options
from promptflow.flow import Call
from promptflow.modules.tree import ROOT, VERDICTS, Growth

Searching = Generator[list[Call], list[Any], int]
TreeSearch = Callable[[Growth], Searching]

IMPOSSIBLE = VERDICTS["impossible"]


@names_options
@dataclass(frozen=True, slots=True)
class BreadthFirst:
    """Keep the ``breadth`` best states of each level (Yao et al. 2023, algorithm 1).

    ``sampled`` draws them by their worth instead, without replacement, from ``seed``. Ends at the
    first state that is done; else the best of the deepest level is the answer.
    """

    selection: Literal["greedy", "sampled"] = "greedy"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a selection that there is not."""
        if self.selection not in ("greedy", "sampled"):
            raise ValueError(f"selection={self.selection!r} is neither 'greedy' nor 'sampled'")

    def __call__(self, growth: Growth) -> Searching:
        """Search level by level."""
        kept, best = [ROOT], ROOT
        for level in range(growth.depth):
            fresh = yield from growth.expand(kept)
            if not fresh:
                break
            if solved := growth.solved(fresh):
                return growth.keep(solved[:1])[0]
            yield from growth.value(fresh)
            order = growth.ranked(fresh)
            if self.selection == "sampled":
                order = _drawn(growth, fresh, random.Random(f"{self.seed} {level}"))
            kept = growth.keep(order[: growth.breadth])
            best = growth.ranked(kept)[0]
        return best


def _drawn(growth: Growth, numbers: Sequence[int], rng: random.Random) -> list[int]:
    """Return states in a random order, the worthier the earlier; what is worth nothing is last.

    Efraimidis and Spirakis, 2006: by the keys u ** (1 / worth).
    """
    worths = {n: max(growth.worth(n), 0.0) for n in numbers}
    keys = {n: math.log(1.0 - rng.random()) / w if w else -math.inf for n, w in worths.items()}
    return sorted(numbers, key=lambda n: (-keys[n], n))


@names_options
@dataclass(frozen=True, slots=True)
class DepthFirst:
    """Follow the best child down, and go back where it leads nowhere (Yao et al., algorithm 2).

    Of a state's children the ``breadth`` best are tried in turn; those worth ``threshold`` or less
    never: by default what every valuation called impossible. Ends at the first state that is done,
    or after ``steps`` expansions with the best of the deepest states.
    """

    threshold: float = IMPOSSIBLE
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse no step."""
        _check(self.steps)

    def __call__(self, growth: Growth) -> Searching:
        """Search down and back."""
        stack = [ROOT]
        for _ in range(self.steps):
            if not stack:
                break
            fresh = yield from growth.expand(growth.keep([stack.pop()]))
            if solved := growth.solved(fresh):
                return growth.keep(solved[:1])[0]
            yield from growth.value(fresh)
            hopeful = growth.prune(growth.ranked(fresh), self.threshold)[: growth.breadth]
            stack += [n for n in reversed(hopeful) if growth.thoughts[n].depth < growth.depth]
        return growth.best()


@names_options
@dataclass(frozen=True, slots=True)
class BestFirst:
    """Grow the most valuable open states next, ``breadth`` of them at a time, on any level.

    States worth ``threshold`` or less are given up. Ends at the first state that is done, or after
    ``steps`` expansions with the best of the deepest states.
    """

    threshold: float = IMPOSSIBLE
    steps: int = 100

    takes_votes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse no step."""
        _check(self.steps)

    def __call__(self, growth: Growth) -> Searching:
        """Search from the front of all open states."""
        front, left = [ROOT], self.steps
        while front and left > 0:
            width = min(growth.breadth, left)
            chosen, front = growth.keep(front[:width]), front[width:]
            left -= len(chosen)
            fresh = yield from growth.expand(chosen)
            if solved := growth.solved(fresh):
                return growth.keep(solved[:1])[0]
            yield from growth.value(fresh)
            front = growth.ranked([*front, *growth.prune(fresh, self.threshold)])
            front = [n for n in front if growth.thoughts[n].depth < growth.depth]
        return growth.best()


@names_options
@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """Grow where worth and neglect are greatest, by upper confidence bounds (UCT).

    Kocsis and Szepesvari, 2006; as in Hao et al. 2023 (arXiv 2305.14992) a new state brings its own
    value in place of a random playout. ``breadth`` leaves grow at a time, each taken for a failure
    until it is known. ``exploration`` weighs neglect against worth, which counts as a share of the
    highest seen. Ends as ``BestFirst`` does.
    """

    exploration: float = 1.0
    steps: int = 100
    takes_votes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse no step, and to explore less than not at all."""
        _check(self.steps, exploration=self.exploration)

    def __call__(self, growth: Growth) -> Searching:
        """Search by repeated descent."""
        grown: set[int] = set()
        tally = {ROOT: [0.0, 0.0]}  # how often the search went through a state, and what it gained
        left = self.steps
        while left > 0 and _leads_on(growth, ROOT, grown):
            lines: list[list[int]] = []
            while len(lines) < min(growth.breadth, left) and _leads_on(growth, ROOT, grown):
                lines.append(self._descent(growth, grown, tally))
                grown.add(lines[-1][-1])
                for number in lines[-1]:
                    tally[number][0] += 1.0
            left -= len(lines)
            fresh = yield from growth.expand(growth.keep([line[-1] for line in lines]))
            if solved := growth.solved(fresh):
                return growth.keep(solved[:1])[0]
            yield from growth.value(fresh)
            tally |= {number: [1.0, max(growth.worth(number), 0.0)] for number in fresh}
            for line in lines:
                gain = max((tally[n][1] for n in growth.children(line[-1])), default=0.0)
                for number in line:
                    tally[number][1] += gain
        return growth.best()

    def _descent(self, growth: Growth, grown: set[int], tally: Mapping[int, list[float]]) -> Any:
        """Return the states from the root down to one that may grow."""
        line, highest = [ROOT], max(growth.worth(n) for n in tally)
        while line[-1] in grown:
            above = math.log(tally[line[-1]][0])
            bounds = {
                n: tally[n][1] / tally[n][0] / (highest if highest > 0.0 else 1.0)
                + self.exploration * math.sqrt(above / tally[n][0])
                for n in growth.children(line[-1])
                if _leads_on(growth, n, grown)
            }
            line.append(max(bounds, key=lambda n: (bounds[n], -n)))
        return line


def _leads_on(growth: Growth, number: int, grown: set[int]) -> bool:
    """Say whether a state, or one below it, may still grow."""
    if number in grown:
        return any(_leads_on(growth, n, grown) for n in growth.children(number))
    return growth.thoughts[number].depth < growth.depth


def _check(steps: int, **numbers: float) -> None:
    """Raise ValueError for fewer steps than one, and for numbers below 0 or that are none."""
    if steps < 1:
        raise ValueError(f"steps={steps} is below 1")
    for name, number in numbers.items():
        if not number >= 0.0:
            raise ValueError(f"{name}={number} is no number from 0")


SEARCHES: Mapping[str, Callable[..., TreeSearch]] = {
    "breadth_first": BreadthFirst,
    "depth_first": DepthFirst,
    "best_first": BestFirst,
    "monte_carlo": MonteCarlo,
}


def find_search(given: str | Mapping[str, Any] | TreeSearch) -> TreeSearch:
    """Return a search by its name, by its settings, or as it is.

    Raises ValueError naming those that there are.
    """
    if isinstance(given, Mapping):
        options = dict(given)
        return _named(options.pop("name", None))(**options)
    if isinstance(given, str):
        return _named(given)()
    if not callable(given):
        raise ValueError(f"search={given!r} is no name and cannot be called with a growing tree")
    return given


def _named(name: Any) -> Callable[..., TreeSearch]:
    if name not in SEARCHES:
        near = get_close_matches(str(name), SEARCHES, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no search {name!r}. {hint}There are {', '.join(SEARCHES)}, or a function of a Growth"
        )
    return SEARCHES[name]


def search_settings(search: TreeSearch) -> dict[str, Any] | None:
    """Return the settings of a search of ours as JSON data, with its name; None of another."""
    for name, kind in SEARCHES.items():
        if type(search) is kind:
            return {"name": name, **dataclasses.asdict(search)}  # type: ignore[call-overload]
    return None
