from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import (
    ProgramError,
    SignatureError,
    StoreCorrupt,
    StoreNotFound,
    UnknownField,
)
from promptflow.flow import Module, run
from promptflow.modules import (
    BestOf,
    ChainOfThought,
    Judge,
    Predict,
    SelfConsistency,
    TreeOfThoughts,
    ZeroShotCoT,
)
from promptflow.modules.judge import PairJudge
from promptflow.modules.stopping import SURE
from promptflow.modules.tree import Problem
from promptflow.program import load_program, lock_of, resolve_program, save_program
from promptflow.program.identity import program_identity

QA = "question -> answer: int"


class Pipeline(Module):
    """A module that promptflow does not know, with predictors in a list."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.steps = [Predict(QA) for _ in range(steps)]
        self.final = ChainOfThought(QA)

    def settings(self) -> dict[str, Any]:
        return {"steps": len(self.steps)}


def _said(text: str, slot: pf.Slot) -> str:
    """What a model says to any of the programs."""
    said = {"verdict": "A", "subquestions": '["one?", "two?"]'}
    return "no" if slot.name.startswith("needed") else said.get(slot.name, "1")


def prompts(module: Any, **inputs: Any) -> list[str]:
    """The exact prompts that a module sends for an input."""
    engine = ScriptedEngine(_said)
    run(module, lm=pf.load("scripted", engine=engine), **(inputs or {"question": "2 + 2?"}))
    return engine.prompts


PROGRAMS = {
    "predict": lambda: Predict(QA, sampling=pf.Sampling(temperature=0.3, top_p=0.9), max_tokens=7),
    "weighed": lambda: Predict(QA, weigh=True),
    "cot": lambda: ChainOfThought(QA, reasoning_tokens=33),
    "zero_shot_cot": lambda: ZeroShotCoT(QA, reasoning_tokens=33),
    "votes": lambda: SelfConsistency(ChainOfThought(QA), n=3, vote="logprob", batch=1),
    "all votes": lambda: SelfConsistency(ChainOfThought(QA), n=3, sure="all"),
    "chains": lambda: pf.MultiChainComparison(QA, m=2),
    "least to most": lambda: pf.LeastToMost(QA, most=2),
    "self-ask": lambda: pf.SelfAsk(QA, most=2),
    "step back": lambda: pf.StepBack(QA),
    "plan and solve": lambda: ZeroShotCoT(QA, triggers="plan_and_solve"),
    "best": lambda: BestOf(SelfConsistency(Predict(QA), n=2), n=2, threshold=-1.0),
    "judge": lambda: Judge("Is it right?"),
    "pair": lambda: PairJudge(),
    "tree": lambda: TreeOfThoughts(depth=1, breadth=2, samples=1, temperature=0.5),
}
INPUTS = {
    "judge": {"question": "2 + 2?", "answer": "4"},
    "pair": {"question": "2 + 2?", "first": "4", "second": "5"},
    "tree": {"problem": "2 + 2?"},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_comes_back_is_the_same_program(name: str, tmp_path: Path) -> None:
    module = PROGRAMS[name]()
    save_program(module, tmp_path / "saved")
    assert program_identity(load_program(tmp_path / "saved")) == program_identity(module)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    module = PROGRAMS[name]()
    _, first = next(iter(module.named_predictors()))
    inputs, outputs = list(first.signature.input_fields), list(first.signature.output_fields)
    first.signature = first.signature.with_instructions("Be brief.\nBe right.")
    assert first.signature.instructions == "Be brief.\nBe right."
    answer = "tie" if name == "pair" else "1"
    first.demos = [dspy.Example({**dict.fromkeys(inputs, "x\ny"), outputs[-1]: answer})]
    save_program(module, tmp_path / "saved")
    loaded = load_program(tmp_path / "saved")
    assert type(loaded) is type(module)
    assert loaded.settings() == module.settings()
    assert [n for n, _ in loaded.named_predictors()] == [n for n, _ in module.named_predictors()]
    if name not in INPUTS:
        assert prompts(loaded) == prompts(module)
    for (_, a), (_, b) in zip(loaded.named_predictors(), module.named_predictors(), strict=True):
        assert a.settings() == b.settings()
        assert [dict(d.items()) for d in a.demos] == [dict(d.items()) for d in b.demos]


@pytest.mark.parametrize("name", ["judge", "pair"])
def test_a_saved_judge_asks_the_same(name: str, tmp_path: Path) -> None:
    module = PROGRAMS[name]()
    save_program(module, tmp_path)
    assert prompts(load_program(tmp_path), **INPUTS[name]) == prompts(module, **INPUTS[name])


def test_the_folder_is_text_that_a_person_can_edit(tmp_path: Path) -> None:
    save_program(SelfConsistency(ChainOfThought(QA), n=3), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "module.predict.toml",
        "program.toml",
    ]
    document = tmp_path / "module.predict.toml"
    text = 'instructions = "Count with care."\n' + document.read_text()
    document.write_text(text)
    assert "Count with care." in prompts(load_program(tmp_path))[0]
    tables = tomllib.loads((tmp_path / "program.toml").read_text())
    settings = {"n": 3, "temperature": 0.7, "vote": "count", "field": "answer"}
    assert tables["settings"] == {**settings, "same": "value", "sure": SURE}


def test_decoding_is_saved_under_its_own_names_and_an_unknown_one_is_damage(tmp_path: Path) -> None:
    bias = ((5, -2.0),)
    sampling = pf.Sampling(temperature=0.3, logit_bias=bias)
    module = Predict(QA, sampling=sampling, max_tokens=7, weigh=True, layout="completion")
    save_program(module, tmp_path)
    assert load_program(tmp_path).decoding == module.decoding
    saved = tomllib.loads((tmp_path / "program.toml").read_text())["predictors"]["self"]
    assert saved["settings"]["max_tokens"] == 7
    assert "_" not in saved["settings"]["sampling"]
    text = (tmp_path / "program.toml").read_text().replace("max_tokens", "max_token")
    (tmp_path / "program.toml").write_text(text)
    with pytest.raises(StoreCorrupt, match="max_token"):
        load_program(tmp_path)


def test_saving_again_replaces_the_program(tmp_path: Path) -> None:
    save_program(ZeroShotCoT(QA), tmp_path / "p")
    save_program(Predict(QA), tmp_path / "p")
    assert isinstance(load_program(tmp_path / "p"), Predict)
    assert len(list((tmp_path / "p").iterdir())) == 2


def test_what_an_optimizer_wrote_stays_with_its_predictor(tmp_path: Path) -> None:
    program = ChainOfThought(QA)
    program.predict.compiled = {"metric": "f1", "dev": {"score": 0.5, "n": 20}}
    save_program(program, tmp_path, lock={"train": "0" * 64})
    assert load_program(tmp_path).predict.compiled == program.predict.compiled
    assert "[compiled]" in (tmp_path / "predict.toml").read_text()


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ProgramError, match="another folder"):
        save_program(Predict(QA), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


KILLED_SAVES = """
import os, sys
import promptflow as pf
from promptflow.storage import files

program = pf.ChainOfThought("question -> answer: int")
for number, folder in enumerate(sys.argv[1:], 1):
    child = os.fork()
    if child == 0:
        files._kill_at = number  # as PROMPTFLOW_KILL_AT would have set it
        pf.save_program(program, folder)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_save_killed_anywhere_leaves_a_whole_program(tmp_path: Path) -> None:
    save_program(Predict(QA), tmp_path / "old")
    folders = [tmp_path / f"p{number}" for number in range(40)]
    for folder in folders:
        shutil.copytree(tmp_path / "old", folder)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, *map(str, folders)],
        check=True,
        capture_output=True,
        text=True,
    )
    statuses = [int(line) for line in done.stdout.split()]
    assert set(statuses) == {-signal.SIGKILL, 0}
    assert statuses == sorted(statuses), "a save that was not reached by its kill comes last"
    classes = [type(load_program(folder)) for folder in folders]
    assert classes[0] is Predict
    for status, found in zip(statuses, classes, strict=True):
        assert found in (Predict, ChainOfThought)
        assert status != 0 or found is ChainOfThought


def engine(name: str, template: str = "t") -> Any:
    info = pf.ModelInfo(name, "", name[0] * 64, "x", 100, 0, template, "b", "default")
    return pf.load(name, engine=ScriptedEngine(lambda text, slot: "1", info=info))


def test_another_model_is_refused_and_both_sides_are_shown(tmp_path: Path) -> None:
    with dspy.context(lm=engine("alpha")):
        save_program(Predict(QA), tmp_path)
        load_program(tmp_path)
    with dspy.context(lm=engine("beta")):
        with pytest.raises(ProgramError) as caught:
            load_program(tmp_path)
        assert f"saved with alpha@{'a' * 64}, now beta@{'b' * 64}" in str(caught.value)
        assert "force=True" in str(caught.value)
        assert isinstance(load_program(tmp_path, force=True), Predict)
    with pytest.raises(ProgramError, match="template: saved with"):
        load_program(tmp_path, lm=engine("alpha", template="another"))


def test_without_a_model_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with dspy.context(lm=None):
        save_program(Predict(QA), tmp_path, lock={"train": "abc"})
        assert "model" not in lock_of(Predict(QA))
    with dspy.context(lm=engine("beta")):
        load_program(tmp_path)
    assert tomllib.loads((tmp_path / "program.toml").read_text())["lock"] == {"train": "abc"}


def test_unknown_modules_load_into_one(tmp_path: Path) -> None:
    module = Pipeline()
    module.steps[1].signature = module.steps[1].signature.with_instructions("Second.")
    save_program(module, tmp_path)
    with pytest.raises(ProgramError, match=r"into=Pipeline\(\.\.\.\)"):
        load_program(tmp_path)
    loaded = load_program(tmp_path, into=Pipeline())
    assert loaded.steps[1].signature.instructions == "Second."
    with pytest.raises(ProgramError, match="into=Pipeline"):
        load_program(tmp_path, into=ChainOfThought(QA))
    with pytest.raises(ProgramError, match="saved predictors are"):
        load_program(tmp_path, into=Pipeline(steps=3))


def test_predictors_of_a_compiled_module_are_saved_too(tmp_path: Path) -> None:
    inner = ChainOfThought(QA)
    inner.predict.demos = [dspy.Example(question="1?", reasoning="one", answer=1)]
    inner._compiled = True
    save_program(SelfConsistency(inner, n=2), tmp_path)
    assert len(load_program(tmp_path).module.predict.demos) == 1


def longest(inputs: Any, prediction: Any) -> float:
    return len(str(prediction.answer))


def test_code_is_named_and_not_saved(tmp_path: Path) -> None:
    save_program(BestOf(Predict(QA), n=2, reward=longest), tmp_path / "best")
    with pytest.raises(ProgramError, match=r"made with code \(reward\)"):
        load_program(tmp_path / "best")
    loaded = load_program(tmp_path / "best", into=BestOf(Predict(QA), n=2, reward=longest))
    assert loaded.reward is longest
    with pytest.raises(ProgramError, match="settings: saved with"):
        load_program(tmp_path / "best", into=BestOf(Predict(QA), n=2))
    tree = TreeOfThoughts(problem=Problem(done=lambda state: state == "x"))
    save_program(tree, tmp_path / "tree")
    with pytest.raises(ProgramError, match=r"made with code \(problem\)"):
        load_program(tmp_path / "tree")


def test_documents_with_other_fields_are_refused(tmp_path: Path) -> None:
    save_program(Pipeline(), tmp_path)
    document = tmp_path / "final.predict.toml"
    document.write_text(document.read_text().replace("question", "riddle"))
    with pytest.raises(ProgramError, match="matched by name"):
        load_program(tmp_path, into=Pipeline())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("module = ", StoreCorrupt),
        ("format = 1\n", StoreCorrupt),
        ('format = 99\nmodule = "Predict"\n[predictors]\n', ProgramError),
        ('format = 1\nmodule = "Predict"\n[predictors]\n', StoreCorrupt),
        ('format = 1\nmodule = "os.system"\n[predictors]\n', ProgramError),
        (
            'format = 1\nmodule = "SelfConsistency"\nsettings = { n = 0 }\n'
            'parts = [{ name = "module", module = "Predict" }]\n'
            '[predictors]\nmodule = { file = "self.toml" }\n',
            StoreCorrupt,
        ),
    ],
)
def test_damaged_programs_are_typed_errors(
    text: str, error: type[Exception], tmp_path: Path
) -> None:
    save_program(Predict(QA), tmp_path)
    (tmp_path / "program.toml").write_text(text)
    with pytest.raises(error):
        load_program(tmp_path)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="no saved program"):
        load_program(tmp_path)


def test_documents_stay_in_the_folder(tmp_path: Path) -> None:
    save_program(Predict(QA), tmp_path / "p")
    (tmp_path / "secret.toml").write_text((tmp_path / "p" / "self.toml").read_text())
    file = tmp_path / "p" / "program.toml"
    file.write_text(file.read_text().replace("self.toml", "../secret.toml"))
    with pytest.raises(StoreCorrupt, match="outside"):
        load_program(tmp_path / "p")


def test_resolves_what_a_person_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_program(ChainOfThought(QA), tmp_path / "saved")
    (tmp_path / "mine_qa.py").write_text(
        "import promptflow as pf\n"
        "program = pf.Predict('q -> a')\n"
        "def make():\n    return pf.ChainOfThought('q -> a')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(resolve_program("saved"), ChainOfThought)
    assert isinstance(resolve_program(tmp_path / "saved"), ChainOfThought)
    assert isinstance(resolve_program("mine_qa:program"), Predict)
    assert isinstance(resolve_program("mine_qa.py:make"), ChainOfThought)
    assert isinstance(resolve_program("question: str -> answer: int"), Predict)
    assert "rubric" in resolve_program("judge").signature.input_fields
    module = Predict(QA)
    assert resolve_program(module) is module
    with pytest.raises(ProgramError, match="is a int"):
        resolve_program("mine_qa:number")
    with pytest.raises(ProgramError, match="cannot be imported"):
        resolve_program("mine_qa:nothing")
    with pytest.raises(ProgramError, match="cannot be imported"):
        resolve_program("no_such_module_here:x")
    with pytest.raises(ProgramError, match=r"no program 'jugde'.*judge"):
        resolve_program("jugde")
    with pytest.raises(SignatureError):
        resolve_program("question -> answer: spaceship")


def test_a_loaded_program_still_checks_its_inputs(tmp_path: Path) -> None:
    save_program(Predict(QA), tmp_path)
    with pytest.raises(UnknownField):
        load_program(tmp_path).call(riddle="?")


def test_a_program_whose_code_or_layout_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = tmp_path / "mine.jinja"
    layout.write_text("{{ turn('user') }}x{{ turn('assistant') }}{{ outputs[0].value }}")
    program = Pipeline()
    program.steps[0] = Predict(QA, layout=layout)
    save_program(program, tmp_path / "saved")
    fresh = Pipeline()
    load_program(tmp_path / "saved", into=fresh)
    monkeypatch.setattr(Pipeline, "extra", lambda self: 1, raising=False)
    with pytest.raises(ProgramError, match=r"code cpython-\d+: saved with"):
        load_program(tmp_path / "saved", into=Pipeline())
    load_program(tmp_path / "saved", into=Pipeline(), force=True)
    monkeypatch.undo()
    layout.write_text(layout.read_text() + " ")
    with pytest.raises(ProgramError, match=r"steps\[0\].layout: saved with"):
        load_program(tmp_path / "saved", into=Pipeline())


def test_a_program_made_for_a_remote_model_says_so_on_another(tmp_path: Path) -> None:
    one, other = (pf.load(f"openai/{name}", api_key="x") for name in ("one", "other"))
    with dspy.context(lm=one):
        save_program(Predict(QA), tmp_path)
    assert isinstance(load_program(tmp_path, lm=one), Predict)
    with pytest.raises(ProgramError, match="saved with openai/one, now openai/other"):
        load_program(tmp_path, lm=other)


def test_a_long_signature_is_no_path():
    options = ", ".join(repr(f"option {n}") for n in range(99))
    program = resolve_program(f"a -> b: Literal[{options}]")
    assert isinstance(program, Predict)
    with pytest.raises(ProgramError, match="no program"):
        resolve_program("a" * 5_000)


@pytest.mark.parametrize("file", ["program.toml", "predict.toml"])
@pytest.mark.parametrize(
    "damage", [b"x=[", b"\xff\xfe", b"", b"x=" + b"[" * 9_000, b"#" * 2_000_000]
)
def test_a_damaged_folder_is_told_by_its_file(tmp_path: Path, file: str, damage: bytes):
    save_program(ChainOfThought(QA), tmp_path / "saved")
    (tmp_path / "saved" / file).write_bytes(damage)
    with pytest.raises((StoreCorrupt, SignatureError), match=file):
        load_program(tmp_path / "saved")
    (tmp_path / "saved" / file).unlink()
    os.mkfifo(tmp_path / "saved" / file)
    with pytest.raises((StoreNotFound, SignatureError), match=file):
        load_program(tmp_path / "saved")


@pytest.mark.parametrize(
    "settings",
    [
        "3",
        "{config=3}",
        "{layout=3}",
        "{sampling=3}",
        "{until=[1]}",
        "{max_tokens='x'}",
        "{max_tokens=-3}",
        "{max_tokens=true}",
        "{max_token=3}",
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, settings: str):
    save_program(ChainOfThought(QA), tmp_path)
    text = (tmp_path / "program.toml").read_text()
    damaged = re.sub(r"(file = .*settings =) .* }", rf"\1 {settings} }}", text)
    assert damaged != text
    (tmp_path / "program.toml").write_text(damaged)
    with pytest.raises(StoreCorrupt, match=r"program\.toml"):
        load_program(tmp_path)


def test_what_makes_no_program_says_so():
    with pytest.raises(ProgramError, match="json:dumps: cannot be made"):
        resolve_program("json:dumps")
