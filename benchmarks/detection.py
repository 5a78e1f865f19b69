"""Measure how well texts of models are told from texts of people by the local model's statistics.

    python benchmarks/detection.py --model qwen2.5-coder-0.5b --out runs/detection --seconds 270

Texts of people: paragraphs of SQuAD, worked solutions of GSM8K, answers of Self-Instruct's seeds.
Texts of models: answers of 7B models in PandaLM, GPT-4's references of MT-Bench. All of at least 50
words, cut to 120. A seeded half fits the threshold, so that one in twenty texts of people is called
a model's; the other half is reported. Every text is journalled.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import evaluation_sets
import numpy as np
from sklearn.metrics import roc_auc_score

import promptflow as pf
from promptflow.evaluation.detection import LEAST, measures
from promptflow.evaluation.likeness import scored_tokens
from promptflow.storage import Journal

SEED, EACH, SHORTEST, LONGEST, BATCH = 2026, 40, 50, 120, 8
FALSE_ALARMS = 0.05


def texts() -> list[dict[str, str]]:
    """Return seeded texts of each source, cut to LONGEST words."""
    read = {name: evaluation_sets.file(path) for name, path in PATHS.items()}
    sources = {
        ("people", "squad"): [
            paragraph["context"]
            for article in json.loads(gzip.decompress(read["squad"].read_bytes()))["data"]
            for paragraph in article["paragraphs"]
        ],
        ("people", "gsm8k"): [row["answer"].split("####")[0] for row in _lines(read["gsm8k"])],
        ("people", "self_instruct"): [
            one["output"] for row in _lines(read["self_instruct"]) for one in row["instances"]
        ],
        ("models", "pandalm"): [
            row[name]
            for row in json.loads(read["pandalm"].read_text())
            for name in ("response1", "response2")
        ],
        ("models", "mt_bench"): [
            turn
            for path in ("mt_bench", "vicuna_bench")
            for row in _lines(evaluation_sets.file(f"mt_bench/{path}/reference_gpt-4.jsonl"))
            for turn in row["choices"][0]["turns"]
        ],
    }
    chosen = []
    for (writer, source), found in sources.items():
        fit = sorted({" ".join(t.split()[:LONGEST]) for t in found if _is_long(t)})
        drawn = random.Random(SEED).sample(fit, min(EACH, len(fit)))
        chosen += [
            {"writer": writer, "source": source, "text": text, "key": f"{source}/{n}"}
            for n, text in enumerate(drawn)
        ]
    return chosen


PATHS = {
    "squad": "squad/squaddev_v1.1.json.gz",
    "gsm8k": "gsm8k/test.jsonl",
    "self_instruct": "self_instruct/seed_tasks.jsonl",
    "pandalm": "pandalm/testset-v1.json",
}


def _is_long(text: Any) -> bool:
    return isinstance(text, str) and len(text.split()) >= SHORTEST


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measured(model: str, out: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure what is not yet measured, for so many seconds; return what is."""
    ends, asked = time.monotonic() + seconds, texts()
    random.Random(SEED).shuffle(asked)
    with Journal(out / f"{model}.sqlite") as journal:
        left = [one for one in asked if journal.get(one["key"]) is None]
        engine = pf.Engine(model) if left else None
        while left and engine is not None and time.monotonic() < ends:
            batch, left = left[:BATCH], left[BATCH:]
            scored = scored_tokens([one["text"] for one in batch], engine)
            for one, tokens in zip(batch, scored, strict=True):
                journal.append(one["key"], {**measures(tokens), "tokens": len(tokens)})
            print(f"{len(asked) - len(left)} of {len(asked)}", flush=True)
        if engine is not None:
            engine.close()
        found = [(one, journal.get(one["key"])) for one in asked]
    return [{**one, **said} for one, said in found if said is not None and said["tokens"] >= LEAST]


def figures(found: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    """Fit a threshold on one half of the texts and return the error rates on the other."""

    def score(one: dict[str, Any]) -> float:
        if measure == "curvature":
            return float(one["curvature"]) / math.sqrt(one["tokens"])
        return float(one[measure]) if measure == "top_10" else -float(one[measure])

    halves = found[::2], found[1::2]
    people, models = (
        [[score(one) for one in half if one["writer"] == writer] for half in halves]
        for writer in ("people", "models")
    )
    threshold = float(np.quantile(people[0], 1 - FALSE_ALARMS))
    sources = sorted({one["source"] for one in found if one["writer"] == "models"})
    missed = {
        source: round(
            float(np.mean([score(o) < threshold for o in halves[1] if o["source"] == source])), 3
        )
        for source in sources
    }
    labels = [1] * len(models[1]) + [0] * len(people[1])
    return {
        "measure": measure,
        "threshold": round(threshold, 4),
        "auroc": round(float(roc_auc_score(labels, [*models[1], *people[1]])), 3),
        "false alarms": round(float(np.mean([s >= threshold for s in people[1]])), 3),
        "missed": round(float(np.mean([s < threshold for s in models[1]])), 3),
        "missed of": missed,
        "people": len(people[1]),
        "models": len(models[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--out", type=Path, default=Path("runs/detection"))
    parser.add_argument("--seconds", type=float, default=270.0)
    options = parser.parse_args()
    found = measured(options.model, options.out, options.seconds)
    for measure in ("curvature", "log_rank", "perplexity", "top_10"):
        print(json.dumps(figures(found, measure)))


if __name__ == "__main__":
    main()
