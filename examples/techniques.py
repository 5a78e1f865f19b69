"""Five prompting techniques on the same grade-school problems, with what each costs.

    python examples/techniques.py [--model qwen2.5-coder-0.5b] [--n 12] [--samples 5] [--tokens N]

Problems are seeded GSM8K test problems from $PROMPTFLOW_DATA (or ../shared/data), demonstrations
are GSM8K training problems; without that folder, four problems and four demonstrations of our own.
Each technique starts with an empty cache. `prefilled` are prompt tokens that were computed,
`reused` those that came from the cache, `generated` those that the model sampled.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import dspy

import promptflow as pf

SIGNATURE = "question -> answer: int"
OWN = (
    ("A box holds 6 eggs. How many eggs do 7 boxes hold?", 42),
    ("Ana has 15 stamps and gives away 4. How many are left?", 11),
    ("A rope of 24 metres is cut into 8 equal parts. How long is each in metres?", 3),
    ("Ben reads 12 pages a day for 5 days. How many pages does he read?", 60),
    ("A train has 9 cars with 40 seats each. 35 seats are taken. How many are free?", 325),
    ("Tea costs $3 and a cake $5. How much are 2 teas and 3 cakes in dollars?", 21),
    ("Half of the 30 children walk to school, and 6 cycle. How many come otherwise?", 9),
    ("A tank of 200 litres loses 15 litres a day. How many litres are left after 6 days?", 110),
)
ROOT = Path(__file__).resolve().parent.parent


def read(file: Path) -> list[dspy.Example]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [example(r["question"], r["answer"].split("####")[1].replace(",", "")) for r in rows]


def example(question: str, answer: Any) -> dspy.Example:
    return dspy.Example(question=question, answer=int(answer)).with_inputs("question")


def problems(n: int, seed: int) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Demonstrations and test problems; never the same ones."""
    folder = Path(os.environ.get("PROMPTFLOW_DATA") or ROOT.parent / "shared" / "data") / "gsm8k"
    if not folder.is_dir():
        own = [example(*problem) for problem in OWN]
        return own[:4], own[4:][:n]
    rng = random.Random(seed)
    return rng.sample(read(folder / "train.jsonl.gz"), 8), rng.sample(
        read(folder / "test.jsonl"), n
    )


def techniques(demos: Sequence[dspy.Example], samples: int, tokens: int) -> dict[str, Any]:
    chain = pf.ChainOfThought(SIGNATURE, reasoning_tokens=tokens)
    return {
        "zero-shot": pf.Predict(SIGNATURE),
        f"few-shot ({len(demos)})": pf.Predict(SIGNATURE, demos=demos),
        "chain of thought": chain,
        "zero-shot CoT": pf.ZeroShotCoT(SIGNATURE, reasoning_tokens=tokens),
        f"self-consistency ({samples})": pf.SelfConsistency(chain, n=samples),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Five techniques on grade-school problems")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=12, help="how many problems")
    parser.add_argument("--samples", type=int, default=5, help="of self-consistency")
    parser.add_argument("--tokens", type=int, default=1024, help="of a chain of thought at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    demos, test = problems(given.n, given.seed)
    inputs = [dict(problem.inputs()) for problem in test]
    columns = ("right", "errors", "prefilled", "reused", "generated", "seconds")
    print(f"{'technique':22}", *(f"{column:>10}" for column in columns))
    for name, program in techniques(demos, given.samples, given.tokens).items():
        with closing(pf.Engine(given.model)) as engine:
            began = time.perf_counter()
            lm = pf.load(given.model, engine=engine)
            results = pf.run_many(program, inputs, lm=lm, seed=given.seed)
            seconds = time.perf_counter() - began
            stats = engine.stats()
        answers = [
            (p, r) for p, r in zip(test, results, strict=True) if isinstance(r, pf.Prediction)
        ]
        right = sum(pf.numeric(problem, result) for problem, result in answers)
        row = (f"{right:.0f}/{len(test)}", len(test) - len(answers), stats.prefilled, stats.reused)
        print(f"{name:22}", *(f"{v:>10}" for v in (*row, stats.generated, f"{seconds:.1f}")))


if __name__ == "__main__":
    main()
