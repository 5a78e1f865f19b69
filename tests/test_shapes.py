"""Random models in the shapes of real ones: their matrices have the spread that was asked for."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import gguf
import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "gpu" / "shapes.py"
SPEC = importlib.util.spec_from_file_location("shapes", PATH)
assert SPEC is not None
assert SPEC.loader is not None
shapes = importlib.util.module_from_spec(SPEC)
__import__("sys").modules["shapes"] = shapes  # where a dataclass looks its annotations up
SPEC.loader.exec_module(shapes)


@pytest.mark.parametrize("form", ["f16", "q8_0", "q4_0", "q4_k"])
@pytest.mark.parametrize(("name", "gain"), [("blk.0.ffn_up.weight", 1.0), ("output.weight", 4.0)])
def test_a_matrix_keeps_the_scale_of_what_it_is_given(form: str, name: str, gain: float):
    data, kind = shapes.contents(name, (300, 512), form)
    values = gguf.quants.dequantize(data, kind) if kind != gguf.GGMLQuantizationType.F16 else None
    if values is None:
        values = data.view(np.float16).astype(np.float32)
    assert values.shape == (300, 512)
    assert np.isfinite(values).all()
    assert values.std() * math.sqrt(512) == pytest.approx(gain, rel=0.05)
    assert abs(values.mean()) < values.std() / 8
    assert len(np.unique(data, axis=0)) == 300, "no row twice"


def test_the_vocabulary_has_every_token_once_and_merges_only_what_it_has():
    tokens, merges = shapes.vocabulary()
    assert len(tokens) == len(set(tokens)) == shapes.VOCABULARY
    known = set(tokens)
    for merge in merges:
        one, other = merge.split(" ")
        assert {one, other, one + other} <= known


@pytest.mark.parametrize(("name", "parameters"), [("0.5b", 0.49e9), ("8b", 8.3e9), ("32b", 32.8e9)])
def test_a_shape_has_the_size_that_its_name_says(name: str, parameters: float):
    sizes = [math.prod(size) for _, size in shapes.tensors(shapes.SHAPES[name])]
    assert sum(sizes) == pytest.approx(parameters, rel=0.02)
