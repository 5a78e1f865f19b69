"""Requests and completions as the JSON data that crosses the pipe to the engine's child."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from promptflow.engine.frames import Message
from promptflow.engine.request import (
    Alternative,
    Beam,
    Choice,
    Completion,
    Fill,
    Json,
    Lark,
    Part,
    Regex,
    Request,
    Sampling,
    Slot,
    Substring,
    Text,
    TokenLogprob,
    Usage,
)
from promptflow.errors import ENGINE_ERRORS, EngineError, PromptflowError

_CONSTRAINTS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Json, Regex, Choice, Lark, Substring)
}


def to_wire(value: Any) -> Any:
    """Return ``value`` as JSON data; dataclasses carry their class name in ``_``."""
    if isinstance(value, PromptflowError):
        return {"_": "error", "type": type(value).__name__, "message": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_wire(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"_": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_wire(item) for key, item in value.items()}
    return value


def submission(request: Request, stream: bool = False) -> Message:
    """Return the message that asks a worker to fill a request, and to tell deltas if asked."""
    return {"op": "submit", "job": to_wire(request), "stream": stream}


def texts(parts: Sequence[Part]) -> list[list[str | bool] | None]:
    """Return texts as JSON data. A slot is null: texts around it are tokenized apart."""
    return [[p.text, p.trusted] if isinstance(p, Text) else None for p in parts]


def outcome_from_wire(data: Any) -> Completion | tuple[TokenLogprob, ...]:
    """Return what a job came to: the completion of a request, or the scores of a text."""
    return completion_from_wire(data) if isinstance(data, dict) else logprobs_from_wire(data)


def request_from_wire(data: Mapping[str, Any]) -> Request:
    """Return the request that ``to_wire`` wrote."""
    parts = tuple(_part_from_wire(part) for part in data["parts"])
    return Request(parts, data["seed"], data["deadline"])


def _part_from_wire(data: Mapping[str, Any]) -> Part:
    fields = {key: value for key, value in data.items() if key != "_"}
    if data["_"] == "Slot":
        if (constraint := fields["constraint"]) is not None:
            kind = _CONSTRAINTS[constraint["_"]]
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in constraint.items()}
            del values["_"]
            fields["constraint"] = kind(**values)
        sampling = {k: v for k, v in fields["sampling"].items() if k != "_"}
        sampling["logit_bias"] = tuple((i, b) for i, b in sampling["logit_bias"])
        fields["sampling"] = Sampling(**sampling)
        if (beam := fields["beam"]) is not None:
            fields["beam"] = Beam(beam["width"], beam["length_penalty"])
        fields["stop"] = tuple(fields["stop"])
        fields["stop_tokens"] = tuple(fields["stop_tokens"])
        return Slot(**fields)
    return Text(**fields)


def completion_from_wire(data: Mapping[str, Any]) -> Completion:
    """Return the completion that ``to_wire`` wrote."""
    fills = {}
    for name, fill in data["fills"].items():
        plain = {k: v for k, v in fill.items() if k not in ("_", "logprobs", "alternatives")}
        fills[name] = Fill(
            **plain,
            logprobs=logprobs_from_wire(fill["logprobs"]),
            alternatives=tuple(
                Alternative(a["text"], a["logprob"], a["score"]) for a in fill["alternatives"]
            ),
        )
    usage = Usage(**{k: v for k, v in data["usage"].items() if k != "_"})
    error = None if data["error"] is None else error_from_wire(data["error"])
    return Completion(fills, usage, data["seconds"], error)


def logprobs_from_wire(data: Sequence[Mapping[str, Any]]) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities that ``to_wire`` wrote."""
    return tuple(
        TokenLogprob(t["token"], t["token_id"], t["logprob"], tuple(map(tuple, t["top"])))
        for t in data
    )


def error_from_wire(data: Mapping[str, Any]) -> PromptflowError:
    """Return the error that ``to_wire`` wrote; an unknown class becomes an EngineError."""
    return ENGINE_ERRORS.get(data["type"], EngineError)(data["message"])
