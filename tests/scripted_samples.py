"""Samples of models that say what a test gives them."""

from __future__ import annotations

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.flow import Prediction


def scripted(answers: list[str | Exception]) -> tuple[pf.LocalLM, ScriptedEngine]:
    """An LM that gives these answers in order, to whatever is asked."""
    left = iter(answers)

    def answer(text: str, slot: pf.Slot) -> str:
        given = next(left)
        if isinstance(given, Exception):
            raise given
        return given

    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine).copy(num_retries=0), engine


def sample(answer: object, logprob: float = 0.0, tokens: int = 1) -> Prediction:
    """A prediction whose one call sampled ``tokens`` tokens of this total log-probability."""
    call = Prediction(answer=answer)
    call._fills = {"answer": pf.Fill(str(answer), "stop", tokens, logprob=logprob)}
    prediction = Prediction(answer=answer)
    prediction._trace = ((None, {}, call),)
    return prediction
