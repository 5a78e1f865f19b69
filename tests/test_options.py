from __future__ import annotations

import pytest

from promptflow.engine import tuned
from promptflow.engine.host import usable_cores
from promptflow.engine.options import DEFAULTS, EngineOptions, load_settings
from promptflow.engine.tuned import Choices, Tuned

SHA = "ab" * 32
BEST = Choices(threads=1, batch=256, micro_batch=128, flash_attention=True, kv_type="q8_0")


@pytest.fixture(autouse=True)
def found(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path))
    tuned.remember(SHA, Tuned(BEST, {}, {}))


def test_without_tuning_the_defaults_and_all_cores_are_taken():
    assert DEFAULTS.choices() == Choices(threads=usable_cores())
    assert DEFAULTS.choices("cd" * 32) == Choices(threads=usable_cores())


def test_what_was_tuned_is_taken_where_the_caller_chose_nothing():
    assert DEFAULTS.choices(SHA) == BEST
    chosen = EngineOptions(batch=64, extra_buffers=False).choices(SHA)
    assert chosen == BEST.but(batch=64, extra_buffers=False)
    assert chosen.micro_batch == 64


def test_a_cache_of_8_bits_is_not_left_without_flash_attention():
    assert EngineOptions(flash_attention=False).choices(SHA).kv_type == "f16"


def test_more_threads_than_this_process_may_use_are_not_taken():
    tuned.remember(SHA, Tuned(Choices(threads=1000), {}, {}))
    assert DEFAULTS.choices(SHA).threads == usable_cores()


def test_invariant_text_does_not_depend_on_what_was_tuned():
    assert EngineOptions(batch_invariant=True).choices(SHA) == Choices(threads=usable_cores())


def test_load_settings_are_those_of_llama():
    llama = pytest.importorskip("promptflow.engine.llama")
    settings = load_settings(EngineOptions(context=64, max_running=3), BEST)
    load = llama.Load(**settings)
    assert (load.context, load.sequences, load.batch, load.kv_type) == (64, 51, 256, "q8_0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "q4_0"}, "one of f16, f32, q8_0"),
        ({"kv_type": "q8_0"}, "needs flash_attention=True"),
        ({"micro_batch": 0}, "micro_batch=0.* outside 1 to"),
        ({"context": 8}, "context=8.* outside 16 to"),
    ],
)
def test_what_llama_cpp_would_abort_on_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**options)
