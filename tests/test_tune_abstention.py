"""Abstention is fitted on what a program answers with and without the documents that hold it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError
from promptflow.evaluation.abstention import Bounds, Hidden, is_right, tune_abstention
from promptflow.flow import run
from promptflow.modules import GroundedQA
from promptflow.modules.abstention import Calibration
from promptflow.report import write_abstention
from promptflow.retrieval import HashingEmbedder, Index, build_index
from promptflow.storage import Journal

TOWNS = [f"Town{n:02d}" for n in range(24)]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    docs = tmp_path / "docs"
    docs.mkdir()
    for n, town in enumerate(TOWNS):
        (docs / f"{town}.md").write_text(f"The mayor of {town} is called Mayor{n:02d}.")
    monkeypatch.chdir(tmp_path)
    with build_index("towns", docs, embedder=HashingEmbedder(), progress=False) as built:
        yield built


def examples() -> list[dspy.Example]:
    return [
        dspy.Example(question=f"Who is the mayor of {town}?", answer=f"Mayor{n:02d}").with_inputs(
            "question"
        )
        for n, town in enumerate(TOWNS)
    ]


def lm() -> pf.LocalLM:
    """A model that copies the last word, and is sure of it where the town is the asked one."""

    def answer(prompt: str, slot: pf.Slot) -> str:
        if slot.name == "answer":
            assert slot.constraint is not None
            return slot.constraint.texts[0].split()[-1].rstrip(".")
        asked = prompt.rsplit("mayor of ", 1)[1][:6]
        return "Yes" if f"{asked} is called" in prompt.rsplit("<data", 1)[1] else "No"

    return pf.load("scripted", engine=ScriptedEngine(answer))


def test_a_fit_tells_right_from_wrong_and_is_read_by_the_program(index: Index) -> None:
    model = lm()
    tuned = tune_abstention(GroundedQA(index), examples(), lm=model, progress=False)
    assert tuned.chosen is not None
    assert (tuned.chosen.coverage, tuned.chosen.risk) == (1.0, 0.0)
    assert tuned.chosen.false_answers <= 0.15
    assert len(tuned.asked) == 48
    assert sum(one.best.right for one in tuned.asked) == 24
    assert tuned.path is not None
    kept = Calibration.open(tuned.path)
    assert kept == tuned.calibration
    assert kept.model == model.text_engine.info.sha256
    assert kept.embedder == index.manifest.embedder["sha256"]
    [asked] = examples()[3:4]
    result = run(GroundedQA(index), lm=model, question=asked.question)
    assert (result.answer, result.verified) == ("Mayor03", True)
    assert "fitted on 24 questions" in result.reason
    assert run(GroundedQA(index), lm=model, question="Who is the mayor of Town99?").abstained


def test_a_killed_run_asks_nothing_twice(index: Index, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        first = tune_abstention(
            GroundedQA(index), examples(), lm=lm(), journal=journal, progress=False
        )
        again = lm()
        second = tune_abstention(
            GroundedQA(index), examples(), lm=again, journal=journal, progress=False
        )
    assert again.text_engine.prompts == []
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())


def test_where_no_threshold_is_within_the_bounds_nothing_is_kept(index: Index) -> None:
    def answer(prompt: str, slot: pf.Slot) -> str:
        if slot.name != "answer":
            return "Yes"
        assert slot.constraint is not None
        return slot.constraint.texts[0].split()[-1 if "Town01" in prompt else 0].rstrip(".")

    model = pf.load("scripted", engine=ScriptedEngine(answer))
    tuned = tune_abstention(
        GroundedQA(index), examples(), lm=model, bounds=Bounds(0.0, 0.0), progress=False
    )
    assert tuned.chosen is None or tuned.chosen.risk == 0.0
    if tuned.chosen is None:
        assert tuned.path is None


def test_too_few_questions_are_refused(index: Index) -> None:
    with pytest.raises(DataError, match=r"19 of 19 .* at least 20"):
        tune_abstention(GroundedQA(index), examples()[:19], lm=lm(), progress=False)
    blank = [dspy.Example(question="?", answer="") for _ in range(30)]
    with pytest.raises(DataError, match="0 of 30"):
        tune_abstention(GroundedQA(index), blank, lm=lm(), progress=False)


def test_documents_that_hold_the_answer_are_hidden(index: Index) -> None:
    asked = "Who is the mayor of Town03?"
    hidden = Hidden(index, {asked: ("mayor03",)}, {asked: ("Town04.md",)})
    found = [passage.document for passage in hidden.search(asked, 24)]
    assert "Town03.md" not in found
    assert "Town04.md" not in found
    assert len(found) == 22
    assert "Town03.md" in [p.document for p in hidden.search("mayor of Town03", 3)]


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Mayor03", 1.0), ("it is Mayor03, they say", 1.0), ("Mayor04", 0.0), ("", 0.0)],
)
def test_what_counts_as_right(answer: str, right: float) -> None:
    assert is_right(dspy.Example(answer="Mayor03"), dspy.Prediction(answer=answer)) == right


def test_the_report_draws_the_curve(index: Index, tmp_path: Path) -> None:
    tuned = tune_abstention(GroundedQA(index), examples(), lm=lm(), progress=False)
    write_abstention(tmp_path / "report.html", tuned)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<polyline") == 2
    assert "<circle" in page
    assert "Who is the mayor of Town03?" in page
    assert "documents hidden" in page
