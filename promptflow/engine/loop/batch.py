"""The arrays of one decode call: which tokens, where, for which sequence, logits or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from promptflow.engine.sequence import Task


@dataclass(slots=True)
class Batch:
    """Four values for each token."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    outputs: list[bool] = field(default_factory=list)


def batch_of(rows: Sequence[tuple[Task, int]]) -> Batch:
    """Return the next tokens of each task, as many as its row says, and then its draft.

    Logits are wanted after the last known token, after every drafted one, and wherever the task or
    one that waits for it asks for them.
    """
    batch = Batch()
    for task, take in rows:
        start, end = task.computed, task.computed + take
        span = range(start, end + len(task.draft))
        last = len(task.tokens) - 1
        batch.tokens += task.tokens[start:end]
        batch.tokens += task.draft
        batch.positions += span
        batch.sequences += [task.sequence] * len(span)
        batch.outputs += [p >= last or p in task.wants or p >= task.scored_from for p in span]
    return batch
