from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError, EngineLost
from promptflow.evaluation.arena import arena, read_outputs
from promptflow.lm import LocalLM


def write(folder, **systems):
    for name, answers in systems.items():
        lines = [json.dumps({"question": q, "answer": a}) for q, a in answers.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def better(text, slot):
    """The answer with the higher number is better, whatever the order."""
    a, b = (int(text.split(f"Answer {side}: n", 1)[1].split()[0].split("<")[0]) for side in "AB")
    return "tie" if a == b else "A" if a > b else "B"


def answers(value, count=6):
    return {f"question {n}": f"n{value + n % 2}" for n in range(count)}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, high=answers(9), low=answers(1), middle=answers(5, 5))


def test_systems_are_rated_on_the_questions_that_they_share(folder):
    engine = ScriptedEngine(better)
    result = arena(read_outputs(folder), lm=LocalLM(engine))
    assert [rating.name for rating in result.ratings] == ["high", "middle", "low"]
    assert [rating.games for rating in result.ratings] == [11, 10, 11]
    assert sum(engine.batches) == 2 * 16
    assert result.reliability.consistency == 1.0
    assert result.wins["high", "low"].rate == 1.0
    assert (result.unmatched, result.failed, result.own) == (0, 0, ())


def test_fewer_pairs_are_drawn_evenly_and_a_journal_continues(folder, tmp_path):
    journal = tmp_path / "run.sqlite"
    lm = LocalLM(ScriptedEngine(better))
    first = arena(read_outputs(folder), pairs=8, lm=lm, journal=journal)
    engine = ScriptedEngine(better)
    again = arena(read_outputs(folder), pairs=8, lm=LocalLM(engine), journal=journal)
    assert engine.batches == []
    assert again.to_json() == first.to_json()
    assert sum(rating.games for rating in again.ratings) == 16


def test_a_system_of_the_judge_itself_is_named(folder):
    write(folder, scripted=answers(3))
    result = arena(read_outputs(folder), lm=LocalLM(ScriptedEngine(better)))
    assert result.own == ("scripted",)
    assert "own text" in result.reliability.warning


def test_a_judge_that_died_rates_nobody(folder):
    def lost(text, slot):
        raise EngineLost("killed")

    with pytest.raises(EngineLost):
        arena(read_outputs(folder), lm=LocalLM(ScriptedEngine(lost), num_retries=0))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": '{"question": "?", "answer": "x"}'}, "two systems or more"),
        ({"a.jsonl": '{"question": "?"}', "b.jsonl": "{}"}, "a.jsonl, row 1: needs a question"),
        (
            {"a.jsonl": '{"question": "?", "answer": 1}\n{"question": "?", "answer": 2}'}
            | {"b.csv": "x"},
            "stands twice",
        ),
        ({"a.jsonl": '{"id": 1}', "a.csv": "id\n1"}, "the same system"),
    ],
)
def test_what_cannot_be_rated_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_outputs(tmp_path)


def test_rows_are_matched_by_id(tmp_path):
    (tmp_path / "a.csv").write_text("id,prompt,output\n1,How?,n1\n2,Why?,n1\n")
    (tmp_path / "b.jsonl").write_text('{"id": 2, "instruction": "Why ?", "response": "n2"}\n')
    result = arena(read_outputs(tmp_path), lm=LocalLM(ScriptedEngine(better)))
    assert (result.ratings[0].name, result.unmatched) == ("b", 1)
    (tmp_path / "b.jsonl").write_text('{"id": 3, "instruction": "Why ?", "response": "n2"}\n')
    with pytest.raises(DataError, match="the same question"):
        arena(read_outputs(tmp_path), lm=LocalLM(ScriptedEngine(better)))


def test_the_command_prints_ratings_and_the_judge(folder, monkeypatch, tmp_path):
    from promptflow.cli import app

    lm = LocalLM(ScriptedEngine(better))
    monkeypatch.setattr("promptflow.lm.configure", lambda *_, **__: lm)
    done = CliRunner().invoke(app, ["arena", str(folder), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "high" in done.output.splitlines()[0]
    assert "consistency 1.00" in done.output
    assert (tmp_path / "out" / "result.json").is_file()
