"""What scheduler and decoder tell each other: tasks, moves of cells, and the plan of a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from promptflow.engine.model import Model

_NEVER = 1 << 40


@dataclass(eq=False, slots=True)
class Task:
    """A sequence: what is known of its text, and how much of that is in the cache."""

    number: int
    tokens: list[int]
    length_limit: int  # tokens it may hold when it ends
    share_limit: int = _NEVER  # tokens that it may take from others
    forks: int = 0  # sequences that it may fork off, each for up to ``fork_limit`` more tokens
    fork_limit: int = 0
    spares: list[int] = field(default_factory=list)  # sequence numbers kept for them
    draft: list[int] = field(default_factory=list)  # guesses decoded in the next batch
    scored_from: int = _NEVER  # the logits of every position from here on are wanted
    computed: int = 0
    prompt: int = _NEVER  # tokens that it began with, where it is no fork
    sequence: int = -1
    wants: set[int] = field(default_factory=set)  # positions whose logits waiting tasks ask for
    row: np.ndarray | None = None  # logits after the last token, computed by another sequence
    waits_for: tuple[Task, int] | None = None
    skipped: int = 0  # admissions that overtook it
    preempted: int = 0

    @property
    def pending(self) -> int:
        """Return how many known tokens are not yet in the cache."""
        return len(self.tokens) - self.computed

    @property
    def written(self) -> int:
        """Return how many tokens came since it began; of a fork, none."""
        return max(0, len(self.tokens) - self.prompt)

    @property
    def promised(self) -> int:
        """Return how many more cells it may come to need, forks included."""
        return self.length_limit - self.computed + len(self.spares) * self.fork_limit


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the cells of ``sequence`` from ``start`` on."""

    sequence: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Let ``target`` share the first ``end`` cells of ``source``."""

    source: int
    target: int
    end: int


Move = Drop | Copy


def carry_out(moves: Iterable[Move], model: Model) -> None:
    """Have ``model`` make the moves, in their order."""
    for move in moves:
        if isinstance(move, Copy):
            model.copy(move.source, move.target, move.end)
        else:
            model.drop(move.sequence, move.start)


@dataclass(slots=True)
class Plan:
    """One step: moves of cells in the order they must run, then one batch of rows."""

    moves: list[Move] = field(default_factory=list)
    rows: list[tuple[Task, int]] = field(default_factory=list)  # a task and how many of its tokens
    admitted: list[Task] = field(default_factory=list)
    hopeless: list[Task] = field(default_factory=list)  # no room, though nothing else runs
