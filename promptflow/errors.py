"""Every exception that promptflow raises.

::

    PromptflowError
    ├── ModelError                 a model file or its source
    │   ├── ModelNotFound          no such name, path, or no source reachable
    │   ├── ModelInvalid           not a GGUF, truncated, or refused by llama.cpp
    │   └── HashMismatch           the bytes are not the ones named or recorded
    ├── EngineError                a request that the engine could not answer: never a score
    │   ├── EngineLost             the engine's process died while the request ran
    │   ├── ContextOverflow        the prompt is longer than the context
    │   ├── CapacityError          the KV cache cannot hold the request beside what runs
    │   ├── QueueFull              as many requests wait as may
    │   ├── Cancelled              the request was cancelled
    │   ├── DeadlineExceeded       the request's deadline passed
    │   ├── NumericError           the model returned logits that are not numbers
    │   ├── ConstraintError        a constraint that cannot be compiled
    │   ├── ConstraintDeadEnd      a constraint under which no token is left
    │   └── ForkedUse              an engine used in a forked child
    ├── TemplateError              a chat template or layout that cannot be rendered
    │   └── NoReasoningBlock       thinking=True where template or layout has no place for it
    ├── SignatureError             a signature that cannot be read
    │   ├── SignatureNotFound      no document of that name
    │   ├── UnknownField           a field that the signature does not have, or lacks
    │   └── UnsupportedType        an output type that cannot be constrained
    ├── UnsupportedOption          an option that is unknown, or that a local model cannot honour
    │   └── UnknownOption          a keyword that a function or a class does not have
    ├── ParseError                 text that does not fit its fields
    │   └── ValueRefused           a value that a validator of its type refuses
    ├── StoreError                 something on disk
    │   ├── StoreNotFound          no index, program or journal there
    │   ├── StoreCorrupt           a file whose hash or schema is wrong
    │   ├── StoreBusy              another process writes
    │   └── DiskFull               no space left
    ├── DocumentRejected           a document that could not be read
    │   └── DocumentDelayed        ... in time, by a busy machine: the next build reads it again
    ├── EmptyCorpus                a folder without a readable document
    ├── DataError                  evaluation data that cannot be read
    │   └── NoGold                 an example without a gold value: left out of the score
    ├── MetricError                a metric that raised instead of scoring
    ├── ProgramError               a program that cannot be loaded or built
    ├── ResumeMismatch             a journal written by another run
    ├── BudgetExceeded             a budget too small for one evaluation
    └── MissingDependency          an optional package, with the command that installs it

A message names the object, what was expected, and what to type next.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the name of ``known`` that is most like; else nothing."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


class PromptflowError(Exception):
    """Any error that promptflow raises on purpose."""

    usage: Any = None
    """Tokens of the call that ended in it, a ``Usage``, where they are known."""


class ModelError(PromptflowError):
    """A model file or its source is at fault."""


class ModelNotFound(ModelError):
    """No model of that name or path, or no source could be reached."""


class ModelInvalid(ModelError):
    """The file is not a GGUF model, is truncated, or llama.cpp refuses it."""


class HashMismatch(ModelError):
    """The bytes are not the ones that the catalogue names, or that were recorded."""


class EngineError(PromptflowError):
    """The engine could not answer a request. Never counted as a wrong answer."""


class EngineLost(EngineError):
    """The engine's process died while the request ran."""


class ContextOverflow(EngineError):
    """The prompt, with the tokens it asks for, is longer than the context."""


class CapacityError(EngineError):
    """The KV cache cannot hold the request."""


class QueueFull(EngineError):
    """As many requests wait for the engine as may, and none of them began in time."""


class Cancelled(EngineError):
    """The request was cancelled."""


class DeadlineExceeded(EngineError):
    """The request's deadline passed before it was finished."""

    @classmethod
    def after(cls, seconds: float, what: str) -> DeadlineExceeded:
        """Return the error of a request that was not ``what`` within ``seconds``."""
        return cls(
            f"the request was not {what} within its deadline of {seconds:g} s: raise "
            "Request(deadline=...), lower max_tokens, or send fewer requests at a time"
        )


class NumericError(EngineError):
    """The model returned logits that are not numbers."""


class ConstraintError(EngineError):
    """The constraint cannot be compiled."""


class ConstraintDeadEnd(EngineError):
    """The constraint allows no token at some step."""


class ForkedUse(EngineError):
    """The engine was made in another process; make one in this process."""


class TemplateError(PromptflowError):
    """A chat template or a layout could not be rendered."""


class NoReasoningBlock(TemplateError):
    """Thinking was asked of a model whose chat template, or of a layout which, has no place."""


class SignatureError(PromptflowError):
    """A signature could not be read."""


class SignatureNotFound(SignatureError):
    """No signature document has that name."""


class UnknownField(SignatureError):
    """A field was given that the signature lacks, or one that it needs was not given."""


class UnsupportedType(SignatureError):
    """An output type cannot be constrained while decoding."""


class UnsupportedOption(PromptflowError):
    """An option of a call that is unknown, or that a local model cannot honour."""


class UnknownOption(UnsupportedOption, TypeError):
    """A function or a class has no keyword of that name; the message names the nearest."""

    @classmethod
    def of(cls, where: str, unknown: Sequence[str], known: Iterable[str]) -> UnknownOption:
        """Return the error of ``where``, which was given the names ``unknown``."""
        known = sorted(set(known))
        found = [f"{name!r}{nearest(name, known)}" for name in unknown]
        hint = "" if all("did you mean" in one for one in found) else f"; known: {', '.join(known)}"
        return cls(f"{where} has no option {' and no '.join(found)}{hint}")


class ParseError(PromptflowError):
    """Generated text does not fit the fields of its signature."""


class ValueRefused(ParseError):
    """A whole value was written, and its type refuses it: another try may give another."""


class StoreError(PromptflowError):
    """Something on disk is missing, damaged or busy."""


class StoreNotFound(StoreError):
    """There is no such index, program or journal."""


class StoreCorrupt(StoreError):
    """A file's hash or schema is not what its manifest says."""


class StoreBusy(StoreError):
    """Another process holds the write lock."""


class DiskFull(StoreError):
    """The device has no space left; nothing was replaced."""


class DocumentRejected(PromptflowError):
    """A document could not be read."""


class DocumentDelayed(DocumentRejected):
    """A document was not read in time, though it had not used the time: the machine was busy."""


class EmptyCorpus(PromptflowError):
    """A folder holds no readable document."""


class DataError(PromptflowError):
    """Evaluation data could not be read."""


class NoGold(DataError):
    """An example has no gold value for the field that a metric grades."""


class MetricError(PromptflowError):
    """A metric raised instead of returning a score."""


class ProgramError(PromptflowError):
    """A program could not be loaded, built or saved."""


def names_options(function: F) -> F:
    """Have wrong keyword arguments of a function or a class raise UnknownOption.

    For what takes no free keywords. The message names the nearest option, which Python's own
    TypeError does not.
    """
    if isinstance(function, type):
        function.__init__ = names_options(function.__init__)  # type: ignore[misc]
        return function
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    where = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        if unknown := [name for name in options if name not in known]:
            raise UnknownOption.of(where, unknown, known)
        return function(*args, **options)

    return cast(F, checked)


class ResumeMismatch(PromptflowError):
    """The journal was written by a run with other data, program or settings."""


class BudgetExceeded(PromptflowError):
    """The budget does not allow a single evaluation."""


class MissingDependency(PromptflowError):
    """An optional package is not installed."""


ENGINE_ERRORS: dict[str, type[PromptflowError]] = {
    error.__name__: error
    for error in (
        EngineError,
        EngineLost,
        ContextOverflow,
        CapacityError,
        Cancelled,
        DeadlineExceeded,
        NumericError,
        ConstraintError,
        ConstraintDeadEnd,
        ForkedUse,
        ModelInvalid,
        TemplateError,
    )
}
"""What may cross the pipe from the engine's child, by name."""
