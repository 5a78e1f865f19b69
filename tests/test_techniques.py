"""The benchmark of techniques: its journal, its rows, its comparison; no model is asked."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import promptflow as pf
from promptflow.errors import EngineLost
from promptflow.storage import Journal

sys.path.append(str(ROOT / "benchmarks"))
techniques: Any = importlib.import_module("techniques")


class Counting(pf.Module):
    """Answers without a model; notes what it was asked."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.callbacks: list[Any] = []

    def flow(self, question: str) -> Any:
        ASKED.append(question)
        if question == "lost":
            raise EngineLost("gone")
        return pf.Prediction(answer=self.answer)
        yield


ASKED: list[str] = []
ROWS = [techniques.Row(str(n), {"question": f"q{n}"}, float(n % 2)) for n in range(5)]


def arm(answer: int = 1, size: int = 2) -> Any:
    return techniques.Arm("sums", "direct", Counting(answer), size, techniques.number_is_right)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    ASKED.clear()
    with Journal(tmp_path / "runs.sqlite") as opened:
        yield opened


def test_a_run_goes_on_where_it_stopped(journal: Any) -> None:
    runs = techniques.Runs(journal, "none", float("inf"))
    first = runs.ask(arm(), ROWS[:2])
    assert (ASKED, list(first)) == (["q0", "q1"], ["0", "1"])
    both = runs.ask(arm(), ROWS)
    assert ASKED == ["q0", "q1", "q2", "q3", "q4"]
    assert [both[row.name]["right"] for row in ROWS] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert runs.ask(arm(), ROWS) == both
    assert len(ASKED) == 5


def test_another_program_or_model_is_asked_again(journal: Any) -> None:
    techniques.Runs(journal, "one", float("inf")).ask(arm(), ROWS)
    techniques.Runs(journal, "one", float("inf")).ask(arm(answer=0), ROWS)
    techniques.Runs(journal, "two", float("inf")).ask(arm(), ROWS)
    assert len(ASKED) == 15


def test_after_its_time_a_run_only_reports(journal: Any) -> None:
    assert techniques.Runs(journal, "none", 0.0).ask(arm(), ROWS) == {}
    assert ASKED == []


def test_a_lost_engine_is_no_wrong_answer(journal: Any) -> None:
    rows = [*ROWS[:2], techniques.Row("9", {"question": "lost"}, 1.0)]
    runs = techniques.Runs(journal, "none", float("inf"))
    with pytest.raises(EngineLost):
        runs.ask(arm(), rows)
    assert len(journal) == 2, "what was answered before is kept"


def test_the_report_has_figures_and_paired_differences(journal: Any) -> None:
    runs = techniques.Runs(journal, "none", float("inf"))
    ones, zeros = runs.ask(arm(1), ROWS), runs.ask(arm(0), ROWS[:4])
    found = {
        ("gsm8k", "zero-shot CoT"): zeros,
        ("gsm8k", "direct"): ones,
        ("gsm8k", "few-shot"): {},
    }
    made = techniques.report("none", found)
    assert list(made["tasks"]["gsm8k"]) == ["zero-shot CoT", "direct"]
    assert made["tasks"]["gsm8k"]["direct"]["mean"] == pytest.approx(0.4)
    [difference] = made["differences"]
    assert (difference["of"], difference["over"], difference["n"]) == ("zero-shot CoT", "direct", 4)
    assert difference["mean"] == 0.0
    assert "| direct | 5 | 0.400 |" in techniques.table(made)


@pytest.mark.parametrize("task", techniques.TASKS)
def test_judged_rows_are_seeded_and_others_are_tuned_on(data_dir: Path, task: str) -> None:
    rows, arms = techniques.TASKS[task]
    judged, tuned = rows(False), rows(True)
    sizes = {"gsm8k": 60, "multiarith": 60, "game24": 30, "crosswords": 5}
    assert len(judged) == len({row.name for row in judged}) == sizes[task]
    assert [row.name for row in rows(False)] == [row.name for row in judged]
    assert not {str(r.inputs) for r in judged} & {str(r.inputs) for r in tuned}
    assert all(one.size >= 1 for one in arms(task))


def test_the_exemplars_have_their_answers_apart(data_dir: Path) -> None:
    demos = techniques.exemplars()
    assert [demo["answer"] for demo in demos] == [6, 5, 39, 8, 9, 29, 33, 8]
    assert not any("The answer is" in demo["reasoning"] for demo in demos)
