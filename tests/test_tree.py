from __future__ import annotations

import json
from typing import Any

import pytest

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost
from promptflow.flow import Prediction, run, run_many
from promptflow.modules.predict import Predict
from promptflow.modules.thoughts import TreeOfThoughts
from promptflow.modules.tree import Problem

SPELL = Problem(
    start=lambda inputs: "",
    step=lambda state, thought: state + thought if len(thought) == 1 else None,
    done=lambda state: state == "cab",
)


class Speller:
    """Proposes letters in turn and values a state by how far it agrees with ``cab``."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.proposals = 0
        self.valued: list[str] = []
        self.engine = ScriptedEngine(self)
        self.lm = pf.load("scripted", engine=self.engine)

    def __call__(self, text: str, slot: pf.Slot) -> str:
        if slot.name == "letter":
            self.proposals += 1
            return self.letters[(self.proposals - 1) % len(self.letters)]
        state = text.split("State:")[-1].split("<|")[0].strip()
        self.valued.append(state)
        return "sure" if "cab".startswith(state) else "impossible"


def speller(**settings: Any) -> TreeOfThoughts:
    given = {"problem": SPELL, "depth": 3, "breadth": 1, "proposals": 3, "samples": 1, **settings}
    return TreeOfThoughts(
        "state -> letter", "state -> verdict: Literal['sure', 'likely', 'impossible']", **given
    )


def test_searches_level_by_level_in_one_batch_each() -> None:
    guide = Speller("abc")
    result = run(speller(), lm=guide.lm)
    assert (result.solved, result.state, result.answer) == (True, "cab", "c\na\nb")
    # Propose 3, value 3, propose 3, value 3, propose 3: the last level holds the solution.
    assert guide.engine.batches == [3, 3, 3, 3, 3]


def test_the_tree_is_a_record() -> None:
    result = run(speller(), lm=Speller("abc").lm)
    tree = result.tree
    assert [t.state for t in tree.thoughts] == [
        "",
        "a",
        "b",
        "c",
        "ca",
        "cb",
        "cc",
        "caa",
        "cab",
        "cac",
    ]
    assert [t.state for t in tree.thoughts if t.kept] == ["", "c", "ca", "cab"]
    assert [t.parent for t in tree.thoughts] == [None, 0, 0, 0, 3, 3, 3, 4, 4, 4]
    assert [t.depth for t in tree.path()] == [1, 2, 3]
    assert tree.thoughts[tree.best].terminal
    assert json.loads(json.dumps(tree.rows()))[3]["value"] == 20.0


def test_breadth_keeps_the_best_first() -> None:
    guide = Speller("abc")
    result = run(speller(breadth=2, depth=2), lm=guide.lm)
    assert [t.state for t in result.tree.thoughts if t.kept] == ["", "a", "c", "ca", "cb"]
    assert (result.solved, result.state) == (False, "ca")


def test_duplicates_are_merged_and_valued_once() -> None:
    guide = Speller("cccb")
    result = run(speller(proposals=4, depth=1, samples=2), lm=guide.lm)
    assert guide.valued == ["c", "c", "b", "b"]
    assert (result.tree.proposed, result.tree.merged) == (4, 2)


def test_illegal_thoughts_are_dropped_and_counted() -> None:
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: "long"))
    result = run(speller(depth=1), lm=lm)
    assert (result.tree.illegal, len(result.tree.thoughts), result.state) == (3, 1, "")


def test_options_confine_the_proposer() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    problem = Problem(
        step=lambda state, thought: state + thought,
        options=lambda state: [letter for letter in ("(a)", "b.", "c|") if letter not in state],
        worth=lambda state: float(len(state)),
    )
    result = run(speller(problem=problem, breadth=3, proposals=6), lm=lm)
    texts = {t.text for t in result.tree.thoughts[1:]}
    assert texts == {"(a)", "b.", "c|"}
    assert max(t.depth for t in result.tree.thoughts) == 3
    assert not any(t.state.count("(a)") > 1 for t in result.tree.thoughts)


def test_options_are_not_in_the_prompt() -> None:
    guide = Speller("abc")
    problem = Problem(step=SPELL.step, options=lambda state: ["a", "b", "c", "zebra"])
    run(speller(problem=problem, depth=2), lm=guide.lm)
    assert not any("zebra" in prompt for prompt in guide.engine.prompts)


def test_a_state_without_options_is_a_dead_end() -> None:
    guide = Speller("abc")
    problem = Problem(step=SPELL.step, options=lambda state: [] if state else ["a", "b", "c"])
    result = run(speller(problem=problem), lm=guide.lm)
    assert guide.proposals == 3
    assert result.state == "c"


def test_known_worth_asks_no_model() -> None:
    guide = Speller("abc")
    problem = Problem(step=SPELL.step, worth=lambda state: float(ord(state[-1])))
    result = run(speller(problem=problem, depth=1), lm=guide.lm)
    assert (result.state, result.value, guide.valued) == ("c", 99.0, [])


def test_equal_valuations_are_asked_once_across_levels() -> None:
    guide = Speller("ab")
    value = Predict("length -> verdict: Literal['sure', 'likely', 'impossible']")
    module = speller(breadth=4, depth=2, proposals=2)
    module.value = value
    run(module, lm=guide.lm, length="whatever the state")
    assert len(guide.valued) == 1


def test_failed_calls_are_counted_and_the_rest_goes_on() -> None:
    guide = Speller("abc")

    def answer(text: str, slot: pf.Slot) -> str:
        given = guide(text, slot)
        if given == "a" or (slot.name == "verdict" and given != "sure"):
            raise EngineLost("gone")
        return given

    lm = pf.load("scripted", engine=ScriptedEngine(answer)).copy(num_retries=0)
    result = run(speller(depth=1), lm=lm)
    assert (result.state, result.tree.failed) == ("c", 2)
    assert [t.value for t in result.tree.thoughts] == [None, None, 20.0]


def test_the_error_is_raised_where_every_proposal_failed() -> None:
    def answer(text: str, slot: pf.Slot) -> str:
        raise EngineLost("gone")

    with pytest.raises(EngineLost):
        run(speller(), lm=pf.load("scripted", engine=ScriptedEngine(answer)))


def test_a_list_of_thoughts_from_one_call() -> None:
    engine = ScriptedEngine(lambda text, slot: '["a", "b"]' if slot.name == "letters" else "sure")
    module = TreeOfThoughts(
        "state -> letters: list[str]",
        "state -> verdict: Literal['sure', 'impossible']",
        problem=SPELL,
        depth=1,
        proposals=1,
        samples=1,
    )
    result = run(module, lm=pf.load("scripted", engine=engine))
    assert [t.text for t in result.tree.thoughts] == ["", "a", "b"]


def test_the_default_problem_adds_lines_to_a_state() -> None:
    steps = iter(["first", "second"])

    def answer(text: str, slot: pf.Slot) -> str:
        assert "How far is it?" in text
        return next(steps) if slot.name == "step" else "likely"

    module = TreeOfThoughts(depth=2, breadth=1, proposals=1, samples=1)
    result = run(
        module, lm=pf.load("scripted", engine=ScriptedEngine(answer)), problem="How far is it?"
    )
    assert (result.answer, result.value, result.solved) == ("first\nsecond", 1.0, False)


def test_searches_of_many_inputs_share_their_batches() -> None:
    guide = Speller("abc")
    results = run_many(speller(), [{}, {}], lm=guide.lm)
    assert guide.engine.batches == [6, 6, 6, 6, 6]
    assert all(isinstance(result, Prediction) and result.solved for result in results)


@pytest.mark.parametrize("name", ["depth", "breadth", "proposals", "samples"])
def test_a_search_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        speller(**{name: 0})


def test_both_predictors_are_found() -> None:
    assert [name for name, _ in speller().named_predictors()] == ["propose", "value"]
