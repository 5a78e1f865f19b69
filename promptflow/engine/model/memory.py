"""Whether a model and its cache fit into memory, estimated before anything native is loaded.

A process that runs out of memory is killed without a word, and Linux counts pages only when they
are written: asking for too much succeeds, and the kill comes later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptflow.errors import CapacityError

SLACK = 192 << 20  # Python, llama.cpp's own buffers, the grammar compiler
SHARE = 0.9  # of what is free


def check(name: str, weights: int, cache: int, vocabulary: int, context: int, batch: int) -> None:
    """Raise CapacityError where the model cannot fit beside what this machine already holds.

    ``weights`` counts the bytes of its file or files, ``cache`` those of keys and values, ``batch``
    the tokens of one decode call.
    """
    logits = batch * vocabulary * 4
    needed = weights + cache + logits + SLACK
    free = free_bytes()
    if free is not None and needed > SHARE * free:
        raise CapacityError(
            f"{name} with a context of {context:,} needs about {needed / 1e9:.1f} GB (weights "
            f"{weights / 1e9:.1f}, cache {cache / 1e9:.1f}), and {free / 1e9:.1f} GB are free: "
            "lower EngineOptions(context=...), or take a smaller model"
        )


def cache_bytes(metadata: Mapping[str, Any], context: int, value_bytes: float = 2.0) -> int:
    """Return the bytes of keys and values for ``context`` tokens.

    ``metadata`` is that of the GGUF file; 0 where it does not say enough. ``value_bytes`` is what
    one value takes.
    """
    name = metadata.get("general.architecture")

    def number(key: str) -> int:
        value = metadata.get(f"{name}.{key}")
        return value if isinstance(value, int) else 0

    heads = number("attention.head_count")
    width = number("embedding_length") // heads if heads else 0
    per_head = (number("attention.key_length") or width) + (
        number("attention.value_length") or width
    )
    key_heads = number("attention.head_count_kv") or heads
    return int(context * number("block_count") * key_heads * per_head * value_bytes)


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
