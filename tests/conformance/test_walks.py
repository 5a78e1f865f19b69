"""Long runs on tiny models of every architecture that the tests can write: shared equals alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from test_memory_kinds import GREEDY, Bench, Comparison, Job, Oracle, ask, walk, words

from promptflow.engine.model.llama import log_to_stderr

WALKS = 24
DECODING = sorted(tiny_models.ARCHITECTURES.keys() - tiny_models.REFUSED.keys())


@pytest.mark.parametrize("architecture", DECODING)
def test_walks(tiny: Callable[[str], Path], architecture: str):
    log_to_stderr()
    oracle = Oracle(tiny(architecture))
    for seed in range(100, 100 + WALKS):
        walk(Bench(oracle, Comparison(architecture)), seed)
    oracle.model.close()


STEM = words(1, 8150)
ENDS = [ask(STEM + words(2 + n, count), GREEDY) for n, count in enumerate((20, 35, 60))]
CHUNKED: list[Job] = [
    ENDS[0],
    ENDS[2],
    ask(words(9, 300), replace(GREEDY, max_tokens=40)),
    ENDS[1],
    ask(STEM + words(4, 45), GREEDY),
    ask(STEM[: len(STEM) - 200], GREEDY),
    ENDS[0],
]


@pytest.mark.parametrize("pause", [0, 4])
def test_attention_in_chunks(tmp_path: Path, pause: int):
    """llama4's layers see a chunk of 8,192 tokens alone: where one begins, the last is let go."""
    log_to_stderr()
    path = tiny_models.write("llama4", tmp_path, context_length=16384)
    oracle = Oracle(path, cells=9000, batch=512)
    bench = Bench(oracle, Comparison("llama4"))
    bench.run(CHUNKED, at_once=1, pause=pause, cells=9500, batch=512, first=4)
    bench.comparison.check()
    oracle.model.close()
