"""Errors as DSPy's: each is caught by its own name and by the name that DSPy gives its kind.

And as a model is told of them: in one line.
"""

from __future__ import annotations

import re
from typing import Any

import dspy
from dspy.utils import exceptions as theirs

from promptflow.errors import (
    ContextOverflow,
    EngineError,
    EngineLost,
    ParseError,
    PromptflowError,
    TemplateError,
    UnsupportedOption,
)

_KINDS: tuple[tuple[type[PromptflowError], type[theirs.DSPyError]], ...] = (
    (ContextOverflow, dspy.ContextWindowExceededError),
    (EngineLost, theirs.LMServerError),  # what DSPy retries
    (ParseError, theirs.AdapterParseError),
    (UnsupportedOption, theirs.LMUnsupportedFeatureError),
    (EngineError, theirs.LMInvalidRequestError),
    (TemplateError, theirs.LMInvalidRequestError),
)


def as_dspys(
    error: PromptflowError, model: str, signature: Any = None, text: str = ""
) -> PromptflowError:
    """Return ``error`` as one that is DSPy's as well; itself where DSPy has no such kind.

    ``except pf.errors.ContextOverflow`` and ``except dspy.ContextWindowExceededError`` both catch
    it. ``signature`` and ``text`` are what a ParseError's answer was read as. The message stays.
    """
    kind = next((theirs for ours, theirs in _KINDS if isinstance(error, ours)), None)
    if kind is None or isinstance(error, kind):
        return error
    details: dict[str, Any] = {"message": str(error)}
    if kind is theirs.AdapterParseError:
        details |= {"adapter_name": "SlotAdapter", "signature": signature, "lm_response": text}
    made = _joined(type(error), kind)(**details)
    made.__dict__.update(error.__dict__)
    made.args, made.model = error.args, model  # type: ignore[attr-defined]
    made.__cause__ = error
    return made


SHORT = 300
"""Characters of an error that a model is shown."""

_FRAMES = "Traceback (most recent call last):\n"


def in_short(error: BaseException | str) -> str:
    """Return an error in one line for a model: its kind and what it says, without any frames.

    >>> in_short(ValueError("no number\\n  and no sign"))
    'ValueError: no number and no sign'
    """
    said = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
    line = " ".join(said.split("For further information visit")[0].split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}..."


def without_frames(text: str) -> str:
    """Return what ``dspy.ReAct`` says of an error that a tool raised, in short; else ``text``."""
    head, found, trace = text.rpartition(_FRAMES)
    if not (found and head.startswith("Execution error in ")):
        return text
    said = trace.splitlines()
    while said and said[0].startswith("  "):
        said.pop(0)
    error = re.sub(r"^(\w+\.)+", "", " ".join(said))  # the module that its class is from
    return f"{head.partition(':')[0]}: {in_short(error)}"


def as_ours(error: theirs.DSPyError, ours: PromptflowError) -> PromptflowError:
    """Return one of DSPy's errors, of whatever kind, as ``ours`` as well; ours is what it says."""
    kind = _joined(type(ours), type(error))
    made = kind.__new__(kind)
    made.__dict__.update({**error.__dict__, **ours.__dict__})
    made.args = ours.args
    return made


def _joined(ours: type[PromptflowError], kind: type[Exception]) -> type[PromptflowError]:
    if (ours, kind) not in _made:
        names = {"__module__": ours.__module__, "__doc__": ours.__doc__, "__reduce__": _reduced}
        _made[ours, kind] = type(ours.__name__, (ours, kind), names)
    return _made[ours, kind]


_made: dict[tuple[type[PromptflowError], type[Exception]], type[PromptflowError]] = {}


def _reduced(error: Any) -> Any:
    """Cross to another process as ours alone: the joined class has no name to be imported by."""
    return type(error).__mro__[1], error.args
