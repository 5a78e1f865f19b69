from __future__ import annotations

import re

import dspy
import pytest

from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ContextOverflow, EngineLost
from promptflow.evaluation.metrics import exact_match
from promptflow.lm import LocalLM
from promptflow.modules.predict import Predict
from promptflow.optimization.plan import cost, schedule
from promptflow.optimization.race import Scorer, race
from promptflow.optimization.study import Budget, Study
from promptflow.optimization.variant import Variant, start_of

DATA = [
    dspy.Example(question=f"{i} doubled", answer=str(2 * i)).with_inputs("question")
    for i in range(64)
]


def number_in(text):
    return int(text.rsplit("Question:", 1)[1].split()[0])


def skill_in(text):
    found = re.search(r"skill (\d+)", text)
    return int(found[1]) if found else 0


def skilled(text, slot):
    """Answer right on that percentage of the numbers that the instruction names as its skill."""
    n = number_in(text)
    return str(2 * n) if (37 * n) % 64 < 64 * skill_in(text) / 100 else "no"


def variants(*skills):
    return [Variant(f"v{skill}", {"self": f"Answer with skill {skill}."}) for skill in skills]


def raced(skills, answer=skilled, budget=Budget(), reserve=0):  # noqa: B008
    engine = ScriptedEngine(answer)
    program = Predict("question -> answer")
    study = Study(None, {}, budget)
    scorer = Scorer(study, program, exact_match, LocalLM(engine), total=1000)
    rungs = schedule(len(skills), len(DATA))
    found = race(scorer, start_of(program), variants(*skills), DATA, rungs, reserve)
    return found, engine, study, rungs


def test_the_best_survives_every_rung():
    found, engine, study, rungs = raced([10, 20, 30, 90, 40, 50, 60, 70])
    assert [c.variant.label for c in found[:2]] == ["start", "v90"]
    assert [rung.n for rung in found[1].rungs] == [8, 16, 32]
    assert [rung.n for rung in found[0].rungs] == [8, 16, 32]
    assert len(found) == 9
    assert study.spent.calls <= cost(rungs)
    assert sum(engine.batches) == study.spent.calls


def test_nobody_is_run_twice_on_one_example():
    _, engine, _, _ = raced([10, 90, 50, 30])
    assert len(engine.prompts) == len(set(engine.prompts))


def test_a_rung_goes_to_the_engine_in_few_batches_candidate_by_candidate():
    _, engine, _, _ = raced([10, 90, 50])
    assert engine.batches[0] == 32
    first = [skill_in(prompt) for prompt in engine.prompts[:32]]
    assert first == [0] * 8 + [10] * 8 + [90] * 8 + [50] * 8


def test_what_is_clearly_worse_leaves_before_its_turn():
    found, _, _, _ = raced([100, 0, 95, 90, 1, 2])
    left = {c.variant.label: c.left for c in found}
    assert left["v0"] == "worse than v100 after 8 examples"
    assert left["v100"] == ""


def test_equal_scores_prefer_the_shorter_prompt():
    demo = ({"question": "1 doubled", "answer": "2"},)
    long, short = (
        Variant(name, {"self": "Answer with skill 100."}, {"self": demo * size})
        for name, size in (("long", 3), ("short", 1))
    )
    scorer = Scorer(
        Study(None, {}),
        Predict("question -> answer"),
        exact_match,
        LocalLM(ScriptedEngine(skilled)),
        total=100,
    )
    found = race(scorer, start_of(scorer.program), [long, short], DATA, [(2, 8)])
    assert [c.variant.label for c in found] == ["start", "short", "long"]


def test_a_prompt_that_is_too_long_leaves_and_does_not_stop_the_race():
    def answer(text, slot):
        if skill_in(text) == 99:
            raise ContextOverflow("the prompt has 9 tokens too many")
        return skilled(text, slot)

    found, _, _, _ = raced([99, 50, 20], answer)
    by_label = {c.variant.label: c for c in found}
    assert by_label["v99"].unfit
    assert by_label["v99"].left.startswith("cannot run: 8 of 8 runs: ContextOverflow")
    assert found[1].variant.label == "v50"


def test_a_dead_engine_stops_the_race():
    def answer(text, slot):
        if skill_in(text) == 50:
            raise EngineLost("killed")
        return skilled(text, slot)

    scorer = Scorer(
        Study(None, {}),
        Predict("question -> answer"),
        exact_match,
        LocalLM(ScriptedEngine(answer)),
        total=100,
    )
    with pytest.raises(EngineLost, match="8 of 100 runs"):
        race(scorer, start_of(scorer.program), variants(50), DATA, [(1, 8)])


def test_a_rung_that_cannot_be_paid_is_not_begun():
    found, engine, study, _ = raced([10, 90, 50], budget=Budget(calls=60), reserve=8)
    assert study.spent.calls == 32
    assert [len(c.rungs) for c in found] == [1, 1, 1, 1]
    assert found[1].variant.label == "v90"
    assert engine.batches == [32]
