"""Models and data that the tests share. No test uses the network."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
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


def pytest_configure() -> None:
    """Give each of several test processes its own cores.

    llama.cpp's threads spin, so engines that share a core are ten times slower; one that may use a
    single core starts a single thread.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        own = cores[int(worker[2:]) % count :: count]
        os.sched_setaffinity(0, own or cores)


def pytest_unconfigure() -> None:
    _dspy_cache.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what decodes with a real model, and let it go first: it takes longest."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & ENGINES or item.path.stem.removeprefix("test_") in DECODING:
            item.add_marker("model")
    items.sort(key=lambda item: item.get_closest_marker("model") is None)


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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a tiny model of an architecture, once: see tiny_models.py."""
    import tiny_models

    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda architecture: tiny_models.write(architecture, folder))


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
