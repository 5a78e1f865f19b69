"""Grounded answers: how many questions are answered, how many of these wrongly, and the curve.

    python benchmarks/grounding.py squad [--questions N] [--dev N] [--out DIR] [--seconds S]
    python benchmarks/grounding.py korean [--embedder NAME] ...
    python benchmarks/grounding.py nli [--questions N] [--tune] ...
    python benchmarks/grounding.py sts [--embedder NAME] ...

squad   questions of SQuAD 1.1 over an index of its 2,067 paragraphs, each asked twice: of the
        index, and of the same without the paragraphs of its article that hold the answer. A
        calibration is fitted on ``--dev`` questions of every other article and judged on
        ``--questions`` of the articles between. 50 answers are written to answers.md, to be read.
korean  the same on korean_rag: 720 pages, 114 questions with long answers; right is what quotes a
        page that holds the answer. Half of them are for the fit, by a seed.
nli     the weighed verdict on premises and hypotheses of KLUE-NLI: accuracy, and AUC of entailment
sts     the cosine of an embedder on sentence pairs of KorSTS: Spearman's rank correlation

``--out`` keeps a journal: a run that was killed, or cut by ``--seconds``, goes on when repeated.
``--write`` fits on all questions of squad or korean, judges them out of fold, and writes the
calibration to a file: so promptflow/modules/abstention.json is made.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from evaluation_sets import SEED, file
from sklearn.metrics import roc_auc_score

import promptflow as pf
from promptflow.evaluation.abstention import (
    Asked,
    Bounds,
    Hidden,
    answering,
    ask,
    fitted,
    is_right,
)
from promptflow.modules.abstention import Calibration, risk_coverage
from promptflow.modules.answers import own
from promptflow.modules.judge import yes
from promptflow.program.identity import program_identity
from promptflow.retrieval import Index, build_index
from promptflow.retrieval.embed import open_embedder
from promptflow.storage import Journal

TARGETS = {"answered": 0.75, "wrong": 0.20, "abstained": 0.85}
READ = 50
TOGETHER = 4


@dataclass(frozen=True)
class Task:
    """Documents by name, and examples to fit on and to judge on."""

    documents: Mapping[str, str]
    dev: Sequence[dspy.Example]
    test: Sequence[dspy.Example]


def squad(dev: int, test: int) -> Task:
    """Return paragraphs as documents; dev and test questions are of different articles."""
    with gzip.open(file("squad/squaddev_v1.1.json.gz")) as data:
        articles = sorted(json.load(data)["data"], key=lambda article: article["title"])
    documents: dict[str, str] = {}
    rows: tuple[list[dspy.Example], list[dspy.Example]] = ([], [])
    for number, article in enumerate(articles):
        names = []
        for place, paragraph in enumerate(article["paragraphs"]):
            name = f"{article['title'].replace('/', '_')}-{place:03d}.txt"
            documents[name] = paragraph["context"]
            names.append(name)
        for name, paragraph in zip(names, article["paragraphs"], strict=True):
            for qa in paragraph["qas"]:
                golds = sorted({answer["text"] for answer in qa["answers"]})
                holding = [n for n in names if any(gold in documents[n] for gold in golds)]
                rows[number % 2 == 0].append(
                    dspy.Example(
                        question=qa["question"], answers=golds, documents=[name, *holding]
                    ).with_inputs("question")
                )
    rng = random.Random(SEED)
    return Task(documents, rng.sample(rows[0], dev), rng.sample(rows[1], test))


def korean() -> Task:
    """Return pages as documents, and a seeded half of the questions each."""
    with gzip.open(file("korean_rag/corpus.jsonl.gz"), "rt", encoding="utf-8") as lines:
        pages = [json.loads(line) for line in lines]
    documents = {_page(page["page"]): page["text"] for page in pages}
    text = file("korean_rag/qa.jsonl").read_text(encoding="utf-8")
    examples = [
        dspy.Example(
            question=row["question"],
            answers=row["answers"],
            documents=[_page(page) for page in row["pages"]],
        ).with_inputs("question")
        for row in map(json.loads, text.splitlines())
    ]
    random.Random(SEED).shuffle(examples)
    half = len(examples) // 2
    return Task(documents, examples[:half], examples[half:])


def _page(name: str) -> str:
    return name.replace("/", "_") + ".txt"


def of_a_gold_page(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return 1.0 where a quote is of a page that holds the answer."""
    return float(any(c.document in example.documents for c in prediction.citations))


def open_index(task: Task, folder: Path, embedder: str) -> Index:
    """Return the index of a task's documents, built in ``folder`` where it is not there yet."""
    texts = folder / "documents"
    texts.mkdir(parents=True, exist_ok=True)
    for name, text in task.documents.items():
        if not (texts / name).exists():
            (texts / name).write_text(text, encoding="utf-8")
    recipe = folder / "index.toml"
    if not recipe.exists():
        recipe.write_text(f'documents = "{texts.absolute()}"\nembedder = "{embedder}"\n')
    return build_index(recipe)


def asked_of(
    index: Index, task: Task, metric: Any, lm: Any, how: argparse.Namespace
) -> Iterator[tuple[bool, Asked]]:
    """Ask each question with its documents and without; what is known is not asked again.

    Questions of dev and test take turns, so that a run that is cut has as many of both. Gives
    whether a question is of the test.
    """
    both = [
        [(is_test, e) for e in part] for is_test, part in ((False, task.dev), (True, task.test))
    ]
    turns = [one for pair in itertools.zip_longest(*both) for one in pair if one is not None]
    hidden = Hidden(index, {}, {e.question: tuple(e.documents) for _, e in turns})
    arms = [answering(pf.GroundedQA(index), source) for source in (index, hidden)]
    with Journal(how.out / "journal.sqlite") as journal:
        for start in range(0, len(turns), TOGETHER):
            some = turns[start : start + TOGETHER]
            new = [e for _, e in some if journal.get(_key(how, e)) is None]
            if new and time.perf_counter() - how.begun > how.seconds:
                return
            rows = ask(arms, new, metric, lm, SEED)
            for example in new:
                own = [asdict(one) for one in rows if one.question == example.question]
                journal.append(_key(how, example), {"asked": own})
            print(f"{start + len(some)}/{len(turns)}", end="\r", file=sys.stderr, flush=True)
            for is_test, example in some:
                for row in (journal.get(_key(how, example)) or {})["asked"]:
                    yield is_test, Asked.from_json(row)


def _key(how: argparse.Namespace, example: dspy.Example) -> str:
    return json.dumps([how.model, how.what, example.question])


def grounded(what: str, lm: Any, how: argparse.Namespace) -> dict[str, Any]:
    """Fit on dev, judge on test, and write answers for a person to read."""
    task = squad(how.dev, how.questions) if what == "squad" else korean()
    metric = is_right if what == "squad" else of_a_gold_page
    index = open_index(task, how.out / what, how.embedder)
    rows = list(asked_of(index, task, metric, lm, how))
    if how.write is not None:
        write(fitted(index, [one for _, one in rows], lm, Bounds()).calibration, how)
    dev = [one for is_test, one in rows if not is_test]
    test = [one for is_test, one in rows if is_test]
    fit = fitted(index, dev, lm, Bounds())
    judged = [one.judged(fit.calibration) for one in test]
    answerable = [one for one in judged if one.answerable]
    others = [one.chance for one in judged if not one.answerable]
    threshold = fit.calibration.threshold
    given = [one for one in answerable if one.chance >= threshold]
    exact = [
        index.text(c["document"])[c["start"] : c["end"]] == c["quote"]
        for one in judged
        for candidate in one.candidates
        for c in candidate.citations
    ]
    with_right = [one for one in answerable if one.best.right]
    among = [one for one in answerable if any(c.right for c in one.candidates)]
    (how.out / "answers.md").write_text(to_read(given[:READ]), encoding="utf-8")
    return {
        "model": lm.text_engine.info.identity,
        "embedder": how.embedder,
        "dev": len(dev) // 2,
        "questions": len(answerable),
        "threshold": threshold,
        "answered": len(given) / max(1, len(answerable)),
        "wrong": sum(not one.best.right for one in given) / max(1, len(given)),
        "abstained": sum(chance < threshold for chance in others) / max(1, len(others)),
        "targets": TARGETS,
        "right_without_abstention": len(with_right) / max(1, len(answerable)),
        "right_among_candidates": len(among) / max(1, len(answerable)),
        "quotes": len(exact),
        "quotes_exact": sum(exact),
        "calibration": asdict(fit.calibration),
        "curve": [
            asdict(point)
            for point in risk_coverage([(o.chance, o.best.right) for o in answerable], others)
        ],
    }


def write(calibration: Calibration, how: argparse.Namespace) -> None:
    """Write a calibration as the default, with what it was fitted on."""
    data = f"benchmarks/grounding.py {how.what}: dev and test questions, judged out of fold"
    about = {**calibration.about, "data": data}
    replace(calibration, source="default", about=about).save(how.write)


def to_read(asked: Sequence[Asked]) -> str:
    """Return answers with their quotes and golds, for a person to judge."""
    lines = ["Mark each answer that a person would call wrong.", ""]
    for one in asked:
        mark = " " if one.best.right else "x"
        lines += [f"- [{mark}] {one.question}", f"  answer: {one.best.answer}"]
        lines += [f"  gold: {' / '.join(one.golds)[:300]}"]
        lines += [f"  quote: {' '.join(c['quote'].split())}" for c in one.best.citations]
    return "\n".join(lines) + "\n"


def nli(lm: Any, how: argparse.Namespace) -> dict[str, Any]:
    """Return how well the weighed verdict tells entailment from neutral and contradiction."""
    with gzip.open(file("klue_nli/dev.json.gz"), "rt", encoding="utf-8") as data:
        rows = json.load(data)
    random.Random(SEED).shuffle(rows)
    # Wording is chosen on rows of the second half, and judged on those of the first.
    half = len(rows) // 2
    rows = (rows[half:] if how.tune else rows[:half])[: how.questions]
    follows = own("follows")
    shares: list[float] = []
    with Journal(how.out / "journal.sqlite") as journal:
        for start in range(0, len(rows), 16):
            some = rows[start : start + 16]
            inputs = [{"passage": r["premise"], "statement": r["hypothesis"]} for r in some]
            key = json.dumps([how.model, program_identity(follows), inputs])
            known = journal.get(key)
            if known is None:
                if time.perf_counter() - how.begun > how.seconds:
                    break
                given = pf.run_many(follows, inputs, lm=lm)
                known = {"shares": [yes(one, "verdict") for one in given]}
                journal.append(key, known)
            shares += known["shares"]
    entailed = np.array([row["gold_label"] == "entailment" for row in rows[: len(shares)]])
    scores = np.array(shares)
    return {
        "model": lm.text_engine.info.identity,
        "n": len(shares),
        "auc": float(roc_auc_score(entailed, scores)),
        "accuracy_at_half": float(((scores >= 0.5) == entailed).mean()),
        "majority": float(max(entailed.mean(), 1 - entailed.mean())),
    }


def sts(how: argparse.Namespace) -> dict[str, Any]:
    """Return the rank correlation of cosines with the similarity that people gave, in Korean."""
    with file("korsts/sts-test.tsv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    embedder = open_embedder(how.embedder)
    pairs = [embedder.encode([row[name] for row in rows]) for name in ("sentence1", "sentence2")]
    cosines = (np.asarray(pairs[0]) * np.asarray(pairs[1])).sum(axis=1)
    scores = np.array([float(row["score"]) for row in rows])
    ranks = [mean_ranks(values) for values in (cosines, scores)]
    return {
        "embedder": how.embedder,
        "n": len(rows),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "pearson": float(np.corrcoef(cosines, scores)[0, 1]),
    }


def mean_ranks(values: Any) -> Any:
    """Return the rank of each value; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def table(made: Mapping[str, Any]) -> str:
    """Return a result for a person; of the curve every tenth point."""
    lines = [
        f"{k}: {v:.3f}" if isinstance(v, float) else f"{k}: {v}"
        for k, v in made.items()
        if k not in ("curve", "calibration")
    ]
    curve = made.get("curve", [])
    lines += ["", "threshold  answered  wrong  unanswerable answered"] if curve else []
    for point in curve[:: max(1, len(curve) // 20)]:
        lines.append(
            "{threshold:9.2f}  {coverage:8.2f}  {risk:5.2f}  {false_answers:8.2f}".format(**point)
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("squad", "korean", "nli", "sts"))
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--embedder", default="all-minilm-l6-v2")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--dev", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/grounding"))
    parser.add_argument("--seconds", type=float, default=1e9, help="ask nothing after so long")
    parser.add_argument("--tune", action="store_true", help="nli: rows that wording is chosen on")
    parser.add_argument("--write", type=Path, help="keep a calibration fitted on all questions")
    parser.add_argument("--json", action="store_true")
    how = parser.parse_args()
    how.begun = time.perf_counter()
    how.out.mkdir(parents=True, exist_ok=True)
    if how.what == "sts":
        made = sts(how)
    else:
        lm = pf.configure(how.model)
        made = nli(lm, how) if how.what == "nli" else grounded(how.what, lm, how)
    print(json.dumps(made, indent=2, ensure_ascii=False) if how.json else table(made))


if __name__ == "__main__":
    main()
