from __future__ import annotations

from contextlib import suppress

import pytest

from promptflow.engine.loop.totals import Totals
from promptflow.engine.model.constraint import Clock
from promptflow.engine.request import Usage


def test_totals_become_stats():
    totals = Totals(Usage(10, 6, 4, 3, 2), requests=2, decodes=4, rows=10, drafted=5, accepted=3)
    stats = totals.stats(evicted=7, constraint_seconds=0.5)
    assert (stats.prefilled, stats.reused, stats.generated, stats.forced) == (6, 4, 3, 2)
    assert (stats.occupancy, stats.evicted, stats.constraint_seconds) == (2.5, 7, 0.5)
    assert (stats.requests, stats.drafted, stats.accepted) == (2, 5, 3)
    assert Totals().stats(0, 0.0).occupancy == 0.0


def test_sampling_leaves_out_what_the_constraint_took(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([10.0, 17.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock, totals = Clock(), Totals()
    with suppress(KeyError), totals.sampling(clock):
        clock.seconds += 3.0
        raise KeyError
    assert totals.sample == 4.0
