from __future__ import annotations

import itertools

import pytest

from promptflow import doctor, tune
from promptflow.doctor import Speed
from promptflow.engine import EngineOptions, tuned
from promptflow.engine.tuned import Choices
from promptflow.errors import EngineLost, ModelInvalid


def speed(factor: float) -> Speed:
    return Speed(100 * factor, 20 * factor, 50 * factor, 8)


def test_each_change_that_helps_is_kept_and_they_add_up():
    def speed_of(c: Choices) -> Speed:
        gain = 1.0 + 0.2 * c.flash_attention + 0.1 * (c.micro_batch == 128) - 0.3 * (c.threads < 2)
        return speed(gain)

    found = tune.search(speed_of, cores=2)
    assert found.choices == Choices(threads=2, flash_attention=True, micro_batch=128)
    assert found.default["prefill"] == pytest.approx(100)
    assert found.best["prefill"] == pytest.approx(130)


def test_nothing_changes_where_nothing_helps():
    found = tune.search(lambda c: speed(1.0), cores=2)
    assert found.choices == Choices(threads=2)
    assert found.best == found.default
    tried = [{k: row[k] for k in Choices.__slots__} for row in found.measured]
    assert len(tried) == 1 + len(list(tune.variants(2))) + 1


def test_a_moment_of_luck_does_not_decide():
    """The first measurement of flash attention is too good; measured again it is not."""
    seen = itertools.count()

    def speed_of(c: Choices) -> Speed:
        return speed(1.5 if c.flash_attention and next(seen) == 0 else 1.0)

    assert tune.search(speed_of, cores=1).choices == Choices(threads=1)


@pytest.mark.parametrize("drift", [0.05, -0.03])
def test_a_machine_that_grows_faster_or_slower_favours_nothing(drift):
    turns = itertools.count()
    found = tune.search(lambda c: speed(1.0 + drift * next(turns)), cores=2)
    assert found.choices == Choices(threads=2)


@pytest.mark.parametrize("error", [ModelInvalid("refused"), EngineLost("SIGSEGV")])
def test_what_llama_cpp_refuses_is_noted_and_not_taken(error):
    def speed_of(c: Choices) -> Speed:
        if c.flash_attention:
            raise error
        return speed(1.0)

    found = tune.search(speed_of, cores=1)
    assert not found.choices.flash_attention
    assert [row["error"] for row in found.measured if "error" in row] == [str(error)] * 2


def test_defaults_that_cannot_be_measured_end_it():
    def fails(c: Choices) -> Speed:
        raise ModelInvalid("refused")

    with pytest.raises(ModelInvalid):
        tune.search(fails, cores=1)


def test_a_budget_that_is_used_up_leaves_the_rest_out():
    found = tune.search(lambda c: speed(1.0 + c.flash_attention), cores=2, budget=0.0)
    assert len(found.measured) == 1
    assert found.choices == Choices(threads=2)


def test_a_lossy_cache_is_measured_and_left_to_people():
    found = tune.search(lambda c: speed(3.0 if c.kv_type == "q8_0" else 1.0), cores=1)
    assert found.choices.kv_type == "f16"
    assert [row["prefill"] for row in found.measured if row["kv_type"] == "q8_0"] == [300]


def test_a_real_model_is_tuned_and_the_next_engine_uses_it(smollm, tmp_path, monkeypatch):
    """Small measurements of one change: the rest is logic, and tested above."""
    path, sha256 = smollm.info.path, smollm.info.sha256
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "variants", lambda cores: iter([{"micro_batch": 64}]))
    monkeypatch.setattr(tune, "GAIN", 0.01)
    monkeypatch.setattr(doctor, "PROMPT_WORDS", 16)
    monkeypatch.setattr(doctor, "TOKENS", 2)
    found, kept = tune.tune(path)
    assert kept.is_file()
    assert found.choices.micro_batch == 64
    assert min(found.best.values()) > 0
    assert tuned.recall(sha256) == found
    assert EngineOptions().choices(sha256) == found.choices
