"""Whether a killed optimizer run ends as the uninterrupted one, on a real model.

    python benchmarks/resume.py [--model M] [--kills N] [--examples N] [--calls N] [--threads N]

One small search runs to its end. Then, ``--kills`` times, the same search is begun anew in a
process group of its own, ended by SIGKILL at a random moment, and run again to its end. The
journal, the saved program and the report must be those of the uninterrupted run but for the times
in them. The exit status is 1 where one is not. ``--plain`` shows what keeping the engine does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

import promptflow as pf
from promptflow import child
from promptflow.report import write_report
from promptflow.storage import Journal, write_json

TIMES = frozenset({"seconds"})


def sums(count: int) -> list[dspy.Example]:
    """Word problems whose answers a small model gets right now and then."""
    draw = random.Random(7)
    made = []
    for _ in range(count):
        a, b, c = draw.randint(12, 60), draw.randint(3, 30), draw.randint(2, 9)
        text = f"A shop has {a} lamps, buys {b} more and sells {c}. How many lamps are left?"
        made.append(dspy.Example(question=text, answer=a + b - c).with_inputs("question"))
    return made


def timeless(value: Any) -> Any:
    """Return JSON data without the times in it."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def search(folder: Path, given: argparse.Namespace) -> None:
    """Run the search, and write what it found."""
    if given.plain:
        pf.Engine.renew = lambda self, *, exact=False: True  # type: ignore[method-assign]
    result = pf.optimize(
        pf.ChainOfThought("question -> answer: int", reasoning_tokens=given.reasoning),
        sums(given.examples),
        metric="numeric",
        lm=pf.load(given.model, options=pf.EngineOptions(threads=given.threads)),
        budget=pf.Budget(calls=given.calls),
        journal=folder / "journal.sqlite",
        search=pf.Search(candidates=5, demos=(1, 2)),
        progress=False,
    )
    pf.save_program(result.program, folder / "program", lock={"data": result.about["data"]})
    write_json(folder / "result.json", result.to_json())
    print(result.exactness)
    still = [
        replace(one, seconds=0.0, records=tuple(replace(r, seconds=0.0) for r in one.records))
        for one in (result.start, result.winner)
    ]
    spent = replace(result.spent, seconds=0.0)
    write_report(
        folder / "report.html", replace(result, start=still[0], winner=still[1], spent=spent)
    )


def written(folder: Path) -> dict[str, Any]:
    """Return what a run has left, without times: journal, program, result, report."""
    with Journal(folder / "journal.sqlite") as journal:
        entries = {key: timeless(value) for key, value in journal.items()}
    files = sorted((folder / "program").iterdir())
    return {
        "journal": entries,
        "program": {path.name: path.read_text() for path in files},
        "result": timeless(json.loads((folder / "result.json").read_text())),
        "report": (folder / "report.html").read_text(),
    }


def differing(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[str], int, int]:
    """Return what differs, and how many of how many journalled records do."""

    def records(run: dict[str, Any]) -> dict[tuple[str, int], str]:
        steps = run["journal"].items()
        return {
            (key, place): json.dumps(row, sort_keys=True)
            for key, step in steps
            for place, row in enumerate(step["result"])
        }

    ours, theirs = records(a), records(b)
    wrong = sum(ours.get(key) != theirs.get(key) for key in ours.keys() | theirs.keys())
    return [name for name in a if a[name] != b[name]], wrong, len(ours)


def begun(folder: Path, given: argparse.Namespace) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--parent", str(folder), "--model", given.model]
    command += ["--examples", str(given.examples), "--calls", str(given.calls)]
    command += ["--reasoning", str(given.reasoning), *(["--plain"] if given.plain else [])]
    command += ["--threads", str(given.threads)] if given.threads else []
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, env=child.environment(), stdout=log, stderr=log, start_new_session=True
        )


def finished(folder: Path, given: argparse.Namespace) -> float:
    """Run the search to its end and return its seconds."""
    start = time.perf_counter()
    if begun(folder, given).wait():
        raise SystemExit(f"the search failed:\n{(folder / 'log').read_text()[-2000:]}")
    return time.perf_counter() - start


def killed(folder: Path, given: argparse.Namespace, after: float) -> bool:
    """Begin the search and kill it with its engine; return whether it was killed in time."""
    process = begun(folder, given)
    try:
        return process.wait(after) != 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--reasoning", type=int, default=24, help="Tokens of it.")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--plain", action="store_true", help="Keep the engine: what that changes.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parent", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.parent is not None:
        search(given.parent, given)
        return
    draw = random.Random(given.seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        seconds = finished(whole, given)
        expected = written(whole)
        exactness = (whole / "log").read_text().strip()
        print(f"uninterrupted: {seconds:.1f} s; {exactness}", file=sys.stderr, flush=True)
        for number in range(given.kills):
            folder = Path(place) / f"killed-{number}"
            after = draw.uniform(0.1, 0.98) * seconds
            if not killed(folder, given, after):
                print(f"{number}: ended before {after:.1f} s", file=sys.stderr, flush=True)
            with Journal(folder / "journal.sqlite") as journal:
                kept = len(journal)
            finished(folder, given)
            names, wrong, total = differing(expected, written(folder))
            rows.append({"after": round(after, 1), "kept": kept, "differs": names, "wrong": wrong})
            print(
                f"{number}: killed after {after:.1f} s with {kept} steps kept: "
                f"{wrong} of {total} records differ, {', '.join(names) or 'nothing'} differs",
                file=sys.stderr,
                flush=True,
            )
    found = {"seconds": round(seconds, 1), "exactness": exactness, "kills": rows}
    if given.json:
        print(json.dumps(found))
    else:
        same = sum(not row["differs"] for row in rows)
        cost = re.sub(r"^exact resume: ", "", exactness)
        print(f"{same} of {len(rows)} killed runs ended as the uninterrupted one ({cost})")
    raise SystemExit(any(row["differs"] for row in rows))


if __name__ == "__main__":
    main()
