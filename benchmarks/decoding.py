"""Ways of decoding on the same prompts: how varied their texts are, and how good.

    python benchmarks/decoding.py [--model M] [--topics N] [--questions N] [--seconds S] [--json]

Each way writes --samples texts on each topic (free text: no right answer) and answers --questions
questions of SQuAD from their passages (a right answer). Every text is journalled in --out; a run
that was killed, or cut by --seconds, goes on when repeated. Reported, with 95 % intervals over the
prompts where they matter:

varied      different texts of the samples, and distinct-2: the share of word pairs, in all samples
            of a topic, that are not said twice (Li et al. 2016, arXiv:1510.03055)
repeats     the share of a text's word triples that stand in it before
perplexity  of the texts under the model itself, before any reduction: low is likely, not good
F1          of answers, on average and of the best of the samples
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation_sets import questions

import promptflow as pf
from promptflow.evaluation.metrics import f1
from promptflow.evaluation.stats import bootstrap_interval
from promptflow.storage import Journal

WAYS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "beam 4": {"beam": pf.Beam(4)},
    "temperature 0.7": {"sampling": pf.Sampling(0.7)},
    "temperature 1": {"sampling": pf.Sampling(1.0)},
    "top-k 40": {"sampling": pf.Sampling(1.0, top_k=40)},
    "top-p 0.9": {"sampling": pf.Sampling(1.0, top_p=0.9)},
    "min-p 0.05": {"sampling": pf.Sampling(1.0, min_p=0.05)},
    "min-p 0.1, temperature 1.5": {"sampling": pf.Sampling(1.5, min_p=0.1)},
}
RAW = argparse.RawTextHelpFormatter
ONCE = ("greedy", "beam 4")
"""Ways that write the same text every time, and are asked once."""

TOPICS = (
    "a lighthouse keeper who hears singing",
    "two sisters who share one umbrella",
    "a train that stops in an empty town",
    "the first snow in a desert",
    "a baker who forgets a name",
    "a map with a missing page",
    "an old dog and a new house",
    "a letter that arrives forty years late",
    "a garden on a roof",
    "a clock that runs backwards",
    "a night without electricity",
    "a boy who collects shadows",
)


def module(kind: str, way: Mapping[str, Any]) -> Any:
    """Return the program that writes one text of a kind in a way."""
    if kind == "topic":
        made = pf.Predict("topic -> story: str", max_tokens=60)
    else:
        made = pf.Predict("passage, question -> answer", max_tokens=16)
    made.decoding = pf.Decoding(**way).over(made.decoding)
    return made


def rows_of(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any], Any]]:
    """Return kind, key, inputs and example of every prompt."""
    topics = [("topic", f"topic {n}", {"topic": t}, None) for n, t in enumerate(TOPICS)]
    asked = [
        ("question", f"question {n}", {k: example[k] for k in ("passage", "question")}, example)
        for n, example in enumerate(questions(options.questions))
    ]
    return [*topics[: options.topics], *asked]


def record(options: argparse.Namespace) -> None:
    """Write what is not in the journal yet, all samples of some prompts of a way in one batch."""
    lm = pf.configure(options.model)
    begun = time.monotonic()
    with Journal(options.out) as journal:
        for kind in ("topic", "question"):
            rows = [row for row in rows_of(options) if row[0] == kind]
            for start in range(0, len(rows), 4):
                for name, way in WAYS.items():
                    some = [r for r in rows[start : start + 4] if not journal.get(f"{name} {r[1]}")]
                    if not some or time.monotonic() - begun > options.seconds:
                        continue
                    count = 1 if name in ONCE else options.samples
                    inputs = [inputs for _, _, inputs, _ in some for _ in range(count)]
                    at = time.monotonic()
                    made = pf.run_many(module(kind, way), inputs, lm=lm, seed=start)
                    seconds = (time.monotonic() - at) / len(inputs)
                    for number, (_, key, _, example) in enumerate(some):
                        mine = made[number * count : (number + 1) * count]
                        texts = [_told(one, lm, example) for one in mine]
                        entry = {"way": name, "kind": kind, "seconds": seconds, "texts": texts}
                        journal.append(f"{name} {key}", entry)
                done = min(start + 4, len(rows))
                print(f"{kind} {done}, {time.monotonic() - begun:.0f} s", file=sys.stderr)


def _told(result: Any, lm: Any, example: Any) -> dict[str, Any]:
    if isinstance(result, Exception):
        raise result
    [fill] = result.fills.values()
    text = fill.text
    told = {"text": text, "logprob": fill.logprob, "tokens": lm.text_engine.count((pf.Text(text),))}
    if example is not None:
        told["f1"] = max(f1(_gold(example, answer), result) for answer in example.answers)
    return told


def _gold(example: Any, answer: str) -> Any:
    return example.copy(answer=answer)


def words(text: str) -> list[str]:
    """Return a text's words in lower case."""
    return re.findall(r"\w+", text.lower())


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    """Return the runs of ``size`` words of a text."""
    found = words(text)
    return [tuple(found[n : n + size]) for n in range(len(found) - size + 1)]


def _new(found: Sequence[Any]) -> float:
    return len(set(found)) / len(found) if found else 1.0


def measured(entries: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """Return what is reported of one way."""
    topics = [e["texts"] for e in entries if e["kind"] == "topic"]
    asked = [e["texts"] for e in entries if e["kind"] == "question"]
    # A text that is the same every time is said once for each sample.
    whole = [texts * (samples if len(texts) == 1 else 1) for texts in topics]
    pairs = [_new([g for one in texts for g in grams(one["text"], 2)]) for texts in whole]
    scores = [statistics.fmean(one["f1"] for one in texts) for texts in asked]
    interval = bootstrap_interval(scores) if scores else None
    tokens = sum(one["tokens"] for texts in topics for one in texts)
    logprob = sum(one["logprob"] for texts in topics for one in texts)
    texts = [one["text"] for some in topics for one in some]
    return {
        "topics": len(topics),
        "questions": len(asked),
        "different": statistics.fmean(len({t["text"] for t in some}) for some in whole),
        "distinct_2": statistics.fmean(pairs),
        "repeats": statistics.fmean(1 - _new(grams(text, 3)) for text in texts),
        "perplexity": math.exp(-logprob / max(1, tokens)),
        "f1": statistics.fmean(scores) if scores else math.nan,
        "f1_low": interval.low if interval else math.nan,
        "f1_high": interval.high if interval else math.nan,
        "f1_best": statistics.fmean(max(o["f1"] for o in some) for some in asked) if asked else 0.0,
        "seconds": statistics.fmean(e["seconds"] for e in entries),
    }


def report(options: argparse.Namespace) -> None:
    """Print a row for each way."""
    held: dict[str, list[Any]] = {name: [] for name in WAYS}
    with Journal(options.out) as journal:
        for _, entry in journal.items():
            held[entry["way"]].append(entry)
    table = {n: measured(es, options.samples) for n, es in held.items() if es}
    if options.json:
        print(json.dumps(table, indent=2))
        return
    head = "way | different | distinct-2 | repeats | perplexity | F1 (95 %) | best F1 | s a text"
    print(f"{head}\n{'|'.join(['---'] * 8)}")
    for name, row in table.items():
        interval = f"{row['f1']:.2f} ({row['f1_low']:.2f} to {row['f1_high']:.2f})"
        print(
            f"{name} | {row['different']:.1f} of {options.samples} | {row['distinct_2']:.2f} | "
            f"{row['repeats']:.2f} | {row['perplexity']:.1f} | {interval} | {row['f1_best']:.2f} | "
            f"{row['seconds']:.1f}"
        )
    first = next(iter(table.values()))
    print(f"{options.model}: {first['topics']} topics, {first['questions']} questions")


def main() -> None:
    """Record what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--topics", type=int, default=12)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.out = options.out or Path("runs") / f"decoding-{Path(options.model).stem}.sqlite"
    record(options)
    report(options)


if __name__ == "__main__":
    main()
