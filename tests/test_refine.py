from __future__ import annotations

from typing import Any

import dspy
import pytest
from scripted_samples import scripted

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, ProgramError
from promptflow.flow import run
from promptflow.modules.refine import Refine

QA = "question -> answer"


def longer(inputs: Any, prediction: Any) -> float:
    return len(prediction.answer) / 4


def advised() -> tuple[pf.LocalLM, ScriptedEngine]:
    """A model that writes one letter more after each advice."""

    def answer(text: str, slot: pf.Slot) -> str:
        if slot.name == "feedback":
            return "Make it longer."
        last = text.rpartition("Last attempt:")[2].partition("Answer: ")[2].split("\n")[0]
        return (last if "Last attempt:" in text else "") + "a"

    engine = ScriptedEngine(answer)
    return pf.load("advised", engine=engine), engine


def test_attempts_read_what_was_wrong_until_the_reward_is_reached() -> None:
    lm, engine = advised()
    result = run(Refine(pf.Predict(QA), longer, threshold=0.75, n=9), lm=lm, question="?")
    assert (result.answer, result.attempts, result.reward) == ("aaa", 3, 0.75)
    assert (result.feedback, result.failed) == ("Make it longer.", 0)
    assert engine.batches == [1] * 5
    first, advice, second, _, _ = engine.prompts
    assert "Question: ?\nLast attempt: Answer: a\nFeedback: Make it longer.<|im_end|>" in second
    assert second.startswith(first.partition("<|im_end|>\n<|im_start|>assistant")[0])
    assert "Task: Question: ?" in advice
    assert "Last attempt: Answer: a" in advice
    assert len(result.trace) == 5


def test_it_ends_after_n_with_the_best() -> None:
    lm, _ = scripted(["aaa", "Be brief.", "a", "Longer.", "aa"])
    result = run(Refine(pf.Predict(QA), longer, threshold=5.0), lm=lm, question="?")
    assert (result.answer, result.attempts, result.feedback) == ("aaa", 3, "Longer.")


def test_a_first_attempt_that_is_good_costs_one_call() -> None:
    lm, engine = scripted(["aaaa"])
    result = run(Refine(pf.Predict(QA), longer), lm=lm, question="?")
    assert (result.attempts, result.feedback, engine.batches) == (1, "", [1])


def test_feedback_may_be_a_function() -> None:
    lm, engine = scripted(["a", "aaaa"])
    seen = []

    def say(inputs: Any, prediction: Any, reward: float) -> str:
        seen.append((inputs["question"], prediction.answer, reward))
        return "Four letters."

    result = run(Refine(pf.Predict(QA), longer, feedback=say), lm=lm, question="?")
    assert (result.answer, seen) == ("aaaa", [("?", "a", 0.25)])
    assert "Feedback: Four letters." in engine.prompts[1]


@pytest.mark.parametrize("kind", ["plain", "votes of plain", "plain of ours"])
def test_plain_programs_read_it_too(kind: str) -> None:
    class Ours(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = pf.Predict(QA)

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    module = {
        "plain": dspy.Predict(QA),
        "votes of plain": pf.SelfConsistency(dspy.Predict(QA), n=2),
        "plain of ours": Ours(),
    }[kind]
    lm, engine = advised()
    with dspy.context(adapter=pf.SlotAdapter()):
        result = run(Refine(module, longer, threshold=0.75, n=5), lm=lm, question="?")
    assert result.attempts == 3
    assert result.answer == "aaa"
    attempts = [prompt for prompt in engine.prompts if "in the attempt" not in prompt]
    told = [prompt for prompt in attempts if "Feedback: Make it longer." in prompt]
    assert len(told) == (4 if "votes" in kind else 2)


def test_every_step_of_a_flow_reads_it_and_goes_on_from_the_last() -> None:
    lm, engine = scripted(["so", "a", "Longer.", "so", "aaaa"])
    run(Refine(pf.ZeroShotCoT(QA), longer), lm=lm, question="?")
    _, _, _, third, fourth = engine.prompts
    assert "Feedback: Longer." in third
    assert fourth.startswith(third)


def test_a_failed_attempt_keeps_the_one_before() -> None:
    lm, _ = scripted(["a", "Longer.", EngineLost("gone")])
    result = run(Refine(pf.Predict(QA), longer), lm=lm, question="?")
    assert (result.answer, result.attempts, result.failed) == ("a", 2, 1)
    with pytest.raises(EngineLost):
        run(Refine(pf.Predict(QA), longer), lm=scripted([EngineLost("gone")])[0], question="?")


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no function of inputs"):
        Refine(pf.Predict(QA), "logprob")
    with pytest.raises(ValueError, match="at least 1"):
        Refine(pf.Predict(QA), longer, n=0)
    with pytest.raises(ProgramError, match="has a field 'feedback': rename it"):
        Refine(pf.Predict("question, feedback -> answer"), longer)
    nan = Refine(pf.Predict(QA), lambda i, p: float("nan"))
    with pytest.raises(ProgramError, match="is no number"):
        run(nan, lm=scripted(["a"])[0], question="?")


def test_settings_name_functions() -> None:
    settings = Refine(pf.Predict(QA), longer, n=2).settings()
    assert settings["reward"] == {"code": f"{__name__}:longer"}
    assert (settings["n"], settings["feedback"]) == (2, "refine")
