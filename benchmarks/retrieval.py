"""Search by meaning, by words and by both, on published sets: python benchmarks/retrieval.py --json

    scifact     nDCG@10 over documents: BEIR's test split, 300 claims and 5,183 abstracts
    squad       recall@1/5 over 2,067 paragraphs: the questions of every other article, of which
                --questions are drawn by seed
    korean_rag  recall@1/3/5 over 720 pages of PDF files: 114 questions

The weights in promptflow/retrieval were chosen with --tune, which asks other questions: SciFact's
train claims and SQuAD's articles between. Korean questions have no others: nothing was chosen on
them. ``hybrid`` is compared with the better of ``dense`` and ``sparse``, question by question, and
``ask`` is the mode that ``Index.search`` and ``promptflow ask`` use. With --rerank the best
--candidates of a seeded sample of --rerank-questions are reranked, by the weighed verdicts of a
local model (a GGUF) or by a cross-encoder, and compared with the same search without, question by
question; what a model has said is kept in --folder, and a run that --seconds cut goes on.
Indexes stay in --folder, so that vectors are computed once. Data: evaluation_sets.py.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import inspect
import json
import math
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation_sets import SEED, file

import promptflow as pf
from promptflow.catalog import locate
from promptflow.evaluation.stats import paired_interval
from promptflow.progress import bar
from promptflow.storage import Journal

MODES = ("dense", "sparse", "hybrid")
DEEP = 50
"""Chunks that are asked for: the first ten documents are among them."""
STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """A question and the documents that answer it."""

    question: str
    gold: frozenset[str]


@dataclass(frozen=True)
class Retrieval:
    """A set: documents by name, questions, and what is measured, by name."""

    name: str
    documents: dict[str, str]
    cases: list[Case]
    measures: tuple[str, ...]


def scifact(tune: bool, questions: int) -> Retrieval:
    """Return SciFact: validation claims, with ``tune`` the train claims."""
    csv.field_size_limit(1 << 24)
    documents = {}
    with gzip.open(file("scifact/corpus_train.csv.gz"), "rt", encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            sentences = [ast.literal_eval(text) for text in STRING.findall(row["abstract"])]
            body = " ".join(sentence.strip() for sentence in sentences)
            documents[row["doc_id"]] = f"{row['title']}\n\n{body}\n"
    claims = {}
    name = f"scifact/claims_{'train' if tune else 'validation'}.csv"
    with open(file(name), encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            cited = frozenset(re.findall(r"\d+", row["cited_doc_ids"]))
            claims[row["id"]] = Case(row["claim"], cited)
    return Retrieval("scifact", documents, list(claims.values()), ("ndcg@10",))


def squad(tune: bool, questions: int) -> Retrieval:
    """Return SQuAD 1.1: a sample of the questions of every other article, over all paragraphs."""
    with gzip.open(file("squad/squaddev_v1.1.json.gz")) as rows:
        articles = sorted(json.load(rows)["data"], key=lambda article: article["title"])
    documents: dict[str, str] = {}
    cases = []
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            name = f"{len(documents):04d}"
            documents[name] = paragraph["context"]
            if number % 2 == tune:
                asked = [qa["question"].strip() for qa in paragraph["qas"]]
                cases += [Case(question, frozenset([name])) for question in asked if question]
    sample = random.Random(SEED).sample(cases, min(questions, len(cases)))
    return Retrieval("squad", documents, sample, ("recall@1", "recall@5"))


def korean_rag(tune: bool, questions: int) -> Retrieval:
    """Return the Korean pages and their questions, the same with ``tune``."""
    with gzip.open(file("korean_rag/corpus.jsonl.gz"), "rt", encoding="utf-8") as rows:
        pages = [json.loads(row) for row in rows]
    names = {page["page"]: f"{number:03d}" for number, page in enumerate(pages)}
    rows = file("korean_rag/qa.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [
        Case(row["question"], frozenset(names[page] for page in row["pages"]))
        for row in map(json.loads, rows)
    ]
    documents = {names[page["page"]]: page["text"] for page in pages}
    return Retrieval("korean_rag", documents, cases, ("recall@1", "recall@3", "recall@5"))


SETS: dict[str, Callable[[bool, int], Retrieval]] = {
    "scifact": scifact,
    "squad": squad,
    "korean_rag": korean_rag,
}


def score(measure: str, ranking: Sequence[str], gold: frozenset[str]) -> float:
    """Return ``recall@k`` (is a gold document among the first k) or ``ndcg@k`` (binary)."""
    name, _, depth = measure.partition("@")
    first = ranking[: int(depth)]
    if name == "recall":
        return float(any(document in gold for document in first))
    gain = sum(1 / math.log2(at + 2) for at, document in enumerate(first) if document in gold)
    best = sum(1 / math.log2(at + 2) for at in range(min(len(gold), int(depth))))
    return gain / best


def built(data: Retrieval, embedder: str, folder: Path) -> pf.Index:
    """Return the index of a set, built in ``folder`` where it is not there yet."""
    documents = folder / data.name / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    for name, text in data.documents.items():
        path = documents / f"{name}.txt"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    recipe = folder / data.name / embedder.replace("/", "-") / "index.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(f'documents = "../documents"\nembedder = "{embedder}"\n', encoding="utf-8")
    return pf.build_index(recipe)


def rankings(index: pf.Index, data: Retrieval, mode: Any) -> list[list[str]]:
    """Return the documents found for each question, best first."""
    found = []
    with bar(f"{data.name} {mode}", len(data.cases)) as advance:
        for done, case in enumerate(data.cases, 1):
            passages = index.search(case.question, DEEP, mode=mode)
            found.append(list(dict.fromkeys(p.document.removesuffix(".txt") for p in passages)))
            advance(done)
    return found


def measured(data: Retrieval, index: pf.Index) -> dict[str, Any]:
    """Return what each mode reaches, and hybrid against the better of the others."""
    scores: dict[str, dict[str, list[float]]] = {}
    made: dict[str, Any] = {"n": len(data.cases), "documents": len(data.documents)}
    for mode in MODES:
        begun = time.perf_counter()
        found = rankings(index, data, mode)
        seconds = (time.perf_counter() - begun) / len(found)
        scores[mode] = {
            measure: [score(measure, r, c.gold) for r, c in zip(found, data.cases, strict=True)]
            for measure in data.measures
        }
        made[mode] = {measure: mean(values) for measure, values in scores[mode].items()}
        made[mode]["ms_per_query"] = round(1000 * seconds, 2)
    made["ask"] = made[inspect.signature(pf.Index.search).parameters["mode"].default]
    made["hybrid_against"] = {measure: compared(scores, measure) for measure in data.measures}
    return made


def reranked(data: Retrieval, index: pf.Index, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a reranker changes on a sample of the questions."""
    rerank = reranker(arguments.rerank)
    sample = random.Random(SEED).sample(
        data.cases, min(arguments.rerank_questions, len(data.cases))
    )
    scores: dict[str, list[list[float]]] = {measure: [] for measure in data.measures}
    until = time.perf_counter() + arguments.seconds
    with (
        bar(f"{data.name} reranked", len(sample)) as advance,
        Journal(arguments.folder / "rerank.sqlite") as journal,
    ):
        for done, case in enumerate(sample, 1):
            found = index.search(case.question, arguments.candidates)
            values = judged(journal, arguments.rerank, rerank, case.question, found, until)
            if len(values) < len(found):
                break
            # Alone it takes the place of the search; by half it shares the decision.
            blend = [(p.score + value) / 2 for p, value in zip(found, values, strict=True)]
            orders = {"search": [p.score for p in found], "alone": values, "half": blend}
            names = [passage.document.removesuffix(".txt") for passage in found]
            for measure in data.measures:
                scores[measure].append(
                    [score(measure, ordered(names, by), case.gold) for by in orders.values()]
                )
            advance(done)
    made: dict[str, Any] = {"model": arguments.rerank, "candidates": arguments.candidates}
    for measure, rows in scores.items():
        made["n"] = len(rows)
        before, alone, half = (list(column) for column in zip(*rows, strict=True))
        made[measure] = {"search": mean(before)}
        for name, after in (("alone", alone), ("half", half)):
            gap = paired_interval(after, before, seed=SEED)
            made[measure][name] = [mean(after), gap.low, gap.high]
    return made


def judged(
    journal: Journal,
    model: str,
    rerank: Any,
    question: str,
    found: Sequence[pf.Passage],
    until: float,
) -> list[float]:
    """Return a reranker's score of each passage; fewer where time was up before it could say."""
    keys = [json.dumps([model, question, p.document, p.start, p.end]) for p in found]
    asked = [p for p, key in zip(found, keys, strict=True) if journal.get(key) is None]
    if asked and time.perf_counter() < until:
        for passage, value in zip(asked, rerank(question, asked), strict=True):
            journal.append(keys[found.index(passage)], {"score": value})
    known = [journal.get(key) for key in keys]
    return [one["score"] for one in known if one is not None]


def ordered(names: Sequence[str], by: Sequence[float]) -> list[str]:
    """Return the documents of passages by a score of each, best first."""
    order = sorted(range(len(names)), key=lambda at: -by[at])
    return list(dict.fromkeys(names[at] for at in order))


def reranker(name: str) -> Any:
    """Return the reranker of a model's name: scores from 0 to 1."""
    try:
        path = locate(name)
    except pf.errors.PromptflowError:
        path = Path(name)
    if path.suffix == ".gguf":
        return pf.Relevance(lm=pf.load(name))
    return pf.CrossEncoderReranker(name)


def compared(scores: dict[str, dict[str, list[float]]], measure: str) -> dict[str, Any]:
    """Return hybrid against the better single mode: the paired difference and its interval."""
    single = max(("dense", "sparse"), key=lambda mode: mean(scores[mode][measure]))
    gap = paired_interval(scores["hybrid"][measure], scores[single][measure], seed=SEED)
    return {"mode": single, "difference": gap.mean, "low": gap.low, "high": gap.high}


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def flat(made: dict[str, Any]) -> dict[str, float]:
    """Return the figures by their dotted names: ``scifact.hybrid.ndcg@10``."""
    return {
        f"{name}.{mode}.{measure}": value
        for name, result in made["sets"].items()
        for mode in (*MODES, "ask")
        for measure, value in result[mode].items()
    }


def table(made: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = []
    for name, result in made["sets"].items():
        lines.append(f"{name}: {result['n']} questions, {result['documents']} documents, "
                     f"embedder {result['embedder']}")  # fmt: skip
        for mode in (*MODES, "ask"):
            figures = "  ".join(
                f"{measure} {value:.3f}"
                for measure, value in result[mode].items()
                if measure != "ms_per_query"
            )
            lines.append(f"  {mode:<7} {figures}  {result[mode]['ms_per_query']:.1f} ms a query")
        for measure, gap in result["hybrid_against"].items():
            lines.append(
                f"  hybrid - {gap['mode']}, {measure}: {gap['difference']:+.3f} "
                f"[{gap['low']:+.3f}, {gap['high']:+.3f}]"
            )
        if rerank := result.get("rerank"):
            lines.append(f"  reranked by {rerank['model']}: {rerank['n']} questions, the best "
                         f"{rerank['candidates']} of each")  # fmt: skip
            for measure in (name for name in rerank if "@" in name):
                shown = rerank[measure]
                lines += [
                    f"    {measure} {shown['search']:.3f}, {name} {shown[name][0]:.3f} "
                    f"[{shown[name][1]:+.3f}, {shown[name][2]:+.3f}]"
                    for name in ("alone", "half")
                ]
    return "\n".join(lines)


def main() -> None:
    """Measure the sets that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--questions", type=int, default=2000, help="of SQuAD")
    parser.add_argument("--embedder", default="all-minilm-l6-v2")
    parser.add_argument("--korean-embedder", default="multilingual-e5-small-q4")
    parser.add_argument("--folder", type=Path, help="of the indexes; default: a temporary one")
    parser.add_argument("--rerank", help="a GGUF or a cross-encoder, by name")
    parser.add_argument("--rerank-questions", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of reranking, a set")
    parser.add_argument("--tune", action="store_true", help="ask the questions that tune")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder or Path(tempfile.gettempdir()) / "promptflow-retrieval"
    made: dict[str, Any] = {"seed": SEED, "tune": arguments.tune, "sets": {}}
    for name in arguments.sets:
        data = SETS[name](arguments.tune, arguments.questions)
        embedder = arguments.korean_embedder if name == "korean_rag" else arguments.embedder
        with built(data, embedder, arguments.folder) as index:
            made["sets"][name] = {"embedder": embedder, **measured(data, index)}
            if arguments.rerank:
                made["sets"][name]["rerank"] = reranked(data, index, arguments)
    made = {**flat(made), **made["sets"], **made}
    print(json.dumps(made, indent=1) if arguments.json else table(made))


if __name__ == "__main__":
    main()
