"""What a search asks its parts: functions, predictors that weigh, votes between states, a goal."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, ProgramError
from promptflow.flow import run
from promptflow.modules.predict import Predict
from promptflow.modules.thoughts import TreeOfThoughts
from promptflow.modules.tree import Problem, verdict_worth

LETTERS = Problem(step=lambda state, thought: state + thought)
VERDICT = "state -> verdict: Literal['sure', 'likely', 'impossible']"


class Asked:
    """An engine that notes what it is asked, answers by slot, and may weigh what is weighed."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.slots: list[str] = []
        self.engine = ScriptedEngine(self)
        self.lm = pf.load("scripted", engine=self.engine)

    def __call__(self, text: str, slot: pf.Slot) -> str:
        self.slots.append(slot.name)
        answer = self.answers[slot.name]
        return str(answer(text) if callable(answer) else answer)


def tree(propose: Any, value: Any, **options: Any) -> TreeOfThoughts:
    given = {"problem": LETTERS, "depth": 1, "breadth": 2, **options}
    return TreeOfThoughts(propose, value, **given)


def fake() -> Any:
    return pf.load("fake", engine=pf.Engine(FakeModel()))


def test_functions_propose_and_value_without_a_model() -> None:
    result = run(
        tree(lambda state: ["a", "b"], lambda state: float(ord(state))),
        lm=Asked().lm,
    )
    assert (result.state, result.value, result.tree.failed) == ("b", 98.0, 0)


def test_a_function_is_given_the_inputs_that_it_names() -> None:
    seen = []

    def propose(state: str, letters: str, missing: int = 7) -> list[str]:
        seen.append((state, letters, missing))
        return list(letters)

    result = run(tree(propose, lambda text: 1.0), lm=Asked().lm, letters="xy", other="z")
    assert seen == [("", "xy", 7)]
    assert [t.text for t in result.tree.thoughts[1:]] == ["x", "y"]


@pytest.mark.parametrize("name", ["state", "states"])
def test_an_input_may_be_called_as_the_search_calls_its_own(name: str) -> None:
    seen = []

    def value(state: str) -> float:
        seen.append(state)
        return 1.0

    run(tree(lambda state: ["a", "b"], value), lm=Asked().lm, **{name: "the user's"})
    assert seen == ["a", "b"]


def test_one_thought_may_be_a_text_and_a_dead_end_is_an_empty_list() -> None:
    module = tree(lambda state: "ab" if not state else (), lambda state: 1.0, depth=3)
    result = run(module, lm=Asked().lm)
    assert [t.text for t in result.tree.thoughts] == ["", "ab"]


def test_a_function_that_raises_is_the_programs_fault() -> None:
    def value(state: str) -> float:
        raise KeyError(state)

    with pytest.raises(KeyError):
        run(tree(lambda state: ["a"], value), lm=Asked().lm)
    [result] = pf.run_many(tree(lambda state: ["a"], value), [{}], lm=Asked().lm)
    assert isinstance(result, ProgramError)


def test_weighed_verdicts_are_one_call_and_the_mean_by_probability() -> None:
    value = Predict(VERDICT, weigh=True)
    result = run(tree(lambda state: ["a", "b"], value, samples=3), lm=fake())
    given = [trace for trace in result.trace if trace[0] is value]
    assert len(given) == 2, "one call a state, whatever samples says"
    shares = given[0][2].weighed["verdict"]
    assert sum(shares.values()) == pytest.approx(1.0)
    worth = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}
    expected = sum(share * worth[verdict] for verdict, share in shares.items())
    assert result.tree.thoughts[1].value == pytest.approx(expected)


def test_the_worth_of_a_verdict_that_is_no_number_is_refused() -> None:
    for said in ("perhaps", None, float("nan"), [1.0]):
        with pytest.raises(ProgramError, match="value= said"):
            verdict_worth(pf.Prediction(verdict=said))


def test_the_most_probable_options_of_one_weighed_choice_are_the_proposals() -> None:
    options = ["a", "ab", "b", "ba", "c"]
    problem = Problem(step=lambda state, text: text, options=lambda state: options)
    propose = Predict("state -> letter", weigh=True)
    module = tree(propose, lambda state: 1.0, problem=problem, proposals=3)
    result = run(module, lm=fake())
    [(_, _, given)] = [trace for trace in result.trace if trace[0] is propose]
    shares = given.weighed["letter"]
    assert set(shares) == set(options)
    best = sorted(options, key=lambda text: -shares[text])[:3]
    assert [t.text for t in result.tree.thoughts[1:]] == best
    assert result.tree.proposed == 3


@pytest.mark.parametrize("signature", ["state -> letters: list[str]", "state -> letter"])
def test_one_call_may_list_its_proposals(signature: str) -> None:
    asked = Asked(letters='["a", "b"]', letter="a")
    run(tree(signature, lambda state: 1.0, proposals=1), lm=asked.lm)
    assert len(asked.slots) == 1


def test_states_are_voted_on_together() -> None:
    votes = iter("2232")
    asked = Asked(best=lambda text: next(votes))
    module = tree(lambda state: ["a", "b", "c"], "states: list[str] -> best", votes=True, samples=4)
    result = run(module, lm=asked.lm)
    assert asked.slots == ["best"] * 4
    assert [t.value for t in result.tree.thoughts[1:]] == [0.0, 0.75, 0.25]
    assert "[1] a\n[2] b\n[3] c" in asked.engine.prompts[0]


def test_a_vote_may_be_weighed() -> None:
    value = Predict("states: list[str] -> best", weigh=True)
    module = tree(lambda state: ["a", "b", "c"], value, votes=True)
    result = run(module, lm=fake())
    [(_, _, given)] = result.trace
    shares = given.weighed["best"]
    assert set(shares) == {"1", "2", "3"}
    assert [t.value for t in result.tree.thoughts[1:]] == [
        pytest.approx(shares[name]) for name in "123"
    ]


def test_a_vote_is_confined_to_the_states_that_there_are() -> None:
    module = tree(lambda state: ["a", "b"], "states: list[str] -> best", votes=True, samples=9)
    result = run(module, lm=fake())
    assert {given.best for _, _, given in result.trace} <= {"1", "2"}


def test_one_state_needs_no_vote() -> None:
    asked = Asked()
    result = run(tree(lambda state: ["a"], "states -> best", votes=True), lm=asked.lm)
    assert (result.value, asked.slots) == (1.0, [])


def test_a_function_of_all_states_returns_the_worth_of_each() -> None:
    module = tree(
        lambda state: ["a", "bb", "c"], lambda states: [len(s) for s in states], votes=True
    )
    result = run(module, lm=Asked().lm)
    assert [t.value for t in result.tree.thoughts[1:]] == [1.0, 2.0, 1.0]


def test_a_vote_for_nobody_is_told() -> None:
    class Voter(pf.Module):
        def flow(self, **inputs: Any) -> Any:
            return pf.Prediction(best=3)
            yield

    with pytest.raises(ProgramError, match="among the states 1 to 2 was '3'"):
        run(tree(lambda state: ["a", "b"], Voter(), votes=True), lm=Asked().lm)


@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_goal_ends_the_search(kind: str) -> None:
    asked = Asked(solved=lambda text: "yes" if "State: b" in text else "no")
    goal = "state -> solved: bool" if kind == "module" else (lambda state: state == "b")
    module = tree(lambda state: ["a", "b"], lambda state: 1.0, goal=goal, depth=3)
    result = run(module, lm=asked.lm)
    assert (result.solved, result.state, result.tree.best) == (True, "b", 2)
    assert asked.slots == (["solved"] * 2 if kind == "module" else [])


def test_a_goal_says_yes_or_no() -> None:
    module = tree(lambda state: ["a"], lambda state: 1.0, goal=lambda state: "yes")
    with pytest.raises(ProgramError, match="goal= said 'yes'"):
        run(module, lm=Asked().lm)


def test_valuations_that_all_failed_are_no_values() -> None:
    def lost(text: str) -> str:
        raise EngineLost("gone")

    lm = Asked(verdict=lost).lm.copy(num_retries=0)
    with pytest.raises(EngineLost):
        run(tree(lambda state: ["a", "b"], VERDICT, samples=1), lm=lm)


def test_an_old_failure_does_not_end_a_search_that_met_a_dead_end() -> None:
    def verdict(text: str) -> str:
        if "State: a" in text:
            raise EngineLost("gone")
        return "sure"

    lm = Asked(verdict=verdict).lm.copy(num_retries=0)
    problem = Problem(step=LETTERS.step, options=lambda state: "" if state else "ab")
    module = tree(lambda state, options: options, VERDICT, samples=1, depth=2, problem=problem)
    result = run(module, lm=lm)
    assert (result.state, result.tree.failed) == ("b", 1)


def test_parts_are_saved_by_name() -> None:
    def propose(state: str) -> list[str]:
        return []

    settings = tree(propose, "state -> worth: float").settings()
    assert settings["propose"]["code"].endswith("propose")
    assert "value" not in settings


def test_a_goal_is_a_predictor_of_the_program(tmp_path: Any) -> None:
    module = TreeOfThoughts(goal="state -> solved: bool", search="best_first")
    assert [name for name, _ in module.named_predictors()] == ["propose", "value", "goal"]
    pf.save_program(module, tmp_path / "saved")
    loaded = pf.load_program(tmp_path / "saved")
    assert isinstance(loaded.goal, dspy.Predict)
    assert loaded.search == pf.BestFirst()
    pf.save_program(TreeOfThoughts(), tmp_path / "plain")
    assert pf.load_program(tmp_path / "plain").goal is None


def test_code_in_the_place_of_a_part_is_named_when_loading(tmp_path: Any) -> None:
    pf.save_program(tree(len, "state -> worth: float", problem=None), tmp_path / "saved")
    with pytest.raises(ProgramError, match=r"made with code \(propose\)"):
        pf.load_program(tmp_path / "saved")


FREE = "state -> step"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"propose": Predict(FREE, weigh=True)}, "propose='state -> step' has weigh=True"),
        ({"value": Predict("state -> worth: float", weigh=True)}, "no options to weigh"),
        ({"votes": True, "value": "state -> best"}, "no input 'states'"),
        ({"goal": "state -> verdict: Literal['yes', 'no']"}, "must be a bool"),
        ({"temperature": 0.0}, "5 equal proposals"),
        ({"temperature": 0.0, "proposals": 1}, "3 equal samples"),
    ],
)
def test_what_cannot_be_honoured_is_refused_at_once(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TreeOfThoughts(**options)


def test_what_is_asked_once_needs_no_temperature() -> None:
    TreeOfThoughts(lambda state: [], Predict(VERDICT, weigh=True), temperature=0.0)
    TreeOfThoughts(temperature=0.0, proposals=1, samples=1)
    TreeOfThoughts(value=Predict("states -> best", weigh=True), votes=True)
    problem = Problem(options=lambda state: ["a"])
    TreeOfThoughts(Predict(FREE, weigh=True), problem=problem)


def test_a_start_that_is_solved_asks_nothing() -> None:
    asked = Asked()
    problem = Problem(start=lambda inputs: "done", done=lambda state: state == "done")
    result = run(TreeOfThoughts("state -> step", VERDICT, problem=problem), lm=asked.lm)
    assert (result.solved, result.state, result.answer, asked.slots) == (True, "done", "", [])


def test_a_function_that_forgets_to_return_is_told() -> None:
    with pytest.raises(ProgramError, match="returned None"):
        run(tree(lambda state: None, lambda state: 1.0), lm=Asked().lm)


def test_a_proposer_that_has_no_thought_ends_there() -> None:
    asked = Asked(step="null")
    module = tree("state -> step: Optional[str]", lambda state: 1.0, proposals=1)
    result = run(module, lm=asked.lm)
    assert len(result.tree.thoughts) == 1
