"""What a score belongs to: the hashes of data, metric and program, and the model's identity.

Two evaluations with equal identities may share results; a journal refuses to mix others.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any

import dspy

from promptflow.errors import ProgramError
from promptflow.evaluation.data import plain
from promptflow.evaluation.metrics import Metric
from promptflow.storage import canonical, sha256_bytes


def hash_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``."""
    return sha256_bytes(canonical(plain(value)).encode())


def data_hash(data: Sequence[dspy.Example]) -> str:
    """Return one hash of all examples in order, with their choice of inputs."""
    return hash_of([[plain(example), sorted(example.inputs().keys())] for example in data])


def metric_name(metric: Metric) -> str:
    """Return the metric's name, with the field that it was bound to."""
    if isinstance(metric, partial):
        bound = ":".join(str(value) for value in metric.keywords.values())
        return f"{metric_name(metric.func)}:{bound}"
    return getattr(metric, "__name__", type(metric).__name__)


def metric_hash(metric: Metric) -> str:
    """Return a hash of the metric's source, or of its bytecode where there is no source."""
    if isinstance(metric, partial):
        return hash_of([metric_hash(metric.func), metric.args, metric.keywords])
    code = metric if hasattr(metric, "__code__") else type(metric)
    try:
        return hash_of(inspect.getsource(code))
    except (OSError, TypeError):
        return hash_of([metric_name(metric), _compiled(getattr(metric, "__code__", None))])


def _compiled(code: CodeType | None) -> list[Any]:
    """Return what a code object does as JSON data; its repr would hold an address."""
    if code is None:
        return []
    constants = [
        _compiled(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts
    ]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames]


def language_model(lm: Any) -> Any:
    """Return ``lm`` or the configured one. Raises ProgramError if there is none."""
    lm = lm or dspy.settings.lm
    if lm is None:
        raise ProgramError("no model is configured: call pf.configure('NAME') or pass lm=")
    return lm


def model_identity(lm: Any) -> str:
    """Return what names weights, template and build of an LM in one string."""
    engine = getattr(lm, "text_engine", None)
    return engine.info.identity if engine is not None else str(getattr(lm, "model", lm))


def program_state(program: Any) -> dict[str, Any]:
    """Return all that decides what a program asks, as JSON data: its settings and predictors."""
    return {
        "module": f"{type(program).__module__}:{type(program).__qualname__}",
        "settings": plain(program.settings()) if hasattr(program, "settings") else {},
        "predictors": {
            name: predictor_state(predictor) for name, predictor in program.named_predictors()
        },
    }


def predictor_state(predictor: Any) -> dict[str, Any]:
    """Return a predictor's instructions, fields, demos and decoding as JSON data."""
    signature = predictor.signature
    return {
        "instructions": signature.instructions,
        "fields": {
            name: [repr(field.annotation), plain(field.metadata), plain(field.json_schema_extra)]
            for name, field in signature.fields.items()
        },
        "demos": [plain(dict(demo)) for demo in predictor.demos],
        "config": plain(predictor.config),
        "decoding": predictor.settings() if hasattr(predictor, "settings") else {},
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, promptflow and the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in ("promptflow-local", "dspy", "llama-cpp-python", "llguidance", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
