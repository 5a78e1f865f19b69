"""Every example runs as its docstring says, on the smallest model and the smallest size."""

from __future__ import annotations

import ast
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMOLLM

import promptflow as pf

FOLDER = ROOT / "examples"
MODEL = ("--model", SMOLLM)
RUNS = {
    "agent_tools.py": (*MODEL, "--steps", "2"),
    "cited_answers.py": (*MODEL, "--question", "How does tree of thoughts search?"),
    "crosswords.py": (*MODEL, "--steps", "1"),
    "game_of_24.py": (*MODEL, "--puzzles", "1"),
    "grounded_qa.py": (*MODEL, "--calls", "16"),
    "multi_hop.py": MODEL,
    "react_tools.py": (*MODEL, "--steps", "1"),
    "techniques.py": (*MODEL, "--n", "1", "--samples", "2", "--tokens", "48"),
}
"""The arguments with which each example is run here."""


def on_one_core() -> None:
    """Keep an engine to one core: beside another's, threads that wait for each other spin."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def test_every_example_is_run():
    assert {path.name for path in FOLDER.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_example_says_how_it_is_called(name: str):
    text = ast.get_docstring(ast.parse((FOLDER / name).read_text(encoding="utf-8"))) or ""
    assert f"python examples/{name}" in text


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The guide's index, built by one of the processes that test: the others wait for it."""
    shared = tmp_path_factory.getbasetemp().parent / "guide.lock"
    with open(shared, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pf.build_index("guide", progress=False)


@pytest.mark.usefixtures("guide")
@pytest.mark.parametrize("name", RUNS)
def test_example_runs(name: str, tmp_path: Path):
    """In a folder of its own: an example finds its documents by name and leaves nothing behind."""
    data = os.environ.get("PROMPTFLOW_DATA") or str(ROOT.parent / "shared" / "data")
    before = sorted(FOLDER.iterdir())
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *RUNS[name]],
        cwd=tmp_path,
        env={**os.environ, "PROMPTFLOW_DATA": data, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        preexec_fn=on_one_core,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert sorted(FOLDER.iterdir()) == before
