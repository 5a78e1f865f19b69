"""What batching does to greedy text, and what ``batch_invariant`` costs, on SQuAD questions.

    python benchmarks/determinism.py [--model M] [--n N] [--orders K] [--quick] [--json]

The same N questions (200) are answered greedily alone on an empty cache (``solo``), all together as
programs send them (``batched``), and 50 of them under ``batch_invariant`` in K arrival orders, cold
and warm. Printed: how many batched texts differ from solo, F1 of both with the paired interval of
the difference, whether every invariant run gave the same bytes, and seconds a question of each.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

import dspy
from evaluation_sets import questions

from promptflow import Engine, EngineOptions, Request, Slot, Text
from promptflow.evaluation.metrics import f1
from promptflow.evaluation.stats import paired_interval

INVARIANT = 50


def requests(engine: Engine, rows: list[dspy.Example]) -> list[Request]:
    """Return one request a question, in the chat template."""
    head, tail = engine.scaffold(("user",))
    slot = Slot("answer", max_tokens=32, stop=("\n",))
    return [
        Request(
            (
                Text(head, True),
                Text(f"{row.passage}\n\nAnswer with a few words: {row.question}"),
                Text(tail, True),
                slot,
            )
        )
        for row in rows
    ]


def texts(engine: Engine, asked: list[Request]) -> list[str]:
    """Return the texts of a batch."""
    return [completion.text("answer") for completion in engine.generate(asked)]


def mean_f1(rows: list[dspy.Example], found: list[str]) -> list[float]:
    """Return the F1 of each answer."""
    return [
        f1(row, dspy.Prediction(answer=text), field="answer")
        for row, text in zip(rows, found, strict=True)
    ]


def default_mode(model: str, rows: list[dspy.Example]) -> dict[str, Any]:
    """Compare each question alone with all of them together."""
    with Engine(model) as engine:
        asked = requests(engine, rows)
        begun = time.perf_counter()
        batched = texts(engine, asked)
        seconds = time.perf_counter() - begun
    solo: list[str] = []
    with Engine(model, EngineOptions(max_running=1, batch_invariant=True)) as engine:
        begun = time.perf_counter()
        for number, one in enumerate(asked):
            solo += texts(engine, [one])
            print(f"\rsolo {number + 1}/{len(asked)}", end="", file=sys.stderr, flush=True)
        alone = time.perf_counter() - begun
    marks = mean_f1(rows, solo), mean_f1(rows, batched)
    gap = paired_interval(marks[1], marks[0])
    return {
        "n": len(rows),
        "texts_that_differ": sum(a != b for a, b in zip(solo, batched, strict=True)),
        "f1_solo": sum(marks[0]) / len(rows),
        "f1_batched": sum(marks[1]) / len(rows),
        "difference": [gap.mean, gap.low, gap.high],
        "seconds_a_question": {"batched": seconds / len(rows), "invariant": alone / len(rows)},
        "solo": solo,
    }


def invariant_mode(
    model: str, rows: list[dspy.Example], orders: int, expected: list[str]
) -> dict[str, Any]:
    """Answer the same questions in several orders, cold and warm; count texts that differ."""
    wrong = runs = 0
    for order in range(orders):
        shuffled = list(range(len(rows)))
        random.Random(order).shuffle(shuffled)
        with Engine(model, EngineOptions(batch_invariant=True)) as engine:
            asked = requests(engine, rows)
            for state in ("cold", "warm"):
                print(f"\norder {order}, {state} ...", end="", file=sys.stderr, flush=True)
                found = texts(engine, [asked[i] for i in shuffled])
                wrong += sum(expected[i] != t for i, t in zip(shuffled, found, strict=True))
                runs += 1
    print(file=sys.stderr)
    return {"n": len(rows), "runs": runs, "texts_that_differ": wrong}


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="8 questions, 2 orders")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    n, orders = (8, 2) if arguments.quick else (arguments.n, arguments.orders)
    rows = questions(n)
    plain = default_mode(arguments.model, rows)
    few = rows[:INVARIANT]
    exact = invariant_mode(arguments.model, few, orders, plain.pop("solo")[: len(few)])
    found = {"model": arguments.model, "default": plain, "batch_invariant": exact}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    mean, low, high = plain["difference"]
    each = plain["seconds_a_question"]
    print(
        f"default: {plain['texts_that_differ']} of {n} texts differ from solo; F1 "
        f"{plain['f1_batched']:.3f} against {plain['f1_solo']:.3f} ({mean:+.3f} [{low:+.3f}, "
        f"{high:+.3f}]); {each['batched']:.2f} s a question\n"
        f"batch_invariant: {exact['texts_that_differ']} of {exact['runs']} x {exact['n']} texts "
        f"differ; {each['invariant']:.2f} s a question"
    )


if __name__ == "__main__":
    main()
