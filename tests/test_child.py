from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from promptflow import child
from promptflow.child import usable_cores


def test_a_module_runs_from_any_folder_with_this_package(tmp_path: Path):
    (tmp_path / "promptflow").mkdir()
    (tmp_path / "promptflow" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the current folder')")
    done = subprocess.run(
        [*child.command("promptflow"), "--version"],
        cwd=tmp_path,
        env=child.environment(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"promptflow ")


def test_the_environment_is_passed_on(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("OTHER", "kept")
    environment = child.environment()
    assert environment["OTHER"] == "kept"
    assert environment["PYTHONPATH"].split(":")[-1] == "/somewhere"
    assert child.command("x")[0] == sys.executable


def test_cores_are_counted_within_what_this_process_may_use():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
