"""Typed answers about a passage: promptflow's slots against DSPy's adapters, on one engine.

    python benchmarks/squad.py [--model M] [--questions N] [--quick] [--json]

SQuAD 1.1 questions with their gold passage, zero-shot and greedy; a seeded sample of every other
article (prompts were tuned on the articles between them, ``--tune``). The arms:

    a     passage, question -> answer
    b     the same with confidence: Literal['low','medium','high'] and evidence: int, the number of
          the sentence, bounded by how many there are
    chat  dspy.ChatAdapter on b, as DSPy ships it (a failed parse costs a second call)
    json  dspy.JSONAdapter on b

A parse failure scores 0; any other error ends the run. Data: evaluation_sets.py.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dspy
from dspy.utils.exceptions import AdapterParseError
from evaluation_sets import SEED, questions

import promptflow as pf
from promptflow.evaluation.metrics import exact_match, f1
from promptflow.evaluation.stats import paired_interval
from promptflow.progress import bar

ARMS = ("a", "b", "chat", "json")


@dataclass(frozen=True)
class Result:
    """What one arm did: means over questions, sums of calls and seconds."""

    arm: str
    n: int
    f1: float
    em: float
    failures: int
    calls: int
    prompt_tokens: float
    completion_tokens: float
    seconds: float


@functools.cache
def typed(sentences: int) -> type[dspy.Signature]:
    """Return signature b for a passage of so many sentences."""

    class Typed(dspy.Signature):
        passage: str = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()
        confidence: Literal["low", "medium", "high"] = dspy.OutputField()
        evidence: int = dspy.OutputField(
            desc="number of the sentence with the answer", ge=1, le=sentences
        )

    return Typed


def signature_of(example: dspy.Example) -> type[dspy.Signature]:
    """Return signature b for an example."""
    return typed(len(re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"])", example.passage.strip())))


class Typed(pf.Module):
    """Answer under the signature that fits the passage."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = pf.Predict(typed(1))

    def flow(self, passage: str, question: str) -> Any:
        """Yield one call."""
        signature = signature_of(dspy.Example(passage=passage))
        call = self.predict.call(passage=passage, question=question, signature=signature)
        [prediction] = yield [call]
        return prediction


def through_adapter(adapter: Any, data: list[dspy.Example], lm: Any) -> list[Any]:
    """Return DSPy's predictions, None for a parse failure; eight threads, as Evaluate has."""

    done = itertools.count(1)

    def answer(example: dspy.Example) -> Any:
        with dspy.context(lm=lm, adapter=adapter):
            try:
                return dspy.Predict(signature_of(example))(**example.inputs())
            except AdapterParseError:
                return None
            finally:
                advance(next(done))

    with bar(type(adapter).__name__, len(data)) as advance:
        parallel = dspy.Parallel(num_threads=8, timeout=0, disable_progress_bar=True)
        answers: list[Any] = parallel([(answer, (example,)) for example in data])
    return answers


def through_slots(module: Any, data: list[dspy.Example], lm: Any) -> list[Any]:
    """Return our predictions, None for a parse failure."""
    inputs = [example.inputs().toDict() for example in data]
    with bar(type(module).__name__, len(data)) as advance:
        answers = pf.run_many(module, inputs, lm=lm, progress=lambda done, known: advance(done))
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, pf.errors.ParseError):
            raise answer
    return [None if isinstance(answer, Exception) else answer for answer in answers]


def measure(arm: str, data: list[dspy.Example], lm: Any) -> tuple[Result, list[float]]:
    """Run one arm; return its result and the F1 of each question."""
    before, begun = lm.text_engine.stats(), time.perf_counter()
    if arm == "a":
        answers = through_slots(pf.Predict("passage, question -> answer"), data, lm)
    elif arm == "b":
        answers = through_slots(Typed(), data, lm)
    else:
        adapter = dspy.ChatAdapter() if arm == "chat" else dspy.JSONAdapter()
        answers = through_adapter(adapter, data, lm)
    seconds, after = time.perf_counter() - begun, lm.text_engine.stats()
    n = len(data)

    def mean(*names: str) -> float:
        return sum(getattr(after, name) - getattr(before, name) for name in names) / n

    pairs = list(zip(data, answers, strict=True))
    scores = [0.0 if p is None else f1(e, p, field="answer") for e, p in pairs]
    exact = [0.0 if p is None else exact_match(e, p, field="answer") for e, p in pairs]
    return Result(
        arm,
        n,
        sum(scores) / n,
        sum(exact) / n,
        answers.count(None),
        round(mean("requests") * n),
        mean("prefilled", "reused"),
        mean("generated", "forced"),
        seconds,
    ), scores


def report(
    model: str, results: dict[str, Result], scores: dict[str, list[float]]
) -> dict[str, Any]:
    """Return the results with b against the better adapter: paired difference and token ratio."""
    made: dict[str, Any] = {
        "model": model,
        "seed": SEED,
        "arms": {name: asdict(result) for name, result in results.items()},
    }
    rivals = [name for name in ("chat", "json") if name in results]
    if "b" in results and rivals:
        better = max(rivals, key=lambda name: results[name].f1)
        gap = paired_interval(scores["b"], scores[better], seed=SEED)
        ratio = results["b"].prompt_tokens / results[better].prompt_tokens
        made["comparison"] = {
            "against": better,
            "f1_difference": gap.mean,
            "low": gap.low,
            "high": gap.high,
            "prompt_ratio": ratio,
        }
    return made


def table(made: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"{made['model']}, SQuAD with the gold passage, zero-shot, greedy",
        "",
        "| arm | n | F1 | EM | parse failures | calls | prompt tokens | completion tokens | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in made["arms"].values():
        lines.append(
            f"| {r['arm']} | {r['n']} | {r['f1']:.3f} | {r['em']:.3f} | {r['failures']} "
            f"| {r['calls']} | {r['prompt_tokens']:.0f} | {r['completion_tokens']:.0f} "
            f"| {r['seconds']:.0f} |"
        )
    if c := made.get("comparison"):
        lines += [
            "",
            f"b - {c['against']}: F1 {c['f1_difference']:+.3f} "
            f"[{c['low']:+.3f}, {c['high']:+.3f}] (95 %, paired bootstrap); "
            f"prompt tokens x {c['prompt_ratio']:.2f}",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--questions", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--tune", action="store_true", help="sample the articles for tuning")
    parser.add_argument("--quick", action="store_true", help="8 questions")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n = options.questions or (8 if options.quick else 60 if "1.5b" in options.model else 100)
    data = questions(n, options.seed, options.tune)
    lm = pf.configure(options.model)
    results, scores = {}, {}
    for arm in options.arms.split(","):
        results[arm], scores[arm] = measure(arm, data, lm)
        # Each arm takes minutes: what ended is told, should a later one not end.
        print(json.dumps(asdict(results[arm])), file=sys.stderr, flush=True)
    made = report(options.model, results, scores)
    print(json.dumps(made, indent=2) if options.json else table(made))


if __name__ == "__main__":
    main()
