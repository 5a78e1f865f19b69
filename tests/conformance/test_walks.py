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


def test_attention_in_chunks(tmp_path: Path):
    """llama4's layers see a chunk of 8,192 tokens alone: where one begins, the last is let go.

    A sequence crosses into its second chunk while others fill the cells of its first one again;
    then prompts part from it inside the first.
    """
    log_to_stderr()
    path = tiny_models.write("llama4", tmp_path, context_length=16384)
    oracle = Oracle(path, cells=9000, batch=512)
    short, long = replace(GREEDY, max_tokens=3), words(1, 8180)
    assert 8170 < len(oracle.model.tokenize(long, special=True)) < 8192
    jobs: list[Job] = [ask(words(51, 50), short), ask(long, replace(GREEDY, max_tokens=150))]
    jobs += [ask(words(60 + n, 220), short) for n in range(6)]
    jobs += [ask(long[: len(long) // 8 * n] + words(90, 10), short) for n in (1, 3)]
    bench = Bench(oracle, Comparison("llama4"))
    bench.run(jobs, at_once=2, pause=8, cells=9200, batch=512, first=4)
    bench.comparison.check()
    oracle.model.close()
