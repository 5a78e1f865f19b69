"""Prompting techniques on the same problems, each journalled, with intervals and what it costs.

    python benchmarks/techniques.py [--model M] [--task T] [--technique N] [--quick] [--json]
    python benchmarks/techniques.py --seconds 300     ask for five minutes, then report
    python benchmarks/techniques.py --seconds 0       report what is journalled

GSM8K and MultiArith: 60 seeded problems each, direct, few-shot, zero-shot chain of thought (two
stages), few-shot chain of thought, and self-consistency over eight of those chains at most. The
eight exemplars are the published ones. Game of 24: 30 seeded puzzles of the ranks 900 to 999, by
direct answers, chains, a vote over eight of them, and trees of thoughts; with ``random``, a tree
whose steps and values are drawn, is shown what the search gets without a model. Mini crosswords:
five of the 20 of Yao et al. 2023 by depth-first search; ``right`` is the share of right letters.
Prompts are tuned on other rows than these, which ``--tune`` asks instead. Every answer is
journalled with its tokens before it counts, under what its program is: a run that was stopped goes
on, and a changed prompt is asked again. ``--quick`` takes every tenth problem. Differences are
paired, with bootstrap intervals of 95 %. Seconds are those of the batch divided by its problems.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import yaml
from evaluation_sets import SEED, file, problems

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import crosswords
import game_of_24

import promptflow as pf
from promptflow.errors import PromptflowError
from promptflow.evaluation.stats import bootstrap_interval, paired_interval
from promptflow.flow import Call, changed, flow_of, run_flows
from promptflow.lm import seed_of
from promptflow.program.identity import program_identity
from promptflow.progress import bar
from promptflow.storage import Journal

JOURNAL = Path(__file__).resolve().parents[1] / "runs" / "techniques.sqlite"
BATCH = 60.0  # seconds that a batch should take: so much is lost where a run is killed
WORDS = "question -> answer: int"
TARGETS = (
    ("gsm8k", "zero-shot CoT", "direct"),
    ("multiarith", "zero-shot CoT", "direct"),
    ("gsm8k", "self-consistency", "few-shot CoT"),
    ("multiarith", "self-consistency", "few-shot CoT"),
    ("multiarith", "agent", "zero-shot CoT"),
    ("multiarith", "few-shot agent", "few-shot CoT"),
    ("gsm8k", "agent", "zero-shot CoT"),
    ("gsm8k", "few-shot agent", "few-shot CoT"),
    ("game24", "breadth-first", "CoT"),
    ("game24", "depth-first", "CoT"),
    ("game24", "best-first", "CoT"),
    ("game24", "breadth-first", "random"),
)
"""Pairs of techniques of which the first should be better."""


@dataclass(frozen=True, slots=True)
class Row:
    """A problem: what is asked, and what grades an answer."""

    name: str
    inputs: dict[str, Any]
    gold: Any


@dataclass(frozen=True, slots=True)
class Arm:
    """A technique on a task; at most ``size`` problems are asked in one batch."""

    task: str
    name: str
    program: Any
    size: int
    right: Callable[[Row, Any], float]


def exemplars() -> list[dict[str, Any]]:
    """Return the eight published exemplars with their reasoning (Wei et al., 2022)."""
    text = file("exemplars/lm_eval_gsm8k/gsm8k-cot.yaml").read_text(encoding="utf-8")
    made = []
    for sample in yaml.safe_load(text)["fewshot_config"]["samples"]:
        reasoning, answer = sample["target"].split(" The answer is ")
        number = int(re.sub(r"\D", "", answer))
        made.append({"question": sample["question"], "reasoning": reasoning, "answer": number})
    return made


def calculated(demo: dict[str, Any]) -> dict[str, Any]:
    """Return an exemplar as a run of an agent: each equation of its reasoning is a call."""
    steps, at, text = [], 0, demo["reasoning"]
    for found in re.finditer(r"(\d+ [-+*x] \d+) (?:=|is) (\d+)", text):
        expression = {"expression": found[1].replace("x", "*")}
        call = {"tool": "calculate", "arguments": expression, "result": found[2]}
        steps.append({"thought": text[at : found.end(1)], **call})
        at = text.find(". ", found.end()) + 2
    return {"question": demo["question"], "answer": demo["answer"], "steps": steps}


def gsm8k(tune: bool) -> list[Row]:
    """Return the judged problems of GSM8K's test, or as many to tune on."""
    rows = list(enumerate(problems()))
    return [
        _row(str(number), row["question"], row["answer"].split("####")[1])
        for number, row in _drawn(rows, 60, tune)
    ]


def multiarith(tune: bool) -> list[Row]:
    """Return the judged problems of MultiArith, or as many to tune on."""
    rows = json.loads(file("multiarith/MultiArith.json").read_text(encoding="utf-8"))
    return [
        _row(str(row["iIndex"]), row["sQuestion"], row["lSolutions"][0])
        for row in _drawn(rows, 60, tune)
    ]


def game24(tune: bool) -> list[Row]:
    """Return the judged puzzles of the ranks 900 to 999, or as many of 800 to 899 to tune on."""
    first = 800 if tune else 900
    lines = file("game24/24.csv").read_text(encoding="utf-8").splitlines()
    ranked = [row["Puzzles"] for row in csv.DictReader(lines)][first : first + 100]
    return [Row(n, {"numbers": n}, None) for n in random.Random(SEED).sample(ranked, 30)]


def _drawn(rows: list[Any], n: int, tune: bool) -> list[Any]:
    """Return the first of a seeded sample, or those after them."""
    sample = random.Random(SEED).sample(rows, 2 * n)
    return sample[n:] if tune else sample[:n]


def _row(name: str, question: str, answer: Any) -> Row:
    number = float(str(answer).replace(",", ""))
    return Row(name, {"question": question.strip()}, number)


def number_is_right(row: Row, prediction: Any) -> float:
    """Return 1.0 for the right number."""
    gold = dspy.Example(answer=row.gold)
    return pf.numeric(gold, prediction)


def word_problems(task: str) -> list[Arm]:
    """Return the techniques on problems in words."""
    demos = exemplars()
    plain = [{k: v for k, v in demo.items() if k != "reasoning"} for demo in demos]
    # Longer than any chain that ends: what has no end yet is cut, and then answered.
    chain = pf.ChainOfThought(WORDS, demos=demos, reasoning_tokens=256)
    programs = {
        "direct": (pf.Predict(WORDS), 60),
        "zero-shot CoT": (pf.ZeroShotCoT(WORDS, reasoning_tokens=400), 30),
        "few-shot CoT": (chain, 30),
        "few-shot": (pf.Predict(WORDS, demos=plain), 60),
        "self-consistency": (pf.SelfConsistency(chain, n=8), 15),
        "agent": (pf.Agent(WORDS, ["calculate"], thought_tokens=96), 20),
        "few-shot agent": (
            pf.Agent(WORDS, ["calculate"], demos=[*map(calculated, demos)], thought_tokens=96),
            20,
        ),
    }
    return [Arm(task, name, p, size, number_is_right) for name, (p, size) in programs.items()]


def makes_24(row: Row, prediction: Any) -> float:
    """Return 1.0 for an expression, or a path of steps, that makes 24 of the numbers."""
    if "solved" in prediction:
        return float(prediction.solved)
    return float(game_of_24.solves(row.inputs["numbers"], prediction.answer))


def by_chance() -> Any:
    """Return a breadth-first search like the others whose steps and values are drawn."""

    def propose(state: str, options: list[str]) -> list[str]:
        return random.Random(f"{SEED} {state}").sample(options, min(8, len(options)))

    return pf.TreeOfThoughts(
        propose,
        lambda state: random.Random(f"{SEED}, {state}").random(),
        problem=game_of_24.PROBLEM,
    )


def games(task: str) -> list[Arm]:
    """Return the techniques on the Game of 24; the trees but the first may grow 22 states."""
    here = Path(__file__).parent
    chain = pf.Predict(here / "game24_chain.toml", reasoning_tokens=128)
    programs = {
        "random": (by_chance(), 30),
        "CoT": (chain, 30),
        "breadth-first": (game_of_24.solver(), 10),
        "direct": (pf.Predict(here / "game24_answer.toml"), 30),
        "best-first": (game_of_24.solver(pf.BestFirst(0.5, steps=22)), 10),
        "depth-first": (game_of_24.solver(pf.DepthFirst(0.5, steps=22), breadth=3), 15),
        "CoT-SC": (pf.SelfConsistency(chain, n=8), 15),
    }
    return [Arm(task, name, p, size, makes_24) for name, (p, size) in programs.items()]


def crossword_rows(tune: bool) -> list[Row]:
    """Return five puzzles of the paper's test, or the five after them to tune on."""
    every = crosswords.puzzles(10)
    chosen = every[5:] if tune else every[:5]
    return [Row(str(n), {"clues": one["clues"]}, one["solution"]) for n, one in enumerate(chosen)]


def letters_are_right(row: Row, prediction: Any) -> float:
    """Return the share of right letters."""
    return float(crosswords.score(prediction.state, row.gold)[0])


def grids(task: str) -> list[Arm]:
    """Return the depth-first search of crosswords."""
    return [Arm(task, "depth-first", crosswords.solver(steps=12), 5, letters_are_right)]


TASKS: dict[str, tuple[Callable[[bool], list[Row]], Callable[[str], list[Arm]]]] = {
    "multiarith": (multiarith, word_problems),
    "gsm8k": (gsm8k, word_problems),
    "game24": (game24, games),
    "crosswords": (crossword_rows, grids),
}


@dataclass(slots=True)
class Runs:
    """What is journalled, and the clock that ends the asking."""

    journal: Journal
    model: str
    ends: float

    def keys(self, arm: Arm, rows: Sequence[Row]) -> dict[str, str]:
        """Return what answers are kept under: a program that changed has others."""
        program = f"{self.model}/{arm.task}/{arm.name}/{program_identity(arm.program)[:12]}"
        return {row.name: f"{program}/{row.name}" for row in rows}

    def ask(self, arm: Arm, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Ask what is not journalled yet, batch by batch, until the time is over.

        Return what is journalled then, by the problem's name.
        """
        keys = self.keys(arm, rows)
        open_rows = [row for row in rows if self.journal.get(keys[row.name]) is None]
        done = len(rows) - len(open_rows)
        with bar(f"{arm.task}, {arm.name}", len(rows)) as advance:
            advance(done)
            start, size = 0, max(1, arm.size // 5)
            while start < len(open_rows) and time.monotonic() < self.ends:
                batch = open_rows[start : start + size]
                began = time.perf_counter()
                results = run_flows(seeded(arm.program, row) for row in batch)
                seconds = (time.perf_counter() - began) / len(batch)
                for row, result in zip(batch, results, strict=True):
                    self.journal.append(keys[row.name], kept(arm, row, result, seconds))
                start, done = start + len(batch), done + len(batch)
                size = max(1, min(arm.size, int(BATCH / max(seconds, 1e-3))))
                advance(done)
        found = {name: self.journal.get(key) for name, key in keys.items()}
        return {name: answer for name, answer in found.items() if answer is not None}


def seeded(program: Any, row: Row) -> Any:
    """Return the flow of a program on a row, seeded by the row: alone or in a batch, the same."""

    def change(call: Call, step: int, position: int) -> Call:
        return replace(call, seed=seed_of(SEED, row.name, step, position))

    return changed(flow_of(program, row.inputs), change)


def kept(arm: Arm, row: Row, result: Any, seconds: float) -> dict[str, Any]:
    """Return what the journal keeps of an answer; an error of the engine stops the run."""
    if isinstance(result, PromptflowError):
        raise result
    fields = {k: str(v) for k, v in result.items() if k not in ("tree", "votes")}
    return {
        "right": arm.right(row, result),
        "fields": fields,
        "cut": result.cut,
        "usage": asdict(result.usage),
        "seconds": seconds,
    }


def asked_arms(options: argparse.Namespace) -> Iterator[tuple[Arm, list[Row]]]:
    """Give the chosen techniques with their problems."""
    for task in options.task or TASKS:
        rows, arms = TASKS[task]
        chosen = rows(options.tune)[:: 10 if options.quick else 1]
        for arm in arms(task):
            if not options.technique or arm.name in options.technique:
                yield arm, chosen


def figures(answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy with its interval, and what a problem costs."""
    every = list(answers.values())
    scores = bootstrap_interval([one["right"] for one in every], seed=SEED)

    def mean(*names: str) -> float:
        return sum(one["usage"][name] for one in every for name in names) / len(every)

    return {
        **asdict(scores),
        "cut": sum(one["cut"] for one in every),
        "computed": mean("prefilled", "generated", "forced"),
        "prefilled": mean("prefilled"),
        "reused": mean("reused"),
        "generated": mean("generated"),
        "seconds": sum(one["seconds"] for one in every) / len(every),
    }


def gap(better: dict[str, Any], worse: dict[str, Any]) -> dict[str, Any] | None:
    """Return the paired difference on the problems that both have."""
    names = [name for name in better if name in worse]
    if not names:
        return None
    sides = [[side[name]["right"] for name in names] for side in (better, worse)]
    return asdict(paired_interval(*sides, seed=SEED))


def report(model: str, found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of every technique, and the differences that were to be shown."""
    made: dict[str, Any] = {"model": model, "tasks": {}, "differences": []}
    for (task, name), answers in found.items():
        if answers:
            made["tasks"].setdefault(task, {})[name] = figures(answers)
    for task, better, worse in TARGETS:
        sides = found.get((task, better), {}), found.get((task, worse), {})
        if (difference := gap(*sides)) is not None:
            made["differences"].append({"task": task, "of": better, "over": worse, **difference})
    return made


def table(made: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = []
    for task, arms in made["tasks"].items():
        lines += [f"{task}, {made['model']}", "", COLUMNS, "|---|" + "---:|" * 8]
        for name, f in arms.items():
            lines.append(
                f"| {name} | {f['n']} | {f['mean']:.3f} | {f['low']:.3f} to {f['high']:.3f} "
                f"| {f['prefilled']:.0f} | {f['reused']:.0f} | {f['generated']:.0f} "
                f"| {f['seconds']:.1f} | {f['cut']} |"
            )
        lines.append("")
    for d in made["differences"]:
        lines.append(
            f"{d['task']}: {d['of']} - {d['over']} = {d['mean']:+.3f} "
            f"[{d['low']:+.3f}, {d['high']:+.3f}], {d['n']} pairs"
        )
    return "\n".join(lines)


COLUMNS = "| technique | n | right | 95 % | prefilled | reused | generated | seconds | cut |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="again for more")
    parser.add_argument("--technique", action="append", help="by its name; again for more")
    parser.add_argument("--tune", action="store_true", help="other problems, not judged")
    parser.add_argument("--quick", action="store_true", help="every tenth problem")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new batch after")
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--threads", type=int, help="of the engine; fewer where others compute too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.seconds > 0:
        chosen = {"threads": options.threads, "context": 16384}
        pf.configure(options.model, options=chosen)
    with Journal(options.journal) as journal:
        runs = Runs(journal, options.model, time.monotonic() + options.seconds)
        found = {}
        for arm, rows in asked_arms(options):
            found[arm.task, arm.name] = runs.ask(arm, rows)
    made = report(options.model, found)
    print(json.dumps(made, indent=2) if options.json else table(made))


if __name__ == "__main__":
    main()
