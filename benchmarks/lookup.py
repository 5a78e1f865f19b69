"""Where drafts from a request's own text pay: prompt lookup on and off, on the same requests.

    python benchmarks/lookup.py [--model M] [--n N] [--quick] [--json]

    quote    a passage, and the sentence of it that answers a question is asked for word by word
    extract  a passage, and a list of its names and numbers as JSON under a schema
    reason   a word problem of GSM8K worked out step by step: little to look up

Each task runs greedily, one request at a time and eight side by side, without and with
``EngineOptions(lookup=True)``, in that order, each in an engine of its own. ``accepted`` is the
share of drafted tokens that the model went on to say; ``same`` counts texts that are equal with and
without (drafts change the shape of batches, which can flip a near-tie).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from evaluation_sets import problems, questions

from promptflow import Engine, EngineOptions, Json, Request, Slot, Text

TASKS = ("quote", "extract", "reason")
EXTRACT = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "sentence": {"type": "string", "maxLength": 160},
            "name": {"type": "string", "maxLength": 40},
        },
        "required": ["sentence", "name"],
        "additionalProperties": False,
    },
    "minItems": 2,
    "maxItems": 3,
}
ASKED = {
    "quote": "Copy the sentence of the passage that answers the question, word by word.",
    "extract": "Extract persons, places and things from the passage as JSON; copy each sentence.",
    "reason": "Solve the problem step by step.",
}


def contents(task: str, n: int) -> list[str]:
    """Return what the user's turn says in each request."""
    if task == "reason":
        return [f"{ASKED[task]}\n\n{problem['question']}" for problem in problems()[:n]]
    found = questions(n)
    asked = [f"\n\nQuestion: {row.question}" if task == "quote" else "" for row in found]
    return [f"{ASKED[task]}\n\n{row.passage}{tail}" for row, tail in zip(found, asked, strict=True)]


def run(model: str, task: str, n: int, side: int, lookup: bool) -> tuple[dict[str, Any], list[str]]:
    """Run one task; return its figures and its texts."""
    constraint = Json(json.dumps(EXTRACT)) if task == "extract" else None
    slot = Slot("text", constraint, 192 if task == "extract" else 96)
    with Engine(model, EngineOptions(max_running=side, lookup=lookup)) as engine:
        head, tail = engine.scaffold(("user",))
        prompts = [(Text(head, True), Text(c), Text(tail, True)) for c in contents(task, n)]
        engine.generate([Request((*p, Slot("text", max_tokens=1))) for p in prompts])
        before, begun = engine.stats(), time.perf_counter()
        done = engine.generate([Request((*p, slot)) for p in prompts])
        seconds, after = time.perf_counter() - begun, engine.stats()
    drafted = after.drafted - before.drafted
    made = after.generated + after.forced - before.generated - before.forced
    return {
        "seconds": seconds,
        "tokens": made,
        "decodes": after.decodes - before.decodes,
        "drafted": drafted,
        "accepted": (after.accepted - before.accepted) / drafted if drafted else 0.0,
    }, [completion.text("text") for completion in done]


def main() -> None:
    """Print a row for each task and concurrency."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="4 requests")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    n = 4 if arguments.quick else arguments.n
    rows = []
    for task in TASKS:
        for side in (1, 8):
            print(f"{task}, {side} side by side ...", file=sys.stderr, flush=True)
            plain, texts = run(arguments.model, task, n, side, lookup=False)
            drafted, again = run(arguments.model, task, n, side, lookup=True)
            same = sum(a == b for a, b in zip(texts, again, strict=True))
            gain = plain["seconds"] / drafted["seconds"]
            row = {"task": task, "together": side, "n": n, "same": same, "gain": gain}
            rows.append({**row, "plain": plain, "lookup": drafted})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "rows": rows}, indent=1))
        return
    print("| task | together | s without | s with | times faster | accepted | same texts |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['task']} | {r['together']} | {r['plain']['seconds']:.1f} "
            f"| {r['lookup']['seconds']:.1f} | {r['gain']:.2f} "
            f"| {100 * r['lookup']['accepted']:.0f} % of {r['lookup']['drafted']} "
            f"| {r['same']} of {r['n']} |"
        )


if __name__ == "__main__":
    main()
