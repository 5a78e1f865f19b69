"""What a score belongs to: the hashes of data, metric and program, and the model's identity.

Two evaluations with equal identities may share results; a journal refuses to mix others.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dspy

import promptflow
from promptflow.evaluation.bymodel import ByModel
from promptflow.evaluation.metrics import Metric, unbound
from promptflow.lm import lm_of
from promptflow.modules.judge import model_name, same_model
from promptflow.program.identity import hash_of
from promptflow.program.walk import predictors_of
from promptflow.storage import sha256_bytes, sha256_of


def data_hash(data: Sequence[dspy.Example]) -> str:
    """Return one hash of all examples in order, with their choice of inputs."""
    return hash_of([[dict(example), sorted(example.inputs().keys())] for example in data])


def metric_name(metric: Metric) -> str:
    """Return the metric's name, with the field that it was bound to."""
    if isinstance(metric, partial):
        bound = ":".join(str(value) for value in metric.keywords.values())
        return f"{metric_name(metric.func)}:{bound}"
    return getattr(metric, "__name__", type(metric).__name__)


def language_model(lm: Any, program: Any = None) -> Any:
    """Return ``lm``, or the configured one, or where each predictor has its own, the first of them.

    Raises ProgramError if there is none.
    """
    own = [] if program is None else [part.lm for _, part in predictors_of(program)]
    return lm_of(lm or dspy.settings.lm or (own and all(own) and own[0]) or None)


def judges_itself(metric: Metric, lm: Any, program: Any) -> bool:
    """Say whether a metric has the text of a model judged by this very model."""
    function, _ = unbound(metric)
    if not isinstance(function, ByModel):
        return False
    writer = model_name(language_model(lm, program))
    asked = function.asked or (function.lm,)
    return any(one is None or same_model(model_name(lm_of(one)), writer) for one in asked)


def model_identity(lm: Any) -> str:
    """Return what names weights, template and build of an LM in one string."""
    engine = getattr(lm, "text_engine", None)
    return engine.info.identity if engine is not None else str(getattr(lm, "model", lm))


def versions() -> dict[str, str]:
    """Return the versions of Python, promptflow and the packages that decide results."""
    found = {"python": platform.python_version(), "promptflow source": _source()}
    for package in ("promptflow-local", "dspy", "llama-cpp-python", "llguidance", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def _source() -> str:
    """Return a hash of promptflow's own files: between two releases the version stands still."""
    folder = Path(promptflow.__file__).parent
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".jinja"))
    listed = [f"{path.relative_to(folder)} {sha256_of(path)}" for path in files]
    return sha256_bytes("\n".join(listed).encode())[:12]
