"""Many branches from one prefill: promptflow's engine against the other ways to run a GGUF file.

    python benchmarks/prefix_sharing.py [--model M] [--quick] [--json]
                                        [--workloads branches,...] [--contestants promptflow,...]

Each contestant runs in a process of its own on the same file with the same threads and token
budgets, and never stops early. Workloads:

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
need at our prefill speed: seconds * its tokens a second / ours. Exemplars, questions and logs come
from PROMPTFLOW_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from contestants import CONTESTANTS, Workload

from promptflow import catalog
from promptflow.engine.host import usable_cores

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


def data() -> Path:
    """Return the folder of evaluation sets."""
    folder = Path(os.environ.get("PROMPTFLOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist: set PROMPTFLOW_DATA to the folder of evaluation sets")
    return folder


def demonstrations() -> list[str]:
    """Return the eight chain-of-thought exemplars of GSM8K as texts."""
    exemplars = yaml.safe_load((data() / "exemplars/lm_eval_gsm8k/gsm8k-cot.yaml").read_text())
    samples = exemplars["fewshot_config"]["samples"]
    return [f"Q: {s['question']}\nA: {s['target']}\n\n" for s in samples]


def problems() -> list[dict[str, str]]:
    """Return the test problems of GSM8K: question and answer of each."""
    lines = (data() / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


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
    log = data() / "game24/gpt-4_0.7_propose1_value3_greedy5_start900_end1000.json.gz"
    with gzip.open(log) as file:
        searches = json.load(file)[:cases]
    batches: list[tuple[str, ...]] = []
    for depth in range(4):
        steps = [search["steps"][depth] for search in searches]
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
        return {**made, "error": lines[-1]}
    figures = done.stdout.splitlines()[-1]
    print(f"  {figures}", file=sys.stderr, flush=True)
    return {**made, **json.loads(figures)}


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
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, contestant = arguments.one
        work, path = workload(name, arguments.quick), catalog.locate(arguments.model)
        print(json.dumps(CONTESTANTS[contestant](path, work, usable_cores())))
        return
    rows = [
        run(arguments.model, name, contestant, arguments.quick)
        for name in arguments.workloads.split(",")
        for contestant in arguments.contestants.split(",")
        if contestant != "dspy" or name == "evaluation"
    ]
    rows = compared(rows)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "rows": rows}, indent=1))
    else:
        print(f"{arguments.model}, {usable_cores()} threads\n\n{table(rows)}")


if __name__ == "__main__":
    main()
