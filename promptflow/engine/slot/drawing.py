"""The tokens of many slots chosen side by side, on several cores.

A row of 151k costs 150 to 400 microseconds, nearly all of it in numpy, which lets other threads run
meanwhile. Beside a pass on a processor that is little; a GPU would wait for 128 rows longer than it
computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from promptflow.engine.slot.filling import Filling, Pick
from promptflow.engine.slot.sampling import Logits
from promptflow.errors import PromptflowError

LEAST_ROWS = 2  # a thread: handing over fewer costs what it saves
Drawn = Pick | PromptflowError


class Drawers:
    """Threads that choose tokens; what they choose does not depend on how many there are."""

    def __init__(self, threads: int) -> None:
        """Use up to ``threads``; with one, whoever asks does the work."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "draw") if threads > 1 else None

    def draw(self, rows: Sequence[tuple[Filling, Logits]]) -> list[Drawn]:
        """Return for each slot a pick from its row of logits, or the error that it met."""
        threads = min(self._threads, len(rows) // LEAST_ROWS)
        if self._pool is None or threads < 2:
            return _draw(rows)
        shares = [rows[number::threads] for number in range(threads)]
        drawn: list[Drawn | None] = [None] * len(rows)
        for number, picks in enumerate(self._pool.map(_draw, shares)):
            drawn[number::threads] = picks
        return [pick for pick in drawn if pick is not None]

    def close(self) -> None:
        """End the threads; idempotent."""
        if self._pool is not None:
            self._pool.shutdown()


def _draw(rows: Sequence[tuple[Filling, Logits]]) -> list[Drawn]:
    drawn: list[Drawn] = []
    for filling, logits in rows:
        try:
            drawn.append(filling.draw(logits))
        except PromptflowError as error:
            drawn.append(error)
    return drawn
