"""What a search will run: the rungs of its race, its cost, and how a budget is divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from promptflow.errors import BudgetExceeded
from promptflow.optimization.study import Budget

Rungs = Sequence[tuple[int, int]]
"""Challengers beside the start, and examples so far, at each rung."""

FIRST = 8
"""Examples of the first rung."""

FEW = 4
"""Candidates below which the first rung is cut short."""

LEAST = 4
"""Examples that the smallest race and the smallest confirmation take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An estimate, in runs of the program on one example: at most ``calls`` in all.

    ``bootstrap`` of them collect demos; ``held`` examples confirm the winner, each run twice.
    """

    calls: int
    bootstrap: int
    rungs: tuple[tuple[int, int], ...]
    held: int

    def __str__(self) -> str:
        """Return one sentence."""
        steps = ", then ".join(f"{count} challengers on {size}" for count, size in self.rungs)
        return (
            f"at most {self.calls} runs: {self.bootstrap} to collect demos, a race ({steps}), "
            f"2 x {self.held} to confirm the winner on held-out examples"
        )


def make_plan(sizes: tuple[int, int, int], candidates: int, limit: int, budget: Budget) -> Plan:
    """Divide a budget over parts of the data of these sizes (pool, race, held-out).

    At most ``limit`` runs and a quarter of limited calls collect demos; a third confirms. Raises
    BudgetExceeded if not even one candidate can be compared with the start.
    """
    pool, examples, held = sizes
    collect = min(pool, limit)
    if budget.calls is None:
        rungs = schedule(candidates, examples)
        return Plan(collect + cost(rungs) + 2 * held, collect, tuple(rungs), held)
    least = 4 * LEAST
    if budget.calls < least:
        raise BudgetExceeded(
            f"a budget of {budget.calls} calls does not pay for comparing one candidate with the "
            f"start: give at least {least} (Budget(calls={least}), --budget calls={least})"
        )
    held = max(LEAST, min(held, budget.calls // 6))
    collect = min(collect, budget.calls // 4)
    rungs = fitting(candidates, examples, budget.calls - collect - 2 * held)
    if not rungs:
        collect = 0
        rungs = fitting(1, examples, budget.calls - 2 * held)
    return Plan(collect + cost(rungs) + 2 * held, collect, tuple(rungs), held)


def schedule(candidates: int, examples: int, first: int = FIRST) -> list[tuple[int, int]]:
    """Return the rungs of successive halving, at least one.

    >>> schedule(8, 40)
    [(8, 8), (4, 16), (2, 32)]
    """
    size = min(first, examples)
    rungs = [(candidates, size)]
    while candidates > 2 and size < examples:
        candidates = math.ceil(candidates / 2)
        size = min(2 * size, examples)
        rungs.append((candidates, size))
    return rungs


def cost(rungs: Rungs) -> int:
    """Return the runs that a schedule takes at most, the start's own included."""
    runs = done = 0
    for candidates, size in rungs:
        runs += (candidates + 1) * (size - done)
        done = size
    return runs


def fitting(candidates: int, examples: int, runs: float) -> list[tuple[int, int]]:
    """Return the schedule of the most candidates that costs at most ``runs``, or none.

    Where that leaves fewer than ``FEW``, the first rung is cut to seat more. What is left over
    lengthens the last rung.

    >>> fitting(12, 40, 60)
    [(4, 4), (2, 17)]
    """
    if math.isinf(runs):
        return schedule(candidates, examples)
    rungs: list[tuple[int, int]] = []
    for first in (FIRST, LEAST):
        for count in range(candidates, 0, -1):
            tried = schedule(count, examples, first)
            if cost(tried) <= runs:
                rungs = tried if not rungs or count > rungs[0][0] else rungs
                break
        if rungs and rungs[0][0] >= min(FEW, candidates):
            break
    return _lengthened(rungs, examples, runs)


def _lengthened(rungs: list[tuple[int, int]], examples: int, runs: float) -> list[tuple[int, int]]:
    """Give the last rung the examples that the runs still pay for; one alone needs no more."""
    if not rungs or rungs[-1][0] < 2:
        return rungs
    last, size = rungs[-1]
    more = min(float(examples - size), (runs - cost(rungs)) // (last + 1))
    return [*rungs[:-1], (last, size + int(more))]
