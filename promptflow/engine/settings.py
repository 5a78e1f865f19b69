"""How an engine loads and runs its model, and what its worker is told of that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from promptflow.engine import memory
from promptflow.engine.frames import Message
from promptflow.engine.host import usable_cores

RETAINED = 48  # sequences that may stay in the cache beside the running ones


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine loads and runs its model.

    ``context`` counts the cells that all sequences share, ``batch`` the tokens of one decode call,
    ``max_running`` the sequences decoded together, and ``max_waiting`` the requests that may wait
    for their turn at the worker: see ``Engine.submit``. ``threads=None`` takes the physical cores
    that this process may use. ``isolate=False`` runs llama.cpp in this process, which it may abort.
    ``batch_invariant=True`` makes a request's text independent of what else runs or is cached, by
    running requests alone and from an empty cache. ``lookup=True`` drafts tokens from a request's
    own text, which pays where answers quote it: see lookup.py.
    """

    context: int = 8192
    batch: int = 512
    max_running: int = 16
    max_waiting: int = 1024
    threads: int | None = None
    gpu_layers: int = 0
    isolate: bool = True
    batch_invariant: bool = False
    flash_attention: bool = False
    lookup: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that llama.cpp would abort on, and a queue that nothing passes."""
        for name, low, high in (
            ("context", 16, 1 << 22),
            ("batch", 1, 1 << 16),
            ("max_running", 1, 64),
            ("max_waiting", 1, 1 << 20),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"EngineOptions({name}={value}) is outside {low} to {high}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"EngineOptions(threads={self.threads}) is below 1")


DEFAULTS = EngineOptions()


def worker_settings(options: EngineOptions, model: str | Path | None = None) -> Message:
    """Return what the worker needs to know, of a model file too once that has passed its checks.

    Raises ModelNotFound, ModelInvalid and CapacityError.
    """
    settings: Message = {
        "max_running": options.max_running,
        "batch_invariant": options.batch_invariant,
        "lookup": options.lookup and not options.batch_invariant,
        "prefixes": False,
        "load": {
            "context": options.context,
            "batch": options.batch,
            "sequences": min(256, options.max_running + RETAINED),
            "threads": options.threads or usable_cores(),
            "gpu_layers": options.gpu_layers,
            "extra_buffers": True,
            "flash_attention": options.flash_attention,
        },
    }
    return settings if model is None else settings | _file_settings(model, options)


def _file_settings(model: str | Path, options: EngineOptions) -> Message:
    # Not at the top: a program that brings its own model needs no catalogue.
    from promptflow import catalog

    path = catalog.locate(model)
    header = catalog.read_gguf(path)
    memory.check(path, header.metadata, header.vocabulary, options.context, options.batch)
    name = str(model) if str(model) in catalog.models() else path.stem
    prefixes = not options.batch_invariant  # state that was computed in other batches
    return {
        "path": str(path),
        "name": name,
        "sha256": catalog.sha256_cached(path),
        "prefixes": prefixes,
    }
