"""What a change of the scheduler is worth, in seconds of work instead of an hour of decoding.

    python benchmarks/simulate_schedule.py

The real scheduler decides step by step over the workloads of prefix_sharing.py and 200 SQuAD
questions; a step costs what llama.cpp was measured to take for it instead of running. On
qwen2.5-coder-0.5b with 2 cores this came within 10 to 15 % of prefix_sharing.py, which has the last
word. Tokens are words, digits and marks: counts differ a little from a tokenizer's.
"""

from __future__ import annotations

import re

from evaluation_sets import questions
from prefix_sharing import WORKLOADS, workload

from promptflow.engine.cache.cache import Cache
from promptflow.engine.loop.scheduler import Plan, Scheduler
from promptflow.engine.options import EngineOptions, worker_settings
from promptflow.engine.sequence import Sequence

PASS, TOKEN, LOGITS = 0.033, 0.0085, 0.0085
"""Seconds of a pass over the weights, and more for each token and each row of logits."""
CELL = 2.7e-6  # seconds that a token takes for each cell in use, whoever holds it
SETTINGS = worker_settings(EngineOptions())


def tokens_of(text: str, numbers: dict[str, int]) -> list[int]:
    """Return a number for each word, digit and mark; ``numbers`` grows by those that are new."""
    found = re.findall(r"\d| ?[A-Za-z]+|\W", text)
    return [numbers.setdefault(word, len(numbers)) for word in found]


def price(plan: Plan, used: int) -> tuple[float, float]:
    """Return the seconds of a step beside ``used`` cells, and how many of them are attention."""
    tokens = sum(take for _, take in plan.rows)
    logits = sum(take == sequence.pending for sequence, take in plan.rows)
    attention = CELL * (used + tokens) * tokens
    return PASS + TOKEN * tokens + LOGITS * logits + attention, attention


def simulate(batches: tuple[tuple[str, ...], ...], answer: int) -> dict[str, float]:
    """Answer each batch after the one before, every prompt with ``answer`` tokens."""
    load = SETTINGS["load"]
    cache = Cache(load["context"], load["sequences"])
    scheduler = Scheduler(cache, load["batch"], SETTINGS["max_running"])
    numbers: dict[str, int] = {}
    number = 0
    sums = {"seconds": 0.0, "attention": 0.0, "prefilled": 0.0, "steps": 0.0, "rows": 0.0}
    for batch in batches:
        for text in batch:
            number += 1
            prompt = tokens_of(text, numbers)
            scheduler.submit(Sequence(number, prompt, len(prompt) + answer))
        while scheduler.waiting or scheduler.running:
            while not scheduler.relieve()[0]:
                scheduler.preempt(scheduler.first_to_go(scheduler.running))
            plan = scheduler.step()
            prefilled = sum(take for sequence, take in plan.rows if not sequence.written)
            found = (*price(plan, scheduler.cache.cells.used), prefilled, 1, len(plan.rows))
            for name, value in zip(sums, found, strict=True):
                sums[name] += value
            for sequence, take in plan.rows:
                scheduler.computed(sequence, take)
            for sequence in [sequence for sequence in scheduler.running if not sequence.pending]:
                if sequence.written + 1 < answer:  # nobody needs the last token in the cache
                    sequence.tokens.append(
                        -1 - hash((sequence.number, len(sequence.tokens))) % 100_000
                    )
                else:
                    scheduler.finish(sequence, keep=True)
    return sums


def main() -> None:
    """Print a row for each workload."""
    asked = [(name, workload(name, quick=False)) for name in WORKLOADS]
    batches = {name: (work.batches, work.tokens) for name, work in asked}
    batches["squad"] = ((tuple(f"{r.passage}\n\n{r.question}" for r in questions(200)),), 8)
    print("| workload | s | of it attention | prefilled | decode calls | sequences a call |")
    print("|---" * 6 + "|")
    for name, (texts, answer) in batches.items():
        sums = simulate(texts, answer)
        print(
            f"| {name} | {sums['seconds']:.1f} | {sums['attention']:.1f} "
            f"| {sums['prefilled']:,.0f} | {sums['steps']:,.0f} "
            f"| {sums['rows'] / sums['steps']:.1f} |"
        )


if __name__ == "__main__":
    main()
