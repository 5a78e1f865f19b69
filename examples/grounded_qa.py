"""Answers from documents: build an index, ask, evaluate, optimize, save, reload, ask again.

    python examples/grounded_qa.py [--model NAME] [--out runs/grounded_qa] [--calls 60]

The documents are this project's guide; `--calls` is the optimizer's budget in runs of the program.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import dspy

import promptflow as pf

ASKED = "How does tree of thoughts search?"
GOLD = {
    "What does temperature divide?": "the logits",
    "Who published self-consistency?": "Xuezhi Wang and others",
    "Who published zero-shot chain of thought?": "Takeshi Kojima and others",
    "Who published chain-of-thought prompting?": "Jason Wei and others",
    "Who published tree of thoughts?": "Shunyu Yao and others",
    "How many points did self-consistency gain on GSM8K?": "17.9",
    "How consistent was GPT-4 when two answers were swapped?": "65.0 %",
    "Which share of Game of 24 puzzles did chain of thought solve?": "4.0 %",
    "What does greedy decoding always take?": "the token with the highest logit",
    "What does the prefix tree own?": "the KV cache",
    "What is the boiling point of osmium?": "unknown",
    "How tall is the tower in Paris?": "unknown",
}


def show(answer: pf.Prediction) -> None:
    print(f"{answer.answer}  [{'abstained: ' + answer.reason if answer.abstained else 'checked'}]")
    for citation in answer.citations:
        print(f"  {citation.document}:{citation.start}-{citation.end}  {citation.quote!r}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Question answering with checked citations")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--out", type=Path, default=Path("runs/grounded_qa"))
    parser.add_argument("--calls", type=int, default=60)
    given = parser.parse_args(arguments)
    pf.configure(given.model)
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in GOLD.items()]
    program = pf.GroundedQA(pf.build_index("guide"))
    show(pf.run(program, question=ASKED))
    before = pf.evaluate(program, data, "f1")
    print(f"F1 {before.score:.2f} ({before.low:.2f} to {before.high:.2f}) on {before.n} questions")
    result = pf.optimize(program, data, metric="f1", budget=pf.Budget(calls=given.calls))
    print(result.reason)
    pf.write_report(given.out / "report.html", result)
    pf.save_program(result.program, given.out / "program")
    show(pf.run(pf.load_program(given.out / "program"), question=ASKED))


if __name__ == "__main__":
    main()
