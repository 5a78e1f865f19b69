"""The user's classes in saved programs: every kind comes back; no file imports code."""

from __future__ import annotations

import datetime
import enum
import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import colors
import dspy
import pydantic
import pytest
from conftest import ROOT
from pydantic import AfterValidator, Field
from typer.testing import CliRunner

import promptflow as pf
from promptflow.cli import app
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ProgramError, PromptflowError, SignatureError
from promptflow.lm import LocalLM
from promptflow.modules import ChainOfThought, Predict
from promptflow.optimization import Budget, Search, optimize
from promptflow.program import check_savable, import_code, load_program, save_program
from promptflow.program.classes import named_classes, path_of, shape_of
from promptflow.program.identity import program_identity

KINDS: dict[str, tuple[Any, Any]] = {
    "enum": (colors.Color, colors.Color.green),
    "int enum": (colors.Size, colors.Size.large),
    "model": (colors.Review, colors.Review(color=colors.Color.red, stars=3, note="a\nb")),
    "model with null": (colors.Review, colors.Review(color=colors.Color.red, stars=3)),
    "list of models": (
        list[colors.Review],
        [colors.Review(color=colors.Color.red, stars=n) for n in (1, 5)],
    ),
    "dataclass": (colors.Point, colors.Point(1, 2)),
    "typed dict": (colors.Row, {"name": "x"}),
    "named tuple": (colors.Pair, colors.Pair(1, 2)),
    "generic model": (colors.Box[int], colors.Box[int](held=4)),
    "generic of an enum": (colors.Box[colors.Color], colors.Box[colors.Color](held="RED")),
    "nested class": (colors.Shelf.Book, colors.Shelf.Book(title="T")),
    "optional": (colors.Color | None, colors.Color.red),
    "dict of enums": (dict[str, colors.Color], {"a": colors.Color.red}),
    "limits on a list": (Annotated[list[colors.Color], Field(max_length=2)], [colors.Color.red]),
    "date": (datetime.date, datetime.date(2024, 2, 29)),
    "path": (Path, Path("a/b")),
    "literal": (Literal["a", 1], 1),
    "url": (pydantic.HttpUrl, pydantic.HttpUrl("https://example.com/a")),
}


def predictor(annotation: Any, *demos: Any) -> Predict:
    fields = {
        "question": (str, dspy.InputField()),
        "answer": (annotation, dspy.OutputField(desc="what it is")),
    }
    made = [{"question": f"q{n}", "answer": demo} for n, demo in enumerate(demos)]
    return Predict(dspy.Signature(fields, "Answer."), demos=made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_of_any_type_comes_back_with_its_demos(kind: str, tmp_path: Path) -> None:
    annotation, value = KINDS[kind]
    program = predictor(annotation, value)
    save_program(program, tmp_path / "saved")
    loaded = load_program(tmp_path / "saved")
    field = loaded.signature.fields["answer"]
    assert field.annotation == program.signature.fields["answer"].annotation
    assert field.metadata == program.signature.fields["answer"].metadata
    assert loaded.demos[0]["answer"] == value
    assert type(loaded.demos[0]["answer"]) is type(value)
    assert program_identity(loaded) == program_identity(program)


def test_classes_are_named_by_their_path_and_shape(tmp_path: Path) -> None:
    program = ChainOfThought(predictor(list[colors.Review]).signature)
    save_program(program, tmp_path / "saved")
    written = tomllib.loads((tmp_path / "saved" / "program.toml").read_text())
    shape = shape_of(colors.Review)
    assert written["types"] == {"Review": {"path": "colors:Review", "shape": shape}}
    assert "list[Review]" in (tmp_path / "saved" / "predict.toml").read_text()


def test_two_classes_of_one_name_are_told_apart() -> None:
    other = enum.Enum("Color", {"a": 1})
    program = predictor(colors.Color | other)
    assert list(named_classes(program)) == ["Color", "Color_2"]


def local_enum() -> Any:
    class Local(enum.Enum):
        a = 1

    return Local


class Main(enum.Enum):
    a = 1


Main.__module__ = "__main__"


class Held(Predict):
    def settings(self) -> dict[str, Any]:
        return {"reward": lambda: 1}


UNSAVABLE: dict[str, tuple[Any, str]] = {
    "a class of a function": (lambda: predictor(local_enum()), "made inside a function"),
    "a class of the script": (lambda: predictor(Main), "which has no name to import it by"),
    "a validator": (
        lambda: predictor(Annotated[int, AfterValidator(lambda v: v)]),
        "AfterValidator.* cannot be written in a document",
    ),
    "a lambda": (lambda: Held("question -> answer"), "Held cannot be saved.*reward"),
}


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_what_cannot_be_saved_is_said_before_anything_is_asked(kind: str, tmp_path: Path) -> None:
    make, reason = UNSAVABLE[kind]
    with pytest.raises(PromptflowError, match=reason):
        save_program(make(), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    asked: list[str] = []

    def answer(text: str, slot: Any) -> str:
        assert warned, "nothing was said before the first model call"
        asked.append(text)
        return "1"

    data = [dspy.Example(question=str(n), answer="1").with_inputs("question") for n in range(20)]
    with pytest.warns(UserWarning, match=reason) as warned:
        optimize(
            make(),
            data,
            metric="f1",
            lm=LocalLM(ScriptedEngine(answer)),
            budget=Budget(calls=20),
            search=Search(candidates=1),
            progress=False,
        )
    assert asked


def test_a_folder_that_holds_something_else_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ProgramError, match="holds something that is no program"):
        check_savable(predictor(colors.Color), tmp_path)


def test_a_class_whose_shape_changed_is_refused(tmp_path: Path) -> None:
    save_program(predictor(colors.Color), tmp_path / "saved")
    other = enum.Enum("Color", {"red": "RED", "blue": "BLUE"})
    with pytest.raises(ProgramError, match=r"Color \(colors:Color\) had the shape"):
        load_program(tmp_path / "saved", types={"Color": other})
    loaded = load_program(tmp_path / "saved", types={"Color": other}, force=True)
    assert loaded.signature.fields["answer"].annotation is other


def test_the_classes_of_the_program_given_come_first(tmp_path: Path) -> None:
    mine = local_enum()
    mine.__qualname__, mine.__module__ = "Color", "colors"
    twin = enum.Enum("Color", {"red": "RED", "green": "GREEN"}, module="elsewhere")
    save_program(predictor(colors.Color), tmp_path / "saved")
    loaded = load_program(tmp_path / "saved", into=predictor(twin))
    assert loaded.signature.fields["answer"].annotation is twin


@pytest.mark.parametrize(
    "path", ["os:system", "subprocess:Popen", "colors:missing", "no_such_module:X", "colors:", ":"]
)
def test_a_path_that_names_no_fitting_type_is_refused(path: str, tmp_path: Path) -> None:
    save_program(predictor(colors.Color), tmp_path / "saved")
    file = tmp_path / "saved" / "program.toml"
    file.write_text(file.read_text().replace("colors:Color", path))
    with pytest.raises((ProgramError, SignatureError)):
        load_program(tmp_path / "saved")
    with pytest.raises((ProgramError, SignatureError)):
        load_program(tmp_path / "saved", force=path == "os:system")


MINE = """
    import enum
    from pathlib import Path
    Path({mark!r}).write_text("run")
    class Color(enum.Enum):
        red = "RED"
"""


def test_no_file_imports_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "mine_only_here.py").write_text(textwrap.dedent(MINE.format(mark=str(mark))))
    monkeypatch.syspath_prepend(str(tmp_path))
    made = import_code("mine_only_here")
    save_program(predictor(made.Color), tmp_path / "saved")
    mark.unlink()
    code = (
        "import sys, promptflow as pf\n"
        "from promptflow.program import import_code\n"
        "try:\n    pf.load_program(sys.argv[1])\n"
        "except pf.errors.ProgramError as error:\n    print(error)\n"
        "import_code('mine_only_here')\n"
        "print(pf.load_program(sys.argv[1]).signature.fields['answer'].annotation)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "HOME": str(Path.home()), "PATH": "/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    refused, found = ran.stdout.strip().split("\n")[0], ran.stdout.strip().split("\n")[-1]
    assert "mine_only_here is not imported; no file imports code here" in refused
    assert "types={'Color': Color}" in refused
    assert found == "<enum 'Color'>"
    assert mark.exists()


def test_a_class_is_found_under_its_path() -> None:
    assert path_of(colors.Shelf.Book) == "colors:Shelf.Book"
    assert pf.load_program is load_program


PROGRAM = """
    import enum
    import dspy
    import promptflow as pf

    class Mood(enum.Enum):
        good = "GOOD"
        bad = "BAD"

    def made():
        fields = {"question": (str, dspy.InputField()), "answer": (Mood, dspy.OutputField())}
        return pf.Predict(dspy.Signature(fields, "Judge."))

    def local():
        class Mood(enum.Enum):
            good = "GOOD"

        fields = {"question": (str, dspy.InputField()), "answer": (Mood, dspy.OutputField())}
        return pf.Predict(dspy.Signature(fields, "Judge."))
"""


def test_a_search_over_an_enum_is_written_and_runs_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(lambda text, slot: "GOOD" if "good" in text else "BAD")
    lm = LocalLM(engine)
    monkeypatch.setattr("promptflow.lm.configure", lambda model: lm)
    (tmp_path / "moods.py").write_text(textwrap.dedent(PROGRAM))
    rows = [{"question": f"{n} good" if n % 2 else f"{n} worse"} for n in range(30)]
    lines = [{**row, "answer": "GOOD" if "good" in row["question"] else "BAD"} for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    where, out = f"{tmp_path / 'moods.py'}:made", tmp_path / "out"
    data = [str(tmp_path / "train.jsonl"), "--metric", "exact_match"]
    options = ["--budget", "calls=40", "--out", str(out)]
    with dspy.context(lm=lm):
        refused = CliRunner().invoke(app, ["optimize", where.replace(":made", ":local"), *data])
        assert refused.exit_code == 2
        assert "made inside a function" in refused.stderr
        assert engine.batches == []
        found = CliRunner().invoke(app, ["optimize", where, *data, *options])
        assert found.exit_code == 0, found.stderr
        asked = ["run", str(out / "program"), "-i", "question=so good", "--json"]
        with monkeypatch.context() as patched:
            patched.delitem(sys.modules, "moods")
            lost = CliRunner().invoke(app, asked)
        assert lost.exit_code == 2
        assert "--import moods" in lost.stderr
        ran = CliRunner().invoke(app, [*asked, "--import", str(tmp_path / "moods.py")])
        assert ran.exit_code == 0, ran.stderr
        assert json.loads(ran.stdout)["answer"] == "GOOD"
