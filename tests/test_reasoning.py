from __future__ import annotations

from typing import Any

import dspy
import pytest
from conftest import SMOLLM

import promptflow as pf
from promptflow.engine import Engine
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Completion, Request, Slot, Text
from promptflow.engine.scripted import ScriptedEngine
from promptflow.engine.sequence import common
from promptflow.errors import SignatureNotFound


def scripted() -> tuple[pf.LocalLM, ScriptedEngine, list[Slot]]:
    asked: list[Slot] = []

    def answer(text: str, slot: Slot) -> str:
        asked.append(slot)
        return "7" if slot.constraint else "Three and four."

    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine), engine, asked


def test_chain_of_thought_is_one_call_with_a_budget():
    lm, engine, asked = scripted()
    module = pf.ChainOfThought("question -> answer: int", reasoning_tokens=33)
    with dspy.context(lm=lm):
        prediction = module(question="3+4?")
    assert prediction.answer == 7
    assert prediction.reasoning == "Three and four."
    assert engine.batches == [1]
    assert [slot.name for slot in asked] == ["reasoning", "answer"]
    assert asked[0].max_tokens == 33
    assert "\nAnswer:" in asked[0].stop


def test_demos_may_carry_reasoning():
    lm, engine, _ = scripted()
    demos = [
        {"question": "1+1?", "reasoning": "One, one more.", "answer": 2},
        {"question": "2+2?", "answer": 4},
    ]
    with dspy.context(lm=lm):
        pf.ChainOfThought("question -> answer: int", demos=demos)(question="3+4?")
    assert "Reasoning: One, one more.\nAnswer: 2<|im_end|>" in engine.prompts[0]
    assert "2+2?<|im_end|>\n<|im_start|>assistant\nAnswer: 4<|im_end|>" in engine.prompts[0]


def test_a_signature_with_reasoning_keeps_its_own():
    spec = pf.signature("question -> reasoning, answer: int")
    assert list(pf.ChainOfThought(spec).predict.signature.output_fields) == ["reasoning", "answer"]
    again = pf.ZeroShotCoT(pf.ZeroShotCoT(spec).reason.signature)
    assert again.reason.signature.equals(pf.ZeroShotCoT(spec).reason.signature)


def test_zero_shot_cot_extends_its_first_prompt():
    lm, engine, asked = scripted()
    with dspy.context(lm=lm):
        prediction = pf.ZeroShotCoT("question -> answer: int, unit: int")(question="3+4?")
    first, second = engine.prompts
    assert first.endswith("Let's think step by step. Three and four.")
    assert second.startswith(f"{first}\nTherefore, the answer is 7\nUnit (a whole number):")
    assert engine.batches == [1, 1]
    assert [slot.name for slot in asked] == ["reasoning", "answer", "unit"]
    assert prediction.answer == 7
    assert set(prediction.fills) == {"reasoning", "answer", "unit"}
    assert prediction.usage.generated == len(asked) + 2


def test_triggers_are_a_document(tmp_path: Any):
    path = tmp_path / "slow.toml"
    path.write_text(
        "[inputs]\nq = 'str'\n[outputs]\nreasoning = 'str'\nanswer = 'str'\n"
        "[labels]\nreasoning = 'Slowly:'\nanswer = 'So'\n"
    )
    lm, engine, _ = scripted()
    with dspy.context(lm=lm):
        pf.ZeroShotCoT("question -> answer: int", triggers=path)(question="3+4?")
    assert engine.prompts[1].endswith("Slowly: Three and four.\nSo 7")
    with pytest.raises(SignatureNotFound):
        pf.ZeroShotCoT("question -> answer", triggers="no_such_triggers")


def test_predictors_and_settings_are_found():
    module = pf.ZeroShotCoT("question -> answer", reasoning_tokens=12)
    assert [name for name, _ in module.named_predictors()] == ["reason", "extract"]
    assert module.settings() == {"reasoning_tokens": 12, "triggers": "zero_shot_cot"}
    assert pf.ChainOfThought("question -> answer").settings() == {}


def test_optimizers_fill_both_stages():
    lm, _, _ = scripted()
    train = [dspy.Example(question="3+4?", answer=7).with_inputs("question")]
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        compiled = dspy.BootstrapFewShot(metric=lambda *_: True, max_labeled_demos=0).compile(
            pf.ZeroShotCoT("question -> answer: int"), trainset=train
        )
    [demo] = compiled.extract.demos
    assert (demo.reasoning, demo.answer) == ("Three and four.", 7)
    assert [demo.reasoning for demo in compiled.reason.demos] == ["Three and four."]


def test_the_second_stage_finds_its_prefix_in_the_cache(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm)
    module = pf.ZeroShotCoT("question -> answer: int", reasoning_tokens=40)
    whole = []
    for animal in ("hen", "duck", "goose"):
        question = f"A {animal} lays three eggs a day. How many eggs in four days?"
        prediction = pf.run(module, lm=lm, question=question)
        assert type(prediction.answer) is int
        first, second = (step[2].usage for step in prediction.trace)
        assert second.reused >= first.prompt - 4
        whole.append(second.reused >= first.prompt + first.generated - 4)
    # A model may write tokens that its tokenizer would not: from there on they are computed again.
    assert any(whole)


class Noted(Engine):
    """Keeps its requests and what came of them."""

    def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
        self.noted: list[tuple[Request, Completion]] = getattr(self, "noted", [])
        completions = super().generate(requests, on_done)
        self.noted += zip(requests, completions, strict=True)
        return completions

    def written(self, request: Request, completion: Completion | None = None) -> list[str]:
        """Return the tokens of a request's texts up to its slot, and of the fill."""
        texts = [part for part in request.parts if isinstance(part, Text)]
        last = next(n for n, part in enumerate(request.parts) if isinstance(part, Slot))
        assert all(isinstance(part, Text) for part in request.parts[:last])
        tokens = self.pieces(texts[:last])
        return tokens if completion is None else [*tokens, " ", *completion.fills["reasoning"].text]


class Spacing(FakeModel):
    """Begins with a space after the trigger phrase, as models do; writes no other."""

    def _logits(self, history: list[int]) -> Any:
        logits = super()._logits(history)
        logits[:33] = -100.0
        logits[127:256] = -100.0
        if history[-8:] == list(b"by step."):
            logits[32] = 100.0
        return logits


@pytest.mark.parametrize("memory", ["dense", "windowed", "hybrid"])
@pytest.mark.parametrize("count", [1, 7, 32, 512])
def test_the_second_stage_prefills_what_is_new_alone(memory: str, count: int):
    model = Spacing(context=8192, batch=512, sequences=80, memory=memory, window=16)
    with Noted(model) as noted:
        lm = pf.load("fake", engine=noted)
        module = pf.ZeroShotCoT("n -> answer: bool", reasoning_tokens=28, layout="completion")
        predictions = pf.run_many(module, [{"n": str(n)} for n in range(count)], lm=lm)
        assert all(isinstance(one, pf.Prediction) for one in predictions)
        first = [(r, c) for r, c in noted.noted if r.continued]
        second = [(r, c) for r, c in noted.noted if not r.continued]
        assert len(first) == len(second) == count
        for (before, thought), (after, final) in zip(first, second, strict=True):
            held, asked = noted.written(before, thought), noted.written(after)
            new = len(asked) - common(held, asked, len(asked))
            assert new < 40 < len(asked)
            # The last token that was sampled has not been computed.
            assert final.usage.prefilled <= new + (1 if memory == "dense" else 8)
        assert model.refused == 0
