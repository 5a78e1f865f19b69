"""``promptflow ask``: where its questions come from, what it prints, and what it opens."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import call

from promptflow.cli.answers import print_answer, questions_of, verdict_of
from promptflow.errors import DataError
from promptflow.retrieval import HashingEmbedder, build_index

NO_MODEL = ("--model", "nowhere.gguf")


def record(**changed: Any) -> dict[str, Any]:
    citation = {
        "index": "papers",
        "document": "b\n.pdf",
        "page": 3,
        "heading": "Method > Voting",
        "chunk": 1,
        "start": 5,
        "end": 12,
        "quote": "Most\nchains agree.",
        "stale": "",
        "flagged": False,
    }
    return {
        "question": "Who?",
        "answer": "Wang.",
        "support": 0.91,
        "answerable": 0.875,
        "quotes_exact": True,
        "verified": True,
        "abstained": False,
        "reason": "all hold",
        "citations": [citation],
        "tokens": {"prefilled": 9, "reused": 1, "generated": 2, "forced": 0},
        "seconds": 0.25,
        **changed,
    }


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes, *, terminal: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stdin", stream)


@pytest.mark.parametrize(
    ("given", "piped", "file", "found"),
    [
        (["a", "b"], "x", None, ["a", "b"]),
        ([], "x\n\n  y \r\nz", None, ["x", "y", "z"]),
        (["-", "a"], "x", None, ["x", "a"]),
        (["a"], "x", "f\n", ["a", "f"]),
        ([], "x", "f\ng", ["f", "g"]),
        ([], "\ufeff한글 질문?", None, ["한글 질문?"]),
    ],
)
def test_questions_come_from_arguments_stdin_and_a_file(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: list[str],
    piped: str,
    file: str | None,
    found: list[str],
):
    stdin(monkeypatch, piped.encode())
    path = tmp_path / "questions.txt"
    if file is not None:
        path.write_text(file, encoding="utf-8")
    assert questions_of(given, None if file is None else path) == found


def test_no_question_and_a_blank_one_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    stdin(monkeypatch, b"never read", terminal=True)
    with pytest.raises(DataError, match="no question: write promptflow ask"):
        questions_of([], None)
    with pytest.raises(DataError, match="question 2 is blank"):
        questions_of(["a", " "], None)
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        questions_of([], tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes("Où?".encode("cp1252"))
    with pytest.raises(DataError, match=r"latin\.txt"):
        questions_of([], tmp_path / "latin.txt")


def test_a_citation_shows_file_page_and_heading(capsys: pytest.CaptureFixture[str]):
    print_answer(record(), first=4)
    assert capsys.readouterr().out == (
        "\nWho?\n  Wang.\n"
        "    [4] b\\n.pdf, page 3, Method > Voting\n"
        '        "Most chains agree."\n'
        "  [verified; support 0.91; answerable 0.88; tokens: 9 prefilled, 1 reused, 2 generated, "
        "0 forced; 0.2 s]\n"
    )


def test_several_indexes_are_named_and_a_changed_file_is(capsys: pytest.CaptureFixture[str]):
    [one] = record()["citations"]
    other = {
        **one,
        "index": "notes",
        "page": None,
        "heading": "",
        "stale": "changed",
        "flagged": True,
    }
    print_answer(record(citations=[one, other]), several=True)
    shown = capsys.readouterr().out
    assert "[1] papers: b\\n.pdf, page 3" in shown
    assert "[2] notes: b\\n.pdf, GIVES ORDERS, CHANGED SINCE THE INDEX WAS BUILT\n" in shown


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "verified; support 0.91; answerable 0.88"),
        ({"verified": False, "reason": "why"}, "NOT VERIFIED: why; support 0.91; answerable 0.88"),
        ({"abstained": True, "verified": False, "reason": "why"}, "abstained: why; support 0.91"),
        ({"support": None, "answerable": None}, "verified"),
    ],
)
def test_the_word_verified_stands_where_it_holds_alone(changed: dict[str, Any], verdict: str):
    assert verdict_of(record(**changed)).startswith(verdict)


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index called people in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "ada.md").write_text("# Ada\n\nAda Lovelace wrote the first published program.\n")
    build_index("people", folder, embedder=HashingEmbedder(), progress=False).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--open", "1", "--json"), "give one"),
        (("--where", "kind"), "expected field=value"),
        (("--where", "yaer=1"), "no document has 'yaer'"),
        (("--mode", "fuzzy"), "dense, sparse, hybrid"),
        (("--index", "people"), "named twice"),
        (("--k", "0"), "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_read(
    people: None, options: tuple[str, ...], message: str
):
    assert message in call("ask", "Who?", "--index", "people", *options, *NO_MODEL, code=2).stderr


def test_json_is_an_object_a_line(monkeypatch: pytest.MonkeyPatch):
    from promptflow.cli.console import print_json_line

    lines: list[str] = []
    monkeypatch.setattr("promptflow.cli.console.say", lambda text: lines.append(str(text)))
    print_json_line(record(answer="two\nlines\x1b"))
    [line] = lines
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["answer"] == "two\nlines\x1b"
