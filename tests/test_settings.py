from __future__ import annotations

import pytest

from promptflow.engine import EngineOptions
from promptflow.engine.settings import RETAINED, worker_settings
from promptflow.errors import ModelNotFound


@pytest.mark.parametrize(
    "options",
    [
        {"context": 1},
        {"batch": 0},
        {"max_running": 0},
        {"max_running": 65},
        {"max_waiting": 0},
        {"threads": 0},
    ],
)
def test_sizes_that_would_abort_llama_cpp_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EngineOptions(**options)


def test_a_worker_is_told_what_it_needs():
    options = EngineOptions(context=512, max_running=3, threads=2, lookup=True)
    settings = worker_settings(options)
    assert settings["max_running"] == 3
    assert settings["lookup"] is True
    assert settings["load"]["sequences"] == 3 + RETAINED
    assert settings["load"]["threads"] == 2
    assert "path" not in settings


def test_drafts_would_depend_on_what_runs_beside():
    assert not worker_settings(EngineOptions(batch_invariant=True, lookup=True))["lookup"]


def test_a_file_is_looked_for_before_anything_is_started(tmp_path):
    with pytest.raises(ModelNotFound):
        worker_settings(EngineOptions(), tmp_path / "missing.gguf")
