from __future__ import annotations

import math

import dspy
import pytest
from conftest import SMOLLM

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError, MetricError
from promptflow.evaluation.evaluate import evaluate
from promptflow.evaluation.likeness import cosine, perplexity, perplexity_of, scored_tokens
from promptflow.flow import Prediction
from promptflow.lm import LocalLM
from promptflow.retrieval.embed import HashingEmbedder


def example(*answers):
    return dspy.Example(question="?", answer=list(answers)).with_inputs("question")


def test_the_cosine_is_that_of_the_nearest_gold_text():
    embedder = HashingEmbedder(64)
    one, other = embedder.encode(["a red fox", "a red dog"])
    prediction = Prediction(answer="a red fox")
    found = cosine(example("blue whales", "a red dog"), prediction, embedder=embedder)
    assert found == pytest.approx(float(one @ other))
    assert cosine(example("a red fox"), prediction, embedder=embedder) == pytest.approx(1.0)


def test_no_text_is_like_no_text_alone():
    embedder = HashingEmbedder(64)
    assert cosine(example(""), Prediction(answer=" "), embedder=embedder) == 1.0
    assert cosine(example("fox"), Prediction(answer=""), embedder=embedder) == 0.0


def test_meaning_is_nearer_than_words(minilm):
    gold = example("The cat sleeps.")
    near = cosine(gold, Prediction(answer="A kitten is napping."))
    far = cosine(gold, Prediction(answer="The stock market fell."))
    assert 0.0 <= far < near < 1.0


def test_the_perplexity_of_an_evaluation_is_that_of_all_tokens():
    texts = {0: "one two three", 1: "four"}
    engine = ScriptedEngine(lambda text, slot: texts[int(text.rsplit("Question: ", 1)[1][0])])
    data = [dspy.Example(question=f"{n} ?").with_inputs("question") for n in texts]
    program = pf.Predict("question -> answer")
    result = evaluate(program, data, perplexity, lm=LocalLM(engine))
    assert result.score == pytest.approx(math.e)  # a scripted word has a log-probability of -1
    assert result.records[0].statistics == {"score": [3.0, 3]}


def test_an_empty_text_has_no_perplexity():
    engine = ScriptedEngine(lambda text, slot: " ")
    data = [dspy.Example(question="?").with_inputs("question")]
    with pytest.raises((DataError, MetricError), match="empty"):
        evaluate(pf.Predict("question -> answer"), data, perplexity, lm=LocalLM(engine))


def test_a_real_model_finds_plain_text_likelier_and_ranks_agree(smollm: pf.Engine):
    plain, odd = scored_tokens(
        ["The capital of France is Paris.", "Capital the Paris is France of."], smollm
    )
    assert 1.0 < perplexity_of(plain) < perplexity_of(odd)
    for token in (*plain, *odd):
        assert token.rank >= 1
        assert token.expected < 0.0 < token.variance
    lm = pf.load(SMOLLM, engine=smollm)
    with dspy.context(lm=lm):
        alone = perplexity(example("x"), Prediction(answer="The capital of France is Paris."))
    assert alone == pytest.approx(perplexity_of(plain), rel=0.05)
