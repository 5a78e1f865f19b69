"""The chat as lines: what is typed, what is shown, and what Ctrl-C and the end of input do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import promptflow as pf
from promptflow.cli.chat import COMMANDS, Session
from promptflow.cli.opening import Opener
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineError
from promptflow.modules.conversation import Conversation, Forgotten
from promptflow.retrieval.location import Location


@dataclass(frozen=True)
class Citation:
    number: int = 1
    document: str = "a.md"
    page: int | None = 4
    heading: str = "Ships"
    start: int = 0
    end: int = 8

    @property
    def quote(self) -> str:
        return f"Quote {self.number}."


class Sources:
    """Stands for open indexes: every citation is of one file."""

    several = False

    def record(self, citation: Any) -> dict[str, Any]:
        return {
            "index": "pages",
            "document": "a.md",
            "page": 4,
            "heading": "Ships",
            "chunk": 0,
            "start": 0,
            "end": 9,
            "quote": f"Quote {citation.number}.",
            "stale": "",
        }

    def locate(self, citation: Any) -> Location:
        return Location(Path("/docs/a.md"), "a.md", "markdown", citation.number)


class Cited(pf.Module):
    """Answers with two citations; an answer of two words does not stand its checks."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = pf.Predict("question -> answer")

    def flow(self, **inputs: Any) -> Any:
        [made] = yield [self.answer.call(question=inputs["question"])]
        sound = made.answer.count(" ") != 1
        return pf.Prediction(
            answer=made.answer if sound else "unknown",
            citations=[Citation(1), Citation(2)] if sound else [],
            support=0.9,
            answerable=0.8,
            quotes_exact=sound,
            verified=sound,
            flagged=[],
            abstained=not sound,
            reason="all hold" if sound else "the quotes do not say it",
        )


def session(
    lines: Sequence[str | type[BaseException]],
    answers: Any = (),
    *,
    cited: bool = False,
    live: bool = False,
) -> Session:
    """A session in which these lines are typed and the model says these answers."""
    typed: Iterator[Any] = iter([*lines, EOFError])

    def listen(prompt: str) -> str:
        given = next(typed)
        if isinstance(given, str):
            return given
        raise given

    left = iter(answers)

    def answer(text: str, slot: Any) -> str:
        given = next(left)
        if isinstance(given, BaseException):
            raise given
        return str(given)

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    talk = Conversation(Cited() if cited else None, lm=lm)
    sources: Any = Sources() if cited else None
    opener = Opener({}, "linux", lambda name: name, lambda command, wait: None)
    return Session(talk, sources, live, listen, opener)


def test_a_pipe_shows_what_was_asked_and_what_was_replied(capsys: pytest.CaptureFixture[str]):
    session(["Hi", "", "And you?"], ["Hello.", "Fine,\nthanks.\n"]).run()
    shown = capsys.readouterr()
    assert shown.out == "> Hi\nHello.\n> And you?\nFine,\nthanks.\n"
    assert shown.err == ""


def test_a_terminal_shows_replies_alone(capsys: pytest.CaptureFixture[str]):
    session(["Hi"], ["Hello."], live=True).run()
    assert capsys.readouterr().out == "Hello.\n\n"


def test_nothing_commands_a_terminal(capsys: pytest.CaptureFixture[str]):
    session(["Hi"], ["\x1b[31mred\x07"], live=True).run()
    session(["Hi"], ["one two three \x1b]0;title\x07"], cited=True).run()
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out
    assert "\\x1b[31mred\\x07" in shown.out


def test_a_cited_answer_is_shown_with_what_was_found(capsys: pytest.CaptureFixture[str]):
    session(["Who sailed?"], ["Three ships did sail."], cited=True).run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "> Who sailed?",
        "  Three ships did sail.",
        "    [1] a.md, page 4, Ships",
        '        "Quote 1."',
        "    [2] a.md, page 4, Ships",
        '        "Quote 2."',
    ]
    assert lines[6].startswith("  [verified; support 0.90; answerable 0.80; ")


def test_a_draft_is_shown_at_a_terminal_alone_and_withdrawn_there(
    capsys: pytest.CaptureFixture[str],
):
    session(["Who?"], ["Two words"], cited=True).run()
    assert "words" not in capsys.readouterr().out
    session(["Who?"], ["Two words"], cited=True, live=True).run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  Two words"
    assert "withdrawn" in lines[1]
    assert lines[2] == "  unknown"
    assert "abstained: the quotes do not say it" in lines[3]


def test_a_question_that_was_rewritten_is_shown(capsys: pytest.CaptureFixture[str]):
    answers = ["Three ships did sail.", "When did they sail?", "In the year 1492."]
    session(["Who sailed?", "When?"], answers, cited=True).run()
    assert "> When?\n  (asked as: When did they sail?)\n  In the year" in capsys.readouterr().out


def test_commands_are_done_and_not_said(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "talk.md"
    lines = ["/help", "Who sailed?", "/sources", "/open 2", f"/save {path}", "/new", "/quit", "No"]
    made = session(lines, ["Three ships did sail."], cited=True)
    made.run()
    shown = capsys.readouterr()
    assert all(command in shown.out for command in COMMANDS)
    assert shown.out.count("[2] a.md, page 4, Ships") == 2
    assert "opening /docs/a.md, line 2" in shown.err
    assert "Three ships" in path.read_text(encoding="utf-8")
    assert made.talk.turns == []
    assert not made.failed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/what", "/what is no command: /help lists them. To say it, begin with a space"),
        ("/etc/passwd", "is no command"),
        ("/sources", "nothing was cited so far"),
        ("/open", "expected the number of a citation, as in /open 1"),
        ("/open one", "expected the number of a citation, as in /open 1"),
        ("/open 1", "nothing was cited so far"),
        ("/save .", "is there already"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(
    capsys: pytest.CaptureFixture[str], line: str, message: str
):
    made = session([line, "Hi"], ["Hello."])
    made.run()
    shown = capsys.readouterr()
    assert f"{message}" in shown.err
    assert "Hello." in shown.out
    assert made.failed  # a script sees that not all was done


def test_a_citation_that_there_is_not_is_named(capsys: pytest.CaptureFixture[str]):
    session(["Who sailed?", "/open 3"], ["Three ships did sail."], cited=True).run()
    assert "there is no citation 3: there are 1 to 2" in capsys.readouterr().err


def test_a_line_that_begins_with_a_space_is_said():
    made = session([" /etc/passwd"], ["A file."])
    made.run()
    assert made.talk.turns[0].message == "/etc/passwd"


def test_an_error_of_the_engine_ends_no_chat(capsys: pytest.CaptureFixture[str]):
    made = session(["Hi", "Again"], [EngineError("it broke"), "Hello."], live=True)
    made.run()
    shown = capsys.readouterr()
    assert "error: it broke" in shown.err
    assert "Hello." in shown.out
    assert not made.failed  # a person saw it


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(capsys: pytest.CaptureFixture[str]):
    answers = ["Hello.", KeyboardInterrupt(), "Fine."]
    made = session(["Hi", "Count", "And you?"], answers, live=True)
    made.run()
    shown = capsys.readouterr()
    assert "(stopped)" in shown.err
    assert [turn.message for turn in made.talk.turns] == ["Hi", "And you?"]


def test_ctrl_c_while_text_is_shown_keeps_what_was_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from promptflow.cli import chat

    def say(text: object = "", **how: Any) -> None:
        if "two" in str(text):
            raise KeyboardInterrupt

    monkeypatch.setattr(chat, "say", say)
    made = session(["Count", "/quit"], ["one two three"], live=True)
    made.run()
    [turn] = made.talk.turns
    assert (turn.reply, turn.stopped) == ("one two", True)


def test_ctrl_c_at_the_prompt_goes_on_and_in_a_pipe_ends(capsys: pytest.CaptureFixture[str]):
    made = session([KeyboardInterrupt, "Hi"], ["Hello."], live=True)
    made.run()
    assert "Ctrl-D or /quit ends" in capsys.readouterr().err
    assert len(made.talk.turns) == 1
    with pytest.raises(KeyboardInterrupt):
        session([KeyboardInterrupt, "Hi"], ["Hello."]).run()
    with pytest.raises(KeyboardInterrupt):
        session(["Hi"], [KeyboardInterrupt()]).run()


def test_what_left_the_context_is_said(capsys: pytest.CaptureFixture[str]):
    made = session(["Hi"], ["Hello."])
    made.talk.stream = lambda message: (e for e in [Forgotten(2, 2048)])  # type: ignore[method-assign,assignment]
    made.run()
    assert "(the oldest turns have left what the model reads" in capsys.readouterr().err
