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
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from promptflow.flow import Call
from promptflow.modules.tree import ROOT, VERDICTS, Growth

Searching = Generator[list[Call], list[Any], int]
TreeSearch = Callable[[Growth], Searching]

IMPOSSIBLE = VERDICTS["impossible"]


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


@dataclass(frozen=True, slots=True)
class DepthFirst:
    """Follow the best child down, and go back where it leads nowhere (Yao et al., algorithm 2).

    Of a state's children the ``breadth`` best are tried in turn; those worth ``threshold`` or less
    never: by default what every valuation called impossible. Ends at the first state that is done,
    or after ``steps`` expansions with the best of the deepest states.
    """

    threshold: float = IMPOSSIBLE
    steps: int = 100

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


@dataclass(frozen=True, slots=True)
class BestFirst:
    """Grow the most valuable open states next, ``breadth`` of them at a time, on any level.

    States worth ``threshold`` or less are given up. Ends at the first state that is done, or after
    ``steps`` expansions with the best of the deepest states.
    """

    threshold: float = IMPOSSIBLE
    steps: int = 100

    takes_votes: ClassVar[bool] = False

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


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """Grow where worth and neglect are greatest, by upper confidence bounds (UCT).

    Kocsis and Szepesvari, 2006; as in Hao et al. 2023 (arXiv 2305.14992) a new state brings its own
    value in place of a random playout. ``breadth`` leaves grow at a time, each taken for a failure
    until it is known. ``exploration`` weighs neglect against worth, which is taken relative to the
    highest seen. Ends at the first state that is done, or after ``steps`` expansions with the best
    of the deepest states.
    """

    exploration: float = 1.0
    steps: int = 100

    takes_votes: ClassVar[bool] = False

    def __call__(self, growth: Growth) -> Searching:
        """Search by repeated descent."""
        tally, left = _Tally(growth, self.exploration), self.steps
        while left > 0 and (leaves := tally.leaves(min(growth.breadth, left))):
            left -= len(leaves)
            fresh = yield from growth.expand(growth.keep(leaves))
            if solved := growth.solved(fresh):
                return growth.keep(solved[:1])[0]
            yield from growth.value(fresh)
            tally.add(leaves, fresh)
        return growth.best()


@dataclass(slots=True)
class _Tally:
    """How often the search went through a state, what it gained there, and where it can go on."""

    growth: Growth
    exploration: float
    visits: dict[int, int] = field(default_factory=lambda: {ROOT: 0})
    gains: dict[int, float] = field(default_factory=lambda: {ROOT: 0.0})
    children: dict[int, list[int]] = field(default_factory=dict)

    def leaves(self, count: int) -> list[int]:
        """Descend up to ``count`` times, each to another leaf."""
        taken: list[int] = []
        highest = max(map(self.growth.worth, self.visits), default=0.0)
        while len(taken) < count and self._leads_on(ROOT, taken):
            number = ROOT
            while number in self.children:
                ways = [n for n in self.children[number] if self._leads_on(n, taken)]
                above = math.log(self.visits[number])
                number = max(ways, key=lambda n: (self._bound(n, above, highest), -n))
            taken.append(number)
            for above_it in self._line(number):
                self.visits[above_it] += 1
        return taken

    def add(self, leaves: Sequence[int], fresh: Sequence[int]) -> None:
        """Give every leaf its children, and what is above it the best of their values."""
        self.children |= {leaf: [] for leaf in leaves}
        for number in fresh:
            self.children[self.growth.thoughts[number].parent or ROOT].append(number)
            self.visits[number], self.gains[number] = 1, max(self.growth.worth(number), 0.0)
        for leaf in leaves:
            gain = max((self.gains[n] for n in self.children[leaf]), default=0.0)
            for number in self._line(leaf):
                self.gains[number] += gain

    def _leads_on(self, number: int, taken: Sequence[int]) -> bool:
        if number in self.children:
            return any(self._leads_on(n, taken) for n in self.children[number])
        return number not in taken and self.growth.thoughts[number].depth < self.growth.depth

    def _bound(self, number: int, above: float, highest: float) -> float:
        mean = self.gains[number] / self.visits[number] / (highest if highest > 0.0 else 1.0)
        return mean + self.exploration * math.sqrt(above / self.visits[number])

    def _line(self, number: int) -> list[int]:
        """Return a state and all above it."""
        return [ROOT, *(thought.number for thought in self.growth.path(number))]


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
