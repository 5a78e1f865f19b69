"""How an engine loads and runs its model: what the caller chose, what was tuned, the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptflow import storage
from promptflow.child import usable_cores
from promptflow.engine.loop.width import PASS, PASS_GPU
from promptflow.engine.model import memory
from promptflow.engine.process.frames import Message
from promptflow.engine.slot.prompt_lookup import PASS_ROWS, PASS_ROWS_GPU
from promptflow.engine.tuned import Choices, recall
from promptflow.errors import TemplateError, UnsupportedOption, names_options

RETAINED = 48  # sequences that may stay in the cache beside the running ones
SEQUENCES = 256  # that llama.cpp allows in one context
DRAWERS = 8  # threads at most that choose tokens beside a GPU
_LIMITS = {
    "context": (16, 1 << 22),
    "max_running": (1, SEQUENCES - RETAINED),
    "max_waiting": (1, 1 << 20),
    "threads": (1, 1 << 12),
    "batch": (1, 1 << 16),
    "micro_batch": (1, 1 << 16),
}


@names_options
@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine loads and runs its model.

    ``context`` counts the cells that all sequences share, ``max_running`` the sequences decoded
    together, and ``max_waiting`` the requests that may wait for their turn at the worker: see
    ``Engine.submit``. ``isolate=False`` runs llama.cpp in this process, which it may abort.
    ``batch_invariant=True`` makes a request's text independent of what else runs or is cached, by
    running requests alone and from an empty cache. ``lookup=True`` drafts tokens from a request's
    own text where that is likely to pay, as in quotations: see prompt_lookup.py. ``chat_template``
    is the path of a Jinja file that takes the place of the model's own chat template.

    None leaves a choice to what ``promptflow doctor --tune`` found fastest for this model on this
    machine, and where it was not run, to ``tuned.Choices``' defaults: ``threads`` (physical cores
    that this process may use), ``batch`` (tokens of one decode call) and ``micro_batch`` (of one
    pass over the weights), ``flash_attention``, ``extra_buffers`` (weights repacked for special
    kernels), ``kv_type`` ("f16", "f32", or "q8_0", which needs flash attention).
    """

    context: int = 8192
    max_running: int = 32
    max_waiting: int = 1024
    gpu_layers: int = 0
    isolate: bool = True
    batch_invariant: bool = False
    lookup: bool = False
    chat_template: str | Path | None = None
    threads: int | None = None
    batch: int | None = None
    micro_batch: int | None = None
    flash_attention: bool | None = None
    extra_buffers: bool | None = None
    kv_type: str | None = None

    def __post_init__(self) -> None:
        """Refuse what llama.cpp would abort on, and a queue that nothing passes."""
        if isinstance(self.chat_template, Path):
            object.__setattr__(self, "chat_template", str(self.chat_template))  # JSON data
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"EngineOptions({name}={value}) is outside {low} to {high}")
        if self.kv_type is not None and self.kv_type not in memory.KV_TYPES:
            known = ", ".join(memory.KV_TYPES)
            raise ValueError(f"EngineOptions(kv_type={self.kv_type!r}): it is one of {known}")
        if self.kv_type == "q8_0" and not self.flash_attention:
            raise ValueError("EngineOptions(kv_type='q8_0') needs flash_attention=True")

    def template(self) -> dict[str, str]:
        """Return what ``chat_template`` changes in ``ModelInfo``, read from its file.

        Raises TemplateError with the path of a file that is missing, empty, or no text.
        """
        if self.chat_template is None:
            return {}
        path = Path(self.chat_template).expanduser()
        try:
            text = storage.read_text(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise TemplateError(
                f"chat template {path}: cannot be read: {why}. Give the path of a Jinja file, or "
                "leave it out to use the model's own"
            ) from error
        if not text.strip():
            raise TemplateError(
                f"chat template {path}: is empty; for prompts without turns use layout='completion'"
            )
        return {"template": text, "given_template": storage.sha256_bytes(text.encode())}

    def choices(self, sha256: str = "") -> Choices:
        """Return how the model of that hash is loaded: chosen here, else tuned, else the default.

        What was tuned is left out where text must not depend on it (``batch_invariant``).
        """
        tuned = None if self.batch_invariant or not sha256 else recall(sha256)
        cores = usable_cores()
        found = Choices(threads=cores)
        if tuned is not None:
            found = tuned.choices.but(threads=min(cores, tuned.choices.threads))
        wanted: dict[str, Any] = {
            name: value
            for name in Choices.__slots__
            if (value := getattr(self, name, None)) is not None
        }
        if self.flash_attention is False and found.kv_type == "q8_0":
            wanted.setdefault("kv_type", "f16")
        return found.but(**wanted)

    def pass_rows(self, sha256: str = "") -> float:
        """Return what ``lookup`` weighs its drafts by, for the model of that hash; 0: no drafts.

        That is how many rows of a batch cost what a pass over the weights does.
        """
        if not self.lookup or self.batch_invariant:
            return 0.0
        if self.gpu_layers:
            return PASS_ROWS_GPU
        tuned = recall(sha256) if sha256 else None
        return PASS_ROWS if tuned is None else tuned.pass_rows or PASS_ROWS


DEFAULTS = EngineOptions()


def load_settings(options: EngineOptions, choices: Choices, state: int = 0) -> Message:
    """Return what ``llama.Load`` is made of, as JSON data.

    ``state`` counts the bytes that every sequence takes, used or not: see ``memory.state_bytes``.
    """
    retained = RETAINED
    if state:
        room = memory.STATES // state - options.max_running
        retained = max(memory.LEAST_RETAINED, min(RETAINED, room))
    return {
        "context": options.context,
        "sequences": options.max_running + retained,
        "gpu_layers": options.gpu_layers,
        **choices.as_json(),
    }


def worker_settings(
    options: EngineOptions, model: str | Path | None = None, *, trust: bool = False
) -> Message:
    """Return what the worker needs to know, of a model file too once that has passed its checks.

    ``trust`` as for ``catalog.models``. Raises ModelNotFound, ModelInvalid, CapacityError, and
    UnsupportedOption for ``lookup`` on a model whose memory cannot be cut.
    """
    settings: Message = {
        "max_running": options.max_running,
        "batch_invariant": options.batch_invariant,
        # On a processor, llama.cpp's own threads wait on the cores for the next pass.
        "drawers": min(DRAWERS, usable_cores()) if options.gpu_layers else 1,
        "pass_cells": PASS_GPU if options.gpu_layers else PASS,
    }
    if model is not None:
        return settings | _file_settings(model, options, trust)
    load = load_settings(options, options.choices())
    return settings | {"prefixes": False, "pass_rows": options.pass_rows(), "load": load}


def _file_settings(model: str | Path, options: EngineOptions, trust: bool) -> Message:
    # Not at the top: a program that brings its own model needs no catalogue.
    from promptflow import catalog

    path = catalog.obtain(model, trust=trust)
    header = catalog.read_gguf(path)
    sha256 = catalog.model_sha256(path)
    choices = options.choices(sha256)
    state = memory.state_bytes(header.metadata)
    if state and options.lookup:
        raise UnsupportedOption(
            f"EngineOptions(lookup=True): {path.name} has a recurrent state, which cannot take "
            "back a draft that was wrong; load it without lookup"
        )
    load = load_settings(options, choices, state)
    memory.check(path.name, header.size, header.metadata, header.vocabulary, load)
    return {
        "path": str(path),
        "name": catalog.title(model, path, trust=trust),
        "sha256": sha256,
        "prefixes": not options.batch_invariant,  # state that was computed in other batches
        "pass_rows": options.pass_rows(sha256),
        "load": load,
    }
