"""Models and data that the tests share. No test uses the network."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell's background job ignores Ctrl-C, and so would the tests that raise it.
signal.signal(signal.SIGINT, signal.default_int_handler)
_dspy_cache = tempfile.TemporaryDirectory(prefix="promptflow-dspy-")
os.environ["DSPY_CACHEDIR"] = _dspy_cache.name  # dspy opens it on import

if TYPE_CHECKING:
    from promptflow.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
SMOLLM = "smollm2-135m-q4_0"
"""The small model, in a format that decodes two to three times as fast as the one published."""


ENGINES = {"smollm", "qwen"}
DECODING = {"cli", "doctor", "examples", "llama", "requantize", "tune"}


def pytest_unconfigure() -> None:
    _dspy_cache.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what decodes with a real model: llama.cpp's threads want every core for themselves."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & ENGINES or item.path.stem.removeprefix("test_") in DECODING:
            item.add_marker("model")


def _engine(name: str) -> Iterator[Engine]:
    from promptflow.engine import Engine

    engine = Engine(name)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def smollm() -> Iterator[Engine]:
    """An engine on smollm2-135m in Q4_0: for the machinery, not for answers."""
    yield from _engine(SMOLLM)


@pytest.fixture(scope="session")
def qwen() -> Iterator[Engine]:
    """An engine on qwen2.5-coder-0.5b."""
    yield from _engine("qwen2.5-coder-0.5b")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the embedder all-minilm-l6-v2."""
    from promptflow.catalog import locate

    return locate("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of evaluation data: $PROMPTFLOW_DATA, else ../shared/data beside the clone."""
    folder = Path(os.environ.get("PROMPTFLOW_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no evaluation data in {folder}: set PROMPTFLOW_DATA")
    return folder
