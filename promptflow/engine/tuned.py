"""What ``promptflow doctor --tune`` found fastest, kept by model, processor and llama.cpp build."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from promptflow import storage
from promptflow.errors import StoreError

BRANCHES = 8  # answers that are decoded side by side where ``together`` is measured
MOST_PASS_ROWS = 64.0


@dataclass(frozen=True, slots=True)
class Choices:
    """What depends on the machine in how a model is loaded: see ``EngineOptions``.

    ``batch`` and ``micro_batch`` count tokens.
    """

    threads: int = 1
    batch: int = 512
    micro_batch: int = 512
    flash_attention: bool = False
    extra_buffers: bool = True
    kv_type: str = "f16"

    def but(self, **changes: Any) -> Choices:
        """Return these choices with some changed; a micro-batch is never larger than a batch."""
        changed = replace(self, **changes)
        return replace(changed, micro_batch=min(changed.batch, changed.micro_batch))

    def as_json(self) -> dict[str, Any]:
        """Return them as JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tuned:
    """Choices and what they were chosen on: tokens a second of each, by default and tuned.

    ``measured`` holds every variant that was tried, in order. Speeds are of a cold prompt
    (``prefill``), of one answer (``alone``) and of ``BRANCHES`` answers (``together``).
    """

    choices: Choices
    default: dict[str, float]
    best: dict[str, float]
    measured: tuple[dict[str, Any], ...] = ()

    @property
    def pass_rows(self) -> float | None:
        """How many rows of a batch cost what a pass over the weights does; None if not known."""
        if not {"alone", "together"} <= self.best.keys():
            return None
        alone, together = 1 / self.best["alone"], BRANCHES / self.best["together"]
        row = max((together - alone) / (BRANCHES - 1), alone / MOST_PASS_ROWS)
        return max((alone - row) / row, 1 / MOST_PASS_ROWS)


def machine() -> str:
    """Return the processor, its usable cores aside, and the build of llama-cpp-python."""
    processor = platform.processor() or platform.machine()
    path = Path("/proc/cpuinfo")
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    try:
        build = version("llama-cpp-python")
    except PackageNotFoundError:
        build = "none"
    return f"{processor}, llama-cpp-python {build}"


def _place(sha256: str) -> Path:
    key = storage.sha256_bytes(machine().encode())[:16]
    return storage.cache_dir() / "tuned" / f"{sha256[:16]}-{key}.json"


def remember(sha256: str, tuned: Tuned) -> Path:
    """Keep what was found for the model of that hash on this machine; return the file."""
    path = _place(sha256)
    storage.write_json(path, {"machine": machine(), "model": sha256, **asdict(tuned)})
    return path


def recall(sha256: str) -> Tuned | None:
    """Return what was found for the model of that hash; None if nothing, or nothing readable."""
    try:
        kept = storage.read_json(_place(sha256))
        choices = kept["choices"]
        same = all(
            type(choices[field.name]) is type(getattr(Choices(), field.name))
            for field in fields(Choices)
        )
        if not same or kept["model"] != sha256:
            return None
        return Tuned(Choices(**choices), kept["default"], kept["best"], tuple(kept["measured"]))
    except (StoreError, KeyError, TypeError):
        return None


def forget(sha256: str) -> None:
    """Remove what was found for the model of that hash on this machine."""
    storage.remove_file(_place(sha256))
