"""How many cells of the KV cache sequences hold together, and moves that change who holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from promptflow.engine.model.protocol import Model


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the cells of ``seq_id`` from ``start`` on."""

    seq_id: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Let ``target`` share the first ``end`` cells of ``source``."""

    source: int
    target: int
    end: int


Move = Drop | Copy


def carry_out(moves: Iterable[Move], model: Model) -> list[Move]:
    """Have ``model`` make the moves, in their order; return those that it refused.

    What their sequences hold is not to be used.
    """
    return [move for move in moves if not _carry_out(move, model)]


def _carry_out(move: Move, model: Model) -> bool:
    if isinstance(move, Copy):
        return model.copy(move.source, move.target, move.end)
    return model.drop(move.seq_id, move.start)


class CellLedger:
    """Exact count of KV cells: sequences that were forked share the cells of their prefix."""

    def __init__(self, capacity: int) -> None:
        """Make a ledger of ``capacity`` free cells."""
        self.capacity = capacity
        self.used = 0
        self._references = np.zeros(capacity, dtype=np.int32)
        self._free = list(range(capacity - 1, -1, -1))
        self._cells: dict[int, list[int]] = {}

    def length(self, seq_id: int) -> int:
        """Return how many cells a sequence holds."""
        return len(self._cells.get(seq_id, ()))

    def extend(self, seq_id: int, count: int) -> None:
        """Give ``count`` fresh cells to a sequence."""
        taken = [self._free.pop() for _ in range(count)]
        self._references[taken] = 1
        self._cells.setdefault(seq_id, []).extend(taken)
        self.used += count

    def frees(self, seq_id: int) -> bool:
        """Return whether cells are free once a sequence is dropped."""
        cells = self._cells.get(seq_id, [])
        return bool(cells) and int(self._references[cells[-1]]) == 1

    def share(self, source: int, target: int, end: int) -> None:
        """Let an empty ``target`` hold the first ``end`` cells of ``source``."""
        assert not self._cells.get(target)
        cells = self._cells[source][:end]
        self._references[cells] += 1
        self._cells[target] = cells

    def drop(self, seq_id: int, start: int = 0) -> None:
        """Take the cells from ``start`` on away from a sequence."""
        cells = self._cells.get(seq_id, [])
        gone = cells[start:]
        if not gone:
            return
        del cells[start:]
        self._references[gone] -= 1
        freed = [cell for cell in gone if self._references[cell] == 0]
        self._free.extend(freed)
        self.used -= len(freed)
