"""Game of 24 by tree of thoughts: make 24 from four numbers with + - * /, each number used once.

A state is the numbers left. A thought is one legal step, such as ``4 + 8 = 12 (left: 6 12)``: the
program lists the legal steps of a state and the model weighs all of them in one choice, so that it
never calculates; the most probable ones are followed. A state's value is the mean of the verdicts
sure, likely and impossible by the probability that the model gives each.

    python examples/game_of_24.py [--model qwen2.5-coder-0.5b] [--puzzles 5] [--seed 0]
                                  [--search breadth_first]

Puzzles come from $PROMPTFLOW_DATA (or ../shared/data), rank 900 to 999 as in Yao et al. 2023; six
built-in ones stand in where that folder is missing.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import promptflow as pf
from promptflow.modules.arithmetic import ArithmeticFault, value_of

BUILT_IN = ("1 2 4 7", "2 3 5 12", "4 5 6 10", "4 9 10 13", "1 4 8 8", "5 5 5 9")
SEARCHES = ("breadth_first", "depth_first", "best_first", "monte_carlo")
ROOT = Path(__file__).resolve().parent.parent


def numbers(state: str) -> list[Fraction]:
    return [Fraction(text) for text in state.split()]


def text(left: Sequence[Fraction]) -> str:
    return " ".join(str(number) for number in sorted(left))


def legal_steps(state: str) -> list[str]:
    """Every step from a state, as the text that the model chooses."""
    steps = []
    left = numbers(state)
    for i, j in combinations(range(len(left)), 2):
        rest = [number for k, number in enumerate(left) if k not in (i, j)]
        small, large = sorted((left[i], left[j]))
        results = [
            (large, "+", small, large + small),
            (large, "-", small, large - small),
            (large, "*", small, large * small),
        ]
        if small:
            results.append((large, "/", small, large / small))
        if large and small != large:
            results.append((small, "-", large, small - large))
            results.append((small, "/", large, small / large))
        for a, operator, b, result in results:
            steps.append(f"{a} {operator} {b} = {result} (left: {text([*rest, result])})")
    return list(dict.fromkeys(steps))


def take(state: str, step: str) -> str | None:
    """The numbers left after a step; None for a step that is not legal."""
    return step.split("left: ")[1].rstrip(")") if step in legal_steps(state) else None


def worth(state: str) -> float | None:
    """One number that is not 24 is worth nothing; the model values everything else."""
    return 0.0 if len(state.split()) == 1 else None


def start(inputs: Mapping[str, Any]) -> str:
    return text(numbers(inputs["numbers"]))


PROBLEM = pf.Problem(
    start=start, step=take, done=lambda state: state == "24", options=legal_steps, worth=worth
)


def solves(numbers: str, answer: str) -> bool:
    """Say whether the last line of an answer makes 24 of the numbers, each used once.

    The line may begin with "Answer:" and end with "= 24", as in the paper's own check.
    """
    expression = answer.strip().rpartition("\n")[2].lower().replace("answer: ", "").split("=")[0]
    if sorted(re.findall(r"\d+", expression)) != sorted(re.findall(r"\d+", numbers)):
        return False
    try:
        return value_of(expression) == 24
    except ArithmeticFault:
        return False


def puzzles(count: int, seed: int) -> list[str]:
    folder = Path(os.environ.get("PROMPTFLOW_DATA") or ROOT.parent / "shared" / "data")
    file = folder / "game24" / "24.csv"
    if not file.is_file():
        return list(BUILT_IN[:count])
    with file.open(encoding="utf-8") as lines:
        rows = [row["Puzzles"] for row in csv.DictReader(lines)]
    return random.Random(seed).sample(rows[900:1000], count)


def solver(search: Any = "breadth_first", breadth: int = 5, proposals: int = 8) -> Any:
    """A search whose steps are the best of one weighed choice, and its values weighed verdicts."""
    return pf.TreeOfThoughts(
        pf.Predict("game24_step", weigh=True),
        pf.Predict("game24_value", weigh=True),
        problem=PROBLEM,
        search=search,
        depth=3,
        breadth=breadth,
        proposals=proposals,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Game of 24 by tree of thoughts")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--puzzles", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", default="breadth_first", choices=SEARCHES)
    given = parser.parse_args(arguments)
    lm = pf.configure(given.model)
    chosen = puzzles(given.puzzles, given.seed)
    began = time.perf_counter()
    results = pf.run_many(
        solver(given.search), [{"numbers": puzzle} for puzzle in chosen], seed=given.seed
    )
    seconds = time.perf_counter() - began
    solved = 0
    for puzzle, result in zip(chosen, results, strict=True):
        if isinstance(result, pf.PromptflowError):
            print(f"{puzzle}: {result}")
            continue
        solved += result.solved
        nodes = len(result.tree.thoughts)
        verdict = "24" if result.solved else "no"
        print(f"{puzzle:12} {verdict:3} {nodes:4} states  {result.answer.replace(chr(10), '; ')}")
    stats = lm.text_engine.stats()
    prompt = stats.prefilled + stats.reused
    print(f"solved {solved} of {len(chosen)} in {seconds:.0f} s")
    print(
        f"prompt tokens: {stats.prefilled} prefilled, {stats.reused} reused "
        f"({stats.reused / max(prompt, 1):.1%}); {stats.generated} sampled, {stats.forced} forced"
    )


if __name__ == "__main__":
    main()
