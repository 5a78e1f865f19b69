from __future__ import annotations

import pytest

from promptflow.engine.model import memory
from promptflow.errors import CapacityError

QWEN = {
    "general.architecture": "qwen2",
    "qwen2.block_count": 24,
    "qwen2.embedding_length": 896,
    "qwen2.attention.head_count": 14,
    "qwen2.attention.head_count_kv": 2,
}


def test_the_cache_holds_keys_and_values_of_16_bits():
    assert memory.cache_bytes(QWEN, 1) == 24 * 2 * (64 + 64) * 2
    assert memory.cache_bytes(QWEN, 32, 34 / 32) == 34 * 24 * 2 * (64 + 64)
    assert memory.cache_bytes(QWEN, 8192) == 8192 * memory.cache_bytes(QWEN, 1)


def test_own_widths_of_keys_and_values_count():
    widths = {"qwen2.attention.key_length": 128, "qwen2.attention.value_length": 32}
    assert memory.cache_bytes({**QWEN, **widths}, 1) == 24 * 2 * 160 * 2


def test_a_file_that_says_little_is_not_refused_for_it():
    assert memory.cache_bytes({"general.architecture": "odd"}, 8192) == 0
    assert memory.cache_bytes({}, 8192) == 0


def test_some_memory_is_free():
    free = memory.free_bytes()
    assert free is None or free > 1 << 20


def test_a_context_larger_than_memory_is_refused_with_the_numbers():
    memory.check("small", 1000, memory.cache_bytes(QWEN, 16), 1_000, context=16, batch=1)
    cache = memory.cache_bytes({**QWEN, "qwen2.block_count": 500}, 1 << 22)
    with pytest.raises(CapacityError, match=r"small with a context of 4,194,304 needs about"):
        memory.check("small", 1000, cache, 1_000, context=1 << 22, batch=512)


def test_the_weights_count():
    with pytest.raises(CapacityError, match=r"weights 8796\.1"):
        memory.check("huge", 1 << 43, 0, 1_000, context=16, batch=1)
