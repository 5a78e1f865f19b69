"""Nothing that a model, a document or a stranger's file wrote reaches a terminal raw."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, strategies as st
from typer.testing import CliRunner

import promptflow as pf
from promptflow import catalog, doctor, evaluation, flow, lm, modules, program, report, retrieval
from promptflow.catalog import Listed
from promptflow.cli import answers, app, indexes, programs
from promptflow.cli.console import commands, print_json, print_rows
from promptflow.engine.request import Usage
from promptflow.errors import PromptflowError
from promptflow.lm import LocalLM
from promptflow.retrieval.explain import Explanation, Found
from promptflow.terminal import HIDDEN, say, visible, visible_json

BAD = "\x1b]0;owned\x07\x1b[2J\x00\x08\x7f\x9b31m\u202e\u2066\r\ud800"
HOSTILE = f"a{BAD}z"


def test_what_moves_hides_or_reorders_is_shown():
    assert visible("a\tb\nc\r\nd") == "a\tb\nc\nd"
    assert visible("a\tb\nc", in_line=True) == "a\\tb\\nc"
    assert visible("\x1b[2J\r\x7f\x9b\u202e\ud800") == "\\x1b[2J\\x0d\\x7f\\x9b\\u202e\\ud800"
    for text in ("한국어", "नि‍क", "👩‍🔬", "é", "می‌خواهم", "｡"):
        assert visible(text) == text


@given(st.text(st.characters(), max_size=40))
def test_nothing_that_controls_is_left(text: str):
    for shown in (visible(text), visible(text, in_line=True)):
        kinds = {unicodedata.category(c) for c in shown if c not in "\t\n"}
        assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
        shown.encode()
    assert "\n" not in visible(text, in_line=True)


@given(
    st.recursive(st.text(st.characters()), lambda v: st.lists(v) | st.dictionaries(st.text(), v))
)
def test_json_reads_back_as_it_was(value: Any):
    text = visible_json(json.dumps(value, ensure_ascii=False))
    assert not HIDDEN.search(text)
    assert json.loads(text) == value


def test_what_is_said_is_visible(capsys: pytest.CaptureFixture[str]):
    say(HOSTILE)
    say(HOSTILE, end="", error=True)
    print_json({HOSTILE: [HOSTILE]})
    print_rows(["a"], [[f"{HOSTILE}\t\n"]])
    out, err = capsys.readouterr()
    assert not HIDDEN.search(out + err)
    assert out.startswith("a\\x1b]0;owned\\x07\\x1b[2J\\x00\\x08\\x7f\\x9b31m\\u202e\\u2066")
    assert out.endswith("\\t\\n\n")


def test_a_stream_that_lacks_a_character_gets_its_escape(monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    say("é 한")
    assert stream.buffer.getvalue() == b"\xe9 \\ud55c\n"  # type: ignore[attr-defined]


def test_a_table_on_a_terminal_is_visible(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    print_rows(["a"], [[HOSTILE]])
    assert not HIDDEN.search(capsys.readouterr().out)


def test_progress_is_visible(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    from promptflow.progress import bars, status

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with bars() as show:
        show("\x07title\x9b", 1, 2, "\u202enote\x7f")
    with status() as tell:
        tell("\x07measuring\x9b")
    shown = capsys.readouterr().err
    assert "title" in shown
    assert not set(shown) & set("\x07\x9b\u202e\x7f")


def test_a_prompt_is_shown_visibly(capsys: Any):
    model = LocalLM(pf.ScriptedEngine(lambda text, slot: ""))
    pf.Predict("question -> answer").show(lm=model, question=HOSTILE.replace("\ud800", ""))
    out = capsys.readouterr().out
    assert "owned" in out
    assert not HIDDEN.search(out)


# Every command, with what it prints patched to be hostile

SCORE = SimpleNamespace(
    score=0.5,
    low=0.4,
    high=0.6,
    n=2,
    errors=1,
    ungraded=0,
    seconds=1.0,
    usage=Usage(),
    to_json=lambda **_: {"metric": HOSTILE},
)
PASSAGE = retrieval.Passage(f"{HOSTILE}\n.md", 0, 0, 9, HOSTILE, 0.5)
CITED = {
    "index": HOSTILE,
    "document": f"{HOSTILE}\n.md",
    "page": 1,
    "heading": f"{HOSTILE}\n",
    "quote": HOSTILE,
    "stale": "gone",
    "flagged": True,
}
ANSWER = pf.Prediction(
    answer=HOSTILE,
    citations=[CITED],
    support=0.5,
    answerable=None,
    quotes_exact=True,
    flagged=[],
    verified=False,
    abstained=False,
    reason=HOSTILE,
)
ABSTAINED = ANSWER.extended(abstained=True, citations=[CITED, {**CITED, "index": "b"}])
SOURCES = SimpleNamespace(retriever=None, several=True, record=lambda citation: citation)
LISTED = Listed(HOSTILE, "gguf", HOSTILE, 1, True, True, HOSTILE, (HOSTILE,), HOSTILE)
INFO = {
    "name": HOSTILE,
    "recipe": HOSTILE,
    "folder": HOSTILE,
    "generation": 1,
    "embedder": {"name": HOSTILE},
    "counts": {HOSTILE: 1},
    "rejected": [{"path": HOSTILE, "reason": HOSTILE}],
    "documents": [{"path": HOSTILE, "metadata": {"warnings": [HOSTILE]}}],
    "measured": {"precision": HOSTILE, "speedup": HOSTILE, "cosine": HOSTILE},
}
BUILT = {
    **INFO, "unchanged": False, "seconds": 1.0, "documents": 1, "chunks": 1,
    "added": 1, "changed": 0, "removed": 0,
    "warnings": [{"path": HOSTILE, "warning": HOSTILE}],
    "left_out": [{"suffix": HOSTILE, "count": 1, "example": HOSTILE, "how": HOSTILE}],
}  # fmt: skip
FOUND = retrieval.Verification(HOSTILE, 1, 1, 1, (HOSTILE,), (HOSTILE,))
OPENED = contextlib.nullcontext(
    SimpleNamespace(
        info=lambda: INFO,
        search=lambda *_, **__: [PASSAGE],
        explain=lambda *_, **__: Explanation(
            HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), (HOSTILE,), (Found(PASSAGE, {}, (HOSTILE,)),)
        ),
    )
)
RATE = SimpleNamespace(mean=0.5, low=0.4, high=0.6, n=2)
ATTACKED = SimpleNamespace(
    kinds={HOSTILE: RATE},
    left=RATE,
    benign=RATE,
    excess=RATE,
    followed=RATE,
    field=HOSTILE,
    failed=1,
    to_json=lambda **_: {"field": HOSTILE},
)
RATED = SimpleNamespace(
    ratings=[SimpleNamespace(name=HOSTILE, score=1.0, low=0.0, high=2.0, won=0.5, games=2)],
    wins={(HOSTILE, HOSTILE): HOSTILE},
    reliability=SimpleNamespace(warning=HOSTILE),
    unmatched=1,
    own=[HOSTILE],
    to_json=lambda: {"own": [HOSTILE]},
)
REPORT = doctor.Report(
    HOSTILE, "x", {HOSTILE: HOSTILE}, doctor.Threads(1, 1, 0.0), None, None, None, HOSTILE,
    {HOSTILE: doctor.Folder(HOSTILE, 1)}, (HOSTILE,),
)  # fmt: skip


def gives(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def typed(text: str) -> str:
    """What a shell can pass."""
    return text.replace("\x00", "").replace("\ud800", "")


def fails(*_: Any, **__: Any) -> Any:
    raise PromptflowError(HOSTILE)


Patches = list[tuple[Any, str, Any]]
READY: Patches = [(programs, "ready", gives((None, pf.Predict("q -> a"))))]
CASES: list[tuple[list[str], Patches]] = [
    (["doctor"], [(doctor, "diagnose", gives(REPORT))]),
    (["doctor"], [(doctor, "diagnose", fails)]),
    (["models", "list"], [(catalog, "listing", gives([LISTED]))]),
    (["models", "get", "x"], [(catalog, "fetch", gives(Path(HOSTILE)))]),
    (["models", "get", HOSTILE], []),
    (["models", "path", "x"], [(catalog, "locate", gives(Path(HOSTILE)))]),
    (["models", "verify", "x"], [(catalog, "verify", fails)]),
    (["models", "verify", HOSTILE], [(catalog, "verify", gives(True))]),
    (["models", "requantize", HOSTILE, "--no-compare"], []),
    (["index", "list"], [(indexes, "_listing", gives([{"name": HOSTILE, "state": HOSTILE}]))]),
    *[
        (
            ["index", *command.split()],
            [(retrieval, function, gives(made)), (indexes, "_done", gives(BUILT))],
        )
        for command, function, made in [
            ("build x", "build_index", None),
            ("add x y", "add_documents", None),
            ("remove x y", "remove_documents", None),
            ("update x", "update_index", None),
            ("compact x", "compact_index", None),
            ("watch x", "watch_index", [None]),
        ]
    ],
    (["index", "info", "x"], [(retrieval.Index, "open", gives(OPENED))]),
    (["index", "info", HOSTILE], []),
    (["index", "search", "x", "y"], [(retrieval.Index, "open", gives(OPENED))]),
    (["index", "explain", "x", "y"], [(retrieval.Index, "open", gives(OPENED))]),
    (["index", "verify", "x"], [(retrieval, "verify_index", gives(FOUND))]),
    (["signatures", "list"], []),
    (["signatures", "show", "hostile"], []),
    (["signatures", "show", f"no{HOSTILE}"], []),
    (["signatures", "copy", HOSTILE], []),
    (
        ["ask", HOSTILE, "b", "c"],
        [
            (answers, "open_sources", gives(SOURCES)),
            (lm, "configure", gives(None)),
            (modules, "GroundedQA", gives(None)),
            (flow, "run_many", gives([ANSWER, ABSTAINED, PromptflowError(HOSTILE)])),
        ],
    ),
    (["chat", HOSTILE], []),
    (["chat", "--index", HOSTILE], []),
    (["run", "x"], [*READY, (flow, "run", gives(pf.Prediction(a=HOSTILE, b=[HOSTILE])))]),
    (["run", "x", "-i", HOSTILE], READY),
    (["run", HOSTILE], [(lm, "configure", gives(None))]),
    (["show", "x"], [(programs, "ready", gives((None, pf.Predict(f"q{HOSTILE[:1]} -> a"))))]),
    (["eval", "x", HOSTILE], READY),
    (["redteam", HOSTILE], [(lm, "configure", gives(None))]),
    (
        ["redteam", "x"],
        [
            (import_module("promptflow.cli.redteam"), "ready", gives((None, pf.Predict("q -> a")))),
            (import_module("promptflow.evaluation.redteam"), "redteam", gives(ATTACKED)),
        ],
    ),
    (["arena", HOSTILE], []),
    (
        ["arena", "x"],
        [
            (import_module("promptflow.evaluation.arena"), "read_outputs", gives({})),
            (import_module("promptflow.evaluation.arena"), "arena", gives(RATED)),
            (lm, "configure", gives(None)),
        ],
    ),
    (["detect", HOSTILE], []),
    (["synthesize", HOSTILE], []),
    (
        ["eval", "x", "y", "--metric", HOSTILE],
        [
            *READY,
            (evaluation, "read_examples", gives([])),
            (import_module("promptflow.evaluation.evaluate"), "evaluate", gives(SCORE)),
        ],
    ),
    (
        ["optimize", "x", "y"],
        [
            *READY,
            (evaluation, "read_examples", gives([])),
            (
                import_module("promptflow.optimization.search"),
                "optimize",
                gives(
                    SimpleNamespace(
                        program=None,
                        about={"data": ""},
                        to_json=dict,
                        start=SCORE,
                        winner=SCORE,
                        reason=HOSTILE,
                    )
                ),
            ),
            (program, "save_program", gives(None)),
            (report, "write_report", gives(None)),
        ],
    ),
    (["tune-abstention", HOSTILE, "y"], []),
    (
        ["tune-abstention", "x", HOSTILE],
        [
            (modules, "GroundedQA", gives(SimpleNamespace(named_predictors=list))),
            (lm, "configure", gives(None)),
        ],
    ),
    (
        ["optimize", "x", "y", "--budget", HOSTILE],
        [*READY, (evaluation, "read_examples", gives([]))],
    ),
    ([HOSTILE], []),
    ([f"--{HOSTILE}"], []),
    (["models", f"--{HOSTILE}"], []),
    (["models", HOSTILE], []),
]


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose signature has a hostile name and hostile text."""
    folder = tmp_path / "signatures"
    folder.mkdir()
    (folder / f"{typed(HOSTILE)}.toml").write_text("")
    (folder / "hostile.toml").write_bytes(HOSTILE.replace("\ud800", "").encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "patches"), CASES, ids=[" ".join(a[:2])[:20] for a, _ in CASES]
)
def test_every_command_prints_visibly(
    hostile_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], patches: Patches
):
    for owner, name, value in patches:
        monkeypatch.setattr(owner, name, value)
    formats = [arguments]
    if "--json" in CliRunner().invoke(app, [*arguments[:2], "--help"]).output:
        formats.append([*arguments, "--json"])
    for one in formats:
        result = CliRunner().invoke(app, [typed(text) for text in one])
        shown = result.stdout + result.stderr
        assert shown, result.exception
        assert "owned" in shown or arguments == ["show", "x"]
        assert not HIDDEN.search(shown), repr(shown)


def test_every_command_is_among_the_cases():
    from test_docs import commands as all_commands

    tested = [" ".join(arguments) for arguments, _ in CASES]
    missing = [name for name in all_commands() if not any(t.startswith(name) for t in tested)]
    assert not missing


def test_errors_of_programs_are_visible():
    group = commands()

    @group.command()
    def fail() -> None:
        raise PromptflowError(HOSTILE)

    @group.command()
    def other() -> None:
        say("done")

    assert not HIDDEN.search(CliRunner().invoke(group, ["fail"]).stderr)


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError(BAD)",
        "import warnings; warnings.warn(BAD)",
        "import logging; logging.getLogger('promptflow').warning('%s', BAD)",
    ],
)
def test_tracebacks_warnings_and_logs_are_visible(body: str):
    """What no command expects: in a process of its own, since it changes Python's own ways."""
    code = (
        "import promptflow.cli as cli\n"
        f"BAD = {BAD[:-1]!r}\n"
        f"def hostile(**_):\n    {body}\n"
        "cli.app = hostile\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    shown = done.stderr.decode()
    assert "owned" in shown
    assert not HIDDEN.search(shown)
