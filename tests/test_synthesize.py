from __future__ import annotations

import json
import re
from dataclasses import dataclass

import dspy
import pytest
from typer.testing import CliRunner

from promptflow.engine.request import Substring
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError, EngineLost
from promptflow.lm import LocalLM
from promptflow.optimization.synthesis import FILTERS, Filters
from promptflow.optimization.synthesize import is_fit, synthesize, synthesize_like

PASSAGES = [f"Tower {i} was built in {1800 + i} by the town of Ulm." for i in range(12)]
KINDS = ["oak", "yew", "elm", "ash", "fir", "bay"]


def town(text, slot, *, knows=False, reads=True, level="5"):
    """Asks about towers in six ways; reads passages, and knows nothing without them."""
    if slot.name == "score":
        return level
    if "Passage:" not in text:
        return "1800" if knows else "nobody knows"
    passage = text.rsplit("Passage:", 1)[1].split("\n")[0]
    number = int(passage.split()[1])
    if slot.name == "question":
        kind = KINDS[number % 6]
        return f"When did {' '.join(f'{kind}{i}' for i in range(9))} rise?"
    if isinstance(slot.constraint, Substring):
        return passage.split()[5]
    return passage.split()[5] if reads else "another"


def made(answer=town, count=6, filters=FILTERS, passages=PASSAGES, **options):
    lm = LocalLM(ScriptedEngine(answer))
    return synthesize(passages, count, filters=filters, lm=lm, **options)


def test_questions_are_asked_in_batches_and_only_once():
    engine = ScriptedEngine(town)
    result = synthesize(PASSAGES, 6, lm=LocalLM(engine), seed=0)
    assert engine.batches == [12, 6, 6, 6]  # asked, read, guessed, judged
    assert len({example.question for example in result}) == len(result) == 6
    assert (result.asked, dict(result.rejected)) == (12, {"like one before": 6})
    assert result.quality == (5.0,) * 6
    for example in result:
        assert example.answer in example.passage
        assert set(example.inputs().keys()) == {"question", "passage"}
    assert result.examples == made().examples


def test_novelty_is_a_bound_of_rouge():
    """The questions share "when", "did" and "rise" of twelve words: a ROUGE-L of 0.25."""
    assert len(made(filters=Filters(novelty=0.26))) == 6
    strict = made(filters=Filters(novelty=0.25))
    assert len(strict) == 1
    assert strict.rejected["like one before"] == 11


def test_what_a_reader_does_not_find_is_left_out():
    result = made(lambda text, slot: town(text, slot, reads=False))
    assert (len(result), result.rejected["not answered with the passage"]) == (0, 6)


def test_what_is_known_without_the_passage_is_left_out():
    result = made(lambda text, slot: town(text, slot, knows=True))
    assert result.rejected["answered without the passage"] == 1  # 1800 itself
    assert "1800" not in [example.answer for example in result]
    free = made(lambda text, slot: town(text, slot, knows=True), filters=Filters(answerable=False))
    assert "answered without the passage" not in free.rejected


def test_what_the_judge_scores_low_is_left_out():
    result = made(lambda text, slot: town(text, slot, level="2"))
    assert (len(result), result.rejected["quality below 3"]) == (0, 6)
    unjudged = made(lambda text, slot: town(text, slot, level="2"), filters=Filters(quality=None))
    assert (len(unjudged), unjudged.quality) == (6, (None,) * 6)


@dataclass
class Chunk:
    text: str
    document: str


def test_the_document_of_a_passage_is_kept():
    chunks = [Chunk(text, f"{i}.md") for i, text in enumerate(PASSAGES)]
    [example] = made(count=1, passages=chunks)
    [document] = example.documents
    assert PASSAGES[int(document[:-3])] == example.passage


def test_a_killed_run_continues(tmp_path):
    journal, calls = tmp_path / "run.sqlite", []

    def dying(text, slot):
        calls.append(slot.name)
        if len(calls) > 40:
            raise EngineLost("killed")
        return town(text, slot, level="2")

    passages = [f"Tower {i} was built in {1800 + i} by the town of Ulm." for i in range(90)]
    lm = LocalLM(ScriptedEngine(dying), num_retries=0)
    with pytest.raises(EngineLost):
        synthesize(passages, 6, lm=lm, journal=journal)
    engine = ScriptedEngine(lambda text, slot: town(text, slot, level="2"))
    again = synthesize(passages, 6, lm=LocalLM(engine), journal=journal)
    whole = synthesize(passages, 6, lm=LocalLM(ScriptedEngine(engine.answer)))
    assert again == whole
    assert sum(engine.batches) < again.asked + 18


@pytest.mark.parametrize(
    ("question", "answer", "fit"),
    [
        ("When was the tower built?", "1804", True),
        ("When was the tower built", "1804", False),
        ("When?", "1804", False),
        ("What does the passage say about it?", "1804", False),
        ("Was the tower built in 1804?", "1804", False),
        ("When was the tower built?", "1805", False),
        ("When was the tower built?", " ", False),
        ("塔はいつ建てられましたか\uff1f", "1804", True),
    ],
)
def test_what_makes_a_question_fit(question, answer, fit):
    assert is_fit(question, answer, PASSAGES[4]) is fit


def test_a_dead_engine_is_an_error_and_not_an_empty_list():
    def lost(text, slot):
        raise EngineLost("killed")

    with pytest.raises(EngineLost):
        synthesize(PASSAGES, 2, lm=LocalLM(ScriptedEngine(lost)))
    with pytest.raises(DataError, match="no passages"):
        made(passages=[])


SEEDS = [
    dspy.Example(review=f"The {noun} broke after {n} days.", mood="sad").with_inputs("review")
    for n, noun in enumerate(["kettle", "lamp", "chair", "radio"])
]


def critic(text, slot):
    if slot.name == "score":
        return "4"
    if slot.name == "mood":
        return "glad" if "love" in text.rsplit("Review:", 1)[1] else "sad"
    seen = len(re.findall("Review:", text))
    number = critic.made = getattr(critic, "made", 0) + 1
    if number % 3 == 0:
        return "The lamp broke after 1 days."
    words = ["I", "love", "this", "thing", "so", "very", "much"]
    return " ".join(f"{word}{number}" for word in words) + f" {seen}"


def test_more_examples_like_some_seeds():
    engine = ScriptedEngine(critic)
    result = synthesize_like("review -> mood: Literal['glad', 'sad']", SEEDS, 4, lm=LocalLM(engine))
    assert len(result) == 4
    assert result.rejected["like one before"] >= 2  # a seed written again
    for example in result:
        assert set(example.inputs().keys()) == {"review"}
        assert example.mood == "glad"
        assert example.review not in {seed.review for seed in SEEDS}


def test_seeds_must_have_the_fields_of_the_signature():
    lm = LocalLM(ScriptedEngine(critic))
    with pytest.raises(DataError, match="two seeds or more"):
        synthesize_like("review -> mood", SEEDS[:1], 2, lm=lm)
    with pytest.raises(DataError, match="some have no 'title'"):
        synthesize_like("title, review -> mood", SEEDS, 2, lm=lm)


def test_the_command_writes_lines_and_counts_what_it_left_out(tmp_path, monkeypatch):
    from promptflow.cli import app

    monkeypatch.setattr("promptflow.lm.configure", lambda *_, **__: LocalLM(ScriptedEngine(town)))
    source, out = tmp_path / "passages.jsonl", tmp_path / "made.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    done = CliRunner().invoke(app, ["synthesize", str(source), "-n", "3", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3
    assert set(rows[0]) == {"question", "passage", "answer", "quality"}
    assert "3 of 6 written to" in done.output
    source.write_text('{"title": "x"}\n')
    done = CliRunner().invoke(app, ["synthesize", str(source), "--out", str(out)])
    assert done.exit_code == 2
    assert "--like" in done.output
