"""What the tests' own models are good for: each loads, decodes, and heeds what it has read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from promptflow import storage
from promptflow.catalog import read_gguf
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.model.llama import Load, Model, log_to_stderr
from promptflow.engine.request import Text

TEXT = "the question is what people said about the water, and then she would find it there. " * 3
DECODING = sorted(tiny_models.ARCHITECTURES.keys() - tiny_models.REFUSED)


@pytest.mark.parametrize("architecture", DECODING)
def test_each_decodes_and_remembers(tiny: Callable[[str], Path], architecture: str):
    log_to_stderr()
    path = tiny(architecture)
    load = Load(256, 64, 2, extra_buffers=False, kv_type="f32")
    model = Model(path, architecture, "0" * 64, load)
    tokens = model.tokenize(TEXT, False)[:32]

    def logits(first: int, chunk: int) -> np.ndarray:
        rows = []
        words = [first, *tokens[1:]]
        for start in range(0, len(words), chunk):
            part = words[start : start + chunk]
            places = list(range(start, start + len(part)))
            assert model.decode(part, places, [0] * len(part), [True] * len(part)) == 0
            rows += [model.logits(row).copy() for row in range(len(part))]
        model.drop(0, 0)
        return np.stack(rows)

    whole, others = logits(tokens[0], 32), logits(tokens[0] + 9, 32)
    assert np.isfinite(whole).all()
    assert 1 < whole.std() < 4
    rounding = np.abs(whole - logits(tokens[0], 5)).max()
    assert rounding < 0.02
    assert np.abs(whole - others)[-1].max() > 20 * rounding, "its first token is forgotten"
    assert len(set(whole.argmax(1))) > 3, "it says the same whatever it reads"
    model.close()


@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_each_is_a_file_that_the_reader_accepts(tiny: Callable[[str], Path], architecture: str):
    path = tiny(architecture)
    header = read_gguf(path)
    assert header.architecture == architecture
    assert header.vocabulary == len(tiny_models.vocabulary()[0])
    assert path.stat().st_size < 15_000_000


def test_a_model_in_parts_is_the_model(tiny: Callable[[str], Path], tmp_path: Path):
    """Any part may be named; the sha256 is another, and what is said is the same."""
    whole = tiny("llama")
    parts = tiny_models.cut(whole, tmp_path, 5)
    assert len(parts) > 2
    words = [Text(TEXT[:200])]
    told = []
    for path in (whole, parts[1]):
        with Engine(path, EngineOptions(context=256, threads=1)) as engine:
            told.append([one.logprob for one in engine.score(words, [" water"])[0]])
            info = engine.info
    assert told[0] == told[1]
    assert (info.name, info.path) == ("llama", str(parts[0]))
    hashes = "\n".join(storage.sha256_of(part) for part in parts)
    assert info.sha256 == storage.sha256_bytes(hashes.encode())
