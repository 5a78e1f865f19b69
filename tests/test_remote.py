from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import dspy
import pytest
from pydantic import Field

import promptflow as pf
from promptflow.errors import (
    ContextOverflow,
    EngineError,
    EngineLost,
    ParseError,
    ProgramError,
    UnsupportedOption,
    UnsupportedType,
)
from promptflow.lm.remote import provider_of

Reply = Callable[[dict[str, Any], int], Any]


def written(**fields: Any) -> str:
    """An answer as DSPy's ChatAdapter reads it."""
    said = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*said, "[[ ## completed ## ]]"])


class Provider:
    """A server with OpenAI's chat API on this machine; ``bodies`` are what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.reply: Reply = lambda body, n: written(answer="4")
        self._lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                with provider._lock:
                    provider.bodies.append(body)
                    number = len(provider.bodies) - 1
                reply = provider.reply(body, number)
                status, data = reply if isinstance(reply, tuple) else (200, answer_of(reply))
                sent = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def lm(self, **settings: Any) -> Any:
        settings = {"cache": False, "num_retries": 0, **settings}
        return pf.load("openai/gpt-4o-mini", api_base=self.url, api_key="x", **settings)


def answer_of(text: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
    choice |= text if isinstance(text, dict) else {}
    if isinstance(text, str):
        choice["message"]["content"] = text
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


QA = "question -> answer"
PASSAGE = pf.Quote["passages"]


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("openai/gpt-4o-mini", "openai"),
        ("anthropic/claude-x", "anthropic"),
        ("openrouter/meta/llama", "openrouter"),
        ("ollama_chat/llama3", "ollama_chat"),
        ("smollm2-135m", ""),
        ("models/none.gguf", ""),
        ("openai/model.gguf", ""),
        ("nobody/model", ""),
        ("/abs/path", ""),
        ("openai/", ""),
        (Path("openai/gpt-4o-mini"), ""),
    ],
)
def test_a_providers_model_is_told_from_a_file(name: Any, provider: str):
    assert provider_of(name) == provider


def test_a_file_comes_before_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "gpt-4o-mini").write_bytes(b"")
    assert provider_of("openai/gpt-4o-mini") == ""


def test_a_call_is_one_of_dspys_own(provider: Provider):
    lm = provider.lm()
    prediction = pf.run(pf.Predict("question -> answer: int"), lm=lm, question="2+2?")
    assert prediction.answer == 4
    assert (prediction.usage.prompt, prediction.usage.generated) == (10, 3)
    assert len(provider.bodies) == 1
    assert "2+2?" in provider.bodies[0]["messages"][-1]["content"]
    assert len(lm.history) == 1
    [(_, inputs, traced)] = prediction.trace
    assert (dict(inputs), traced.answer) == ({"question": "2+2?"}, 4)


def test_options_are_passed_and_the_rest_is_left_to_the_model(provider: Provider):
    pf.run(pf.Predict(QA), lm=provider.lm(), question="?")
    assert not {"temperature", "top_p", "max_tokens", "stop", "seed"} & set(provider.bodies[0])
    sampling = pf.Sampling(
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logit_bias=((5, -2.0),),
    )
    predict = pf.Predict(QA, sampling=sampling, max_tokens=77, stop=["END"], seed=5)
    config = {"logprobs": True, "top_logprobs": 2, "top_p": 0.8}
    pf.run(predict, lm=provider.lm(temperature=0.1), question="?", config=config)
    body = provider.bodies[1]
    assert [body[name] for name in ("temperature", "top_p", "seed")] == [0.5, 0.8, 5]
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 77
    assert (body["frequency_penalty"], body["presence_penalty"]) == (0.1, 0.2)
    assert body["logit_bias"] == {"5": -2.0}
    assert body["stop"] in ("END", ["END"])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"until": "answer"}, "until"),
        ({"weigh": True}, "weigh"),
        ({"layout": "chat"}, "layout"),
        ({"beam": pf.Beam(2)}, "beam"),
        ({"reasoning_tokens": 9}, "reasoning_tokens"),
        ({"sampling": pf.Sampling(top_k=3)}, "top_k"),
        ({"sampling": pf.Sampling(min_p=0.1)}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"typical_p": 0.5}, "typical_p"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_by_name(
    provider: Provider, options: dict[str, Any], named: str
):
    inputs = [{"question": "a"}, {"question": "b"}]
    for result in pf.run_many(pf.Predict(QA, **options), inputs, lm=provider.lm()):
        assert isinstance(result, UnsupportedOption)
        assert named in str(result)
    assert provider.bodies == []


def test_a_quote_is_refused_and_limits_of_types_are_held(provider: Provider):
    class Quoting(dspy.Signature):
        passages: list[str] = dspy.InputField()
        answer: PASSAGE = dspy.OutputField()

    with pytest.raises(UnsupportedType, match=r"'answer'.*Quote"):
        pf.run(pf.Predict(Quoting), lm=provider.lm(), passages=["a"])
    assert provider.bodies == []

    class Bounded(dspy.Signature):
        question: str = dspy.InputField()
        answer: Annotated[int, Field(ge=5)] = dspy.OutputField()

    with pytest.raises(ParseError, match=r"'answer'.*greater than or equal to 5"):
        pf.run(pf.Predict(Bounded), lm=provider.lm(), question="?")


@pytest.mark.parametrize("cache", [False, True])
def test_every_sample_of_a_vote_is_a_call_of_its_own(provider: Provider, cache: bool):
    provider.reply = lambda body, n: written(answer=str(n % 5))
    lm = provider.lm(cache=cache, seed=3)
    module = pf.SelfConsistency(pf.Predict(f"{QA}, note_{cache}"), n=5)
    provider.reply = lambda body, n: written(answer=str(n), **{f"note_{cache}": "x"})
    prediction = pf.run(module, lm=lm, question="?")
    assert len(provider.bodies) == 5
    assert sorted(prediction.votes) == ["0", "1", "2", "3", "4"]
    assert {body["temperature"] for body in provider.bodies} == {0.7}
    assert len({body["seed"] for body in provider.bodies}) == 5
    assert prediction.usage.generated == 15
    again = pf.run(module, lm=lm, question="?")
    assert (again.votes == prediction.votes) is cache
    assert len(provider.bodies) == (5 if cache else 10)


def test_n_completions_are_calls_of_their_own(provider: Provider):
    provider.reply = lambda body, n: written(answer=str(n))
    predict = pf.Predict(QA, n=3, seed=1)
    prediction = pf.run(predict, lm=provider.lm(cache=True), question="n?")
    assert sorted(prediction.completions.answer) == ["0", "1", "2"]
    assert all(body.get("n") in (None, 1) for body in provider.bodies)
    assert len({body["seed"] for body in provider.bodies}) == 3


def test_calls_run_side_by_side(provider: Provider):
    together = threading.Barrier(8)

    def reply(body: dict[str, Any], n: int) -> str:
        together.wait(timeout=30)  # broken if fewer than eight come
        return written(answer=body["messages"][-1]["content"].count("x"))

    provider.reply = reply
    inputs = [{"question": "x" * n} for n in range(8)]
    results = pf.run_many(pf.Predict("question -> answer: int"), inputs, lm=provider.lm())
    assert [r.answer for r in results] == list(range(8))
    with dspy.context(trace=[], num_threads=1):
        provider.reply = lambda body, n: written(answer=n)
        provider.bodies.clear()
        results = pf.run_many(pf.Predict("question -> answer: int"), inputs, lm=provider.lm())
        assert [r.answer for r in results] == list(range(8))
        assert [step[1]["question"] for step in dspy.settings.trace] == ["x" * n for n in range(8)]


FAILURES = {
    "context": (400, {"error": {"code": "context_length_exceeded", "message": "too long"}}),
    "rate": (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}),
    "server": (503, {"error": {"message": "busy"}}),
    "auth": (401, {"error": {"message": "no key"}}),
    "invalid": (400, {"error": {"message": "bad temperature"}}),
}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("context", ContextOverflow),
        ("rate", EngineError),
        ("server", EngineLost),
        ("auth", EngineError),
        ("invalid", EngineError),
    ],
)
def test_a_failure_is_an_error_in_its_place(provider: Provider, kind: str, error: Any):
    def reply(body: dict[str, Any], n: int) -> Any:
        bad = "bad" in body["messages"][-1]["content"]
        return FAILURES[kind] if bad else written(answer="4")

    provider.reply = reply
    inputs = [{"question": q} for q in ("a", "bad", "c")]
    one, two, three = pf.run_many(pf.Predict(QA), inputs, lm=provider.lm())
    assert (one.answer, three.answer) == ("4", "4")
    assert isinstance(two, error)
    assert isinstance(two, EngineError)
    assert "gpt-4o-mini" in str(two)


def test_a_rate_limit_is_retried_by_dspys_own_settings(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dspy.clients.execution._delay", lambda *_: 0.0)
    provider.reply = lambda body, n: FAILURES["rate"] if n < 2 else written(answer="4")
    assert pf.run(pf.Predict(QA), lm=provider.lm(num_retries=2), question="?").answer == "4"
    assert len(provider.bodies) == 3


def test_an_answer_that_cannot_be_read_is_a_parse_error_and_costs_its_tokens(provider: Provider):
    provider.reply = lambda body, n: written(answer="four")
    [result] = pf.run_many(
        pf.Predict("question -> answer: int"), [{"question": "?"}], lm=provider.lm()
    )
    assert isinstance(result, ParseError)
    assert isinstance(result, dspy.utils.exceptions.AdapterParseError)
    assert result.usage.generated == 3 * len(provider.bodies) > 0


def test_a_dead_provider_is_never_a_score(provider: Provider):
    lm = provider.lm()
    provider.close()
    data = [dspy.Example(question="?", answer="4").with_inputs("question")] * 3
    [result] = pf.run_many(pf.Predict(QA), [{"question": "?"}], lm=lm)
    assert isinstance(result, EngineLost)
    with pytest.raises(EngineLost):
        pf.evaluate(pf.Predict(QA), data, "exact_match", lm=lm, progress=False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # litellm's, of pydantic
def test_a_dspy_lm_works_wherever_a_name_does(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("OPENAI_API_BASE", provider.url)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    data = [dspy.Example(question=str(n), answer="4").with_inputs("question") for n in range(4)]
    name = "openai/gpt-4o-mini"
    assert pf.run(pf.Predict(QA), lm=name, question="name?").answer == "4"
    assert pf.evaluate(pf.Predict(QA), data, "exact_match", lm=name, progress=False).score == 1.0
    program = pf.ChainOfThought(QA)
    provider.reply = lambda body, n: written(reasoning="r", answer="4")
    program.set_lm(name)
    assert program(question="set?").reasoning == "r"
    other = dspy.LM(name, cache=False)
    with dspy.context(lm=None):
        assert pf.configure(other) is other
        assert program(question="configured?").answer == "4"
        assert pf.configure(name, temperature=0.3).kwargs["temperature"] == 0.3
        assert pf.run_many(program, [{"question": "x"}])[0].answer == "4"
    with pytest.raises(ProgramError, match="int is no model"):
        pf.run(program.deepcopy().reset_copy(), lm=3, question="?")
    with pytest.raises(UnsupportedOption, match="options"):
        pf.load(name, options={"context": 64})


def test_plain_dspy_programs_are_counted_in_tokens(provider: Provider):
    data = [dspy.Example(question=str(n), answer="4").with_inputs("question") for n in range(3)]
    result = pf.evaluate(dspy.Predict(QA), data, "exact_match", lm=provider.lm(), progress=False)
    assert (result.usage.prompt, result.usage.generated) == (30, 9)
    assert all(record.calls == 1 for record in result.records)


def test_weights_of_a_vote_come_from_the_models_own_probabilities(provider: Provider):
    def reply(body: dict[str, Any], n: int) -> Any:
        assert body["logprobs"] is True
        sure = -0.1 if n == 2 else -3.0
        content = [{"token": "t", "logprob": sure, "top_logprobs": []}]
        text = written(answer="sure" if n == 2 else f"guess{n % 2}")
        message = {"role": "assistant", "content": text}
        return {"message": message, "logprobs": {"content": content}}

    provider.reply = reply
    module = pf.SelfConsistency(pf.Predict(QA), n=4, vote="logprob")
    assert pf.run(module, lm=provider.lm(), question="?").answer == "sure"
    provider.bodies.clear()
    best = pf.run(pf.BestOf(pf.Predict(QA), n=4), lm=provider.lm(), question="?")
    assert (best.answer, best.reward) == ("sure", pytest.approx(-0.1))


def test_a_given_output_is_told_and_not_asked_for(provider: Provider):
    provider.reply = lambda body, n: written(answer="4")
    predict = pf.Predict("question -> reasoning, answer")
    given = {"question": "?", "reasoning": "Because so."}
    assert pf.run(predict, lm=provider.lm(), **given).answer == "4"
    assert "Because so." in provider.bodies[0]["messages"][-1]["content"]


def test_another_adapter_is_kept(provider: Provider):
    provider.reply = lambda body, n: '{"answer": "low"}'
    with dspy.context(adapter=dspy.JSONAdapter()):
        predict = pf.Predict("question -> answer: Literal['low', 'high']")
        assert pf.run(predict, lm=provider.lm(), question="?").answer == "low"
    assert len(provider.bodies) == 1


class Stub(dspy.BaseLM):
    """An LM of a user's own that counts its calls in itself."""

    def __init__(self) -> None:
        super().__init__(model="stub")
        self.calls: list[dict[str, Any]] = []

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.calls.append(kwargs)
        number = len(self.calls)
        from types import SimpleNamespace as Of

        message = Of(content=written(answer=str(number)), tool_calls=None)
        choice = Of(message=message, finish_reason="stop")
        return Of(choices=[choice], usage={"prompt_tokens": 2}, model="stub")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_lm_of_the_users_own_is_asked_for_every_sample():
    lm = Stub()
    module = pf.SelfConsistency(pf.Predict(QA), n=5)
    prediction = pf.run(module, lm=lm, question="?")
    assert len(lm.calls) == 5
    assert len({call["rollout_id"] for call in lm.calls}) == 5
    assert len(prediction.votes) == 5


@pytest.mark.parametrize("program", [pf.Predict(QA), dspy.Predict(QA)])
def test_an_answer_that_the_provider_cut_is_marked_and_counted(provider: Provider, program: Any):
    def reply(body: dict[str, Any], n: int) -> Any:
        finish = "length" if "cut" in body["messages"][-1]["content"] else "stop"
        message = {"role": "assistant", "content": written(answer="4")}
        return {"message": message, "finish_reason": finish}

    provider.reply = reply
    data = [
        dspy.Example(question=q, answer="4").with_inputs("question") for q in ("cut", "b", "cut")
    ]
    result = pf.evaluate(program, data, "exact_match", lm=provider.lm(), progress=False)
    assert (result.cut, result.n) == (2, 3)
    assert result.to_json()["cut"] == 2
    assert [record.cut for record in result.records] == [True, False, True]


def test_a_remote_models_prompt_is_not_shown(provider: Provider):
    with pytest.raises(ProgramError, match="inspect_history"):
        pf.Predict(QA).show(lm=provider.lm(), question="?")


@pytest.mark.parametrize("body", [{"nothing": 1}, {"choices": []}])
def test_a_response_that_no_model_wrote_is_no_wrong_answer(provider: Provider, body: Any):
    provider.reply = lambda asked, n: (200, body)
    with pytest.raises(EngineError, match="no text"):
        pf.run(pf.Predict(QA), lm=provider.lm(), question="?")
    provider.reply = lambda asked, n: ""
    with pytest.raises(ParseError):
        pf.run(pf.Predict(QA), lm=provider.lm(), question="?")


def test_a_dummy_is_asked_in_order():
    lm = dspy.utils.DummyLM([{"answer": str(n)} for n in range(12)])
    inputs = [{"question": str(n)} for n in range(12)]
    results = pf.run_many(pf.Predict(QA), inputs, lm=lm)
    assert [r.answer for r in results] == [str(n) for n in range(12)]


def test_our_modules_are_awaited(provider: Provider):
    provider.reply = lambda body, n: written(reasoning="r", answer="4")
    with dspy.context(lm=provider.lm()):
        for program in (pf.ChainOfThought(QA), pf.Predict("question -> reasoning, answer")):
            assert asyncio.run(program.acall(question="?")).answer == "4"


def test_a_plain_programs_failures_are_told_apart_as_our_own_are(provider: Provider):
    def reply(body: dict[str, Any], n: int) -> Any:
        question = body["messages"][-1]["content"]
        if "busy" in question:
            return FAILURES["server"]
        return written(answer="four" if "vague" in question else "4")

    provider.reply = reply
    program = dspy.Predict("question -> answer: int")
    inputs = [{"question": q} for q in ("good", "vague", "busy")]
    good, vague, busy = pf.run_many(program, inputs, lm=provider.lm())
    assert good.answer == 4
    assert isinstance(vague, ParseError)
    assert vague.usage.generated > 0
    assert isinstance(busy, EngineLost)
    with pytest.raises(dspy.utils.exceptions.AdapterParseError):
        pf.run(program, lm=provider.lm(), question="vague")
