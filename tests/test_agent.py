from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from pydantic import TypeAdapter

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ContextOverflow, ProgramError, SignatureError, StoreError
from promptflow.modules.agent import FINISH, Agent, Step, Steps
from promptflow.modules.tools import read_only
from promptflow.retrieval import Passage

TEXTS = {
    "towns/ardel.md": "Ardel lies by the sea. The mayor of Ardel is Mira Kostan.",
    "towns/brunow.md": "Brunow has 9,400 inhabitants, Ardel twice as many.",
}


class Shelf:
    def search(self, query: str, k: int = 5) -> list[Passage]:
        return [Passage(d, n, 0, len(t), t, 1.0) for n, (d, t) in enumerate(TEXTS.items())][:k]

    def text(self, document: str) -> str:
        return TEXTS[document]


Play = list[tuple[str, dict[str, Any]]]


def scripted(play: Play, answer: str = "Mira Kostan") -> pf.LocalLM:
    """A model that calls these tools with these arguments, and then finishes."""
    state = {"at": 0}

    def fill(text: str, slot: pf.Slot) -> str:
        at = state["at"]
        if slot.name == "thought":
            return f"thought {at}"
        if slot.name == "tool":
            return play[at][0] if at < len(play) else FINISH
        if slot.name == "arguments":
            state["at"] += 1
            return json.dumps(play[at][1])
        return answer

    return pf.load("scripted", engine=ScriptedEngine(fill))


@read_only
def ping() -> None:
    """Do nothing."""


PLAY: Play = [
    ("search", {"query": "mayor of Ardel"}),
    ("read", {"document": "towns/brunow.md", "start": 0, "length": 100}),
    ("calculate", {"expression": "9400 * 2"}),
]


def test_an_agent_calls_tools_and_answers():
    agent = Agent("question -> answer", index=Shelf())
    result = pf.run(agent, lm=scripted(PLAY), question="Who is the mayor of Ardel?")
    assert (result.answer, result.ended) == ("Mira Kostan", FINISH)
    assert [step.tool for step in result.steps] == ["search", "read", "calculate"]
    assert result.steps[2] == Step("thought 2", "calculate", {"expression": "9400 * 2"}, "18800")
    assert result.steps[1].result == TEXTS["towns/brunow.md"]
    assert [passage.document for passage in result.passages] == list(TEXTS)
    assert list(result)[-1] == "answer"


def test_a_passage_that_two_searches_score_differently_is_there_once():
    class Scored(Shelf):
        def search(self, query: str, k: int = 5) -> list[Passage]:
            return [replace(p, score=len(query)) for p in super().search(query, k)]

    play: Play = [("search", {"query": "mayor"}), ("search", {"query": "mayor of Ardel"})]
    result = pf.run(Agent("question -> answer", index=Scored()), lm=scripted(play), question="?")
    assert [passage.document for passage in result.passages] == list(TEXTS)


def test_the_steps_can_be_read():
    agent = Agent("question -> answer", index=Shelf())
    steps = pf.run(agent, lm=scripted(PLAY[2:]), question="How much is 9400 * 2?").steps
    assert str(steps) == "1. thought 0\n   calculate(expression='9400 * 2')\n   18800"


def test_every_prompt_begins_with_the_steps_before_it():
    lm = scripted(PLAY)
    pf.run(Agent("question -> answer", index=Shelf()), lm=lm, question="Who?")
    prompts = lm.text_engine.prompts
    assert len(prompts) == 2 * len(PLAY) + 2
    for before, after in zip(prompts[::2], prompts[2::2], strict=False):
        start = before[: before.rindex("Tool (")]
        assert after.startswith(start)
    for choice, arguments in zip(prompts[::2], prompts[1::2], strict=True):
        assert arguments.startswith(choice)


def test_results_are_data_in_users_turns():
    lm = scripted(PLAY)
    pf.run(Agent("question -> answer", index=Shelf()), lm=lm, question="Who?")
    system, *turns = lm.text_engine.prompts[-1].split("<|im_start|>")[1:]
    assert "Mira" not in system
    assert all("<data " in t for t in turns if "Ardel lies by the sea" in t)
    assert all(t.startswith("user") for t in turns if "Ardel lies by the sea" in t)


def test_the_tools_stand_in_the_prompt_and_the_choice_is_among_them():
    seen: list[Any] = []

    def fill(text: str, slot: pf.Slot) -> str:
        seen.append((slot.name, slot.constraint))
        return FINISH if slot.name == "tool" else "x"

    lm = pf.load("s", engine=ScriptedEngine(fill))
    pf.run(Agent("question -> answer", index=Shelf()), lm=lm, question="Who?")
    assert "calculate(expression: str): Compute" in lm.text_engine.prompts[0]
    # Nothing was found yet, so that there is nothing to read.
    assert dict(seen)["tool"] == pf.Choice(("search", "calculate", FINISH))


def test_a_document_is_one_that_was_found():
    hostile: Play = [PLAY[0], ("read", {"document": "/etc/passwd"})]
    result = pf.run(Agent("question -> answer", index=Shelf()), lm=scripted(hostile), question="?")
    assert "towns/brunow.md" in result.steps[1].error
    assert result.steps[1].arguments == {}


def test_a_tool_that_was_not_offered_is_never_called():
    called = []

    @read_only
    def secret() -> str:
        called.append(1)
        return ""

    agent = Agent("question -> answer", ["calculate"])
    with pytest.raises(pf.errors.ParseError):
        pf.run(agent, lm=scripted([("secret", {})]), question="?")
    assert called == []


@pytest.mark.parametrize("number", [1, 3])
def test_steps_are_bounded(number: int):
    endless = [("calculate", {"expression": f"{n} + 1"}) for n in range(99)]
    agent = Agent("question -> answer", ["calculate"], max_steps=number)
    result = pf.run(agent, lm=scripted(endless), question="?")
    assert (len(result.steps), result.ended, result.answer) == (number, "steps", "Mira Kostan")


def test_tokens_are_bounded():
    endless = [("calculate", {"expression": f"{n} + 1"}) for n in range(99)]
    agent = Agent("question -> answer", ["calculate"], max_steps=50, max_tokens=12)
    result = pf.run(agent, lm=scripted(endless), question="?")
    assert result.ended == "tokens"
    assert len(result.steps) < 5


def test_a_call_whose_result_it_has_ends_the_steps():
    twice = [PLAY[2], PLAY[2], PLAY[2]]
    result = pf.run(Agent("question -> answer", ["calculate"]), lm=scripted(twice), question="?")
    assert result.ended == "repeated"
    assert [step.error for step in result.steps] == [
        "",
        "the same call as before; its result stands above",
    ]


def test_what_a_tool_raises_is_its_result():
    play = [("calculate", {"expression": "1/0"}), ("calculate", {"expression": "1+1"})]
    result = pf.run(Agent("question -> answer", ["calculate"]), lm=scripted(play), question="?")
    assert "division by zero" in result.steps[0].error
    assert result.steps[0].result.startswith("error: ")
    assert result.steps[1].result == "2"


def test_what_a_disk_does_is_no_result():
    @read_only
    def broken(name: str) -> str:
        raise StoreError("the disk is gone")

    with pytest.raises(StoreError):
        pf.run(
            Agent("question -> answer", [broken]),
            lm=scripted([("broken", {"name": "x"})]),
            question="?",
        )


def test_a_long_result_is_cut_and_says_so():
    @read_only
    def long(n: int) -> str:
        """Say much."""
        return "x" * n

    agent = Agent("question -> answer", [long], result_chars=100)
    [step] = pf.run(agent, lm=scripted([("long", {"n": 150})]), question="?").steps
    assert step.cut == 50
    assert step.result == "x" * 100 + "\n(50 more characters are not shown)"


def test_where_the_context_ends_the_oldest_results_are_left_out():
    @read_only
    def words(n: int) -> str:
        """Say words."""
        return "word " * n

    lm = scripted([("words", {"n": 300 + n}) for n in range(3)])
    plain: Callable[..., Any] = lm.text_engine._complete

    def small(request: pf.Request) -> Any:
        made = plain(request)
        if made.usage.prompt > 800:
            return pf.Completion({}, made.usage, 0.0, ContextOverflow("too long"))
        return made

    lm.text_engine._complete = small
    result = pf.run(Agent("question -> answer", [words]), lm=lm, question="?")
    assert len(result.steps) == 3
    assert "(left out: no room is left for it)" in lm.text_engine.prompts[-1]


def test_typed_outputs_and_arguments():
    @read_only
    def add(numbers: list[int], sign: bool = False) -> int:
        """Add numbers."""
        return sum(numbers) * (-1 if sign else 1)

    agent = Agent("question -> total: int, sure: bool", [add])
    answers = iter(["7", "yes"])
    play = [("add", {"numbers": [3, 4], "sign": True})]

    def fill(text: str, slot: pf.Slot) -> str:
        if slot.name == "tool":
            return "add" if "-7" not in text else FINISH
        if slot.name == "arguments":
            return json.dumps(play[0][1])
        return "hm" if slot.name == "thought" else next(answers)

    result = pf.run(agent, lm=pf.load("s", engine=ScriptedEngine(fill)), question="3 + 4?")
    assert (result.total, result.sure) == (7, True)
    assert result.steps[0].result == "-7"


def test_a_tool_without_arguments_and_without_a_result():
    result = pf.run(
        Agent("question -> answer", [ping]),
        lm=pf.load(
            "s",
            engine=ScriptedEngine(
                lambda text, slot: (
                    ("ping" if "done" not in text else FINISH) if slot.name == "tool" else "x"
                )
            ),
        ),
        question="?",
    )
    assert [(step.call, step.result) for step in result.steps] == [("ping()", "done")]


def send(to: str) -> str:
    """Send a letter."""
    return to


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"tools": [send]}, ProgramError, "allow="),
        ({"tools": ["search"]}, ProgramError, "index="),
        ({"tools": ["browse"]}, ProgramError, "no tool 'browse'"),
        ({"tools": ["read"], "index": Shelf()}, ProgramError, "give both"),
        ({"index": Shelf}, TypeError, "no retriever"),
        ({"tools": []}, ProgramError, "at least one"),
        ({"max_steps": 0}, ValueError, "below 1"),
        ({"max_step": 3}, pf.errors.UnknownOption, "max_steps"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        Agent("question -> answer", **arguments)


def test_fields_of_the_agents_own_are_refused():
    with pytest.raises(SignatureError, match="tool"):
        Agent("question, tool -> answer")


def test_is_a_module_like_others(tmp_path: Path):
    """It is copied, saved, loaded, evaluated, and many run in one batch."""
    agent = Agent("question -> answer", ["calculate"], max_steps=2, thought_tokens=9)
    assert copy.deepcopy(agent).settings() == agent.settings()
    pf.save_program(agent, tmp_path / "agent")
    loaded = pf.load_program(tmp_path / "agent")
    assert loaded.settings() == agent.settings()
    assert loaded.step.signature.instructions == agent.step.signature.instructions
    assert list(loaded.step.signature.fields) == ["tools", "question", "thought", "tool", "answer"]
    lm = pf.load("s", engine=ScriptedEngine(lambda t, s: FINISH if s.name == "tool" else "4"))
    results = pf.run_many(loaded, [{"question": q} for q in "abc"], lm=lm)
    assert [r.answer for r in results] == ["4"] * 3
    assert lm.text_engine.batches == [3, 3]
    data = [dspy.Example(question="2+2?", answer="4").with_inputs("question")] * 2
    with dspy.context(lm=lm):
        assert pf.evaluate(loaded, data, "exact_match").score == 1.0
        assert loaded(question="?").answer == "4"


def test_with_functions_it_is_loaded_into_one(tmp_path: Path):
    agent = Agent("question -> answer", [ping])
    pf.save_program(agent, tmp_path / "agent")
    with pytest.raises(ProgramError, match="into=Agent"):
        pf.load_program(tmp_path / "agent")
    assert pf.load_program(tmp_path / "agent", into=Agent("question -> answer", [ping])).tools


def test_a_remote_model_is_asked_the_same():
    lm = dspy.utils.DummyLM(
        [
            {"thought": "a", "tool": "calculate"},
            {"arguments": '{"expression": "6 * 7"}'},
            {"thought": "b", "tool": FINISH},
            {"answer": "42"},
        ]
    )
    result = pf.run(Agent("question -> answer", ["calculate"]), lm=lm, question="6 * 7?")
    assert (result.answer, result.steps[0].result) == ("42", "42")
    assert "calculate(expression='6 * 7')" in json.dumps(lm.history[-1]["messages"])


def test_the_first_prompt_is_shown(capsys: pytest.CaptureFixture[str]):
    lm = scripted([])
    with dspy.context(lm=lm):
        text = Agent("question -> answer", ["calculate"]).show(question="6 * 7?")
    assert "calculate(expression: str)" in text
    assert "{tool}" in text


def test_steps_are_a_tuple():
    assert Steps([Step("t", "x")]) == (Step("t", "x"),)


def cut(play: Play) -> pf.LocalLM:
    """The same model, whose arguments reach their limit."""
    lm = scripted(play)
    plain = lm.text_engine._complete

    def complete(request: pf.Request) -> Any:
        made = plain(request)
        if (fill := made.fills.get("arguments")) is None:
            return made
        text = fill.text.rstrip('"}')
        return replace(made, fills={"arguments": replace(fill, text=text, finish="length")})

    lm.text_engine._complete = complete
    return lm


def test_arguments_that_were_cut_are_ended_and_the_model_is_told():
    agent = Agent("question -> answer", ["calculate"], max_steps=1)
    result = pf.run(agent, lm=cut([("calculate", {"expression": "1 + 2"})]), question="?")
    assert result.steps[0].arguments == {"expression": "1 + 2"}
    assert re.fullmatch(r"\(the arguments were ended after \d+ tokens\)\n3", result.steps[0].result)


def test_what_acts_is_not_called_with_a_part_of_its_arguments():
    sent: list[str] = []

    def mail(to: str) -> None:
        """Send a letter."""
        sent.append(to)

    agent = Agent("question -> answer", [mail], allow=["mail"], max_steps=1)
    result = pf.run(agent, lm=cut([("mail", {"to": "mira"})]), question="?")
    assert "is not called with a part" in result.steps[0].error
    assert sent == []


def test_an_error_is_told_in_short_and_kept_in_whole():
    @read_only
    def strict(number: int) -> int:
        """Refuse."""
        return int(TypeAdapter(list[int]).validate_python([str(number), "x"] * 9)[0])

    agent = Agent("question -> answer", [strict], max_steps=1)
    [step] = pf.run(agent, lm=scripted([("strict", {"number": 1})]), question="?").steps
    assert step.error.count("validation error") == 1
    assert "\n" in step.error
    assert "\n" not in step.result
    assert len(step.result) < 320


DEMO: dict[str, Any] = {
    "question": "How much is 15 from 21?",
    "steps": [
        {
            "thought": "I take 21 - 15.",
            "tool": "calculate",
            "arguments": {"expression": "21 - 15"},
            "result": "6",
        }
    ],
    "answer": "six",
}


def test_demos_are_runs_before_the_question(tmp_path: Path):
    agent = Agent("question -> answer", ["calculate"], demos=[DEMO])
    lm = scripted(PLAY[2:])
    assert pf.run(agent, lm=lm, question="How much is 9400 * 2?").answer == "Mira Kostan"
    prompts = lm.text_engine.prompts
    for prompt in prompts:
        turns = [turn.split("<|im_end|>")[0] for turn in prompt.split("<|im_start|>")]
        assert turns[2] == "user\nQuestion: How much is 15 from 21?"
        assert turns[3].endswith('Tool: calculate\nArguments: {"expression": "21 - 15"}')
        assert "6" in turns[4]
        assert turns[5].endswith("Tool: finish\nAnswer: six")
        assert "How much is 9400 * 2?" in turns[6]
    for before, after in zip(prompts[::2], prompts[2::2], strict=False):
        assert after.startswith(before[: before.rindex("Tool (")])
    pf.save_program(agent, tmp_path / "agent")
    assert pf.load_program(tmp_path / "agent").demos == [DEMO]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": None, "why": "x"}, "no field 'why'"),
        ({"answer": ...}, r"lacks \['answer'\]"),
        ({"steps": [{"tool": "calculate"}]}, "is none"),
        ({"steps": [{"thought": "", "tool": "browse"}]}, "calls 'browse'"),
    ],
)
def test_demos_that_are_no_runs_are_refused(change: dict[str, Any], says: str):
    demo = {name: value for name, value in (DEMO | change).items() if value is not ...}
    with pytest.raises(SignatureError, match=says):
        Agent("question -> answer", ["calculate"], demos=[demo])
