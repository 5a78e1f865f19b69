from __future__ import annotations

import json
import math

import pytest

from promptflow.errors import BudgetExceeded, ResumeMismatch, StoreBusy
from promptflow.optimization.study import Budget, Spent, Study

PRINT = {"model": "m@1", "train": "aaaa", "settings": {"seed": 0}}


def test_finished_steps_are_replayed_and_the_rest_is_done(tmp_path):
    done = []

    def run(upto):
        with Study(tmp_path / "run.db", PRINT, Budget(calls=100)) as study:
            results = []
            for number in range(upto):

                def work(number=number):
                    done.append(number)
                    return {"value": number / 3}, Spent(2, 10, 0.5)

                results.append(study.step("score", [number], work))
            return results, study.spent, study.replayed

    run(2)
    results, spent, replayed = run(4)
    assert done == [0, 1, 2, 3]
    assert results == [{"value": n / 3} for n in range(4)]
    assert (spent, replayed) == (Spent(8, 40, 2.0), 2)


def test_a_step_that_fails_is_not_kept(tmp_path):
    def fails():
        raise RuntimeError("interrupted")

    with Study(tmp_path / "run.db", PRINT) as study, pytest.raises(RuntimeError):
        study.step("score", 1, fails)
    with Study(tmp_path / "run.db", PRINT) as study:
        assert study.step("score", 1, lambda: ("done", Spent(1))) == "done"


def test_live_results_look_as_replayed_ones_will(tmp_path):
    for _ in range(2):
        with Study(tmp_path / "run.db", PRINT) as study:
            found = study.step("score", 1, lambda: ({1: (2, 3)}, Spent()))
            assert found == {"1": [2, 3]}
    with Study(None, PRINT) as study:
        assert study.step("score", 1, lambda: ({1: (2, 3)}, Spent())) == {"1": [2, 3]}


@pytest.mark.parametrize(
    ("part", "value"), [("model", "m@2"), ("train", "bbbb"), ("settings", {"seed": 1})]
)
def test_another_run_is_refused_and_the_part_is_named(tmp_path, part, value):
    Study(tmp_path / "run.db", PRINT).close()
    with pytest.raises(ResumeMismatch, match=f"another {part}") as caught:
        Study(tmp_path / "run.db", {**PRINT, part: value})
    assert str(tmp_path / "run.db") in str(caught.value)
    Study(tmp_path / "run.db", PRINT).close()


def test_a_step_in_another_order_is_refused(tmp_path):
    with Study(tmp_path / "run.db", PRINT) as study:
        study.step("bootstrap", [0, 16], lambda: ([], Spent()))
    with Study(tmp_path / "run.db", PRINT) as study, pytest.raises(ResumeMismatch, match="step 0"):
        study.step("bootstrap", [0, 8], lambda: ([], Spent()))


def test_two_processes_cannot_write_one_journal(tmp_path):
    with Study(tmp_path / "run.db", PRINT), pytest.raises(StoreBusy):
        Study(tmp_path / "run.db", PRINT)
    Study(tmp_path / "run.db", PRINT).close()


def test_the_budget_counts_what_is_spent():
    study = Study(None, {}, Budget(calls=10, tokens=1000))
    assert (study.used(), study.affordable()) == (0.0, 10)
    study.step("score", 1, lambda: (None, Spent(4, 600, 1.0)))
    assert study.used() == pytest.approx(0.6)
    assert study.affordable() == 2  # 400 tokens are left at 150 a run
    study.step("score", 2, lambda: (None, Spent(1, 600, 1.0)))
    assert study.used() > 1
    assert study.affordable() == 0
    assert math.isinf(Study(None, {}).affordable())


@pytest.mark.parametrize("limits", [{"calls": 0}, {"tokens": -1}, {"seconds": float("nan")}])
def test_a_limit_must_be_positive(limits):
    with pytest.raises(BudgetExceeded, match="must be above 0"):
        Budget(**limits)


def test_numbers_come_back_exactly(tmp_path):
    value = [0.1 + 0.2, 1e-300, 2**60]
    with Study(tmp_path / "run.db", PRINT) as study:
        study.step("x", 1, lambda: (value, Spent(1, 2, 0.1 + 0.2)))
    with Study(tmp_path / "run.db", PRINT) as study:
        assert study.step("x", 1, lambda: (None, Spent())) == value
        assert study.spent.seconds == 0.1 + 0.2
    json.dumps(value)
