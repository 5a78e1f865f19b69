"""How near decoding comes to what llama.cpp allows: our tokens per second against a bare loop.

    python benchmarks/decode_limit.py [--model M] [--quick] [--json]

For each batch size, both continue one prompt of 64 tokens in as many branches by the same number of
tokens each, on the same GGUF file with the same threads, cells and batch. The bare loop calls
``llama_decode`` through ctypes with one batch that was filled once, and samples nothing. Ours is
``Engine.generate``: the child process, the pipe, scheduling and sampling included. Each takes turns
in a process of its own, and the best turn counts. ``share`` is where the wall time of our turns
went, in percent.

    greedy   the most probable token
    sampled  temperature 0.8, top-p 0.95
    json     every text under a JSON schema with limits
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from promptflow import catalog
from promptflow.engine.options import EngineOptions, worker_settings

SIZES = (1, 2, 4, 8, 16, 32)
PROMPT = 64
OPTIONS = EngineOptions(context=8192)
TURNS = 3
KINDS = ("greedy", "sampled", "json")
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "mood": {"enum": ["good", "fair", "bad"]},
        },
        "required": ["name", "age", "mood"],
        "additionalProperties": False,
    },
    "minItems": 50,
}
PARTS = ("decode", "sample", "constraint", "bookkeeping", "pipe")


def loaded(path: str, options: EngineOptions = OPTIONS) -> dict[str, Any]:
    """Return how an engine loads the model: what was tuned for it counts for both."""
    return dict(worker_settings(options, path)["load"])


def bare(path: str, size: int, tokens: int, options: EngineOptions = OPTIONS) -> dict[str, float]:
    """Decode ``size`` branches for ``tokens`` steps with nothing between the calls."""
    from promptflow.engine.model import llama

    c = llama.c
    model = llama.Model(catalog.locate(path), "bare", "", llama.Load(**loaded(path, options)))
    prompt = [31 * position % 20_000 + 100 for position in range(PROMPT)]
    flags = [False] * (PROMPT - 1) + [True]
    assert model.decode(prompt, list(range(PROMPT)), [0] * PROMPT, flags) == 0
    for branch in range(1, size):
        model.copy(0, branch, PROMPT)
    batch = c.llama_batch_init(size, 0, 1)
    batch.n_tokens = size
    for row in range(size):
        batch.token[row], batch.logits[row] = 1_000 + row, 1
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = row
    context = model._ctx
    begun = time.perf_counter()
    for step in range(tokens):
        for row in range(size):
            batch.pos[row] = PROMPT + step
        code = c.llama_decode(context, batch)
        assert code == 0
        ctypes.cast(c.llama_get_logits_ith(context, 0), ctypes.c_void_p)
    seconds = time.perf_counter() - begun
    c.llama_batch_free(batch)
    model.close()
    return {"rate": size * tokens / seconds}


def ours(
    path: str, size: int, tokens: int, kind: str, options: EngineOptions = OPTIONS
) -> dict[str, float]:
    """Generate from ``size`` prompts in the cache that differ in their last word."""
    from promptflow import Engine, Json, Request, Sampling, Slot, Text

    sampling = Sampling(0.8, top_p=0.95) if kind == "sampled" else Sampling()
    constraint = Json(json.dumps(SCHEMA)) if kind == "json" else None
    words = " ".join(f"{number * number % 97}" for number in range(PROMPT))[: PROMPT - 4]

    def asked(length: int) -> list[Request]:
        slot = Slot("s", constraint, length, sampling=sampling, ignore_eos=True)
        return [Request((Text(f"{words} {n:03}"), slot), n) for n in range(size)]

    with Engine(path, replace(options, max_running=size)) as engine:
        engine.generate(asked(1))
        before, begun = engine.stats(), time.perf_counter()
        completions = engine.generate(asked(tokens))
        seconds, after = time.perf_counter() - begun, engine.stats()
        for completion in completions:
            completion.text("s")
    made = after.generated + after.forced - before.generated - before.forced
    spent = {
        f"{part}_share": (getattr(after, f"{part}_seconds") - getattr(before, f"{part}_seconds"))
        / seconds
        for part in PARTS
    }
    decodes = after.decodes - before.decodes
    rows = after.decodes * after.occupancy - before.decodes * before.occupancy
    return {"rate": made / seconds, "occupancy": rows / decodes, **spent}


def turn(model: str, kind: str, size: int, tokens: int) -> dict[str, float]:
    """Run one contestant in a process of its own."""
    command = [sys.executable, __file__, "--model", model]
    command += ["--one", kind, str(size), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind} failed with a batch of {size}:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(model: str, size: int, kinds: tuple[str, ...], quick: bool) -> list[dict[str, Any]]:
    """Let the bare loop and ours take turns; return a row for each kind."""
    tokens = 32 if quick else 96
    best: dict[str, dict[str, float]] = {}
    for number in range(1 if quick else TURNS):
        for kind in ("bare", *kinds):
            print(f"batch {size}, turn {number + 1}: {kind} ...", file=sys.stderr, flush=True)
            figures = turn(model, kind, size, tokens)
            if kind not in best or figures["rate"] > best[kind]["rate"]:
                best[kind] = figures
    limit = best["bare"]["rate"]
    return [
        {"batch": size, "kind": kind, "bare": limit, "ratio": best[kind]["rate"] / limit}
        | best[kind]
        for kind in kinds
    ]


def main() -> None:
    """Print a row for each batch size and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--quick", action="store_true", help="one turn of 32 tokens")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--one", nargs=3, metavar=("KIND", "SIZE", "TOKENS"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.one:
        kind, size, tokens = arguments.one[0], int(arguments.one[1]), int(arguments.one[2])
        figures = (
            bare(arguments.model, size, tokens)
            if kind == "bare"
            else ours(arguments.model, size, tokens, kind)
        )
        print(json.dumps(figures))
        return
    rows = [
        row
        for size in map(int, arguments.sizes.split(","))
        for row in compare(
            arguments.model, size, KINDS if size == 16 else ("greedy",), arguments.quick
        )
    ]
    if arguments.json:
        found = {"model": arguments.model, "load": loaded(arguments.model), "rows": rows}
        print(json.dumps(found, indent=1))
        return
    print("| batch | kind | bare tokens/s | ours | ratio | " + " | ".join(PARTS) + " |")
    print("|---" * (5 + len(PARTS)) + "|")
    for r in rows:
        shares = " | ".join(f"{100 * r[f'{part}_share']:.1f} %" for part in PARTS)
        print(
            f"| {r['batch']} | {r['kind']} | {r['bare']:.1f} | {r['rate']:.1f} | {r['ratio']:.3f} "
            f"| {shares} |"
        )


if __name__ == "__main__":
    main()
