from __future__ import annotations

import datetime
import gzip
import random
import re
import string
from collections import Counter
from decimal import Decimal
from pathlib import Path

import dspy
import pydantic
import pytest
from dspy.evaluate.metrics import EM, F1, normalize_text
from hypothesis import given, strategies as st

from promptflow.errors import DataError, NoGold
from promptflow.evaluation.data import load_data
from promptflow.evaluation.metrics import contains, exact_match, f1, final_number, numeric
from promptflow.flow import Prediction
from promptflow.modules.predict import Predict


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
    if not normalize_text(predicted) or not normalize_text(gold):
        return  # nothing but articles and marks: an empty answer there, the option A here
    assert f1(example(answer=gold), dspy.Prediction(answer=predicted)) == pytest.approx(
        F1(predicted, [gold])
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
        ("it is 5/8 of 2/4", 0.5),
        ("\uff15\uff10\uc6d0", 50),
        ("\ub2f5\uc740 3\ub9cc 5\ucc9c \uc6d0", 35000),
        ("1\uc5b5 2,000\ub9cc", 120_000_000),
        ("$3.5 million", 3_500_000),
        ("6.02 \u00d7 10\u00b2\u00b3", 6.02e23),
        ("x = 1e-7", 1e-7),
        ("fell by \u22123.5%", -3.5),
        ("1.000,50 EUR", 1000.5),
        ("1,2,3", 3),
        ("so -\\frac{1}{2} it is", -0.5),
        ("1\\dfrac{1}{2}", 1.5),
        ("at 10:30", None),
        ("on 2024-05-01", None),
        ("on 5/1/2024", None),
        ("at 10:30 there were 7", 7),
        ("version 1.2.3 of 4", 4),
        (7, 7),
        (2.5, 2.5),
        (True, None),
        ("none", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert final_number(text) == (None if number is None else Decimal(str(number)))


def test_numeric_reads_typed_and_written_numbers():
    gold = example(answer="16 - 3 - 4 = 9 eggs\n#### 18")
    assert numeric(gold, dspy.Prediction(answer=18)) == 1.0
    assert numeric(gold, dspy.Prediction(answer="She makes $18.00")) == 1.0
    assert numeric(gold, dspy.Prediction(answer="18 or 19")) == 0.0
    with pytest.raises(DataError, match="no number in the gold value"):
        numeric(example(answer="none"), dspy.Prediction(answer=1))


@pytest.mark.parametrize(
    ("value", "gold", "right"),
    [
        (1e-7, "2e-7", 0.0),
        (-5, "5", 0.0),
        ("1/4", "3/4", 0.0),
        (0.1 + 0.2, "0.3", 1.0),
        (11234567890123456, "11234567890123457", 0.0),
        ("18.0000001", 18, 0.0),
        ("18.0", 18, 1.0),
        ("9:30", "#### 30", 0.0),
    ],
)
def test_numeric_is_exact(value, gold, right):
    assert numeric(example(answer=gold), dspy.Prediction(answer=value)) == right


PUBLISHED = [
    ("multiarith_zero_shot", numeric, 17.67),
    ("multiarith_zero_shot_cot", numeric, 78.67),
    ("gsm8k_zero_shot", numeric, 10.39),
    ("gsm8k_zero_shot_cot", numeric, 40.71 + 500 / 1319),  # there 14.00 is not 14 (1), nor
    ("svamp_zero_shot_cot", numeric, 62.1),  # 5600 5,600 (4)
    ("aqua_zero_shot_cot", exact_match, 33.46),
    ("coin_flip_zero_shot_cot", exact_match, 91.4),
    ("commonsensqa_zero_shot_cot", exact_match, 64.62),
    ("last_letters_zero_shot", exact_match, 0.2),
    ("last_letters_zero_shot_cot", exact_match, 57.6 + 1.6),  # there n-a-e-y is not naey (8)
]


@pytest.mark.parametrize(("log", "metric", "accuracy"), PUBLISHED)
def test_the_published_transcripts_are_rescored(data_dir: Path, log, metric, accuracy):
    """The zero-shot-CoT paper's own accuracies, but for answers that mean the gold one."""
    text = gzip.decompress((data_dir / "kojima_logs" / f"{log}.log.gz").read_bytes()).decode()
    rows = re.findall(r"^pred_mode : (\S*)\nGT : ([^\n]+)$", text, re.M)
    assert len(rows) >= 254
    scores = []
    for said, gold in rows:
        scores.append(metric(example(answer=gold), dspy.Prediction(answer=said)))
    assert 100 * sum(scores) / len(rows) == pytest.approx(accuracy, abs=0.01)


def test_contains_wants_whole_words():
    assert contains(example(answer="cat"), dspy.Prediction(answer="The cat.")) == 1.0
    assert contains(example(answer="cat"), dspy.Prediction(answer="category")) == 0.0


@pytest.mark.parametrize(
    ("value", "gold", "found"),
    [
        ("\uc11c\uc6b8\uc5d0 \uc788\ub2e4", "\uc11c\uc6b8", 1.0),
        ("\uc2e0\uc11c\uc6b8\uc5d0 \uc788\ub2e4", "\uc11c\uc6b8", 0.0),
        ("\u79c1\u306f\u6771\u4eac\u306b\u3044\u308b", "\u6771\u4eac", 1.0),
        ("15 apples", 5, 0.0),
        ("3.5 apples", 5, 0.0),
        ("5 apples", 5, 1.0),
        ("It is -5.", 5, 0.0),
        ("in 1,000 years", 1000, 1.0),
        ("anything", "", 0.0),
        ("", "", 1.0),
        ("The answer is yes.", True, 1.0),
        ("The answer is A.", "A", 1.0),
        ("It is a dog.", "A", 0.0),
        (["New York", "Rome", "Paris"], ["paris", "new york"], 1.0),
        (["New York"], '["paris", "new york"]', 0.0),
    ],
)
def test_contains_in_any_script_and_type(value, gold, found):
    assert contains(example(answer=gold), dspy.Prediction(answer=value)) == found


KORQUAD = [
    ("\uc11c\uc6b8\ud2b9\ubcc4\uc2dc", "\uc11c\uc6b8"),
    ("\uc11c\uc6b8 \ud2b9\ubcc4\uc2dc", "\uc11c\uc6b8\ud2b9\ubcc4\uc2dc"),
    ("1988\ub144", "1988\ub144 9\uc6d4 17\uc77c"),
    ("\u300a\ud64d\uae38\ub3d9\uc804\u300b", "\ud64d\uae38\ub3d9\uc804"),
    ("'\uae40\uad6c'\uc758 (\ubc31\ubc94)", "\uae40\uad6c"),
    (
        "\ub300\ud55c\ubbfc\uad6d \ubd80\uc0b0",
        "\ubd80\uc0b0\uad11\uc5ed\uc2dc, \ub300\ud55c\ubbfc\uad6d",
    ),
    ("25\uba85", "25"),
    ("\uc544\ub2c8\uc694", "\uc608"),
]


def korquad_f1(prediction: str, gold: str) -> float:
    """KorQuAD 1.0's rule as its paper gives it: characters of text without marks and spaces."""
    marks = set("'\"\u300a\u300b<>\u3008\u3009()\u2018\u2019") | set(string.punctuation)
    one, other = (
        [char for char in text.lower() if char not in marks and not char.isspace()]
        for text in (prediction, gold)
    )
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other)) if common else 0.0


@pytest.mark.parametrize(("value", "gold"), KORQUAD)
def test_korean_counts_characters_as_korquad_does(value, gold):
    expected = korquad_f1(value, gold)
    assert f1(example(answer=gold), dspy.Prediction(answer=value)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "gold", "score"),
    [
        ("\u6771\u4eac\u90fd", "\u6771\u4eac", 4 / 5),  # Japanese
        ("\u5317\u4eac\u5e02\u3002", "\u5317\u4eac", 4 / 5),  # Chinese
        ("\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e", "\u0e01\u0e23\u0e38\u0e07", 8 / 11),  # Thai
        ("\u6211\u7528iPhone", "iPhone", 2 / 4),  # the word in another script is one
        ("iPhone \uc571", "iPad \uc571", 2 / 4),
        ("iPhones", "iPhone", 0.0),
        ("\u041c\u043e\u0441\u043a\u0432\u0430", "\u041c\u043e\u0441\u043a\u0432\u0435", 0.0),
    ],
)
def test_scripts_without_spaces_count_characters(value, gold, score):
    pair = example(answer=gold), dspy.Prediction(answer=value)
    assert f1(*pair) == pytest.approx(score)


@pytest.mark.parametrize("metric", [exact_match, f1])
@pytest.mark.parametrize(
    ("value", "golds", "score"),
    [
        ("", [], 1.0),
        ("unknown", [], 1.0),
        ("Unknown.", "", 1.0),
        (None, [], 1.0),
        (None, "", 1.0),
        ("Paris", [], 0.0),
        ("A", [], 0.0),
        ("", {"text": [], "answer_start": []}, 1.0),
        ("Paris", {"text": [], "answer_start": []}, 0.0),
        ("Paris", '{"text": ["Paris"], "answer_start": [3]}', 1.0),
        ("Paris", '["Rome", "Paris"]', 1.0),
        ("Paris", "['Rome', 'Paris']", 1.0),
        ("Paris", {"value": "Paris", "aliases": ["City of Light"]}, 1.0),
        ("City of Light", {"value": "Paris", "aliases": ["City of Light"]}, 1.0),
        ("[1]", "[1]", 1.0),
        (["a"], [["b"], ["a"]], 1.0),
        (["a"], '[["b"], ["a"]]', 1.0),
        ({"a": 1}, [{"a": 2}, {"a": 1}], 1.0),
        ({"text": "x", "n": 1}, {"text": "x", "n": 1}, 1.0),
        (5, [4, "5"], 1.0),
        ({"b", "a"}, ["a", "b"], 1.0),
    ],
)
def test_alternatives_and_no_answer(metric, value, golds, score):
    assert metric(example(answers=golds), dspy.Prediction(answer=value)) == score


def test_an_example_without_a_gold_value_is_said_so():
    prediction = dspy.Prediction(answer="x")
    with pytest.raises(NoGold, match=r"no gold value for 'answer'; it has question, level"):
        exact_match(example(level=3), prediction)
    assert exact_match(example(answer=None), dspy.Prediction(answer=None)) == 1.0
    assert exact_match(example(answer=None, answers=["x"]), prediction) == 1.0


@pytest.mark.parametrize(
    ("signature", "gold", "is_gold"),
    [
        ("question -> answer", None, False),
        ("question -> answer", float("nan"), False),
        ("question -> answer", "", True),
        ("question -> answer", [], True),
        ("question -> answer: int", None, False),
        ("question -> answer: int", "", False),
        ("question -> answer: Optional[int]", None, True),
        ("question -> answer: Optional[int]", "", True),
        ("question -> answer: list[str]", [], True),
        ("question -> answer: list[str]", None, False),
        ("question -> answer: Literal['a', 'b']", "", False),
        ("question -> other", None, False),
    ],
)
@pytest.mark.parametrize("value", [None, 3])
def test_null_is_a_gold_value_where_the_field_may_be_empty(signature, gold, is_gold, value):
    prediction = Prediction(answer=value)
    prediction._trace = ((Predict(signature), {}, prediction),)
    if is_gold:
        assert exact_match(example(answer=gold), prediction) == float(value is None)
    else:
        with pytest.raises(NoGold):
            exact_match(example(answer=gold), prediction)


class Item(pydantic.BaseModel):
    name: str


@pytest.mark.parametrize(
    ("annotation", "value", "gold"),
    [
        (str, "Paris", {"city": "Paris"}),
        (str, "Paris", '{"city": "Paris"}'),
        (int, 3, {"n": 3}),
        (Item, Item(name="a"), "a"),
        (Item, Item(name="a"), "called a"),
    ],
)
def test_what_cannot_be_compared_is_said(annotation, value, gold):
    made = dspy.Signature("question -> answer").with_updated_fields("answer", type_=annotation)
    prediction = Prediction(answer=value)
    prediction._trace = ((Predict(made), {}, prediction),)
    if isinstance(gold, dict) or annotation is Item:
        with pytest.raises(DataError, match=r"gold value of 'answer'.* cannot be compared"):
            f1(example(answer=gold), prediction)
    else:
        assert f1(example(answer=gold), prediction) < 1.0
    either = made.with_updated_fields("answer", type_=annotation | dict)
    prediction._trace = ((Predict(either), {}, prediction),)
    assert exact_match(example(answer=gold), prediction) == 0.0
    if annotation is str:
        assert f1(example(answer={"a": 1}), dspy.Prediction(answer='{"a": 1}')) == 1.0
        assert f1(example(answer={"a": 1}), dspy.Prediction(answer='{"a": ')) == 0.0


def squad_f1(value: str, gold: str) -> float:
    """SQuAD 1.1's rule as its paper gives it, for one gold answer."""
    one, other = (
        re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in t.lower() if c not in string.punctuation))
        for t in (value, gold)
    )
    left, right = one.split(), other.split()
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right)) if common else float(left == right)


def test_english_is_scored_as_squad_does(data_dir: Path):
    """On SQuAD's own answers, but for Unicode's marks, which SQuAD takes for words."""
    rows = load_data(data_dir / "squad" / "squaddev_v1.1.json.gz", ["question"])
    chance = random.Random(0)
    compared = 0
    for row in chance.sample(rows, 1500):
        gold = row.answers[0]
        values = [f"the {gold}.", chance.choice(rows).answers[0], row.passage[:60]]
        for value in values:
            if not (value.isascii() and gold.isascii()):
                continue
            score = f1(example(answer=gold), dspy.Prediction(answer=value))
            assert score == pytest.approx(squad_f1(value, gold)), (value, gold)
            compared += 1
    assert compared > 4000


def test_a_date_that_may_be_two_days_is_refused():
    prediction = dspy.Prediction(answer=datetime.date(2024, 5, 1))
    with pytest.raises(DataError, match=r"day 5 of month 1 or the day 1 of month 5.*2024-MM-DD"):
        exact_match(example(answer="5/1/2024"), prediction)


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
    assert f1(both, prediction, field="title") == 1.0
    assert f1(both, prediction, field="summary") == 0.0


def test_an_input_is_no_gold_value():
    gold = dspy.Example(answer="x", question="x").with_inputs("question")
    with pytest.raises(DataError):
        exact_match(gold, dspy.Prediction(question="x"))
