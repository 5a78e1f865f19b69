from __future__ import annotations

import json
from pathlib import Path

import dspy
import pytest

from promptflow import catalog, requantize
from promptflow.doctor import Speed
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.request import Request, Slot, Text
from promptflow.errors import DataError, HashMismatch, ModelInvalid, ModelNotFound

QUESTIONS = [
    dspy.Example(
        passage=f"The {color} box is in the {room}.", question=f"Where is the {color} box?"
    )
    for color, room in (("red", "kitchen"), ("blue", "garden"))
]


@pytest.fixture
def source(tmp_path, monkeypatch) -> str:
    """The path of a real model, before an empty cache."""
    path = str(catalog.locate("smollm2-135m"))
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return path


def timed(monkeypatch, rates: dict[str, float]) -> None:
    """Replace measuring by a table of rates: format, tokens per second."""

    turns: list[str] = []

    def speed(side):
        """The machine slows down with every measurement."""
        turns.append(side.name)
        rate = next((r for f, r in rates.items() if side.name.endswith(f)), 10.0)
        rate -= len(turns)
        return Speed(rate, rate, rate, 8)

    monkeypatch.setattr(requantize, "_speed", speed)


def test_a_model_in_another_format_is_a_model_of_the_catalogue(source):
    asked = [q.with_inputs("passage", "question") for q in QUESTIONS]
    for example, answer in zip(asked, ("kitchen", "garden"), strict=True):
        example["answer"] = answer
    made = requantize.requantize(source, "q8_0", asked, progress=False)
    assert made.after is not None
    name = made.after.name
    assert name == f"{Path(source).stem}-q8_0"
    assert made.after.size > made.before.size
    assert made.before.speed
    assert made.after.speed
    assert made.before.perplexity
    # More bits than it was made from: nothing is lost but rounding.
    assert made.after.perplexity == pytest.approx(made.before.perplexity, rel=0.1)
    assert len(made.after.f1) == 2
    assert [row[0] for row in made.rows()][-3:] == ["perplexity", "F1", "F1, difference"]
    assert catalog.models()[name].sources == (f"made from {source}",)
    kept = json.loads((Path(made.after.path).parent / "comparison.json").read_text())
    assert kept["after"]["perplexity"] == made.after.perplexity
    with Engine(name, EngineOptions(context=256)) as engine:
        [done] = engine.generate([Request((Text("One, two,"), Slot("next", max_tokens=2)))])
        assert done.error is None
    path = Path(made.after.path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(HashMismatch, match=f"requantize {source} --type q8_0` again"):
        catalog.locate(name)


def test_auto_takes_the_fastest_at_eight_branches(source, monkeypatch):
    timed(monkeypatch, {"q4_0": 29.5, "q8_0": 30.0})
    monkeypatch.setattr(requantize, "CANDIDATES", ("q4_0", "q8_0"))
    made = requantize.requantize(source, compare=False, progress=False)
    assert made.after is not None
    assert made.after.name.endswith("-q8_0")  # measured once, in order, q4_0 would lead
    assert [speed.together for speed in made.tried.values()] == [6.5, 26.0, 26.5]
    assert [model.name for model in catalog.listing() if model.present] == [made.after.name]


def test_auto_makes_nothing_where_the_original_is_the_fastest(source, monkeypatch):
    timed(monkeypatch, {"q4_0": 5.0})
    monkeypatch.setattr(requantize, "CANDIDATES", ("q4_0",))
    made = requantize.requantize(source, compare=False, progress=False)
    assert made.after is None
    assert [row[0] for row in made.rows()][:1] == ["size"]
    assert not [model for model in catalog.listing() if model.present]


def test_what_fails_leaves_the_catalogue_as_it_was(source, monkeypatch):
    with pytest.raises(ModelInvalid, match="no format"):
        requantize.requantize(source, "q9", compare=False, progress=False)
    with pytest.raises(ModelNotFound):
        requantize.requantize("no-such-model", "q4_0", compare=False, progress=False)
    assert not list(Path("cache/models").glob("*"))


def test_questions_need_gold_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"passage": "p", "question": "q", "answer": "a"}\n' * 5)
    assert len(requantize.read_questions(path, 3)) == 3
    assert len(requantize.read_questions(path, 30)) == 5
    path.write_text('{"passage": "p", "question": "q"}\n')
    with pytest.raises(DataError, match="row 1 has no answer"):
        requantize.read_questions(path)
