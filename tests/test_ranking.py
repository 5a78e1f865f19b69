from __future__ import annotations

import random

import dspy
import pytest
from sklearn.metrics import ndcg_score

from promptflow.errors import DataError, NoGold
from promptflow.evaluation.metrics import has_gold
from promptflow.evaluation.ranking import (
    citation_precision,
    citation_recall,
    mrr,
    ndcg,
    retrieved,
)


def example(**fields):
    return dspy.Example(question="?", **fields).with_inputs("question")


def found(*names):
    return dspy.Prediction(passages=[{"document": name} for name in names])


@pytest.mark.parametrize(
    ("right", "names", "score"),
    [
        (["b"], "abc", 1 / 2),
        (["c", "b"], "abc", 1 / 2),
        (["b"], "aab", 1 / 2),  # chunks of one document are one place
        (["z"], "abc", 0.0),
        (["a"], "", 0.0),
        ({"a": 0, "c": 2}, "abc", 1 / 3),
        ('["c"]', "abc", 1 / 3),  # a cell of a table
    ],
)
def test_mean_reciprocal_rank(right, names, score):
    assert mrr(example(documents=right), found(*names)) == pytest.approx(score)


@pytest.mark.parametrize("seed", range(20))
def test_ndcg_is_that_of_scikit_learn(seed):
    draw = random.Random(seed)
    names = [f"d{n}" for n in range(15)]
    grades = {name: draw.choice([0, 0, 0, 1, 2, 3]) for name in names}
    grades["d0"] = 1
    ranked = draw.sample(names, len(names))
    scores = [[len(ranked) - ranked.index(name) for name in names]]
    expected = ndcg_score([[grades[name] for name in names]], scores, k=10)
    assert ndcg(example(documents=grades), found(*ranked)) == pytest.approx(expected)
    expected = ndcg_score([[grades[name] for name in names]], scores, k=3)
    assert ndcg(example(documents=grades), found(*ranked), k=3) == pytest.approx(expected)


def test_what_is_not_found_counts_in_the_ideal():
    assert ndcg(example(documents=["a", "b"]), found("a")) == pytest.approx(
        1 / (1 + 1 / 1.58496), 1e-4
    )


def test_documents_of_passages():
    prediction = found("a.md", "c.md")
    assert retrieved(example(documents=["a.md", "b.md"]), prediction) == 0.5
    assert retrieved(example(documents="a.md"), prediction) == 1.0
    assert retrieved(example(documents=[]), prediction) == 1.0


def cited(*pairs):
    return dspy.Prediction(citations=[{"document": d, "quote": q} for d, q in pairs])


GOLD = {"documents": ["a", "b"], "quotes": ["The Rhine is long.", "It rises in the Alps."]}


@pytest.mark.parametrize(
    ("gold", "citations", "precision", "recall"),
    [
        ({"documents": ["a", "b"]}, [("a", "x"), ("c", "y")], 1 / 2, 1 / 2),
        ({"documents": ["a"]}, [("a", "x"), ("a", "y")], 1.0, 1.0),
        ({"documents": ["a"]}, [], 0.0, 0.0),
        ({"documents": []}, [], 1.0, 1.0),
        ({"documents": []}, [("a", "x")], 0.0, 1.0),
        (GOLD, [("a", "the rhine is long"), ("b", "something else")], 1 / 2, 1 / 2),
        (GOLD, [("c", "The Rhine is long.")], 0.0, 0.0),  # right words of a wrong document
        (GOLD, [("a", "The Rhine is long. It rises in the Alps.")], 1.0, 1.0),
        (GOLD, [("a", "")], 0.0, 0.0),
    ],
)
def test_citation_precision_and_recall(gold, citations, precision, recall):
    assert citation_precision(example(**gold), cited(*citations)) == precision
    assert citation_recall(example(**gold), cited(*citations)) == recall


@pytest.mark.parametrize("metric", [mrr, ndcg, retrieved, citation_precision, citation_recall])
def test_an_example_without_documents_is_left_out(metric):
    prediction = dspy.Prediction(passages=[], citations=[])
    assert not has_gold(metric, example(answer="x"))
    assert has_gold(metric, example(documents=["a"]))
    with pytest.raises(NoGold, match="documents"):
        metric(example(answer="x"), prediction)
    with pytest.raises(DataError, match="in the prediction"):
        metric(example(documents=["a"]), dspy.Prediction(answer="x"))
