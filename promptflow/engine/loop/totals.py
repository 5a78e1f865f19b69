"""What a decoder has done so far, as it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from promptflow.engine.interface import Stats
from promptflow.engine.model.constraint import Clock
from promptflow.engine.request import Usage


@dataclass(slots=True)
class Totals:
    """Counts and seconds; see ``Stats``."""

    usage: Usage = field(default_factory=Usage)
    requests: int = 0
    decodes: int = 0
    rows: int = 0
    preempted: int = 0
    drafted: int = 0
    accepted: int = 0
    decode: float = 0.0
    sample: float = 0.0
    bookkeeping: float = 0.0

    @contextmanager
    def sampling(self, constraint: Clock) -> Iterator[None]:
        """Add the block's seconds to sampling, less what the constraint took of them."""
        begun, matched = time.perf_counter(), constraint.seconds
        try:
            yield
        finally:
            self.sample += time.perf_counter() - begun - (constraint.seconds - matched)

    def stats(self, evicted: int, constraint_seconds: float) -> Stats:
        """Return the totals with what others have counted."""
        return Stats(
            requests=self.requests,
            prefilled=self.usage.prefilled,
            reused=self.usage.reused,
            generated=self.usage.generated,
            forced=self.usage.forced,
            decodes=self.decodes,
            occupancy=self.rows / self.decodes if self.decodes else 0.0,
            preempted=self.preempted,
            evicted=evicted,
            drafted=self.drafted,
            accepted=self.accepted,
            decode_seconds=self.decode,
            sample_seconds=self.sample,
            constraint_seconds=constraint_seconds,
            bookkeeping_seconds=self.bookkeeping,
        )
