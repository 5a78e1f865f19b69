"""Whether a model and its cache fit into memory, estimated before anything native is loaded.

A process that runs out of memory is killed without a word, and Linux counts pages only when they
are written: asking for too much succeeds, and the kill comes later. So what is estimated is what
the process holds once its cache is full and a whole batch has wanted logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptflow.errors import CapacityError

KV_TYPES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}
"""Bytes of one value in the cache."""
PROCESS = 72 << 20  # Python, numpy, llama.cpp and the grammar compiler
TOKEN = 800  # bytes that the tables of llama.cpp and of the constraints hold of each token
SHARE = 0.9  # of what is free
STATES = 1 << 30  # bytes of recurrent states that sequences are loaded for, beyond the least
LEAST_RETAINED = 8  # sequences that may stay beside the running ones, whatever their states take
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_EVERY_FOURTH = {"qwen3next", "qwen35", "qwen35moe"}
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes that a model takes: weights, keys and values, recurrent states, logits, work."""

    weights: int
    cache: int
    states: int
    logits: int
    work: int
    rest: int

    @property
    def total(self) -> int:
        """Return all of them."""
        return self.weights + self.cache + self.states + self.logits + self.work + self.rest


class _Shape:
    """What the metadata of a GGUF file says of a model's layers; 0 where it says nothing."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.name = str(metadata.get("general.architecture", ""))
        self.layers = self.number("block_count") - self.number("nextn_predict_layers")
        self.width = self.number("embedding_length")
        self.heads = self.numbers("attention.head_count")
        self.key_heads = self.numbers("attention.head_count_kv", self.heads)
        self.feed = self.numbers("feed_forward_length")

    def number(self, key: str, default: int = 0) -> int:
        """Return a number; of a number a layer, the first."""
        value = self._metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, tuple) and value:
            value = value[0]
        return value if isinstance(value, int) else default

    def numbers(self, key: str, default: list[int] | None = None) -> list[int]:
        """Return a number for each layer."""
        value = self._metadata.get(f"{self.name}.{key}")
        if isinstance(value, tuple) and all(isinstance(one, int) for one in value):
            return (list(map(int, value)) + [0] * self.layers)[: self.layers]
        if default is not None and not isinstance(value, int):
            return default
        return [self.number(key)] * self.layers

    def recurrent(self) -> list[bool]:
        """Return which layers keep a state instead of a cell a token."""
        every = self.number("full_attention_interval", 4 if self.name in _EVERY_FOURTH else 0)
        if self.name in _RECURRENT | {"falcon-h1"}:
            return [True] * self.layers
        if f"{self.name}.attention.recurrent_layers" in self._metadata:
            return [bool(one) for one in self.numbers("attention.recurrent_layers")]
        if every and self.number("ssm.state_size"):
            return [(layer + 1) % every != 0 for layer in range(self.layers)]
        fed = self.feed if self.name.startswith("nemotron_h") else [0] * self.layers
        return [not heads and not feed for heads, feed in zip(self.key_heads, fed, strict=True)]

    def cached(self) -> list[bool]:
        """Return which layers keep keys and values."""
        if self.name in _RECURRENT:
            return [False] * self.layers
        own = self.layers - self.number("attention.shared_kv_layers")
        if self.name == "gemma3n":
            own = min(self.layers, 20)  # as llama.cpp has it, whatever the file says
        states = [False] * self.layers if self.name == "falcon-h1" else self.recurrent()
        layers = zip(range(self.layers), self.key_heads, states, strict=True)
        return [layer < own and heads > 0 and not state for layer, heads, state in layers]

    def windowed(self) -> list[bool]:
        """Return which layers attend to a window, where their heads have another width."""
        value = self._metadata.get(f"{self.name}.attention.sliding_window_pattern")
        if isinstance(value, tuple):
            return [bool(one) for one in value][: self.layers]
        every = value if isinstance(value, int) and value else 1
        return [layer % every < every - 1 for layer in range(self.layers)]

    def head_width(self, kind: str, windowed: bool) -> int:
        """Return the values that one head has of a ``kind``: key or value."""
        most = max(self.heads, default=0)
        whole = self.number(f"attention.{kind}_length", self.width // most if most else 0)
        return self.number(f"attention.{kind}_length_swa", whole) if windowed else whole


def estimate(
    metadata: Mapping[str, Any], weights: int, vocabulary: int, load: Mapping[str, Any]
) -> Need:
    """Return what a model of ``weights`` bytes takes, loaded as ``load`` says.

    ``metadata`` is that of the GGUF file; ``load`` has the fields of ``llama.Load``.
    """
    flash, value_bytes = load["flash_attention"], KV_TYPES[load["kv_type"]]
    rows = min(load["batch"], load["context"])
    return Need(
        weights=weights,
        cache=cache_bytes(metadata, load["context"], value_bytes, flash),
        states=state_bytes(metadata) * load["sequences"],
        logits=rows * vocabulary * _FLOAT,
        work=_work_bytes(
            metadata,
            load["context"],
            min(rows, load["micro_batch"]),
            vocabulary,
            value_bytes,
            flash,
        ),
        rest=PROCESS + TOKEN * vocabulary,
    )


def check(
    name: str,
    weights: int,
    metadata: Mapping[str, Any],
    vocabulary: int,
    load: Mapping[str, Any],
) -> None:
    """Raise CapacityError where the model cannot fit beside what this machine already holds.

    As for ``estimate``; ``name`` is that of the file.
    """
    need = estimate(metadata, weights, vocabulary, load)
    free = free_bytes()
    if free is not None and need.total > SHARE * free:
        states = f", states {need.states / 1e9:.1f}" if need.states else ""
        raise CapacityError(
            f"{name} with a context of {load['context']:,} needs about {need.total / 1e9:.1f} "
            f"GB (weights {need.weights / 1e9:.1f}, cache {need.cache / 1e9:.1f}{states}), and "
            f"{free / 1e9:.1f} GB are free: {_advice(need, load['sequences'])}"
        )


def _advice(need: Need, sequences: int) -> str:
    """Return what makes a model take less: what shrinks the larger part comes first."""
    helps = [(need.cache, "context")] if need.cache or not need.states else []
    if need.states > STATES and sequences > LEAST_RETAINED + 1:
        helps.append((need.states, "max_running"))
    options = " or ".join(f"EngineOptions({name}=...)" for _, name in sorted(helps, reverse=True))
    return f"lower {options}, or take a smaller model" if options else "take a smaller model"


def cache_bytes(
    metadata: Mapping[str, Any], context: int, value_bytes: float = 2.0, flash: bool = False
) -> int:
    """Return the bytes of keys and values for ``context`` tokens.

    0 where ``metadata`` does not say enough. ``value_bytes`` is what one value takes. Windowed
    layers keep every token, as they are loaded: what is behind the window can be branched from.
    """
    shape = _Shape(metadata)
    layers = list(zip(shape.cached(), shape.key_heads, shape.windowed(), strict=True))
    values = [heads * shape.head_width("value", window) for _, heads, window in layers]
    if not flash:  # values lie transposed then, all layers as wide as the widest
        values = [max(values, default=0)] * len(values)
    if shape.number("attention.key_length_mla"):
        values = [0] * len(values)  # they are read off the keys
    width = sum(
        heads * shape.head_width("key", window) + value
        for (cached, heads, window), value in zip(layers, values, strict=True)
        if cached
    )
    return int(context * width * value_bytes)


def state_bytes(metadata: Mapping[str, Any]) -> int:
    """Return the bytes of the recurrent state of one sequence; 0 for a model without."""
    shape = _Shape(metadata)
    heads = max(shape.heads[:1], default=0)
    inner, size = shape.number("ssm.inner_size"), shape.number("ssm.state_size")
    kernel = shape.number("ssm.conv_kernel")
    turned = size * inner
    shifted = max(0, kernel - 1) * (inner + 2 * shape.number("ssm.group_count") * size)
    if head := shape.number("wkv.head_size"):
        turned = shape.width * head
        shifted = shape.width * shape.number("token_shift_count", 2)
    elif kernel_width := shape.number("shortconv.l_cache"):
        turned, shifted = 0, shape.width * (kernel_width - 1)
    elif head := shape.number("kda.head_dim"):
        turned = head * head * heads
        shifted = 3 * (kernel - 1 if kernel else 3) * heads * head
    return sum(shape.recurrent()) * (turned + shifted) * _FLOAT


def _work_bytes(
    metadata: Mapping[str, Any],
    context: int,
    rows: int,
    vocabulary: int,
    value_bytes: float,
    flash: bool,
) -> int:
    """Return the bytes between the layers of a model, for ``rows`` tokens computed together."""
    shape = _Shape(metadata)
    attends = any(shape.cached())
    heads = max(shape.heads, default=0) if attends else 0
    mask = rows * context * (2 if flash else _FLOAT) if attends else 0
    if attends and any(shape.windowed()) and shape.number("attention.sliding_window"):
        mask *= 2
    scores = 0 if flash else rows * context * heads * _FLOAT
    # Of scores a copy is made in the type of the values that they weigh.
    copied = int(rows * context * heads * value_bytes) if scores and value_bytes < _FLOAT else 0
    layer = rows * _FLOAT * (6 * shape.width + 2 * max(shape.feed, default=0))
    return max(mask + scores + copied, rows * vocabulary * _FLOAT) + layer


def free_bytes() -> int | None:
    """Return the memory that may still be used: the machine's, or the control group's if less."""
    found = [value for value in (_available(), _group()) if value is not None]
    return min(found, default=None)


def _available() -> int | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    lines = (line.split() for line in path.read_text().splitlines())
    sizes = {name: int(rest[0]) * 1024 for name, *rest in lines}
    return sizes.get("MemAvailable:")


def _group() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return int(limit) - used + cached if limit.isdigit() else None
