from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from llama_cpp import llama_cpp as c

from promptflow.catalog import locate
from promptflow.engine.model import memory
from promptflow.engine.model.llama import Load, Model, log_to_stderr
from promptflow.errors import CapacityError
from promptflow.gguf import read_gguf

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


LOAD = {
    "context": 16,
    "batch": 512,
    "micro_batch": 512,
    "sequences": 64,
    "flash_attention": False,
    "kv_type": "f16",
}
HYBRID = {
    "general.architecture": "granitehybrid",
    "granitehybrid.block_count": 40,
    "granitehybrid.embedding_length": 1536,
    "granitehybrid.attention.head_count": 12,
    "granitehybrid.attention.head_count_kv": (*[0] * 36, 4, 4, 4, 4),
    "granitehybrid.ssm.conv_kernel": 4,
    "granitehybrid.ssm.inner_size": 3072,
    "granitehybrid.ssm.state_size": 128,
    "granitehybrid.ssm.group_count": 1,
}


def test_a_context_larger_than_memory_is_refused_with_the_numbers():
    memory.check("small", 1000, QWEN, 1_000, LOAD)
    layers = {**QWEN, "qwen2.block_count": 500}
    with pytest.raises(CapacityError, match=r"small with a context of 4,194,304 needs about"):
        memory.check("small", 1000, layers, 1_000, {**LOAD, "context": 1 << 22})


def test_the_weights_count():
    with pytest.raises(CapacityError, match=r"weights 8796\.1"):
        memory.check("huge", 1 << 43, QWEN, 1_000, LOAD)


def test_states_are_counted_for_every_sequence_and_named():
    one = memory.state_bytes(HYBRID)
    assert one == 36 * (128 * 3072 + 3 * (3072 + 2 * 128)) * 4
    assert memory.estimate(HYBRID, 0, 1000, LOAD).states == 64 * one
    with pytest.raises(CapacityError, match=r"states 5806\.\d"):
        memory.check("hybrid", 1000, HYBRID, 1_000, {**LOAD, "sequences": 100_000})


RECURRENT = {
    "general.architecture": "mamba2",
    "mamba2.block_count": 48,
    "mamba2.embedding_length": 2048,
    "mamba2.ssm.conv_kernel": 4,
    "mamba2.ssm.inner_size": 4096,
    "mamba2.ssm.state_size": 128,
    "mamba2.ssm.group_count": 1,
}
MANY = {"sequences": 100_000}


@pytest.mark.parametrize(
    ("metadata", "weights", "load", "said"),
    [
        (QWEN, 0, {"context": 1 << 31}, "lower EngineOptions(context=...), or take"),
        (HYBRID, 0, MANY, "lower EngineOptions(max_running=...) or EngineOptions(context=...), or"),
        (
            HYBRID,
            0,
            {**MANY, "context": 1 << 31},
            "lower EngineOptions(context=...) or EngineOptions(max_running=...), or",
        ),
        (RECURRENT, 0, MANY, "lower EngineOptions(max_running=...), or take"),
        (RECURRENT, 1 << 43, {"sequences": 9}, "free: take a smaller model"),
        (QWEN, 1 << 43, {}, "lower EngineOptions(context=...), or take"),
    ],
)
def test_the_advice_is_what_makes_the_larger_part_smaller(metadata, weights, load, said):
    with pytest.raises(CapacityError, match=re.escape(said)):
        memory.check("large", weights, metadata, 1_000, {**LOAD, **load})


def test_layers_without_attention_have_no_cells():
    assert memory.cache_bytes(HYBRID, 1) == 4 * 4 * 128 * 2 * 2
    assert memory.state_bytes(QWEN) == 0


def logged(path: Path, load: Load) -> dict[str, float]:
    """Return the MiB of the buffers that llama.cpp says it makes."""
    lines: list[bytes] = []
    callback = c.llama_log_callback(lambda level, text, _: lines.append(text))
    c.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        Model(path, path.stem, "0" * 64, load).close()
    finally:
        log_to_stderr()
    found: dict[str, float] = {}
    for kind, size in re.findall(r"(\w+) buffer size = +([\d.]+) MiB", b"".join(lines).decode()):
        found[kind] = found.get(kind, 0.0) + float(size)
    return found


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize(
    "architecture", sorted(tiny_models.ARCHITECTURES.keys() - tiny_models.REFUSED)
)
def test_cells_and_states_are_those_that_llama_cpp_makes(
    tiny: Callable[[str], Path], architecture: str, flash: bool
):
    path = tiny(architecture)
    load = {**LOAD, "context": 4096, "batch": 256, "sequences": 16, "flash_attention": flash}
    header = read_gguf(path)
    need = memory.estimate(header.metadata, header.size, header.vocabulary, load)
    found = logged(path, Load(**load, extra_buffers=False))
    assert need.cache / 2**20 == pytest.approx(found.get("KV", 0.0), abs=0.02)
    assert need.states / 2**20 == pytest.approx(found.get("RS", 0.0), abs=0.02)


FULL = """
import pathlib, re, sys
from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.llama import Load, Model, log_to_stderr
from promptflow.engine.process import worker
log_to_stderr()
path, load = pathlib.Path(sys.argv[1]), eval(sys.argv[2])
model = Model(path, path.stem, "0" * 64, Load(**load))
Decoder(model)
rows = load["batch"]
for start in range(0, load["context"], rows):
    tokens = [token % model.vocabulary for token in range(start, start + rows)]
    places = list(range(start, start + rows))
    assert model.decode(tokens, places, [0] * rows, [True] * rows) == 0
resident, = re.findall(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())
print(int(resident) * 1024)
"""
WIDE = {"attention__key_length": 128, "attention__value_length": 128}
STATES = {"ssm__state_size": 128, "ssm__inner_size": 512}
MEASURED: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "llama": (WIDE, {"context": 4096}),
    "gemma3": (WIDE, {"context": 4096, "flash_attention": True}),
    "lfm2": ({"embedding_length": 512}, {"context": 4096}),
    "mamba2": (STATES, {"context": 1024, "sequences": 200}),
    "falcon-h1": (WIDE | STATES, {"context": 2048, "sequences": 100}),
    "smollm2-135m": ({}, {"context": 1024}),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells resident bytes")
@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_what_a_process_takes(tmp_path: Path, name: str):
    """Its cache is full and a whole batch has had its logits."""
    changes, shape = MEASURED[name]
    real = name not in tiny_models.ARCHITECTURES
    path = locate(name) if real else tiny_models.write(name, tmp_path, **changes)
    load = LOAD | shape
    header = read_gguf(path)
    need = memory.estimate(header.metadata, header.size, header.vocabulary, load)
    command = [sys.executable, "-c", FULL, str(path), repr(load)]
    taken = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert need.total == pytest.approx(taken, rel=0.15)
