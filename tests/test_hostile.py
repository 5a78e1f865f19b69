"""A model that obeys every order of a document: nothing happens outside of what programs may do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CASES = 5_000


def run(tmp_path: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hostile_model.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return made


def test_no_order_of_a_document_has_an_effect(tmp_path: Path):
    made = run(tmp_path, str(CASES))
    assert made == {"cases": CASES, "effects": [], "count": 0}


def test_no_order_has_an_effect_through_react(tmp_path: Path):
    """DSPy's own agent, on our tools: thousands of cases where the long checks run."""
    cases = CASES if os.environ.get("PROMPTFLOW_SOAK") else 100
    made = run(tmp_path, str(cases), "react")
    assert made == {"cases": cases, "effects": [], "count": 0}


@pytest.mark.parametrize("kind", ["tool", "file", "react file"])
def test_an_effect_would_be_seen(tmp_path: Path, kind: str):
    """With a tool that acts, which the program allows, and with a tool that opens any file."""
    made = run(tmp_path, "60", kind)
    assert made["count"], made
