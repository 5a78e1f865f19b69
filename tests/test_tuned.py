from __future__ import annotations

import json

import pytest

from promptflow.engine import tuned
from promptflow.engine.tuned import Choices, Tuned

SHA = "ab" * 32
FOUND = Tuned(
    Choices(threads=2, micro_batch=128, flash_attention=True),
    {"prefill": 90.0, "alone": 20.0, "together": 45.0},
    {"prefill": 99.0, "alone": 21.0, "together": 50.0},
    ({"threads": 2, "prefill": 90.0},),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path))


def test_what_was_found_comes_back_for_this_model_alone():
    assert tuned.recall(SHA) is None
    tuned.remember(SHA, FOUND)
    assert tuned.recall(SHA) == FOUND
    assert tuned.recall("cd" * 32) is None
    tuned.forget(SHA)
    assert tuned.recall(SHA) is None


def test_another_processor_or_build_has_its_own(monkeypatch):
    tuned.remember(SHA, FOUND)
    monkeypatch.setattr(tuned, "machine", lambda: "another processor")
    assert tuned.recall(SHA) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(SHA, "cd" * 32),
        lambda text: json.dumps({**json.loads(text), "choices": {"threads": 2}}),
        lambda text: text.replace('"micro_batch": 128', '"micro_batch": "128"'),
        lambda text: text.replace('"best"', '"worst"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_a_miss(damage):
    path = tuned.remember(SHA, FOUND)
    path.write_text(damage(path.read_text()))
    assert tuned.recall(SHA) is None


def test_a_micro_batch_is_never_larger_than_a_batch():
    assert Choices(batch=512, micro_batch=512).but(batch=64).micro_batch == 64
