"""The command line: exit codes, streams, JSON shapes; models only where a command needs one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from conftest import ROOT, SMOLLM
from test_layout import THINKING
from typer.testing import CliRunner, Result

import promptflow
from promptflow.cli import app
from promptflow.cli.console import commands, print_rows
from promptflow.errors import ModelNotFound, PromptflowError

MODEL = ("--model", SMOLLM)


def call(*arguments: str | Path, code: int = 0) -> Result:
    """Run a command in this process and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code not in (0, 1, 2) and result.exception is not None:
        raise result.exception
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def failing(error: BaseException) -> Any:
    """A group with one command that raises ``error``."""
    group = commands()

    @group.command()
    def fail() -> None:
        raise error

    @group.command()
    def other() -> None:
        print("done")

    return group


def test_version():
    assert call("--version").stdout == f"promptflow {promptflow.__version__}\n"


def test_help_names_every_command_and_exits_0():
    text = call("--help").stdout
    for name in ("ask", "doctor", "eval", "index", "models", "optimize", "run", "show"):
        assert f"\n  {name} " in text


def test_no_command_is_a_usage_error():
    assert "Usage: " in call(code=2).output


def test_error_is_one_line_on_stderr_and_exit_code_2():
    result = CliRunner().invoke(failing(ModelNotFound("no model 'x'. Known: y")), ["fail"])
    assert result.exit_code == 2
    assert result.stderr == "error: no model 'x'. Known: y\n"
    assert result.stdout == ""


def test_ctrl_c_is_a_plain_line_and_exit_code_130():
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROMPTFLOW_DEBUG", "1")
    result = CliRunner().invoke(failing(PromptflowError("why")), ["fail"])
    assert isinstance(result.exception, PromptflowError)


def test_a_bug_is_not_dressed_as_an_error():
    result = CliRunner().invoke(failing(ZeroDivisionError("ours")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_module_is_the_command_line():
    """``python -m promptflow`` prints no traceback for an error of the project."""
    done = subprocess.run(
        [sys.executable, "-m", "promptflow", "signatures", "show", "nothing_like_it"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PROMPTFLOW_DEBUG"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no signature named 'nothing_like_it'")
    assert "Traceback" not in done.stderr


def test_rows_are_tab_separated_away_from_a_terminal(capsys: pytest.CaptureFixture[str]):
    print_rows(["a", "b"], [["[red]1", "x"], ["2", "y" * 200]])
    assert capsys.readouterr().out == f"[red]1\tx\n2\t{'y' * 200}\n"


def test_signatures_are_listed_and_shown():
    listed = dict(line.split("\t") for line in call("signatures", "list").stdout.splitlines())
    assert {path.stem for path in (ROOT / "signatures").glob("*.toml")} <= set(listed)
    shown = call("signatures", "show", "grounded_qa").stdout
    assert shown == Path(listed["grounded_qa"]).read_text(encoding="utf-8")


def test_signature_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    original = call("signatures", "show", "grounded_qa").stdout
    call("signatures", "copy", "grounded_qa")
    copy = tmp_path / "signatures" / "grounded_qa.toml"
    assert copy.read_text() == original
    copy.write_text(f"{original}\n# mine\n")
    assert "is there already" in call("signatures", "copy", "grounded_qa", code=2).stderr
    assert call("signatures", "show", "grounded_qa").stdout.endswith("# mine\n")


def test_models_are_listed():
    listed = json.loads(call("models", "list", "--json").stdout)
    names = [model["name"] for model in listed]
    assert {"qwen2.5-coder-0.5b", "smollm2-135m", "all-minilm-l6-v2"} <= set(names)
    rows = [line.split("\t")[0] for line in call("models", "list").stdout.splitlines()]
    assert rows == names


def test_model_path_is_where_the_file_is():
    path = Path(call("models", "path", "smollm2-135m").stdout.strip())
    assert path.suffix == ".gguf"
    assert path.is_file()
    assert call("models", "get", "smollm2-135m").stdout.strip() == str(path)


def test_unknown_model_names_close_ones():
    stderr = call("models", "path", "smollm2-135", code=2).stderr
    assert "smollm2-135m" in stderr


def test_models_are_verified_each(tmp_path: Path):
    assert call("models", "verify", "smollm2-135m").stdout == "smollm2-135m: as published\n"
    result = call("models", "verify", "no-such-model", "smollm2-135m", code=2)
    assert "as published" in result.stdout
    assert "no-such-model" in result.stderr


def test_doctor_prints_json():
    report = json.loads(call("doctor", *MODEL, "--json").stdout)
    assert report["load"]["model"] == SMOLLM
    assert report["speed"]["branches"] == 8


def test_run_prints_fields_as_their_types():
    signature = "numbers: list[int] -> largest: int, sure: Literal['yes', 'no']"
    given = ("-i", "numbers=[3, 9, 4]", *MODEL)
    result = json.loads(call("run", signature, *given, "--json").stdout)
    assert isinstance(result["largest"], int)
    assert result["sure"] in ("yes", "no")
    assert result["tokens"]["prefilled"] > 0
    lines = call("run", signature, *given).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["largest", "sure"]


def test_run_refuses_a_wrong_input():
    assert "question" in call("run", "question -> answer", "-i", "q=1", *MODEL, code=2).stderr
    assert "name=value" in call("run", "question -> answer", "-i", "q", *MODEL, code=2).stderr
    wrong = ("-i", "numbers=three", *MODEL)
    assert "JSON" in call("run", "numbers: list[int] -> answer", *wrong, code=2).stderr


def test_show_prints_the_prompt_and_generates_nothing():
    text = call("show", "question -> answer", "-i", "question=Who was Ada?", *MODEL).stdout
    assert "Who was Ada?" in text
    assert "{answer}" in text
    assert "prompt tokens" in text


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: Path) -> Path:
    """A project with one index over two short documents, built by the command line."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "ada.md").write_text("# Ada\n\nAda Lovelace wrote the first published program.\n")
    (folder / "alan.md").write_text("# Alan\n\nAlan Turing described a universal machine.\n")
    call("index", "build", "people", "--documents", folder)
    return tmp_path


def test_index_is_built_searched_and_verified(corpus: Path):
    found = json.loads(
        call("index", "search", "people", "Who wrote a program?", "-k", "1", "--json").stdout
    )
    assert [passage["document"] for passage in found] == ["ada.md"]
    [passage] = found
    text = (corpus / "texts" / "ada.md").read_text()
    assert text[passage["start"] : passage["end"]] == passage["text"]
    call("index", "verify", "people")
    assert call("index", "info", "people").stdout
    assert json.loads(call("index", "info", "people", "--json").stdout)


def test_ask_prints_what_a_script_needs(corpus: Path):
    result = json.loads(
        call("ask", "Who wrote a program?", "--index", "people", *MODEL, "--json").stdout
    )
    claims = {"quotes_exact", "support", "answerable", "verified", "abstained", "reason"}
    assert set(result) == {"question", "answer", "citations", "tokens", "seconds", *claims}
    assert set(result["tokens"]) == {"prefilled", "reused", "generated", "forced"}
    for citation in result["citations"]:
        own = {"document", "chunk", "start", "end", "quote", "page", "heading"}
        assert set(citation) == {*own, "index", "stale", "flagged"}
        text = (corpus / "texts" / citation["document"]).read_text()
        assert text[citation["start"] : citation["end"]] == citation["quote"]


def test_ask_without_an_index_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in call("ask", "Why?", "--index", "nowhere", *MODEL, code=2).stderr


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(24)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_eval_gives_a_score_with_its_interval(questions: Path, tmp_path: Path):
    out = tmp_path / "out"
    program = ("question -> answer: int", questions, "--metric", "exact_match", *MODEL)
    result = json.loads(call("eval", *program, "--out", out, "--json").stdout)
    assert 0 <= result["low"] <= result["score"] <= result["high"] <= 1
    assert (result["n"], result["errors"]) == (24, 0)
    assert (out / "report.html").read_text().startswith("<!")
    again = json.loads(call("eval", *program, "--out", out, "--json").stdout)
    assert again == result  # nothing was run again: the seconds are the first run's
    assert len(json.loads((out / "result.json").read_text())["records"]) == 24


def test_eval_names_what_it_cannot_read(tmp_path: Path):
    stderr = call("eval", "question -> answer", tmp_path / "no.jsonl", *MODEL, code=2).stderr
    assert "no.jsonl" in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric", "nowhere.py:metric"), "nowhere.py:metric: cannot be imported"),
        (("--metric", "exact_mach"), "Did you mean 'exact_match'"),
        (("--column", "question"), "expected COLUMN=FIELD"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_read(questions: Path, options, message):
    for command in ("eval", "optimize"):
        given = ("question -> answer", questions, "--model", "no-such-model", *options)
        assert message in call(command, *given, code=2).stderr.replace("\n", " ")


def test_a_column_is_named_for_its_field(tmp_path: Path):
    data = tmp_path / "data.csv"
    data.write_text("prompt = a;Answer\nWhat is 1 + 1?;2\nWhat is 2 + 2?;\n")
    given = ("question -> answer", data, "--column", "prompt = a=question", *MODEL)
    assert "0 errors, 1 without a gold value" in call("eval", *given).stdout


def test_optimize_writes_a_program_that_runs(questions: Path, tmp_path: Path):
    out = tmp_path / "out"
    program = ("question -> answer: int", questions, "--metric", "exact_match", *MODEL)
    text = call("optimize", *program, "--budget", "calls=40", "--out", out).stdout
    assert "start" in text
    assert json.loads((out / "result.json").read_text())["reason"] in text
    assert (out / "report.html").is_file()
    answered = call("run", out / "program", "-i", "question=What is 2 + 2?", *MODEL).stdout
    assert answered.startswith("answer: ")


@pytest.mark.parametrize("budget", ["calls=many", "hours=1", "calls=0"])
def test_optimize_refuses_a_budget_it_cannot_read(questions: Path, tmp_path: Path, budget: str):
    program = ("question -> answer", questions, *MODEL, "--out", tmp_path / "out")
    stderr = call("optimize", *program, "--budget", budget, code=2).stderr
    assert "budget" in stderr.lower()
    assert not (tmp_path / "out" / "program").exists()


def test_broken_signatures_are_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "signatures"
    folder.mkdir()
    (folder / "latin.toml").write_bytes(b"x='\xe9'")
    os.mkfifo(folder / "pipe.toml")
    (folder / "classify.toml").mkdir()
    for name in ("latin", "pipe", "classify"):
        shown = call("signatures", "show", name, code=2).stderr
        assert shown.startswith(f"error: signatures/{name}.toml: cannot be read")
        assert shown.count("\n") == 1


@pytest.fixture
def unconfigured() -> Any:
    """DSPy's settings as they are before a command configures them."""
    yield
    dspy.configure(lm=None, adapter=None)


def test_a_chat_template_and_a_layout_are_taken_wherever_a_model_is(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unconfigured: None
):
    monkeypatch.chdir(tmp_path)
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}«{{ m.role }}»{{ m.content }}{% endfor %}«me»")
    layout = tmp_path / "mine_layout.jinja"
    completion = ROOT / "promptflow/layouts/completion.jinja"
    layout.write_text(f"Listen well.\n{completion.read_text(encoding='utf-8')}")
    model = ("--model", tiny("llama"))
    show = ("show", "question -> answer", "-i", "question=Who?", *model)
    usual = call(*show).stdout
    given = call(*show, "--chat-template", template).stdout
    assert "«user»" in given.replace("·", "")
    assert "«user»" not in usual
    plain = call(*show, "--layout", "completion").stdout
    own = call(*show, "--layout", layout).stdout
    assert len({usual, given, plain, own}) == 4
    assert "Listen" in own
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("A beam keeps the best.")
    (tmp_path / "indexes/k").mkdir(parents=True)
    (tmp_path / "indexes/k/index.toml").write_text('embedder = "hashing-64"\n')
    call("index", "build", "k")
    file = tmp_path / "data.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n')
    for name in ("run", "eval", "optimize", "ask"):
        program = {"ask": ["Who?", "--index", "k"], "run": ["question -> answer"]}
        arguments = [name, *program.get(name, ["question -> answer", str(file)]), *model]
        for option, value, said in (
            ("--chat-template", "none.jinja", "none.jinja: cannot be read"),
            ("--layout", "chta", "no layout 'chta'; use chat, completion"),
            ("--thinking", "maybe", "'maybe' is not one of 'auto', 'on', 'off'"),
        ):
            assert said in call(*arguments, option, value, code=2).stderr
    refused = (("--layout", "completion"), ("--chat-template", template), ("--thinking", "on"))
    for option, value in refused:
        said = call("show", "a -> b", "--model", "openai/x", option, value, code=2).stderr
        assert "a remote model" in said


def test_thinking_is_chosen_for_a_command_whatever_the_program_chose(
    tiny: Any, tmp_path: Path, unconfigured: None
):
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    program = tmp_path / "mine.py"
    program.write_text(
        "import promptflow as pf\nthinks = pf.Predict('a -> reasoning, b: int', thinking=True)\n"
    )
    show = ("show", "-i", "a=x", "--model", tiny("llama"), "--chat-template", template)
    for name in ("a -> reasoning, b: int", f"{program}:thinks"):
        for thinking, opened in (("on", True), ("auto", True), ("off", False)):
            shown = call(*show, name, "--thinking", thinking).stdout
            assert ("<think>\n{reasoning}\n</think>" in shown) == opened
            assert ("Reasoning: {reasoning}" in shown) != opened
    assert "<think>\n{thinking}" in call(*show, "a -> b: int", "--thinking", "on").stdout
    assert "{thinking}" not in call(*show, "a -> b: int").stdout
    said = call(*show[:-2], "a -> b: int", "--thinking", "on", code=2).stderr
    assert "shows no reasoning block" in said
