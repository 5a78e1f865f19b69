"""What DSPy's keyword arguments ask for, and how a request reads in DSPy's records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from promptflow import layout
from promptflow.engine.request import Completion, Fill, Part, Request, Sampling, Slot, Text, Usage
from promptflow.prompt import BLOCK, Scaffold

_UNCHOSEN = layout.Decoding()

AGAIN = 0.7
"""Temperature of a greedy call that is made once more."""


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
    tokens = config.get("max_tokens")
    tokens = config.get("max_completion_tokens") if tokens is None else tokens
    stop = config.get("stop")
    if isinstance(stop, str | list):
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
    logprobs = config.get("logprobs")
    if logprobs is True or config.get("top_logprobs"):
        logprobs = int(config.get("top_logprobs") or 0)
    asked = layout.Decoding(
        sampling_of(config, below.sampling),
        max_tokens=tokens,
        reasoning_tokens=tokens,
        logprobs=None if logprobs is False else logprobs,
        stop=stop or None,
        thinking=config.get("thinking"),
    )
    return asked.over(below)


def seed_of(*path: int | str | None) -> int:
    """Return a 63-bit seed that depends on every step of a path, and on nothing else."""
    digest = hashlib.sha256(repr(path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def usage_of(tracker: Any) -> Usage:
    """Return the tokens that DSPy's usage tracker saw, of all models together."""
    total = Usage()
    for entry in (e for entries in tracker.usage_data.values() for e in entries):
        prompt, written = (entry.get(f"{kind}_tokens") or 0 for kind in ("prompt", "completion"))
        reused = (entry.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        total += Usage(prompt, prompt - reused, reused, written)
    return total


class Seen:
    """Stands among DSPy's calling modules, so that it gets the history of what they call."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def predictors(self) -> list[Any]:
        """Return none: whoever looks through calling modules for a predictor goes on."""
        return []

    @property
    def is_void(self) -> bool:
        """Say whether the last response holds neither text nor tokens: no model wrote it."""
        last = self.history[-1] if self.history else {}
        outputs, usage = last.get("outputs") or [], last.get("usage") or {}
        texts = [one.get("text") if isinstance(one, Mapping) else one for one in outputs]
        return bool(last) and not any(texts) and not usage.get("completion_tokens")

    @property
    def cut(self) -> bool:
        """Say whether an answer ended at its limit."""
        return any(finish_of(entry["response"]) == "length" for entry in self.history)


def finish_of(response: Any) -> Any:
    """Return why an answer ended, of any of the responses that DSPy keeps."""
    if isinstance(response, Completion):
        finishes = {fill.finish for fill in response.fills.values()}
        return "length" if "length" in finishes else None
    if isinstance(response, list | tuple):
        finishes = {finish_of(one) for one in response}
        return "length" if "length" in finishes else None
    choices = part_of(response, "choices")
    return part_of(choices[0] if choices else response, "finish_reason")


def part_of(response: Any, name: str) -> Any:
    """Return what an object or a mapping holds under a name."""
    return response.get(name) if isinstance(response, Mapping) else getattr(response, name, None)


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


def written_text(request: Request, completion: Completion) -> str:
    """Return the model's turn: what it wrote, with the labels between."""
    parts = request.parts
    first = next(n for n, part in enumerate(parts) if isinstance(part, Slot))
    opened = [n for n, part in enumerate(parts[:first]) if isinstance(part, Text) and part.trusted]
    return prompt_text(parts[opened[-1] + 1 if opened else first :], completion.fills)


class Turns:
    """A scaffold that notes the roles of the turns it is asked for."""

    def __init__(self, scaffold: Scaffold) -> None:
        self._scaffold = scaffold
        self._roles: Sequence[str] = ()

    def __call__(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Return the scaffold's texts."""
        self._roles = roles
        return self._scaffold(roles)

    def messages(self, parts: Sequence[Part]) -> list[dict[str, str]]:
        """Return a prompt as DSPy's messages; as one of the user's where it has no such turns."""
        asked = self._roles[-1:] == [BLOCK]
        roles = list(self._roles[:-1] if asked else self._roles)
        contents: list[str] = []
        for part in parts:
            if isinstance(part, Slot) or len(contents) > len(roles):
                break
            if part.trusted:
                contents.append("")
            elif contents:
                contents[-1] += part.text
        if not roles or len(contents) <= len(roles):
            first = next(n for n, part in enumerate(parts) if isinstance(part, Slot))
            return [{"role": "user", "content": prompt_text(parts[:first])}]
        messages: list[dict[str, str]] = []
        thought: dict[str, str] = {}
        for role, content in zip(roles, contents, strict=False):
            if role == BLOCK:
                thought = {"reasoning_content": content}
                continue
            messages.append({"role": role, "content": content, **thought})
            thought = {}
        return messages


def trace_call(predictor: Any, inputs: Mapping[str, Any], prediction: Any) -> None:
    """Append a call to ``dspy.settings.trace`` as ``dspy.Predict`` does."""
    trace = dspy.settings.trace
    if trace is None or dspy.settings.max_trace_size <= 0:
        return
    if len(trace) >= dspy.settings.max_trace_size:
        trace.pop(0)
    trace.append((predictor, dict(inputs), prediction))
