"""Prompt programs and grounded question answering on local models.

Every public name is an attribute of this package and is imported when it is first used: importing
promptflow loads neither dspy nor torch nor llama.cpp.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from promptflow import errors

if TYPE_CHECKING:
    from promptflow.engine import Engine, EngineOptions
    from promptflow.engine.request import (
        Alternative,
        Beam,
        Choice,
        Completion,
        Constraint,
        Fill,
        Json,
        Lark,
        ModelInfo,
        Regex,
        Request,
        Sampling,
        Slot,
        Stats,
        Substring,
        Text,
        TextEngine,
        TokenLogprob,
        Usage,
    )
    from promptflow.engine.stream import Delta, Stream
    from promptflow.errors import PromptflowError
    from promptflow.evaluate import (
        METRICS,
        Comparison,
        Evaluation,
        compare,
        contains,
        exact_match,
        f1,
        load_data,
        numeric,
    )
    from promptflow.evaluate.evaluate import evaluate  # from the package, mypy takes the module
    from promptflow.fields import Quote
    from promptflow.flow import Call, Module, Prediction, run, run_many, together
    from promptflow.lm import LocalLM, SlotAdapter, configure, load
    from promptflow.modules import (
        BestOf,
        ChainOfThought,
        GroundedQA,
        Judge,
        PairJudge,
        Predict,
        SelfConsistency,
        TreeOfThoughts,
        ZeroShotCoT,
    )
    from promptflow.optimize import Budget, Optimization, optimize
    from promptflow.program import load_program, resolve_program, save_program
    from promptflow.report import write_report
    from promptflow.retrieval import Embedder, Index, Passage, build_index, verify_index
    from promptflow.signature import Document, read_document, signature, write_document

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "Alternative",
    "Beam",
    "BestOf",
    "Budget",
    "Call",
    "ChainOfThought",
    "Choice",
    "Comparison",
    "Completion",
    "Constraint",
    "Delta",
    "Document",
    "Embedder",
    "Engine",
    "EngineOptions",
    "Evaluation",
    "Fill",
    "GroundedQA",
    "Index",
    "Json",
    "Judge",
    "Lark",
    "LocalLM",
    "ModelInfo",
    "Module",
    "Optimization",
    "PairJudge",
    "Passage",
    "Predict",
    "Prediction",
    "PromptflowError",
    "Quote",
    "Regex",
    "Request",
    "Sampling",
    "SelfConsistency",
    "Slot",
    "SlotAdapter",
    "Stats",
    "Stream",
    "Substring",
    "Text",
    "TextEngine",
    "TokenLogprob",
    "TreeOfThoughts",
    "Usage",
    "ZeroShotCoT",
    "build_index",
    "compare",
    "configure",
    "contains",
    "errors",
    "evaluate",
    "exact_match",
    "f1",
    "load",
    "load_data",
    "load_program",
    "numeric",
    "optimize",
    "read_document",
    "resolve_program",
    "run",
    "run_many",
    "save_program",
    "signature",
    "together",
    "verify_index",
    "write_document",
    "write_report",
]

_NAMES = {
    "engine": "Engine EngineOptions",
    "engine.request": "Alternative Beam Choice Completion Constraint Fill Json Lark ModelInfo Regex"
    " Request Sampling Slot Stats Substring Text TextEngine TokenLogprob Usage",
    "engine.stream": "Delta Stream",
    "errors": "PromptflowError",
    "evaluate": "METRICS Comparison Evaluation compare contains evaluate exact_match f1 load_data"
    " numeric",
    "fields": "Quote",
    "flow": "Call Module Prediction run run_many together",
    "lm": "LocalLM SlotAdapter configure load",
    "modules": "BestOf ChainOfThought GroundedQA Judge PairJudge Predict SelfConsistency"
    " TreeOfThoughts ZeroShotCoT",
    "optimize": "Budget Optimization optimize",
    "program": "load_program resolve_program save_program",
    "report": "write_report",
    "retrieval": "Embedder Index Passage build_index verify_index",
    "signature": "Document read_document signature write_document",
}
_HOME = {name: f"promptflow.{home}" for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'promptflow' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``promptflow.evaluate`` a function after ``import promptflow.evaluate.metrics``.

    The import system sets a submodule as an attribute of its package, over the public name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
