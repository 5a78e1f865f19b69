"""Many branches from one prefill: promptflow's engine against the other ways to run a GGUF file.

    python benchmarks/prefix_sharing.py [--model M] [--quick] [--json] [--turns N]
                                        [--workloads branches,...] [--contestants promptflow,...]

Each contestant runs in a process of its own on the same file with the same threads and token
budgets, and never stops early. With more than one turn, contestants take turns at a workload and
the fastest run of each counts: a machine that slows down for a minute then slows nobody alone.
Workloads:

    branches     8 continuations of one cold trunk of 520 tokens, 24 tokens each
    consistency  20 samples of one 8-shot chain-of-thought prompt, 96 tokens each
    evaluation   64 questions under one 8-shot prompt, 32 tokens each
    tree         the prompts of 5 Games of 24 as a breadth-5 tree of thoughts asked them in the logs
                 of Yao et al. 2023, level by level, 16 tokens each
    candidates   6 instructions with their demonstrations on 16 questions, question by question, as
                 a race of candidates asks them, 16 tokens each

Contestants: ours; ``llama_cpp.Llama`` in a loop (``loop``), with its RAM cache (``ram_cache``);
llama.cpp's server in process, 8 slots, unified cache, from 8 threads (``server``); DSPy over
llama-cpp-python's HTTP server (``dspy``, evaluation alone). ``bound`` is what a perfect prefix
cache prefills, computed from the prompts alone. ``normalised`` is the time that a contestant would
need at our prefill speed: seconds * its tokens a second / ours. Data: evaluation_sets.py.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from typing import Any

from contestants import CONTESTANTS, CONTEXT, Workload
from evaluation_sets import demonstrations, problems, searches

from promptflow import catalog
from promptflow.child import usable_cores
from promptflow.engine.options import EngineOptions, worker_settings

WORKLOADS = ("branches", "consistency", "evaluation", "tree", "candidates")
INSTRUCTIONS = (
    "Answer the question with a number.",
    "Work out the answer step by step and end with the number.",
    "You are careful with units. State the result as one number.",
    "Read the problem twice, then calculate.",
    "Solve the problem. Check each operation before you go on.",
    "Find what is asked, write the equation, and solve it.",
)
PROPOSE = """List the next steps towards 24 from the numbers left. Each step joins two of them.

Numbers: 1 3 5 9
Steps:
9 - 5 = 4 (left: 1 3 4)
3 + 5 = 8 (left: 1 8 9)
9 * 3 = 27 (left: 1 5 27)
9 / 3 = 3 (left: 1 3 5)
5 - 1 = 4 (left: 3 4 9)
1 + 9 = 10 (left: 3 5 10)

Numbers: {left}
Steps:
"""
VALUE = """Say whether the numbers can make 24: sure, likely or impossible.

Numbers: 12 12
12 + 12 = 24
sure

Numbers: 3 7 11
3 + 7 + 11 = 21 and (11 - 3) * 7 = 56 and 11 * 3 - 7 = 26, all near 24
likely

Numbers: 2 3 4
2 * 3 * 4 = 24
sure

Numbers: 10 11 13
10 + 11 + 13 = 34, 13 + 11 - 10 = 14, products are far too large
impossible

Numbers: 5 5 6
5 * 5 = 25 and 6 does not bring it down by 1; 5 * 6 - 5 = 25
likely

Numbers: 1 2 2
1 + 2 + 2 = 5, 1 * 2 * 2 = 4, all too small
impossible

Numbers: {left}
"""


def workload(name: str, quick: bool) -> Workload:
    """Return a workload; ``quick`` makes it about a quarter of the size."""
    shots = demonstrations()
    asked = [problem["question"] for problem in problems()]
    prompt = "".join(shots)
    if name == "branches":
        trunk = prompt[: 520 * 3]  # about three characters a token
        batch = tuple(f"{trunk}\n\nQ: {q[:60]}" for q in asked[:8])
        return Workload((batch,), 8 if quick else 24)
    if name == "consistency":
        count, tokens = (6, 24) if quick else (20, 96)
        return Workload(((f"{prompt}Q: {asked[0]}\nA:",) * count,), tokens, 0.7)
    if name == "evaluation":
        batch = tuple(f"{prompt}Q: {q}\nA:" for q in asked[: 16 if quick else 64])
        return Workload((batch,), 32)
    if name == "tree":
        return Workload(tuple(levels(1 if quick else 5)), 16)
    demos = "".join(shots[:5])
    heads = [f"{text}\n\n{demos}" for text in INSTRUCTIONS[: 3 if quick else None]]
    questions = asked[: 6 if quick else 16]
    return Workload((tuple(f"{head}Q: {q}\nA:" for q in questions for head in heads),), 16)


def levels(cases: int) -> list[tuple[str, ...]]:
    """Return the prompts of each level of the logged searches, all cases side by side."""
    logged = searches()[:cases]
    batches: list[tuple[str, ...]] = []
    for depth in range(4):
        steps = [search["steps"][depth] for search in logged]
        proposed = [PROPOSE.format(left=left(s["x"], y)) for s in steps for y in s["ys"]]
        valued = [VALUE.format(left=left(s["x"], y)) for s in steps for y in s["new_ys"]]
        batches += [tuple(dict.fromkeys(proposed)), tuple(dict.fromkeys(valued))]
    return batches


def left(puzzle: str, steps: str) -> str:
    """Return the numbers that are left after some steps, or the answer that was given."""
    last = steps.strip().rsplit("\n", 1)[-1]
    found = re.search(r"left: ([^)]*)\)", last)
    return found[1] if found else last or puzzle


def run(model: str, name: str, contestant: str, quick: bool) -> dict[str, Any]:
    """Run one contestant on one workload in a fresh process; a failure says why."""
    print(f"{name}: {contestant} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--model", model, "--one", name, contestant]
    done = subprocess.run(
        command + ["--quick"] * quick, capture_output=True, text=True, check=False
    )
    made: dict[str, Any] = {"workload": name, "contestant": contestant}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if done.returncode == -signal.SIGKILL:
            lines.append("killed by the system, which is what happens when memory runs out")
        return {**made, "error": lines[-1]}
    figures = done.stdout.splitlines()[-1]
    print(f"  {figures}", file=sys.stderr, flush=True)
    return {**made, **json.loads(figures)}


def fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of one contestant on one workload that took the fewest seconds."""
    return min(runs, key=lambda row: row.get("seconds", float("inf")))


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row the bound, and how many times longer it took than ours."""
    ours = {r["workload"]: r for r in rows if r["contestant"] == "promptflow" and "error" not in r}
    for row in rows:
        own = ours.get(row["workload"])
        if own is None or "error" in row:
            continue
        row["lower_bound"] = own["lower_bound"]
        row["normalised"] = row["seconds"] * row["prefill_rate"] / own["prefill_rate"]
        row["times"] = row["seconds"] / own["seconds"]
        row["times_normalised"] = row["normalised"] / own["seconds"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| workload | contestant | s | times ours | normalised | prefilled | bound | generated "
        "| cold prefill tokens/s |",
        "|---" * 9 + "|",
    ]
    for r in rows:
        if "error" in r:
            lines.append(f"| {r['workload']} | {r['contestant']} | failed: {r['error']} |")
            continue
        lines.append(
            f"| {r['workload']} | {r['contestant']} | {r['seconds']:.1f} "
            f"| {r.get('times', 1):.2f} | {r.get('times_normalised', 1):.2f} "
            f"| {r['prefilled']:,.0f} | {r.get('lower_bound', 0):,.0f} | {r['generated']:,.0f} "
            f"| {r['prefill_rate']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every workload on every contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--quick", action="store_true", help="workloads a quarter of the size")
    parser.add_argument("--turns", type=int, default=1, help="runs of each contestant")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, contestant = arguments.one
        work, path = workload(name, arguments.quick), catalog.locate(arguments.model)
        print(json.dumps(CONTESTANTS[contestant](path, work, usable_cores())))
        return
    workloads, contestants = arguments.workloads.split(","), arguments.contestants.split(",")
    for given, known in ((workloads, WORKLOADS), (contestants, CONTESTANTS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: the choices are {', '.join(known)}")
    rows = []
    for name in workloads:
        taking_part = [
            contestant for contestant in contestants if contestant != "dspy" or name == "evaluation"
        ]
        turns = [
            [run(arguments.model, name, contestant, arguments.quick) for contestant in taking_part]
            for _ in range(arguments.turns)
        ]
        rows += [fastest(list(runs)) for runs in zip(*turns, strict=True)]
    rows = compared(rows)
    if arguments.json:
        load = worker_settings(EngineOptions(context=CONTEXT), arguments.model)["load"]
        print(json.dumps({"model": arguments.model, "load": load, "rows": rows}, indent=1))
    else:
        print(f"{arguments.model}, {usable_cores()} threads\n\n{table(rows)}")


if __name__ == "__main__":
    main()
