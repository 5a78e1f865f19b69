from __future__ import annotations

from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.fake import ScriptedEngine
from promptflow.engine.request import Slot

# Refine and its like: adapters that wrap one


def scripted(answer: Any) -> tuple[pf.LocalLM, ScriptedEngine]:
    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine), engine


def advised(text: str, slot: Slot) -> str:
    if slot.name == "discussion":
        return "too long"
    if slot.name == "text":  # of the adviser, where DSPy's adapter asks
        return (
            "[[ ## discussion ## ]]\nx\n\n[[ ## advice ## ]]\n"
            '{"self": "be brief", "predict": "be brief"}\n\n[[ ## completed ## ]]'
        )
    if slot.name == "advice":
        return '{"self": "be brief", "predict": "be brief"}'
    return "words"


class Own(dspy.Module):
    def __init__(self, predict: Any) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, **inputs: Any) -> Any:
        return self.predict(**inputs)


@pytest.mark.parametrize("adapter", [pf.SlotAdapter(), dspy.ChatAdapter(), None])
@pytest.mark.parametrize("kind", [pf.Predict, pf.ChainOfThought])
def test_refine_shows_its_advice_to_our_modules(kind: Any, adapter: Any):
    lm, engine = scripted(advised)
    program = Own(kind("question -> answer"))
    names = [name for name, _ in program.named_predictors()]

    def advise(text: str, slot: Slot) -> str:
        return advised(text, slot).replace('"predict"', f'"{names[0]}"')

    engine.answer = advise
    refine = dspy.Refine(program, N=3, reward_fn=lambda args, pred: 0.0, threshold=1.0)
    with dspy.context(lm=lm, adapter=adapter):
        assert refine(question="why").answer == "words"
    asked = [prompt for prompt in engine.prompts if "Question: why" in prompt]
    assert len(asked) == 3
    assert ["be brief" in prompt for prompt in asked] == [False, True, True]
