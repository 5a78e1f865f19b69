"""Self-consistency: samples recorded once, then voted on again and again without a model.

    python benchmarks/self_consistency.py record [--model M] [--n 16] [--problems N] [--seconds S]
    python benchmarks/self_consistency.py report [--model M]

record  samples chains of thought for problems of MultiArith and GSM8K, in turn, and journals the
        answer, log-probability and tokens of each in --out. A run that was killed, or cut by
        --seconds, goes on when repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

from evaluation_sets import SEED, file

import promptflow as pf
from promptflow.storage import Journal


def problems() -> list[dict[str, Any]]:
    """Return problems with their answers, of both sets and both splits in turn.

    ``dev`` are a seeded half of MultiArith and GSM8K's training rows, ``test`` the other half and
    GSM8K's test rows: what is fitted is fitted on dev alone.
    """
    rng = random.Random(SEED)
    multi = [
        {"question": row["sQuestion"].strip(), "gold": row["lSolutions"][0]}
        for row in json.loads(file("multiarith/MultiArith.json").read_text(encoding="utf-8"))
    ]
    rng.shuffle(multi)
    with gzip.open(file("gsm8k/train.jsonl.gz"), "rt", encoding="utf-8") as lines:
        train = [json.loads(line) for line in lines]
    test = [json.loads(line) for line in file("gsm8k/test.jsonl").read_text().splitlines()]
    half = len(multi) // 2
    sets = [
        ("multiarith", "dev", multi[:half]),
        ("multiarith", "test", multi[half:]),
        ("gsm8k", "dev", [_gsm8k(row) for row in rng.sample(train, half)]),
        ("gsm8k", "test", [_gsm8k(row) for row in rng.sample(test, half)]),
    ]
    return [
        {"key": f"{name}-{split}-{n:03d}", "set": name, "split": split, **rows[n]}
        for n in range(half)
        for name, split, rows in sets
        if name == "multiarith" or n % 3 == 0  # the harder set decides less at this size
    ]


def _gsm8k(row: dict[str, str]) -> dict[str, Any]:
    return {
        "question": row["question"],
        "gold": float(row["answer"].rpartition("####")[2].replace(",", "")),
    }


def record(options: argparse.Namespace) -> None:
    """Sample what is not in the journal yet, two problems in one batch."""
    pf.configure(options.model)
    solve = pf.ChainOfThought("question -> answer: float", reasoning_tokens=128)
    module = pf.SelfConsistency(solve, n=options.n, temperature=0.7)
    begun = time.monotonic()
    with Journal(_journal(options)) as journal:
        left = [row for row in problems()[: options.problems] if journal.get(row["key"]) is None]
        for start in range(0, len(left), 2):
            if time.monotonic() - begun > options.seconds:
                break
            rows = left[start : start + 2]
            results = pf.run_many(module, [{"question": row["question"]} for row in rows])
            for row, result in zip(rows, results, strict=True):
                if isinstance(result, Exception):
                    raise result
                journal.append(row["key"], {**row, "samples": list(map(_sample, result.trace))})
            print(rows[-1]["key"], f"{time.monotonic() - begun:.0f} s", flush=True)


def _sample(step: Any) -> dict[str, Any]:
    answer = step[2]
    fills = answer.fills.values()
    return {
        "answer": answer.answer,
        "logprob": sum(fill.logprob for fill in fills),
        "tokens": sum(fill.generated for fill in fills),
        "cut": answer.cut,
    }


def _journal(options: argparse.Namespace) -> Path:
    return Path(options.out) / f"{options.model}.sqlite"


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("record", "report"))
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--problems", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", default="runs/self-consistency")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    record(options)


if __name__ == "__main__":
    main()
