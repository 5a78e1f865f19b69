from __future__ import annotations

import asyncio
import dataclasses
import enum
from typing import Annotated, Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError, LMServerError, LMUnsupportedFeatureError
from pydantic import AfterValidator, BaseModel, TypeAdapter
from test_layout import THINKING

import promptflow as pf
from promptflow.engine.request import Completion, Fill, Json, Slot, Text, TokenLogprob
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ContextOverflow, EngineLost, ParseError, UnsupportedOption
from promptflow.lm.faults import in_short, without_frames

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


# A model that is not local: exactly a ChatAdapter


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Review(BaseModel):
    author: str
    stars: int


class Wide(dspy.Signature):
    """Read it."""

    text: str = dspy.InputField(desc="what was said")
    reviews: list[Review] = dspy.InputField()
    mood: Mood = dspy.OutputField()
    score: float = dspy.OutputField(ge=0, le=1)
    kind: Literal["a", "b"] = dspy.OutputField()


class Talk(dspy.Signature):
    question: str = dspy.InputField()
    history: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


def find(name: str) -> str:
    """Find a thing."""
    return f"{name} is 42"


REVIEWS = [Review(author="Ann", stars=1)]
PROGRAMS: list[tuple[str, Any, dict[str, Any], list[dict[str, Any]]]] = [
    ("text", lambda: dspy.Predict("question -> answer"), {"question": "q"}, [{"answer": "x"}]),
    (
        "reasoning",
        lambda: dspy.ChainOfThought("question -> answer: int"),
        {"question": "q"},
        [{"reasoning": "r", "answer": "4"}],
    ),
    (
        "types",
        lambda: dspy.Predict(Wide),
        {"text": "t", "reviews": REVIEWS},
        [{"mood": "good", "score": "0.5", "kind": "a"}],
    ),
    (
        "history",
        lambda: dspy.Predict(Talk),
        {
            "question": "three",
            "history": dspy.History(messages=[{"question": "one", "answer": "two"}]),
        },
        [{"answer": "four"}],
    ),
    (
        "agent",
        lambda: dspy.ReAct("question -> answer: int", tools=[find]),
        {"question": "x?"},
        [
            {"next_thought": "a", "next_tool_name": "find", "next_tool_args": '{"name": "x"}'},
            {"next_thought": "b", "next_tool_name": "finish", "next_tool_args": "{}"},
            {"reasoning": "r", "answer": "42"},
        ],
    ),
    (
        "comparison",
        lambda: dspy.MultiChainComparison("question -> answer", M=2),
        {"question": "q", "completions": [{"rationale": "r", "answer": "x"}] * 2},
        [{"rationale": "r", "answer": "y"}],
    ),
    (
        "samples",
        lambda: dspy.Predict("question -> answer", n=2),
        {"question": "q"},
        [{"answer": "x"}, {"answer": "y"}],
    ),
    (
        "best",
        lambda: dspy.BestOfN(
            dspy.Predict("question -> answer"), N=2, reward_fn=lambda a, p: 0.0, threshold=1.0
        ),
        {"question": "q"},
        [{"answer": "x"}, {"answer": "y"}],
    ),
]
NAMES = [name for name, *_ in PROGRAMS]


def demonstrated(program: Any, name: str) -> Any:
    for predictor in program.predictors() if name == "text" else ():
        predictor.demos = [dspy.Example(question="two?", answer="2"), dspy.Example(question="one?")]
    return program


# MultiChainComparison itself uses what DSPy deprecates.
@pytest.mark.filterwarnings("ignore:The 'prefix' argument")
@pytest.mark.parametrize(("name", "make", "inputs", "answers"), PROGRAMS, ids=NAMES)
def test_a_foreign_model_is_asked_as_chat_adapter_asks(
    name: str, make: Any, inputs: Any, answers: Any
):
    asked = []
    for adapter in (dspy.ChatAdapter(), pf.SlotAdapter()):
        lm = dspy.utils.DummyLM(answers)
        for configured in (
            lm,
            scripted(lambda text, slot: "")[0],
        ):  # the predictors' own comes first
            program = demonstrated(make(), name)
            program.set_lm(lm.copy())
            with dspy.context(lm=configured, adapter=adapter):
                prediction = program(**inputs)
            calls = [
                (entry["messages"], entry["outputs"], entry["kwargs"]) for entry in program.history
            ]
            asked.append((dict(prediction), calls))
            lm = dspy.utils.DummyLM(answers)
    assert asked[0] == asked[1] == asked[2] == asked[3]


# The same programs on slots: what DSPy's users count on is there


def said(answers: list[dict[str, Any]]) -> tuple[pf.LocalLM, ScriptedEngine]:
    """An engine that gives the answers one prompt after the other, slot by slot."""
    engine = ScriptedEngine(lambda text, slot: "")

    class Answering(ScriptedEngine):
        def _complete(self, request: Any) -> Completion:
            fields = left.pop(0)
            self.answer = lambda text, slot: str(fields[slot.name])
            return super()._complete(request)

    left = list(answers)
    engine = Answering(lambda text, slot: "")
    return pf.load("said", engine=engine), engine


# MultiChainComparison itself uses what DSPy deprecates.
@pytest.mark.filterwarnings("ignore:The 'prefix' argument")
@pytest.mark.parametrize(("name", "make", "inputs", "answers"), PROGRAMS, ids=NAMES)
def test_programs_end_as_they_do_on_dspys_own(name: str, make: Any, inputs: Any, answers: Any):
    ends = []
    for lm, adapter in (
        (dspy.utils.DummyLM(answers), dspy.ChatAdapter()),
        (said(answers)[0], pf.SlotAdapter()),
    ):
        program = demonstrated(make(), name)
        with dspy.context(lm=lm, adapter=adapter, trace=[], track_usage=True):
            prediction = program(**inputs)
            trace = [(type(p).__name__, sorted(i), sorted(o)) for p, i, o in dspy.settings.trace]
        shapes = [
            (len(e["outputs"]), sorted(e["kwargs"]), e["messages"][0]["role"])
            for e in program.history
        ]
        counted = [len(e["usage"]) > 0 for e in program.history]
        ends.append((dict(prediction), trace, len(shapes), [s[::2] for s in shapes], len(counted)))
    assert ends[0] == ends[1]


# Options are honoured, or refused by name


class Noted(ScriptedEngine):
    def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
        self.seen = [*getattr(self, "seen", []), *requests]
        return super().generate(requests, on_done)

    def slots(self) -> list[Slot]:
        return [part for r in self.seen for part in r.parts if isinstance(part, Slot)]


ASKING = [
    lambda **options: dspy.Predict("question -> answer", **options)(question="q"),
    lambda **options: dspy.Predict("question -> answer")(question="q", config=options),
    lambda **options: pf.Predict("question -> answer")(question="q", config=options),
    lambda **options: pf.Predict("question -> answer", **options)(question="q"),
]
REFUSED = {
    "response_format": {"type": "json_object"},
    "timeout": 3,
    "reasoning_effort": "high",
    "prediction": {"type": "content", "content": "x"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "service_tier": "flex",
}


@pytest.mark.parametrize("ask", ASKING, ids=["dspy", "dspy call", "pf call", "pf"])
def test_options_reach_the_slots(ask: Any):
    engine = Noted(lambda text, slot: "hello")
    with dspy.context(lm=pf.load("noted", engine=engine), adapter=pf.SlotAdapter()):
        ask(stop=["##"], max_completion_tokens=9, logprobs=True, top_logprobs=2, top_p=0.5)
    [slot] = engine.slots()
    assert "##" in slot.stop
    assert (slot.max_tokens, slot.logprobs, slot.sampling.top_p) == (9, 2, 0.5)


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("ask", ASKING, ids=["dspy", "dspy call", "pf call", "pf"])
def test_what_cannot_be_honoured_is_refused_by_name_before_a_call(ask: Any, option: str):
    engine = Noted(lambda text, slot: "hello")
    with (
        dspy.context(lm=pf.load("noted", engine=engine), adapter=pf.SlotAdapter()),
        pytest.raises(UnsupportedOption, match=option),
    ):
        ask(**{option: REFUSED[option]})
    assert engine.batches == []


def test_a_refused_option_is_dspys_error_too():
    lm, _ = scripted(lambda text, slot: "hello")
    with (
        dspy.context(lm=lm, adapter=pf.SlotAdapter()),
        pytest.raises(LMUnsupportedFeatureError, match="response_format"),
    ):
        ASKING[0](response_format={"type": "json_object"})


@pytest.mark.parametrize("ask", ASKING[:3], ids=["dspy", "dspy call", "pf call"])
def test_a_misspelled_option_names_the_nearest(ask: Any):
    lm, _ = scripted(lambda text, slot: "hello")
    with (
        dspy.context(lm=lm, adapter=pf.SlotAdapter()),
        pytest.raises(UnsupportedOption, match="temperature"),
    ):
        ask(temperatur=0.5)


def test_a_plain_call_drops_nothing_either():
    lm, engine = scripted(lambda text, slot: "hello")
    for option in set(REFUSED) - {"response_format"}:
        with pytest.raises(Exception, match=option):
            lm("x", **{option: REFUSED[option]})
    with pytest.raises(UnsupportedOption, match="temperature"):
        lm.copy(temperatur=1)("x")
    with pytest.raises(UnsupportedOption, match="temperature"):
        pf.LocalLM(engine, temperatur=1)
    assert engine.batches == []


def test_log_probabilities_come_with_the_prediction():
    class Scored(ScriptedEngine):
        def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
            token = TokenLogprob("hi", 3, -0.5, (("hi", -0.5),))
            return [Completion({"answer": Fill("hi", "stop", logprobs=(token,))}) for _ in requests]

    lm = pf.load("scored", engine=Scored(lambda text, slot: ""))
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        prediction = dspy.Predict("question -> answer", logprobs=True)(question="q")
    assert prediction.logprobs["content"][0]["token"] == "hi"


# Errors have both names


def failing(error: Exception) -> tuple[pf.LocalLM, list[int]]:
    tries: list[int] = []

    def answer(text: str, slot: Slot) -> str:
        tries.append(1)
        raise error

    return pf.load("failing", engine=ScriptedEngine(answer)), tries


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_errors_are_caught_by_our_names_and_by_dspys(kind: Any):
    for error, ours, theirs in (
        (ContextOverflow("over by 3"), ContextOverflow, dspy.ContextWindowExceededError),
        (EngineLost("gone"), EngineLost, LMServerError),
    ):
        lm = failing(error)[0].copy(num_retries=0)
        for name in (ours, theirs):
            with (
                dspy.context(lm=lm, adapter=pf.SlotAdapter()),
                pytest.raises(name, match=str(error)),
            ):
                kind("question -> answer")(question="q")


@pytest.mark.parametrize("name", [ParseError, AdapterParseError])
@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_a_value_that_does_not_fit_is_a_parse_error_by_both_names(kind: Any, name: Any):
    lm, _ = scripted(lambda text, slot: "no number")
    with (
        dspy.context(lm=lm, adapter=pf.SlotAdapter()),
        pytest.raises(name, match="no number"),
    ):
        kind("question -> answer: int")(question="q")


def test_a_lost_engine_is_asked_again_as_often_as_dspy_would(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dspy.clients.execution._delay", lambda error, attempt: 0.0)
    lm, tries = failing(EngineLost("gone"))
    with dspy.context(lm=lm.copy(num_retries=2), adapter=pf.SlotAdapter()):
        with pytest.raises(EngineLost):
            dspy.Predict("question -> answer")(question="q")
        assert len(tries) == 3


def test_what_was_heard_is_not_said_again():
    lm, tries = failing(EngineLost("gone"))
    program = dspy.streamify(
        dspy.Predict("question -> answer"),
        stream_listeners=[dspy.streaming.StreamListener("answer")],
        async_streaming=False,
    )
    with (
        dspy.context(lm=lm.copy(num_retries=2), adapter=pf.SlotAdapter()),
        pytest.raises(EngineLost),
    ):
        list(program(question="q"))
    assert len(tries) == 1


# DSPy's other adapters, on a local model


ADAPTERS = {
    "chat": (dspy.ChatAdapter, "[[ ## answer ## ]]\n4\n\n[[ ## completed ## ]]"),
    "json": (dspy.JSONAdapter, '{"answer": 4}'),
    "xml": (dspy.XMLAdapter, "<answer>4</answer>"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_dspys_own_adapters_work_on_a_local_model(adapter: str):
    kind, text = ADAPTERS[adapter]
    engine = Noted(lambda prompt, slot: text)
    with dspy.context(lm=pf.load("noted", engine=engine), adapter=kind()):
        assert dspy.Predict("question -> answer: int")(question="q").answer == 4
    [slot] = engine.slots()
    assert isinstance(slot.constraint, Json) is (adapter == "json")


def test_a_two_step_adapter_works_on_a_local_model():
    extraction = "[[ ## answer ## ]]\n4\n\n[[ ## completed ## ]]"
    lm, _ = scripted(lambda prompt, slot: extraction if "[[ ##" in prompt else "it is four")
    with dspy.context(lm=lm, adapter=dspy.TwoStepAdapter(lm)):
        assert dspy.Predict("question -> answer: int")(question="q").answer == 4


def test_what_is_lost_with_the_engine_is_asked_again_by_our_modules_too():
    """The whole batch once, then each alone: one that kills the engine takes no other with it."""
    batches: list[list[str]] = []

    class Mortal(ScriptedEngine):
        def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
            texts = [part.text for r in requests for part in r.parts if isinstance(part, Text)]
            batches.append([word for text in texts for word in ("good", "bad") if word in text])
            if any("bad" in text for text in texts) or len(batches) == 1:
                return [Completion(error=EngineLost("gone")) for _ in requests]
            return super().generate(requests, on_done)

    lm = pf.load("mortal", engine=Mortal(lambda text, slot: "x")).copy(num_retries=2)
    inputs = [{"question": word} for word in ("good", "bad", "good")]
    results = pf.run_many(pf.Predict("question -> answer"), inputs, lm=lm)
    assert [isinstance(result, EngineLost) for result in results] == [False, True, False]
    assert [len(batch) for batch in batches] == [3, 3, 1, 1, 1]


def test_a_baml_adapter_works_on_a_local_model():
    from dspy.adapters.baml_adapter import BAMLAdapter

    lm, _ = scripted(lambda prompt, slot: '{"answer": 4}')
    with dspy.context(lm=lm, adapter=BAMLAdapter()):
        assert dspy.Predict("question -> answer: int")(question="q").answer == 4


# What DSPy puts around programs


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_dspy_runs_programs_in_threads_and_counts_their_tokens(kind: Any):
    lm, engine = scripted(lambda text, slot: text.split("Question: ")[1].split("<")[0])
    questions = [
        dspy.Example(question=f"q{n}", answer=f"q{n}").with_inputs("question") for n in range(9)
    ]
    program = kind("question -> answer")
    with dspy.context(lm=lm, adapter=pf.SlotAdapter(), track_usage=True):
        evaluate = dspy.Evaluate(
            devset=questions,
            metric=lambda example, prediction, trace=None: example.answer == prediction.answer,
            num_threads=8,
            display_progress=False,
        )
        assert evaluate(program).score == 100.0
        parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)
        answers = [p.answer for p in parallel([(program, q) for q in questions])]
        [usage] = program(question="one two").get_lm_usage().values()
    assert answers == [q.answer for q in questions]
    assert usage["completion_tokens"] == 2
    assert len(engine.prompts) == 19


NAMED = ["module", "seed", "inputs", "flow", "layout", "adapter", "callbacks", "n", "messages"]


@pytest.mark.parametrize("how", ["call", "async", "stream"])
@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict, pf.ChainOfThought])
@pytest.mark.parametrize("name", NAMED)
def test_inputs_have_any_name(name: str, kind: Any, how: str):
    lm, engine = scripted(lambda text, slot: "x")
    program = kind(f"{name} -> answer")
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        if how == "async":
            prediction = asyncio.run(dspy.asyncify(program)(**{name: "given"}))
        elif how == "stream":
            listeners = [dspy.streaming.StreamListener("answer")]
            streamed = dspy.streamify(program, stream_listeners=listeners, async_streaming=False)
            *heard, prediction = streamed(**{name: "given"})
            assert "".join(chunk.chunk for chunk in heard) == "x"
        else:
            prediction = program(**{name: "given"})
    assert prediction.answer == "x"
    assert ": given" in engine.prompts[0]


def test_knn_finds_demos_with_our_embedders():
    from promptflow.retrieval import HashingEmbedder

    examples = [dspy.Example(question=q).with_inputs("question") for q in ("a red fox", "two cats")]
    embed = dspy.Embedder(HashingEmbedder().encode, caching=False)
    [nearest] = dspy.KNN(k=1, trainset=examples, vectorizer=embed)(question="the red fox")
    assert nearest.question == "a red fox"


# A validator of the type, which no constraint holds


def even(value: int) -> int:
    if value % 2:
        raise ValueError("odd")
    return value


class Even(dspy.Signature):
    question: str = dspy.InputField()
    answer: Annotated[int, AfterValidator(even)] = dspy.OutputField()


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_a_value_that_its_type_refuses_is_asked_for_once_more(kind: Any, how: str):
    def ask(*said: str) -> tuple[Any, list[Slot]]:
        left = list(said)
        engine = Noted(lambda text, slot: left.pop(0))
        with dspy.context(lm=pf.load("noted", engine=engine), adapter=pf.SlotAdapter()):
            predict = kind(Even)
            call = predict.acall(question="q") if how == "async" else None
            prediction = asyncio.run(call) if call else predict(question="q")
        return prediction, engine.slots()

    prediction, slots = ask("3", "4")
    assert prediction.answer == 4
    assert [slot.sampling.temperature > 0 for slot in slots] == [False, True]
    for name in (ParseError, AdapterParseError):
        with pytest.raises(name, match="asked for twice"):
            ask("3", "5")


THOUGHT = "question -> why: dspy.Reasoning, answer: int"


def thinking(template: str = THINKING) -> tuple[Any, Noted]:
    engine = Noted(lambda text, slot: "7" if slot.name == "answer" else "since")
    engine.info = dataclasses.replace(engine.info, template=template)
    return pf.load("thinking", engine=engine), engine


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_dspys_reasoning_works_both_ways(kind: Any):
    """Written in the model's block as an output; read back from it in demos and past turns."""
    lm, engine = thinking()
    demo = dspy.Example(question="one", why=dspy.Reasoning(content="for"), answer=1)
    turn = {"question": "two", "why": dspy.Reasoning(content="as"), "answer": 2}
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        predict = kind(dspy.Signature(THOUGHT))
        prediction = predict(question="Q")
        assert prediction.why == dspy.Reasoning(content="since")
        assert isinstance(prediction.why, dspy.Reasoning)
        assert prediction.answer == 7
        predict.demos = [demo]
        predict(question="Q")
        past = THOUGHT.replace("question", "question, history: dspy.History")
        follows = kind(dspy.Signature(past))
        follows(question="Q", history=dspy.History(messages=[turn]))
        read = kind(dspy.Signature("question, why: dspy.Reasoning -> answer: int"))
        read(question="Q", why=prediction.why)
    alone, shown, followed, given = engine.prompts
    assert alone.endswith("<|assistant|><think>\nsince\n</think>\n\nAnswer (a whole number): 7")
    assert "<think>\nfor\n</think>\n\nAnswer: 1<|end|>" in shown
    assert "<think>\nas\n</think>\n\nAnswer: 2<|end|>" in followed
    assert "Why: since" in given
    assert "content" not in given


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_dspys_reasoning_is_labelled_text_without_a_block(kind: Any):
    lm, engine = thinking("")
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        prediction = kind(dspy.Signature(THOUGHT))(question="Q")
        kind(dspy.Signature(THOUGHT))(question="Q", config={"thinking": False})
    assert isinstance(prediction.why, dspy.Reasoning)
    assert all("Why: since\nAnswer" in prompt for prompt in engine.prompts)


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_thinking_is_chosen_for_an_lm_a_predictor_or_a_call(kind: Any):
    lm, engine = thinking()
    opened, labelled = "<think>\nsince\n</think>", "</think>\n\nWhy: since"
    with dspy.context(lm=lm.copy(thinking=False), adapter=pf.SlotAdapter()):
        kind(dspy.Signature(THOUGHT))(question="Q")
        assert labelled in engine.prompts[-1]
        kind(dspy.Signature(THOUGHT), thinking=True)(question="Q")
        assert opened in engine.prompts[-1]
        kind(dspy.Signature(THOUGHT))(question="Q", config={"thinking": "auto"})
        assert opened in engine.prompts[-1]
    with dspy.context(lm=lm.copy(thinking=True), adapter=pf.SlotAdapter()):
        kind("question -> answer: int")(question="Q")
        assert opened in engine.prompts[-1]
        kind("question -> answer: int", thinking=False)(question="Q")
        assert opened not in engine.prompts[-1]
    for wrong in ("yes", {"type": "enabled"}):
        with pytest.raises(UnsupportedOption, match="True, False or 'auto'"):
            lm.copy(thinking=wrong)("x")


def test_dspys_own_adapters_think_natively_where_the_lm_does():
    lm, engine = thinking()
    engine.answer = lambda text, slot: (
        "since" if slot.name == "thinking" else "[[ ## answer ## ]]\n7\n[[ ## completed ## ]]"
    )
    with dspy.context(lm=lm.copy(thinking=True), adapter=dspy.ChatAdapter()):
        prediction = dspy.Predict("question -> answer: int")(question="Q")
    assert prediction.answer == 7
    assert "<|assistant|><think>\nsince\n</think>\n\n[[ ## answer" in engine.prompts[0]


def test_an_error_of_a_tool_is_shown_in_short():
    """DSPy's agents put a traceback of five frames into the next prompt."""

    def fail(name: str) -> str:
        """Fail."""
        return str(TypeAdapter(list[int]).validate_python(name))

    steps = [
        {"next_thought": "a", "next_tool_name": "fail", "next_tool_args": '{"name": "x"}'},
        {"next_thought": "b", "next_tool_name": "finish", "next_tool_args": "{}"},
        {"reasoning": "r", "answer": "42"},
    ]
    values = iter([value for step in steps for value in step.values()])
    lm = pf.load("s", engine=ScriptedEngine(lambda text, slot: next(values)))
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        result = dspy.ReAct("question -> answer", tools=[fail])(question="x?")
    assert "Traceback" in result.trajectory["observation_0"]
    [line] = [k for k in lm.text_engine.prompts[1].splitlines() if k.startswith("Observation")]
    assert line == (
        "Observation 0: Execution error in fail: ValidationError: 1 validation error for list[int] "
        "Input should be a valid list [type=list_type, "
        "input_value='x', input_type=str]<|im_end|>"
    )


@pytest.mark.parametrize(
    "text", ["Traceback (most recent call last):\n  a\nb: c", "Execution error in x: y", "plain"]
)
def test_what_is_no_error_of_a_tool_is_shown_as_it_is(text: str):
    assert without_frames(text) == text


def test_an_error_is_told_in_one_line():
    assert in_short(ValueError("a\n b")) == "ValueError: a b"
    assert in_short("x" * 400) == "x" * 300 + "..."
