"""The arrays of one decode call: which tokens, where, for which sequence, logits or none."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

from promptflow.engine.sequence import Sequence


@dataclass(slots=True)
class Batch:
    """Four values for each token."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    outputs: list[bool] = field(default_factory=list)


def batch_of(rows: abc.Sequence[tuple[Sequence, int]]) -> Batch:
    """Return the next tokens of each sequence, as many as its row says, and then its draft.

    Logits are wanted after the last known token, after every drafted one, and wherever the
    sequence or one that waits for it asks for them.
    """
    batch = Batch()
    for sequence, take in rows:
        start, end = sequence.computed, sequence.computed + take
        span = range(start, end + len(sequence.draft))
        last = len(sequence.tokens) - 1
        batch.tokens += sequence.tokens[start:end]
        batch.tokens += sequence.draft
        batch.positions += span
        batch.sequences += [sequence.seq_id] * len(span)
        batch.outputs += [
            p >= last or p in sequence.wants or p >= sequence.scored_from for p in span
        ]
    return batch
