"""DSPy's own test suite on our LM, our adapter and our modules.

The suite is taken from a checkout in ``$DSPY_SRC``, else from one that is cloned at the newest tag
up to the installed version. Each way runs it in a process of its own, with ``dummies`` as a plugin,
on the installed dspy. Of the tests that use DSPy's ``DummyLM`` and pass on it, each passes here or
stands with its reason in ``dspy.toml``. docs/conformance.md tells the counts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import dspy
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "conformance.md"
PLUGINS = Path(sys.prefix) / "conformance"  # what the suite needs and promptflow does not
REPOSITORY = "https://github.com/stanfordnlp/dspy"
WAYS = {
    "chat": "our LM, through DSPy's `ChatAdapter`",
    "slot": "our LM, with `SlotAdapter` as the default adapter",
    "modules": "our LM, `SlotAdapter`, and our `Predict` and `ChainOfThought` in place of DSPy's",
}

OTHERS = """
## Beside DSPy's suite

`make conformance` runs four suites of our own too, too long for every day:

- `test_templates.py`: the 70 chat templates that llama.cpp carries, from the source of the
  installed llama-cpp-python on the package index, or from the folder in `LLAMA_SRC`. 69 render;
  firefunction-v2 is refused by its reason. None leaves an answer in an open reasoning block; 42
  have one to reason in.
- `test_walks.py`: random walks on tiny models of 30 architectures, and attention in chunks. What
  shares a cache with others, is preempted, evicted, cut or forked equals what was decoded alone.
- `test_real_models.py`: a typed program, a vote, options weighed and a score on each small model
  that `make test-models` fetches, together and alone to the last bit; and `dspy.ReAct` asking for
  10,000 tokens. A model that is not there is skipped by name.
- `test_dspy_programs.py`: every module and optimizer that DSPy exports, on budgets of few calls.
"""


@cache
def source() -> Path:
    """Return the folder of a checkout of DSPy."""
    if given := os.environ.get("DSPY_SRC"):
        return Path(given).resolve()
    folder = ROOT / ".venv" / "dspy-src"
    if not (folder / "tests").is_dir():
        tags = subprocess.run(
            ["git", "ls-remote", "--tags", REPOSITORY], check=True, capture_output=True, text=True
        ).stdout
        tag = newest(
            re.findall(r"refs/tags/(\d+\.\d+\.\d+)$", tags, re.MULTILINE), dspy.__version__
        )
        clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, REPOSITORY]
        subprocess.run([*clone, str(folder)], check=True)
    return folder


def newest(tags: list[str], installed: str) -> str:
    """Return the newest version up to the installed one."""

    def number(version: str) -> tuple[int, ...]:
        return tuple(map(int, version.split(".")))

    return max((tag for tag in tags if number(tag) <= number(installed)), key=number)


@cache
def outcomes(way: str) -> Mapping[str, Any]:
    """Run the suite and return its report: outcomes and reasons of tests that use the dummy."""
    src = source()
    told = PLUGINS / f"{way}.json"
    told.unlink(missing_ok=True)
    files = [path for path in sorted((src / "tests").rglob("test_*.py")) if uses_dummy(path)]
    command = [sys.executable, "-m", "pytest", "-p", "dummies", "-p", "no:cacheprovider", "-q"]
    command += ["-W", "ignore", "--tb=no", "--continue-on-collection-errors", f"--rootdir={src}"]
    command += [f"--deselect={test}" for test in listed(way) if test in ENDS_THE_RUN]
    ours = [str(ROOT), str(HERE), str(PLUGINS)]
    subprocess.run(
        [*command, *(str(path.relative_to(src)) for path in files)],
        cwd=src,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(ours),
            "PYTHONSAFEPATH": "1",  # the installed dspy, not the checkout's
            "PROMPTFLOW_PATH": way,
            "PROMPTFLOW_OUTCOMES": str(told),
            "DSPY_CACHEDIR": str(PLUGINS / "cache"),
        },
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    report: Mapping[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return report


def uses_dummy(path: Path) -> bool:
    return "DummyLM" in path.read_text(encoding="utf-8")


def expected() -> list[dict[str, Any]]:
    """Return the groups of tests that do not pass, each with its reason."""
    groups: list[dict[str, Any]] = tomllib.loads((HERE / "dspy.toml").read_text(encoding="utf-8"))[
        "group"
    ]
    return groups


ENDS_THE_RUN = {"tests/evaluate/test_evaluate.py::test_multi_thread_evaluate_call_cancelled"}
"""A test that interrupts the whole process where the call is over before the signal comes."""


def listed(way: str) -> set[str]:
    return {test for group in expected() if way in group["ways"] for test in group["tests"]}


def judged() -> set[str]:
    """Return the tests that count: those that use the dummy and pass on DSPy's own."""
    return {test for test, how in outcomes("dspy")["outcomes"].items() if how == "passed"}


def test_the_suite_is_there_and_runs_on_dspys_own_dummy():
    assert outcomes("dspy")["dspy"] == dspy.__version__
    assert len(judged()) > 200


@pytest.mark.parametrize("way", WAYS)
def test_dspys_tests_pass_or_are_expected_not_to(way: str):
    report = outcomes(way)
    failed = {test for test in judged() if report["outcomes"].get(test) != "passed"}
    told = {test: report["reasons"].get(test, "did not run")[:300] for test in failed - listed(way)}
    assert not told, "new failures: fix them, or give the reason in dspy.toml"
    assert not listed(way) - failed, "these pass: take them out of dspy.toml"


def test_the_page_tells_what_came_out():
    made = page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
        PAGE.write_text(made, encoding="utf-8")
        pytest.fail("docs/conformance.md was out of date and is written anew: commit it")


def page() -> str:
    """Return docs/conformance.md."""
    total = len(judged())
    lines = [
        "# Conformance with DSPy",
        "",
        "DSPy's own test suite runs on promptflow. Its `DummyLM` is replaced by a `LocalLM` over",
        "a scripted engine that gives the same answers, in three ways; see `tests/conformance/`.",
        f"Counted are the {total} tests that use `DummyLM` and pass with DSPy's own on dspy",
        f"{dspy.__version__}. They come from a checkout of DSPy: the one in `DSPY_SRC`, else one",
        "that is cloned at the newest tag up to the installed version.",
        "",
        "```text",
        "make conformance",
        "make conformance DSPY_SRC=/path/to/dspy",
        "```",
        "",
        "| way | pass | do not pass |",
        "|---|---|---|",
    ]
    for way, what in WAYS.items():
        failed = sum(outcomes(way)["outcomes"].get(test) != "passed" for test in judged())
        lines.append(f"| {what} | {total - failed} | {failed} |")
    lines += ["", "## What does not pass, and why", ""]
    for group in expected():
        counts = Counter(test.split("::")[0] for test in group["tests"])
        ways = ", ".join(group["ways"])
        lines += [
            f"**{group['title']}** ({sum(counts.values())} tests; {ways}). {group['reason']}",
            "",
        ]
        lines += [f"- `{test.removeprefix('tests/')}`" for test in group["tests"]] + [""]
    return "\n".join(lines).rstrip() + "\n" + OTHERS
