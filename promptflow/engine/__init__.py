"""The engine: many branches from one prefill, in a supervised child process."""

from promptflow.engine.engine import Engine
from promptflow.engine.options import EngineOptions

__all__ = ["Engine", "EngineOptions"]
