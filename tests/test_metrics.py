from __future__ import annotations

import gzip
import random
import re
from pathlib import Path

import dspy
import pytest
from dspy.evaluate.metrics import EM, F1
from hypothesis import given, strategies as st

from promptflow.errors import DataError
from promptflow.evaluation.metrics import (
    METRICS,
    cited,
    contains,
    exact_match,
    f1,
    final_number,
    find_metric,
    normalize,
    numeric,
    retrieved,
)


def example(**fields):
    return dspy.Example(question="?", **fields).with_inputs("question")


def test_exact_match_drops_case_articles_and_punctuation():
    gold = example(answer="The Eiffel Tower")
    assert exact_match(gold, dspy.Prediction(answer="eiffel  tower!")) == 1.0
    assert exact_match(gold, dspy.Prediction(answer="eiffel towers")) == 0.0


def test_the_best_of_several_gold_answers_counts():
    gold = example(answers=["Denver", "Denver Broncos"])
    assert f1(gold, dspy.Prediction(answer="the Broncos of Denver")) == pytest.approx(4 / 5)
    assert exact_match(gold, dspy.Prediction(answer="denver")) == 1.0


def test_answers_of_the_hub_form_of_squad_are_read():
    gold = example(answers={"text": ["gold"], "answer_start": [177]})
    assert exact_match(gold, dspy.Prediction(answer="Gold.")) == 1.0


def test_f1_by_hand():
    # 2 of 3 predicted and 2 of 4 gold tokens are common: 2 * 2 / 7.
    gold = example(answer="blue green red black")
    assert f1(gold, dspy.Prediction(answer="red blue white")) == pytest.approx(4 / 7)


@given(st.lists(st.sampled_from(["a", "the", "Paris", "paris.", "24-10", "x"])), st.text("aby ,"))
def test_text_metrics_agree_with_dspy(words, other):
    predicted, gold = " ".join(words), other
    expected = F1(predicted, [gold])
    if normalize(predicted) or normalize(gold):  # DSPy scores two empty answers 0, SQuAD 2.0 1
        assert f1(example(answer=gold), dspy.Prediction(answer=predicted)) == pytest.approx(
            expected
        )
    assert exact_match(example(answer=gold), dspy.Prediction(answer=predicted)) == EM(
        predicted, [gold]
    )


def test_exact_match_never_exceeds_f1():
    rng = random.Random(0)
    for _ in range(300):
        value, gold = ("".join(rng.choices("ab .", k=rng.randrange(5))) for _ in range(2))
        pair = example(answer=gold), dspy.Prediction(answer=value)
        assert exact_match(*pair) <= f1(*pair)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", 18),
        ("#### 1,800 (dollars)", 1800),
        ("about $1,234.50.", 1234.5),
        ("5-3", 3),
        ("it fell to -3", -3),
        ("(-4)", -4),
        ("costs -$7", -7),
        (".5", 0.5),
        ("version 1.2.3 of 4", 4),
        (7, 7),
        (2.5, 2.5),
        (True, None),
        ("none", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert final_number(text) == number


def test_numeric_reads_typed_and_written_numbers():
    gold = example(answer="16 - 3 - 4 = 9 eggs\n#### 18")
    assert numeric(gold, dspy.Prediction(answer=18)) == 1.0
    assert numeric(gold, dspy.Prediction(answer="She makes $18.00")) == 1.0
    assert numeric(gold, dspy.Prediction(answer="18 or 19")) == 0.0
    with pytest.raises(DataError, match="no number in the gold value"):
        numeric(example(answer="none"), dspy.Prediction(answer=1))


def test_numeric_rescores_the_published_transcripts(data_dir: Path):
    """The zero-shot-CoT paper took the first number after its trigger; its own figure is 78.7."""
    text = gzip.decompress(
        (data_dir / "kojima_logs" / "multiarith_zero_shot_cot.log.gz").read_bytes()
    ).decode()
    rows = re.findall(r"^pred_after : (.*?)^pred_list.*?^GT : (\S+)$", text, re.S | re.M)
    assert len(rows) == 600
    scores = [numeric(example(answer=gold), dspy.Prediction(answer=said)) for said, gold in rows]
    assert sum(scores) / 6 == pytest.approx(78.67, abs=0.01)


def test_contains_wants_whole_words():
    assert contains(example(answer="cat"), dspy.Prediction(answer="The cat.")) == 1.0
    assert contains(example(answer="cat"), dspy.Prediction(answer="category")) == 0.0


def test_lists_are_scored_item_by_item():
    gold = example(answer=["New York", "Paris"])
    assert f1(gold, dspy.Prediction(answer=["paris", "Rome"])) == pytest.approx(0.5)


def test_the_field_is_found_or_named():
    gold = example(summary="a cat")
    assert f1(gold, dspy.Prediction(reasoning="hm", summary="cat")) == 1.0
    both = example(title="x", summary="y")
    prediction = dspy.Prediction(title="x", summary="z")
    with pytest.raises(DataError, match="no single field to grade"):
        f1(both, prediction)
    assert find_metric("f1:title")(both, prediction) == 1.0
    assert find_metric("f1:summary")(both, prediction) == 0.0


def test_an_input_is_no_gold_value():
    gold = dspy.Example(answer="x", question="x").with_inputs("question")
    with pytest.raises(DataError):
        exact_match(gold, dspy.Prediction(question="x"))


def test_documents_of_passages_and_citations():
    gold = example(documents=["a.md", "b.md"])
    prediction = dspy.Prediction(
        passages=[{"document": "a.md"}, {"document": "c.md"}], citations=["a.md", "b.md"]
    )
    assert retrieved(gold, prediction) == 0.5
    assert cited(gold, prediction) == 1.0
    with pytest.raises(DataError, match="documents"):
        retrieved(example(answer="x"), prediction)


def test_metrics_are_found_by_name():
    assert find_metric("f1") is METRICS["f1"]
    assert find_metric("promptflow.evaluation.metrics:contains") is contains
    with pytest.raises(DataError, match="Did you mean 'exact_match'"):
        find_metric("exact_mach")
    with pytest.raises(DataError, match="nowhere"):
        find_metric("nowhere_at_all:metric")
