"""Tree searches: which states of a growing tree go on, and which of them is the answer.

A search is a function of a ``Growth``: it yields the lists of calls that the growth makes and
returns the number of the best thought. Ours stand in ``SEARCHES`` by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from promptflow.flow import Call
from promptflow.modules.tree import ROOT, Growth

TreeSearch = Callable[[Growth], Generator[list[Call], list[Any], int]]


def breadth_first(growth: Growth) -> Generator[list[Call], list[Any], int]:
    """Keep the ``breadth`` best states of each level (Yao et al. 2023, algorithm 1).

    Ends at the first state that is done; else the best of the deepest level is the answer.
    """
    kept, best = [ROOT], ROOT
    for _ in range(growth.depth):
        fresh = yield from growth.expand(kept)
        if not fresh:
            break
        if solved := growth.solved(fresh):
            return growth.keep(solved, 1)[0]
        yield from growth.value(fresh)
        kept = growth.keep(fresh, growth.breadth)
        best = kept[0]
    return best
