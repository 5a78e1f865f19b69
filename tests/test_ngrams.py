from __future__ import annotations

import random
import warnings

import dspy
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from promptflow.evaluation.ngrams import (
    bleu,
    chrf,
    longest_common,
    rouge_1,
    rouge_2,
    rouge_l,
    tokens,
)
from promptflow.flow import Prediction

WORDS = ["the", "cat", "The", "mat.", "Rhine's", "3.5", "km_long", "river-bed,", "(in)", "Alps!"]


def texts(seed, count=8):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]


def example(*answers):
    return dspy.Example(question="?", answers=list(answers)).with_inputs("question")


@pytest.fixture(scope="module")
def reference():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(["rouge1", "rouge2", "rougeL"])


@pytest.mark.parametrize("seed", range(30))
def test_rouge_is_that_of_the_published_package(reference, seed):
    said, *golds = texts(seed, 4)
    gold = example(*golds)
    prediction = Prediction(answer=said)
    for name, metric in (("rouge1", rouge_1), ("rouge2", rouge_2), ("rougeL", rouge_l)):
        expected = max(reference.score(one, said)[name].fmeasure for one in golds)
        assert metric(gold, prediction) == pytest.approx(expected), name


def slow_common(one, other):
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + slow_common(one[:-1], other[:-1])
    return max(slow_common(one[:-1], other), slow_common(one, other[:-1]))


@pytest.mark.parametrize("seed", range(60))
def test_the_longest_common_subsequence_is_its_definition(seed):
    draw = random.Random(seed)
    one, other = (draw.choices("abc", k=draw.randint(0, 8)) for _ in range(2))
    assert longest_common(one, other) == slow_common(one, other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tom's 3.5 km_long", ["tom", "s", "3", "5", "km", "long"]),
        ("본사는 서울", ["본", "사", "는", "서", "울"]),
        ("東京2024 Tokyo", ["東", "京", "2", "0", "2", "4", "tokyo"]),
        ("Straße café", ["straße", "café"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Ελλάδα, Россия", ["ελλάδα", "россия"]),
        ("", []),
    ],
)
def test_words_of_all_scripts_count(text, words):
    assert tokens(text) == words


def test_texts_without_latin_letters_are_compared():
    gold, prediction = example("본사는 서울에 있다."), Prediction(answer="본사는 부산에 있다.")
    assert 0.5 < rouge_l(gold, prediction) < 1.0
    assert 0.0 < bleu(gold, prediction) < 1.0
    assert rouge_l(gold, Prediction(answer="본사는 서울에 있다")) == 1.0


def score(corpus, hypotheses, golds):
    runs = [(example(*g), Prediction(answer=h)) for h, g in zip(hypotheses, golds, strict=True)]
    return corpus.score([corpus.statistic(*run) for run in runs])


@pytest.mark.parametrize("seed", range(10))
def test_bleu_and_chrf_of_a_corpus_are_those_of_sacrebleu(seed):
    hypotheses, golds, others = texts(seed), texts(seed + 100), texts(seed + 200)
    both = list(zip(golds, others, strict=True))
    for ours, theirs in ((bleu, BLEU()), (chrf, CHRF())):
        expected = theirs.corpus_score(hypotheses, [golds, others]).score / 100
        assert score(ours, hypotheses, both) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_of_one_text_alone_it_is_the_sentence_score(seed):
    said, gold = texts(seed, 2)
    expected = BLEU(effective_order=True).sentence_score(said, [gold]).score / 100
    assert bleu(example(gold), Prediction(answer=said)) == pytest.approx(expected)
    expected = CHRF().sentence_score(said, [gold]).score / 100
    assert chrf(example(gold), Prediction(answer=said)) == pytest.approx(expected)


def test_the_interval_of_a_corpus_holds_its_score():
    hypotheses, golds = texts(1, 20), texts(2, 20)
    runs = [(example(g), Prediction(answer=h)) for h, g in zip(hypotheses, golds, strict=True)]
    found = chrf.interval([chrf.statistic(*run) for run in runs])
    assert found.low < found.mean < found.high
    assert found.n == 20
