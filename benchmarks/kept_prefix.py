"""How much sooner a second process starts a known few-shot prompt: KV state on disk or prefilled.

    python benchmarks/kept_prefix.py [--model M] [--tokens N] [--json]

One process keeps a prefix of N tokens with ``engine.keep``. Then processes that know it and
processes that may not read it take turns: each loads the model and asks for one token after the
prefix and a question. ``seconds`` is from the request to its answer, the best of the turns; loading
is the same for both and told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from evaluation_sets import demonstrations, problems

from promptflow import Engine, Request, Slot, Text

TURNS = 3


def prefix(tokens: int) -> str:
    """Return a few-shot prompt of about so many tokens."""
    text = "".join(demonstrations())
    for row in problems():
        text += f"Q: {row['question']}\nA: {row['answer']}\n\n"
        if len(text) > 3.3 * tokens:
            break
    return text


def one(model: str, tokens: int, keep: bool) -> dict[str, float]:
    """Load the model and ask for one token after the prefix."""
    begun = time.perf_counter()
    with Engine(model) as engine:
        loaded = time.perf_counter() - begun
        head = Text(prefix(tokens))
        size = engine.keep([head]) if keep else 0
        begun = time.perf_counter()
        slot = Slot("next", max_tokens=1, ignore_eos=True)
        [done] = engine.generate([Request((head, Text("Q: What is 2 + 3?\nA:"), slot))])
        seconds = time.perf_counter() - begun
        done.text("next")
        usage = done.usage
    return {
        "load": loaded,
        "seconds": seconds,
        "prefilled": usage.prefilled,
        "prompt": usage.prompt,
        "bytes": size,
    }


def main() -> None:
    """Print what both cost and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=("keep", "ask"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.model, arguments.tokens, arguments.one == "keep")))
        return
    from promptflow import catalog

    path = str(catalog.locate(arguments.model))
    command = [sys.executable, __file__, "--model", path, "--tokens", str(arguments.tokens)]
    with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as cold:

        def turn(cache: str, what: str) -> dict[str, Any]:
            print(f"{what}, {Path(cache).name} ...", file=sys.stderr, flush=True)
            done = subprocess.run(
                [*command, "--one", what], capture_output=True, text=True, check=True,
                env={**os.environ, "PROMPTFLOW_CACHE": cache},
            )  # fmt: skip
            figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return figures

        kept = turn(warm, "keep")
        turns = [(turn(warm, "ask"), turn(cold, "ask")) for _ in range(TURNS)]
    with_state = min((a for a, _ in turns), key=lambda figures: figures["seconds"])
    without = min((b for _, b in turns), key=lambda figures: figures["seconds"])
    found = {
        "model": arguments.model,
        "prompt": without["prompt"],
        "bytes": kept["bytes"],
        "kept": with_state,
        "prefilled": without,
        "times": without["seconds"] / with_state["seconds"],
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{found['prompt']:,} tokens, {found['bytes'] / 1e6:.0f} MB on disk: first answer after "
        f"{with_state['seconds']:.2f} s ({with_state['prefilled']} prefilled) against "
        f"{without['seconds']:.2f} s ({without['prefilled']:,} prefilled): "
        f"{found['times']:.1f} times sooner; loading takes {without['load']:.1f} s in both"
    )


if __name__ == "__main__":
    main()
