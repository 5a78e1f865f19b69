"""Self-consistency: samples recorded once, then voted on again and again without a model.

    python benchmarks/self_consistency.py record [--model M] [--n 16] [--problems N] [--seconds S]
    python benchmarks/self_consistency.py report [--model M]

record  samples chains of thought for problems of MultiArith and GSM8K, in turn, and journals the
        answer, log-probability and tokens of each in --out. A run that was killed, or cut by
        --seconds, goes on when repeated.
report  replays the journal, and GPT-4's hundred samples of each of a hundred games of 24: what
        ending early costs and saves, what ties are worth, and whether confidence is calibrated.
        A problem's samples are shuffled --orders times; what is fitted is fitted on dev alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation_sets import SEED, file

import promptflow as pf
from promptflow.evaluation.labels import expected_calibration_error
from promptflow.evaluation.stats import paired_interval
from promptflow.flow import Prediction
from promptflow.modules.agreement import Agreement, fit_agreement
from promptflow.modules.stopping import SURE, turned
from promptflow.modules.votes import Votes, Weighting, count_votes
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
    """Sample what is not in the journal yet, the samples of a problem in one batch."""
    pf.configure(options.model)
    solve = pf.ChainOfThought("question -> answer: float", reasoning_tokens=128)
    module = pf.SelfConsistency(solve, n=options.n, temperature=0.7, sure="all")
    begun = time.monotonic()
    with Journal(_journal(options)) as journal:
        left = [row for row in problems()[: options.problems] if journal.get(row["key"]) is None]
        for row in left:
            if time.monotonic() - begun > options.seconds:
                break
            result = pf.run(module, question=row["question"])
            journal.append(row["key"], {**row, "samples": list(map(_sample, result.trace))})
            print(row["key"], f"{time.monotonic() - begun:.0f} s", flush=True)


def _sample(step: Any) -> dict[str, Any]:
    answer = step[2]
    fills = answer.fills.values()
    return {
        "answer": answer.answer,
        "logprob": sum(fill.logprob for fill in fills),
        "tokens": sum(fill.generated for fill in fills),
        "cut": answer.cut,
    }


@dataclass(frozen=True)
class Problem:
    """A problem with its samples, and which of them are right."""

    split: str
    samples: Sequence[Prediction]
    right: Sequence[bool]


def recorded(options: argparse.Namespace) -> list[Problem]:
    """Return what the journal holds."""
    found = []
    with Journal(_journal(options)) as journal:
        for _, row in journal.items():
            samples = [_replayed(s["answer"], s["logprob"], s["tokens"]) for s in row["samples"]]
            right = [s.answer == row["gold"] for s in samples]
            found.append(Problem(row["split"], samples, right))
    return found


def games() -> list[Problem]:
    """Return the logged chains of GPT-4 in Game of 24 (Yao et al. 2023), without log-probabilities.

    Every other game is for the fit.
    """
    with gzip.open(file("game24/gpt-4_0.7_naive_cot_sample_100_start900_end1000.json.gz")) as log:
        rows = json.load(log)
    return [
        Problem(
            "dev" if number % 2 else "test",
            [_replayed(text.lower().rpartition("answer:")[2].strip()) for text in row["ys"]],
            [bool(info["r"]) for info in row["infos"]],
        )
        for number, row in enumerate(rows)
    ]


def _replayed(answer: Any, logprob: float = 0.0, tokens: int = 1) -> Prediction:
    call = Prediction(answer=answer)
    call._fills = {"answer": pf.Fill(str(answer), "stop", tokens, logprob=logprob)}
    made = Prediction(answer=answer)
    made._trace = ((None, {}, call),)
    return made


@dataclass(frozen=True)
class Vote:
    """One vote on a shuffled problem: what won, whether it was right, and what it spent."""

    votes: Votes
    right: bool
    spent: int


def vote(problem: Problem, order: Sequence[int], sure: float, weighting: Weighting) -> Vote:
    """Vote on samples in this order, a quarter at a time, until it is ``sure``."""
    n = len(order)
    size = max(2, math.ceil(n / 4))
    for drawn in range(size, n + size, size):
        taken = order[:drawn]
        votes = count_votes([problem.samples[k] for k in taken], "answer", weighting)
        if turned(votes.counts(), n - len(taken)) <= 1.0 - sure:
            break
    return Vote(votes, problem.right[taken[votes.first[votes.leader]]], len(taken))


def report(options: argparse.Namespace) -> None:
    """Print a table for each set of samples."""
    sets = {"GPT-4, Game of 24": games()}
    if _journal(options).exists() and (rows := recorded(options)):
        sets[f"{options.model}, word problems"] = rows
    for name, problems in sets.items():
        rng = random.Random(SEED)
        shuffled = [
            (problem, rng.sample(range(len(problem.samples)), options.n))
            for problem in problems
            for _ in range(options.orders)
        ]
        print(f"\n{name}: {len(problems)} problems, {options.orders} orders, n={options.n}")
        _print_stops(shuffled, options.orders)
        _print_ties(shuffled)
        _print_calibration(shuffled)


Shuffled = Sequence[tuple[Problem, Sequence[int]]]


def _means(votes: Sequence[Vote], orders: int) -> list[float]:
    """Return the share of right votes of each problem: its orders are no samples of their own."""
    right = [float(vote.right) for vote in votes]
    return [sum(right[k : k + orders]) / orders for k in range(0, len(right), orders)]


def _print_stops(shuffled: Shuffled, orders: int) -> None:
    full = [vote(problem, order, 2.0, "count") for problem, order in shuffled]
    base = _means(full, orders)
    print(f"  all samples: {sum(base) / len(base):.3f} right")
    for weighting in ("count", "logprob"):
        for sure in (0.7, 0.8, 0.9, 0.95):
            early = [vote(problem, order, sure, weighting) for problem, order in shuffled]
            gap = paired_interval(_means(early, orders), base)
            spent = sum(v.spent for v in early) / sum(v.spent for v in full)
            same = [
                a.votes.keys[a.votes.leader] == b.votes.keys[b.votes.leader]
                for a, b in zip(early, full, strict=True)
            ]
            print(
                f"  {weighting:8} sure={sure:<5} spends {spent:.1%}, as all in "
                f"{sum(same) / len(same):.1%}, accuracy {gap.mean:+.3f} [{gap.low:+.3f}, "
                f"{gap.high:+.3f}]"
            )


def _print_ties(shuffled: Shuffled) -> None:
    """Print how often five votes tie, and what the likelier and the first seen are worth."""
    likely, first, ties = 0, 0, 0
    for problem, order in shuffled:
        taken = order[:5]
        votes = count_votes([problem.samples[k] for k in taken], "answer")
        best = [k for k, w in enumerate(votes.weights) if w == max(votes.weights)]
        if len(best) > 1:
            ties += 1
            likely += problem.right[taken[votes.first[votes.leader]]]
            first += problem.right[taken[votes.first[best[0]]]]
    print(f"  ties of 5: {ties} of {len(shuffled)}; right by likelihood {likely}, by order {first}")


def _print_calibration(shuffled: Shuffled) -> None:
    cast = [(p.split, vote(p, order, SURE, "count")) for p, order in shuffled]
    dev = [v for split, v in cast if split == "dev"]
    test = [v for split, v in cast if split == "test"]
    if len({v.right for v in dev}) < 2 or not test:
        return
    own = fit_agreement([v.votes for v in dev], [v.right for v in dev])
    for name, sure in (
        ("share of votes", lambda v: v.agreement),
        ("default", Agreement()),
        (f"fitted on dev ({own.slope:.2f}, {own.bias:.2f})", own),
    ):
        error = expected_calibration_error([(sure(v.votes), float(v.right)) for v in test])
        print(f"  ECE of {name}: {error:.3f} on {len(test)} held-out votes")


def _journal(options: argparse.Namespace) -> Path:
    return Path(options.out) / f"{options.model}.sqlite"


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("record", "report"))
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--problems", type=int, default=240)
    parser.add_argument("--orders", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", default="runs/self-consistency")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    record(options) if options.part == "record" else report(options)


if __name__ == "__main__":
    main()
