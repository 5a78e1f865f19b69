"""The data that benchmarks ask about: exemplars, problems, questions and logs of searches.

It is not part of promptflow: set PROMPTFLOW_DATA to its folder, or have ../shared/data beside the
clone.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import dspy
import yaml

SEED = 2026


def file(name: str) -> Path:
    """Return a file of the evaluation sets; end the program where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("PROMPTFLOW_DATA") or default) / name
    if not path.is_file():
        sys.exit(f"{path} is missing: set PROMPTFLOW_DATA to the folder of evaluation sets")
    return path


def demonstrations() -> list[str]:
    """Return the eight chain-of-thought exemplars of GSM8K as texts."""
    exemplars = yaml.safe_load(file("exemplars/lm_eval_gsm8k/gsm8k-cot.yaml").read_text())
    samples = exemplars["fewshot_config"]["samples"]
    return [f"Q: {s['question']}\nA: {s['target']}\n\n" for s in samples]


def problems() -> list[dict[str, str]]:
    """Return the test problems of GSM8K: question and answer of each."""
    lines = file("gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def searches() -> list[dict[str, Any]]:
    """Return the logged searches of Yao et al. 2023 in Game of 24."""
    with gzip.open(
        file("game24/gpt-4_0.7_propose1_value3_greedy5_start900_end1000.json.gz")
    ) as log:
        return list(json.load(log))


def questions(n: int, seed: int = SEED, tune: bool = False) -> list[dspy.Example]:
    """Return a seeded sample of SQuAD 1.1 questions with their passages and gold answers.

    They come from every other article, with ``tune`` from the articles between them.
    """
    with gzip.open(file("squad/squaddev_v1.1.json.gz")) as squad:
        articles = sorted(json.load(squad)["data"], key=lambda article: article["title"])
    rows = [
        (paragraph["context"], qa["question"], [a["text"] for a in qa["answers"]])
        for article in articles[tune::2]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    return [
        dspy.Example(passage=passage, question=question, answers=answers).with_inputs(
            "passage", "question"
        )
        for passage, question, answers in random.Random(seed).sample(rows, n)
    ]
