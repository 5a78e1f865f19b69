from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any, Literal

import dspy
import pytest
from conftest import SMOLLM
from pydantic import BaseModel, Field

import promptflow as pf
from promptflow.engine import Engine
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Slot
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import (
    ProgramError,
    SignatureError,
    TemplateError,
    UnknownField,
    UnsupportedOption,
)


def scripted(answer: Any = lambda text, slot: "x") -> tuple[pf.LocalLM, ScriptedEngine]:
    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine), engine


def test_a_signature_is_a_string_a_document_or_a_class():
    class Ask(dspy.Signature):
        """Answer."""

        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    assert pf.Predict("question -> answer").signature.signature == "question -> answer"
    assert pf.Predict(Ask).signature is Ask
    document = pf.Predict("question_answer")
    assert document.signature.instructions == "Answer the question."
    with pytest.raises(SignatureError):
        pf.Predict("question -> ")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (
            {"qestion": "x", "passage": "p"},
            r"has no field 'qestion' .* and needs 'question'",
        ),
        ({"passage": "p"}, "needs 'question'"),
        ({"passage": "p", "question": "q", "k": 1}, "has no field 'k'"),
    ],
)
def test_wrong_inputs_name_field_and_signature(inputs: dict, says: str):
    lm, engine = scripted()
    with dspy.context(lm=lm), pytest.raises(UnknownField, match=says) as caught:
        pf.Predict("passage, question -> answer")(**inputs)
    assert "passage, question -> answer" in str(caught.value)
    assert engine.batches == []


def test_inputs_with_a_default_or_none_may_be_left_out():
    class Ask(dspy.Signature):
        question: str = dspy.InputField()
        tone: str = dspy.InputField(default="dry")
        hint: str | None = dspy.InputField()
        answer: str = dspy.OutputField()

    lm, engine = scripted()
    with dspy.context(lm=lm):
        pf.Predict(Ask)(question="q")
    assert "Tone: dry\nHint: none" in engine.prompts[0]


def test_a_model_without_a_chat_template_completes():
    engine = Engine(FakeModel(context=2048))
    lm = pf.load("fake", engine=engine)
    predict = pf.Predict("question -> level: Literal['low', 'high']")
    assert predict.show(lm=lm, question="x").endswith("Question: x\nLevel: {level}")
    assert predict(lm=lm, question="x").level in {"low", "high"}
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        assert dspy.Predict(predict.signature)(question="x").level in {"low", "high"}
    with pytest.raises(TemplateError, match="chat template"):
        pf.Predict("question -> answer", layout="chat")(lm=lm, question="x")
    engine.close()


def test_demos_are_turns_in_the_prompt():
    lm, engine = scripted()
    demos = [{"question": "1+1?", "answer": 2}, dspy.Example(question="2+2?", answer=4)]
    with dspy.context(lm=lm):
        pf.Predict("question -> answer", demos=demos)(question="3+3?")
        pf.Predict("question -> answer")(question="3+3?", demos=demos[:1])
    assert (
        "Question: 1+1?<|im_end|>\n<|im_start|>assistant\nAnswer: 2<|im_end|>"
        in (engine.prompts[0])
    )
    assert "2+2?" in engine.prompts[0]
    assert "2+2?" not in engine.prompts[1]
    assert "1+1?" in engine.prompts[1]


def test_show_prints_the_exact_prompt_without_a_call():
    lm, engine = scripted(lambda text, slot: "yes" if slot.constraint else "x")
    predict = pf.Predict("question -> answer, sure: bool")
    out = io.StringIO()
    with redirect_stdout(out):
        text = predict.show(lm=lm, question="why?")
    assert engine.batches == []
    assert f"{engine.count(parts_of(predict, lm, question='why?'))} prompt tokens" in out.getvalue()
    assert text in out.getvalue()
    predict(lm=lm, question="why?")
    assert engine.prompts[0] == text.replace("{answer}", "x").replace("{sure}", "yes")


def parts_of(predict: Any, lm: Any, **inputs: Any) -> Any:
    return pf.flow.request_of(predict.call(**inputs).complete(lm)).parts


def test_config_is_dspys():
    asked: list[Slot] = []

    def watch(text: str, slot: Slot) -> str:
        asked.append(slot)
        return "x"

    lm, engine = scripted(watch)
    predict = pf.Predict("question -> answer", temperature=0.3)
    with dspy.context(lm=lm):
        predict(question="a")
        predict(question="a", config={"temperature": 0.8, "max_tokens": 4, "rollout_id": 1})
        many = predict(question="a", config={"n": 3})
    assert [slot.sampling.temperature for slot in asked] == [0.3, 0.8, 0.3, 0.3, 0.3]
    assert asked[1].max_tokens == 4
    assert engine.batches == [1, 1, 3]
    assert len(many.completions) == 3


def test_several_samples_need_a_temperature():
    temperatures: list[float] = []

    def watch(text: str, slot: Slot) -> str:
        temperatures.append(slot.sampling.temperature)
        return "x"

    lm, _ = scripted(watch)
    with dspy.context(lm=lm):
        pf.Predict("question -> answer", n=2)(question="a")
    assert temperatures == [0.7, 0.7]


def watching(**settings: Any) -> tuple[pf.LocalLM, list[Slot]]:
    """An LM that answers x, with the slots that it was asked to fill."""
    asked: list[Slot] = []

    def watch(text: str, slot: Slot) -> str:
        asked.append(slot)
        return "x"

    lm, _ = scripted(watch)
    return lm.copy(**settings), asked


def test_an_option_of_one_call_replaces_one_setting_of_the_sampling():
    lm, asked = watching(top_k=7)
    chosen = pf.Sampling(temperature=0.2, top_p=0.9)
    predict = pf.Predict("question -> answer", sampling=chosen, stop=["##"])
    with dspy.context(lm=lm):
        predict(question="a", config={"temperature": 0.8, "stop": "END", "logprobs": True})
        pf.Predict("question -> answer")(question="a", config={"temperature": 0.8})
    assert asked[0].sampling == pf.Sampling(temperature=0.8, top_p=0.9)
    assert asked[1].sampling == pf.Sampling(temperature=0.8, top_k=7)
    assert asked[0].stop[-1] == "END"
    assert asked[0].logprobs == 0


@pytest.mark.parametrize(
    ("lm_temperature", "own", "expected"),
    [(1.0, None, 1.0), (0.1, None, 0.7), (None, pf.Sampling(), 0.7), (0.0, 0.4, 0.4)],
)
def test_several_samples_are_not_equal(lm_temperature: Any, own: Any, expected: float):
    lm, asked = watching(temperature=lm_temperature)
    options = {"temperature": own} if isinstance(own, float) else {"sampling": own}
    with dspy.context(lm=lm):
        pf.Predict("question -> answer", n=2, **options)(question="a")
    assert [slot.sampling.temperature for slot in asked] == [expected] * 2


@pytest.mark.parametrize(
    "option",
    [
        {"tools": []},
        {"response_format": {"type": "json_object"}},
        {"timeout": 3},
        {"reasoning_effort": "low"},
        {"temprature": 1},
    ],
)
def test_what_a_local_model_cannot_honour_is_refused_by_name_before_a_call(option: Any):
    lm, engine = scripted()
    [name] = option
    predict = pf.Predict("question -> answer")
    predict.config = option  # as DSPy's optimizers set it
    [result] = pf.run_many(predict, [{"question": "a"}], lm=lm)
    assert isinstance(result, UnsupportedOption)
    assert name in str(result)
    assert engine.batches == []


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": "12"},
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_k": 1.5},
        {"n": 0},
        {"n": "3"},
        {"logprobs": -1},
        {"stop": 5},
        {"stop": [""]},
    ],
)
def test_a_value_that_an_option_cannot_have_is_an_error_in_its_place(option: Any):
    lm, engine = scripted()
    inputs = [{"question": "a", "config": option}, {"question": "b"}]
    bad, good = pf.run_many(pf.Predict("question -> answer"), inputs, lm=lm)
    assert isinstance(bad, UnsupportedOption)
    assert next(iter(option)) in str(bad)
    assert good.answer == "x"
    assert engine.batches == [1]
    with pytest.raises(ValueError, match="reasoning_tokens=0"):
        pf.ChainOfThought("question -> answer", reasoning_tokens=0)


NAMES = "module, seed, progress, lm, config, demos, inputs, flow, call, text, path"


def test_inputs_may_have_any_name():
    lm, engine = scripted()
    names = NAMES.split(", ")
    inputs = {name: f"<{name}>" for name in names}
    programs = [
        pf.Predict(f"{NAMES} -> answer"),
        pf.ChainOfThought(f"{NAMES} -> answer"),
        pf.ZeroShotCoT(f"{NAMES} -> answer"),
        pf.SelfConsistency(pf.Predict(f"{NAMES} -> answer"), n=2),
        pf.BestOf(pf.Predict(f"{NAMES} -> answer"), n=2, reward="first"),
    ]
    with dspy.context(lm=lm):
        for program in programs:
            assert program(**inputs).answer == "x"
            [result] = pf.run_many(program, [inputs])
            assert result.answer == "x"
    assert all(f"<{name}>" in prompt for prompt in engine.prompts for name in names)


def test_another_try_of_dspys_samples_a_predictor_that_is_greedy_by_itself():
    lm, asked = watching()
    greedy = pf.Predict("question -> answer", sampling=pf.Sampling(top_p=0.9))
    with dspy.context(lm=lm, trace=[]):
        dspy.BestOfN(greedy, N=3, reward_fn=lambda *_: 0.0, threshold=1.0)(question="a")
    assert [slot.sampling for slot in asked] == [pf.Sampling(temperature=1.0, top_p=0.9)] * 3
    asked.clear()
    weighed = pf.Predict("question -> b: Literal['x']", sampling=pf.Sampling(), weigh=True)
    weighed.lm = lm.copy(rollout_id=1, temperature=1.0)
    pf.run(weighed, question="a")
    assert asked[0].sampling.temperature == 0


def test_state_saves_and_loads(tmp_path: Any):
    lm, _ = scripted()
    predict = pf.Predict("question -> answer: int", demos=[{"question": "1+1", "answer": 2}])
    predict.signature = predict.signature.with_instructions("Count.")
    predict.save(tmp_path / "state.json")
    again = pf.Predict("question -> answer: int")
    again.load(tmp_path / "state.json")
    assert again.signature.instructions == "Count."
    assert again.show(lm=lm, question="x") == predict.show(lm=lm, question="x")


def test_a_copy_is_a_predictor_of_its_own():
    predict = pf.Predict("question -> answer", layout="completion", max_tokens=9)
    copied = predict.deepcopy()
    copied.demos.append(dspy.Example(question="a", answer="b"))
    assert predict.demos == []
    assert (copied.decoding.layout, copied.decoding.max_tokens) == ("completion", 9)
    assert predict.reset_copy().demos == []


@pytest.mark.parametrize("name", ["max_tokens", "sampling", "layout", "until"])
def test_a_part_of_the_decoding_is_no_attribute_that_nobody_reads(name: str):
    predict = pf.Predict("a -> b")
    with pytest.raises(ProgramError, match=f"predict.decoding, {name}="):
        setattr(predict, name, 3)


def test_settings_are_json():
    predict = pf.Predict("a -> b", sampling=pf.Sampling(temperature=0.5), max_tokens=3)
    settings = json.loads(json.dumps(predict.settings()))
    assert settings["max_tokens"] == 3
    assert settings["sampling"]["temperature"] == 0.5


def test_optimizers_find_and_fill_it():
    def answer(text: str, slot: Slot) -> str:
        question = text.rsplit("Question: ", 1)[1].split("<|im_end|>")[0]
        return str(int(question) * 2)

    lm, _ = scripted(answer)
    train = [
        dspy.Example(question=str(n), answer=2 * n if n % 2 else -1).with_inputs("question")
        for n in range(1, 7)
    ]
    program = pf.Predict("question -> answer: int")
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        compiled = dspy.BootstrapFewShot(
            metric=lambda example, prediction, trace=None: example.answer == prediction.answer,
            max_bootstrapped_demos=3,
            max_labeled_demos=0,
        ).compile(program, trainset=train)
    assert [(demo.question, demo.answer) for demo in compiled.demos] == [
        ("1", 2),
        ("3", 6),
        ("5", 10),
    ]


class Place(BaseModel):
    city: str = Field(max_length=16)
    capital: bool


class Person(BaseModel):
    name: str = Field(max_length=16)
    born: int
    home: Place


SUBJECTS = ["cats", "the Moon", "Napoléon", "«guillemets»", "日本", "C++", "a\nb", "{}", "", "42"]
QUESTIONS = ["When did {} begin?", "Who made {}?", "Is {} good?", "{}", "Why {} ..."]


def varied() -> list[str]:
    return [question.format(subject) for question in QUESTIONS for subject in SUBJECTS]


def test_typed_fields_and_nested_models_of_a_small_model_always_parse(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm)

    class Describe(dspy.Signature):
        """Answer the question and name a person it reminds you of."""

        question: str = dspy.InputField()
        answer: str = dspy.OutputField()
        confidence: Literal["low", "medium", "high"] = dspy.OutputField()
        year: int = dspy.OutputField()
        person: Person = dspy.OutputField()
        mood: Literal["good", "bad"] | None = dspy.OutputField()

    before = smollm.stats().requests
    inputs = [{"question": question} for question in varied()[::3]]
    results = pf.run_many(pf.Predict(Describe, max_tokens=128), inputs, lm=lm)
    assert [r for r in results if isinstance(r, Exception)] == []
    assert {r.confidence for r in results} <= {"low", "medium", "high"}
    assert all(type(r.year) is int for r in results)
    assert all(isinstance(r.person, Person) for r in results)
    assert smollm.stats().requests - before == len(results) == 17


def test_every_option_is_weighed_from_one_prefill(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm)
    ask = pf.Predict("question -> answer: Literal['A', 'B', 'C', 'D']", weigh=True)
    result = pf.run(ask, lm=lm, question="Which is a fruit? A: stone, B: apple, C: river, D: sky")
    shares = result.weighed["answer"]
    assert set(shares) == {"A", "B", "C", "D"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert result.answer == max(shares, key=lambda option: shares[option])
    # This tokenizer can also write the space before an option by itself: a branch of its own.
    assert result.usage.generated <= 1


def test_dspys_own_tools_run_on_a_model(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm).copy(max_tokens=48)
    data = [
        dspy.Example(question=f"What is {n} plus 1?", answer=str(n + 1)).with_inputs("question")
        for n in range(4)
    ]
    before = smollm.stats().requests
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        plain = dspy.Predict("question -> answer")
        assert isinstance(plain(question="Who?").answer, str)
        evaluate = dspy.Evaluate(
            devset=data,
            metric=lambda example, prediction, trace=None: bool(prediction.answer),
            num_threads=4,
            display_progress=False,
        )
        assert evaluate(pf.Predict("question -> answer", max_tokens=8)).score == 100.0
        compiled = dspy.BootstrapFewShot(
            metric=lambda *_: True, max_bootstrapped_demos=2, max_labeled_demos=1
        ).compile(dspy.ChainOfThought("question -> answer: int"), trainset=data[:2])
    demos = compiled.predictors()[0].demos
    assert len(demos) == 2
    assert all(type(demo.answer) is int and demo.reasoning for demo in demos)
    assert smollm.stats().requests - before == 1 + 4 + 2


@pytest.mark.parametrize("level", ["low", "high"])
def test_a_literal_comes_back_as_itself(level: Literal["low", "high"]):
    lm, _ = scripted(lambda text, slot: level)
    with dspy.context(lm=lm):
        assert pf.Predict("q -> level: Literal['low', 'high']")(q="x").level == level


def test_a_value_of_another_type_is_warned_of_as_dspy_warns(caplog: pytest.LogCaptureFixture):
    lm, _ = scripted()
    predict = pf.Predict("count: int, rest: list[str] -> answer")
    with dspy.context(lm=lm):
        predict(count=3, rest=["a"])
        assert "Type mismatch" not in caplog.text
        with dspy.context(warn_on_type_mismatch=False):
            predict(count="three", rest=["a"])
        assert "Type mismatch" not in caplog.text
        predict(count="three", rest=["a"])
    assert "Type mismatch for field 'count': expected int" in caplog.text
