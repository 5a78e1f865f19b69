"""Measure a local model as a judge of pairs on PandaLM: agreement with people, and consistency.

    python benchmarks/judges.py --model qwen2.5-coder-0.5b --out runs/judges --seconds 280

200 seeded pairs of the 999 that three people judged alike, each asked in both orders. The prior of
the first place comes from the other half of the pairs, without what people said. Every verdict is
journalled: the same command continues, and prints the table of what is judged so far.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluation_sets

import promptflow as pf
from promptflow.errors import PromptflowError
from promptflow.evaluation.rating import Played, win_rate
from promptflow.evaluation.stats import bootstrap_interval
from promptflow.modules.judge import PairJudge
from promptflow.storage import Journal

SEED, JUDGED, BATCH = 2026, 200, 4
PEOPLE = {0: "tie", 1: "first", 2: "second"}
Verdict = Callable[[dict[str, Any]], str]


def pairs() -> list[dict[str, Any]]:
    """Return the seeded pairs with what people say."""
    rows = json.loads(evaluation_sets.file("pandalm/testset-v1.json").read_text(encoding="utf-8"))
    agreed = [r for r in rows if r["annotator1"] == r["annotator2"] == r["annotator3"]]
    chosen = random.Random(SEED).sample(agreed, JUDGED)
    return [
        {
            "question": f"{row['instruction']}\n{row['input']}".strip(),
            "first": written(row["response1"]),
            "second": written(row["response2"]),
            "people": PEOPLE[row["annotator1"]],
            "key": str(row["idx"]),
        }
        for row in chosen
    ]


def written(response: Any) -> str:
    """Return a response as it was written: the file has some, such as true, as JSON values."""
    return response if isinstance(response, str) else json.dumps(response)


def judge(model: str, out: Path, seconds: float) -> list[dict[str, Any]]:
    """Judge what is not yet judged, for so many seconds; return what is."""
    ends = time.monotonic() + seconds
    asked = pairs()
    with Journal(out / f"{model}.sqlite") as journal:
        left = [pair for pair in asked if journal.get(pair["key"]) is None]
        lm = pf.load(model) if left else None
        while left and time.monotonic() < ends:
            batch, left = left[:BATCH], left[BATCH:]
            inputs = [{name: p[name] for name in ("question", "first", "second")} for p in batch]
            for pair, given in zip(batch, pf.run_many(PairJudge(), inputs, lm=lm), strict=True):
                if isinstance(given, PromptflowError):
                    raise given
                kept = ("verdicts", "preference", "place", "probabilities")
                journal.append(pair["key"], {name: given[name] for name in kept})
            print(f"{len(asked) - len(left)} of {len(asked)}", flush=True)
        found = [(pair, journal.get(pair["key"])) for pair in asked]
    return [{**pair, **said} for pair, said in found if said is not None]


def calibrated(prior: float) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """Return the verdicts of both orders with a prior of the first place taken off."""
    own = PairJudge(prior=prior)

    def verdicts(pair: dict[str, Any]) -> tuple[str, str]:
        given, exchanged = pair["probabilities"]
        options = [
            {"A": given["first"], "B": given["second"], "tie": given["tie"]},
            {"A": exchanged["second"], "B": exchanged["first"], "tie": exchanged["tie"]},
        ]
        one, other = (own._verdict(share) for share in options)
        return (
            {"A": "first", "B": "second"}.get(one, one),
            {"A": "second", "B": "first"}.get(other, other),
        )

    return verdicts


def preferred(pair: dict[str, Any]) -> str:
    """Return the answer that is preferred once the pair's own prior is off."""
    return "first" if pair["preference"] > 0.5 else "second"


def agreed(verdicts: tuple[str, str]) -> str:
    """Return what both orders say, else a tie."""
    return verdicts[0] if verdicts[0] == verdicts[1] else "tie"


def row(
    name: str, said: list[str], judged: list[dict[str, Any]], both: Any = None
) -> dict[str, Any]:
    """Return a line of the table: agreement with people, and the consistency of both orders."""
    right = [float(a == pair["people"]) for a, pair in zip(said, judged, strict=True)]
    clear = [
        float(a == pair["people"])
        for a, pair in zip(said, judged, strict=True)
        if pair["people"] != "tie" and a != "tie"
    ]
    kappa = pf.cohen_kappa(said, [pair["people"] for pair in judged])
    figures: dict[str, Any] = {"control": name, "kappa": round(kappa, 3)}
    for label, scores in (("agreement", right), ("of decided", clear)):
        found = bootstrap_interval(scores)
        figures[label] = [round(v, 3) for v in (found.mean, found.low, found.high)]
    figures["decided"] = len(clear)
    if both is not None:
        found = pf.reliability(pf.Prediction(verdicts=pair) for pair in both)
        figures["consistency"] = [round(v, 3) for v in (found.consistency, found.low, found.high)]
        figures["first place"] = round(found.first, 3)
    return figures


def table(judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures without and with each control."""
    halves = judged[::2], judged[1::2]
    priors = [statistics.median(pair["place"] for pair in half) for half in halves]
    raw = [tuple(pair["verdicts"]) for pair in judged]
    off = [calibrated(priors[1 - n % 2])(pair) for n, pair in enumerate(judged)]
    longer = ["first" if len(p["first"]) > len(p["second"]) else "second" for p in judged]
    shown = " and ".join(f"{prior:.2f}" for prior in priors)
    return [
        row("one order", [pair[0] for pair in raw], judged),
        row("both orders", [agreed(pair) for pair in raw], judged, raw),
        row(f"both orders, prior {shown} off", [agreed(pair) for pair in off], judged, off),
        row("each pair's own prior off", [preferred(pair) for pair in judged], judged),
        row("(the longer answer)", longer, judged),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--out", type=Path, default=Path("runs/judges"))
    parser.add_argument("--seconds", type=float, default=280.0)
    options = parser.parse_args()
    found = judge(options.model, options.out, options.seconds)
    for line in table(found):
        print(json.dumps(line))
    played = [
        Played("first", "second", p["preference"], (len(p["first"]), len(p["second"])))
        for p in found
    ]
    print(win_rate(played))
    if len(found) < JUDGED:
        raise SystemExit(f"{len(found)} of {JUDGED} are judged: run the same again to continue")


if __name__ == "__main__":
    main()
