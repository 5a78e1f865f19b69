"""What DSPy's keyword arguments ask for, and what its own calls leave behind.

Usage goes to the usage tracker, the call to the histories, and a step to the trace, so that DSPy's
optimizers and ``inspect_history`` see calls that did not go through ``dspy.LM``.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.clients.base_lm import record_history

from promptflow import layout
from promptflow.engine.request import Completion, Fill, Part, Request, Sampling, Slot, Text, Usage

_UNCHOSEN = layout.Decoding()


def sampling_of(config: Mapping[str, Any], below: Sampling | None = None) -> Sampling | None:
    """Return ``below`` with what DSPy's keyword arguments set; None where both are silent."""
    names = Sampling.__dataclass_fields__
    given = {name: config[name] for name in names if config.get(name) is not None}
    if isinstance(bias := given.get("logit_bias"), Mapping):
        given["logit_bias"] = tuple((int(token), float(value)) for token, value in bias.items())
    return replace(below or Sampling(), **given) if given else below


def decoding_of(config: Mapping[str, Any], below: layout.Decoding = _UNCHOSEN) -> layout.Decoding:
    """Return what DSPy's keyword arguments ask for over ``below``.

    Of its sampling they may set a part. ``max_tokens`` bounds each free text, reasoning too.
    """
    given = config.get("max_tokens") or config.get("max_completion_tokens")
    tokens = int(given) if given else None
    stop = config.get("stop")
    logprobs = config.get("logprobs")
    if logprobs is True or config.get("top_logprobs"):
        logprobs = int(config.get("top_logprobs") or 0)
    asked = layout.Decoding(
        sampling_of(config, below.sampling),
        max_tokens=tokens,
        reasoning_tokens=tokens,
        logprobs=None if logprobs is False else logprobs,
        stop=((stop,) if isinstance(stop, str) else tuple(stop)) if stop else None,
    )
    return asked.over(below)


def seed_of(*path: int | str | None) -> int:
    """Return a 63-bit seed that depends on every step of a path, and on nothing else."""
    digest = hashlib.sha256(repr(path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def record_call(lm: Any, request: Request, completion: Completion) -> dict[str, Any]:
    """Leave a call in DSPy's usage tracker and histories; return its usage by model."""
    settings = dspy.settings
    usage = completion.usage
    written = usage.generated + usage.forced
    entry = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": written,
        "total_tokens": usage.prompt + written,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
    }
    if settings.usage_tracker:
        settings.usage_tracker.add_usage(lm.model, entry)
    if not settings.disable_history:
        first = next(i for i, part in enumerate(request.parts) if isinstance(part, Slot))
        record_history(
            lm,
            {
                "prompt": prompt_text(request.parts),
                "messages": [{"role": "user", "content": prompt_text(request.parts)}],
                "kwargs": {"seed": request.seed},
                "response": completion,
                "outputs": [prompt_text(request.parts[first:], completion.fills)],
                "usage": entry,
                "cost": None,
                "timestamp": datetime.datetime.now().isoformat(),
                "uuid": str(uuid.uuid4()),
                "model": lm.model,
                "response_model": lm.model,
                "model_type": "chat",
            },
        )
    return {lm.model: entry}


def usage_of(tracker: Any) -> Usage:
    """Return the tokens that DSPy's usage tracker saw, of all models together."""
    total = Usage()
    for entry in (e for entries in tracker.usage_data.values() for e in entries):
        prompt, written = (entry.get(f"{kind}_tokens") or 0 for kind in ("prompt", "completion"))
        reused = (entry.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        total += Usage(prompt, prompt - reused, reused, written)
    return total


def prompt_text(parts: Sequence[Part], fills: Mapping[str, Fill] | None = None) -> str:
    """Return the text of parts, slots as ``{name}`` or as what was filled in."""
    pieces = []
    for part in parts:
        if isinstance(part, Text):
            pieces.append(part.text)
        elif fills is not None and part.name in fills:
            pieces.append(part.lead + fills[part.name].text)
        else:
            pieces.append(f"{part.lead}{{{part.name}}}")
    return "".join(pieces)


def trace_call(predictor: Any, inputs: Mapping[str, Any], prediction: Any) -> None:
    """Append a call to ``dspy.settings.trace`` as ``dspy.Predict`` does."""
    trace = dspy.settings.trace
    if trace is None or dspy.settings.max_trace_size <= 0:
        return
    if len(trace) >= dspy.settings.max_trace_size:
        trace.pop(0)
    trace.append((predictor, dict(inputs), prediction))
