"""Metrics that ask a model: a judge's score, and whether an answer follows from its passages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import dspy

from promptflow.errors import DataError, NoGold, PromptflowError
from promptflow.evaluation.bymodel import ByModel
from promptflow.evaluation.meaning import text_of
from promptflow.evaluation.metrics import graded
from promptflow.flow import Flow, Prediction
from promptflow.modules import Judge, Panel
from promptflow.modules.answers import own
from promptflow.modules.evidence import strange_numbers
from promptflow.modules.judge import model_name, yes
from promptflow.retrieval.text import sentence_spans
from promptflow.signatures import read_document

PASSAGES = ("citations", "passages", "passage", "context", "knowledge", "documents")
"""Fields that may hold what an answer was made from: the prediction's first, then the example's."""


def judged_by(judge: Judge | Panel, *, name: str = "judge", lm: Any = None) -> ByModel:
    """Return the metric of a judge of rubrics, or of several: its score on a scale from 0 to 1.

    The judge sees the example's inputs as the question, the answer, and where the example has a
    gold value, that as the reference. ``lm`` is the model of a judge that has none of its own.
    """

    def ask(example: Any, prediction: Any, *, field: str | None = None) -> Flow:
        # Asked now: when the flow runs, the judge's model is the configured one.
        writer = model_name(dspy.settings.lm)
        inputs = dict(example.inputs())
        shown = (f"{name}: {text_of(value)}" for name, value in inputs.items())
        question = text_of(next(iter(inputs.values()))) if len(inputs) == 1 else "\n".join(shown)
        answer = text_of(prediction[_answer_field(prediction, field)])
        reference = _reference(example, prediction)
        given = {"question": question, "answer": answer, "reference": reference}
        return _scored(judge, given, writer)

    judges = [judge] if isinstance(judge, Judge) else judge.judges
    return ByModel(name, ask, lm, tuple(one.score.lm or lm for one in judges))


def _scored(judge: Judge | Panel, given: Mapping[str, Any], model: str) -> Flow:
    said = yield from judge.flow(**given, model=model)
    return Prediction(score=said.unit, own=said.own)


def _answer_field(prediction: Any, field: str | None) -> str:
    names = [field] if field else ["answer"] if "answer" in prediction else list(prediction)[-1:]
    if not names or names[0] not in prediction:
        raise DataError(f"no field {field!r} to judge: the prediction has {', '.join(prediction)}")
    return names[0]


def _reference(example: Any, prediction: Any) -> str | None:
    try:
        return text_of(graded(example, prediction)[1][0]) or None
    except (NoGold, DataError):
        return None


@cache
def _default() -> Judge:
    return Judge(str(read_document("judge", bundled_only=True).extra["rubric"]))


def _judge(example: Any, prediction: Any, *, field: str | None = None) -> Flow:
    return judged_by(_default()).ask(example, prediction, field=field)


def _grounded(example: Any, prediction: Any, *, field: str | None = None) -> Flow:
    answer = text_of(prediction[_answer_field(prediction, field)])
    texts = _texts(example, prediction)
    question = " ".join(text_of(value) for value in list(example.inputs().values())[:1])
    said = [answer[start:end] for start, end in sentence_spans(answer)]
    if not said or prediction.get("abstained"):
        return Prediction(score=1.0, sentences=())  # what says nothing claims nothing
    if len(said) == 1 and len(answer.split()) <= 8:
        said = [f"{question} {answer}"]
    follows = own("follows")
    calls = [follows.call(passage=text, statement=one) for one in said for text in texts]
    verdicts = yield calls
    for verdict in verdicts:
        if isinstance(verdict, PromptflowError):
            raise verdict
    scores = []
    for n, one in enumerate(said):
        own_verdicts = verdicts[n * len(texts) : (n + 1) * len(texts)]
        strange = strange_numbers(one, [question, *texts])
        scores.append(0.0 if strange else max(yes(v, "verdict") for v in own_verdicts))
    return Prediction(score=math.fsum(scores) / len(scores), sentences=tuple(scores))


def _texts(example: Any, prediction: Any) -> list[str]:
    """Return what the answer was made from. Raises DataError where neither side has it."""
    for holder in (prediction, example):
        for name in PASSAGES:
            value = holder.get(name)
            items = [value] if isinstance(value, str | Mapping) else list(value or ())
            if found := [text for item in items if (text := _text(item)).strip()]:
                return found
    raise DataError(
        "groundedness needs what the answer was made from: passages or citations in the "
        f"prediction, or one of {', '.join(PASSAGES)} in the example, which has "
        f"{', '.join(example)}"
    )


def _text(item: Any) -> str:
    for name in ("text", "quote"):
        held = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
        if held is not None:
            return str(held)
    return text_of(item)


judge = ByModel("judge", _judge)
"""The score, 0 to 1, that the configured model gives by the rubric of the bundled ``judge``."""

groundedness = ByModel("groundedness", _grounded)
"""How far the sentences of the answer follow from its citations, else its passages, 0 to 1.

The mean over the sentences of the highest probability that one of the texts says so; a sentence
with a number that none of them holds is 0.
"""
