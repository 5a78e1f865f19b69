"""One hop against two on HotpotQA: which paragraphs are found, and what is answered from them.

    python benchmarks/multihop.py [--model M] [--questions N] [--k 5] [--mode hybrid] [--json]
    python benchmarks/multihop.py --retrieval      no model writes the second query

The paragraphs of all questions are one index (each question brings 10, with the titles of the two
that hold its answer). ``recall`` is the share of a question's gold titles among the documents of
``k`` passages, ``both`` how often all of them are there; ``k`` is the same for one hop and for two.
With ``--retrieval`` the second query is the best sentence found. Answers are
written from the passages by ``grounded_qa`` and graded by token F1. Differences are paired.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
from evaluation_sets import SEED, file

import promptflow as pf
from promptflow.evaluation.metrics import f1
from promptflow.evaluation.stats import paired_interval
from promptflow.flow import run_flows
from promptflow.modules.hops import Gathered, follow_up, gathered
from promptflow.progress import bar
from promptflow.retrieval import HashingEmbedder, Passage


class Titled:
    """The index of all paragraphs, in one mode of search."""

    def __init__(self, index: pf.Index, mode: Any) -> None:
        self.index, self.mode = index, mode

    def search(self, query: str, k: int = 5) -> Sequence[Passage]:
        """Return the best passages."""
        return self.index.search(query, k=k, mode=self.mode)

    def text(self, document: str) -> str:
        """Return a paragraph."""
        return self.index.text(document)


class Written(pf.Module):
    """Answer from the passages of all hops, without abstaining."""

    def __init__(self, index: Any, k: int, hops: int) -> None:
        super().__init__()
        self.index, self.k, self.hops = index, k, hops
        self.writer = follow_up()
        self.answer = pf.Predict(Path(__file__).with_name("short_answer.toml"), max_tokens=32)

    def flow(self, question: str) -> Any:
        """Gather, then answer."""
        found = yield from gathered(self.index, self.writer, question, self.k, self.hops)
        texts = [f"{title(p)}: {p.text}" for p in found.passages]
        [made] = yield [self.answer.call(passages=texts, question=question)]
        return made.extended(found=found)


def rows(n: int) -> list[dict[str, Any]]:
    """Return the first questions of the file."""
    lines = file("hotpotqa/hotpot-qa-distractor-sample.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines()][:n]


def written_documents(data: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Write each paragraph as a document; return the title of each by its name."""
    titles: dict[str, str] = {}
    known: dict[str, str] = {}
    for row in data:
        context = row["context"]
        for name, sentences in zip(context["title"], context["sentences"], strict=True):
            text = f"# {name}\n\n{''.join(sentences).strip()}\n"
            if text not in known:
                known[text] = f"p{len(known):04d}.md"
                titles[known[text]] = name
                path = folder / known[text]
                if not path.exists():
                    path.write_text(text, encoding="utf-8")
    return titles


TITLES: dict[str, str] = {}


def title(passage: Passage) -> str:
    """Return the title of a passage's paragraph."""
    return TITLES[passage.document]


def found_titles(passages: Sequence[Passage], row: dict[str, Any]) -> tuple[float, float]:
    """Return the share of the gold titles found, and whether all were."""
    gold = set(row["supporting_facts"]["title"])
    share = len(gold & {title(p) for p in passages}) / len(gold)
    return share, float(share == 1.0)


def by_quotes(index: Any, question: str, k: int, hops: int) -> Gathered:
    """Return what is found without a model."""
    try:
        next(gathered(index, None, question, k, hops))
    except StopIteration as end:
        found: Gathered = end.value
        return found
    raise AssertionError("a model was asked")


def figures(found: Gathered, row: dict[str, Any], answer: Any = None) -> dict[str, Any]:
    """Return what one question gave with so many hops."""
    share, every = found_titles(found.passages, row)
    made: dict[str, Any] = {"recall": share, "both": every, "queries": found.queries[1:]}
    if answer is not None:
        score = f1(dspy.Example(answer=row["answer"]), answer)
        made |= {"f1": score, "answer": str(answer.answer)}
    return made


def asked(options: argparse.Namespace, index: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one question, with one hop and with two."""
    question = row["question"]
    if options.retrieval:
        return {
            str(hops): figures(by_quotes(index, question, options.k, hops), row) for hops in (1, 2)
        }
    flows = [Written(index, options.k, hops).flow(question=question) for hops in (1, 2)]
    made = {}
    for hops, answer in zip((1, 2), run_flows(flows), strict=True):
        if isinstance(answer, Exception):
            raise answer
        made[str(hops)] = figures(answer.found, row, answer)
    return made


def arms(options: argparse.Namespace, index: Any, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for one and two hops the figures of every question."""
    kept: dict[str, dict[str, Any]] = {}
    if options.journal and options.journal.exists():
        kept = dict(map(json.loads, options.journal.read_text(encoding="utf-8").splitlines()))
    with bar("questions", len(data)) as advance:
        for number, row in enumerate(data, 1):
            if row["id"] not in kept:
                kept[row["id"]] = asked(options, index, row)
                if options.journal:
                    with options.journal.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps([row["id"], kept[row["id"]]]) + "\n")
            advance(number)
    every = [kept[row["id"]] for row in data]
    return {hops: {k: [one[hops][k] for one in every] for k in every[0][hops]} for hops in "12"}


def means(arm: dict[str, Any]) -> dict[str, float]:
    """Return the mean of each figure."""
    return {key: sum(arm[key]) / len(arm[key]) for key in ("recall", "both", "f1") if key in arm}


def report(options: argparse.Namespace, made: dict[str, Any]) -> dict[str, Any]:
    """Return means, and two hops minus one with paired intervals."""
    one, two = made["1"], made["2"]
    gaps = {}
    for key in means(one):
        gap = paired_interval(two[key], one[key], seed=SEED)
        gaps[key] = {"mean": gap.mean, "low": gap.low, "high": gap.high}
    return {
        "model": "" if options.retrieval else options.model,
        "mode": options.mode,
        "k": options.k,
        "n": len(one["recall"]),
        "hops": {"1": means(one), "2": means(two)},
        "two_minus_one": gaps,
    }


def table(made: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    keys = list(made["two_minus_one"])
    lines = [
        f"HotpotQA, {made['n']} questions, {made['mode']}, k={made['k']}, "
        f"{made['model'] or 'no model'}",
        "",
        f"| hops | {' | '.join(keys)} |",
        "|---|" + "---|" * len(keys),
    ]
    for hops, values in made["hops"].items():
        lines.append(f"| {hops} | {' | '.join(f'{values[k]:.3f}' for k in keys)} |")
    for key, gap in made["two_minus_one"].items():
        lines.append(
            f"\n2 - 1 hops, {key}: {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--mode", default="hybrid", choices=["dense", "sparse", "hybrid"])
    parser.add_argument("--retrieval", action="store_true", help="no model")
    parser.add_argument("--threads", type=int, help="of the engine; fewer where others compute too")
    parser.add_argument("--journal", type=Path, help="keep answers there; a killed run goes on")
    parser.add_argument("--folder", type=Path, help="keep the index there, for another run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = rows(options.questions)
    with tempfile.TemporaryDirectory() as own, contextlib.chdir(options.folder or own):
        documents = Path.cwd() / "documents"
        documents.mkdir(exist_ok=True)
        TITLES.update(written_documents(rows(100), documents))
        # Words alone need no vectors.
        embedder = HashingEmbedder() if options.mode == "sparse" else None
        with pf.build_index("hotpot", documents, embedder=embedder, progress=False) as index:
            if not options.retrieval:
                pf.configure(options.model, options={"threads": options.threads})
            made = report(options, arms(options, Titled(index, options.mode), data))
    print(json.dumps(made, indent=2) if options.json else table(made))


if __name__ == "__main__":
    main()
