"""Tree searches: one contract for ours and a user's own, and what each is known for."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import promptflow as pf
from promptflow.errors import ProgramError, UnknownOption
from promptflow.flow import run, run_many
from promptflow.modules.search import (
    SEARCHES,
    BestFirst,
    BreadthFirst,
    DepthFirst,
    MonteCarlo,
    find_search,
)
from promptflow.modules.thoughts import TreeOfThoughts
from promptflow.modules.tree import ROOT, Growth, Problem


def widest_worth(growth: Growth) -> Any:
    """A user's search: grow everything, level by level."""
    level = [ROOT]
    while fresh := (yield from growth.expand(level)):
        if solved := growth.solved(fresh):
            return solved[0]
        yield from growth.value(fresh)
        level = growth.keep(fresh)
    return growth.best()


class Wandering:
    """A user's search that is an object: it follows one random child."""

    def __call__(self, growth: Growth) -> Any:
        here, rng = ROOT, random.Random(7)
        while fresh := (yield from growth.expand([here])):
            if solved := growth.solved(fresh):
                return solved[0]
            [here] = growth.keep([rng.choice(fresh)])
        return here


ALL = [*SEARCHES, BreadthFirst("sampled", seed=3), {"name": "depth_first", "steps": 5}]
ALL += [BestFirst(steps=7), MonteCarlo(0.3, steps=9), widest_worth, Wandering()]
ALL += [partial(widest_worth)]


class Counted:
    """A problem over strings of letters that counts what a search does."""

    def __init__(self, goal: str = "", letters: str = "abc") -> None:
        self.goal, self.letters = goal, letters
        self.proposed: list[str] = []
        self.valued: list[str] = []
        self.problem = Problem(step=self.step, done=lambda state: bool(goal) and state == goal)

    def step(self, state: str, thought: str) -> str | None:
        return None if thought == "c" and state.endswith("b") else state + thought

    def propose(self, state: str) -> list[str]:
        self.proposed.append(state)
        return list(self.letters)

    def value(self, state: str) -> float:
        self.valued.append(state)
        return 1.0 + sum(a == b for a, b in zip(state, self.goal, strict=False))

    def tree(self, search: Any, **options: Any) -> TreeOfThoughts:
        given = {"problem": self.problem, "depth": 3, "breadth": 2, **options}
        return TreeOfThoughts(self.propose, self.value, search=search, **given)


@pytest.mark.parametrize("search", ALL, ids=range(len(ALL)))
@pytest.mark.parametrize("goal", ["", "cab", "aaa", "zzz"])
def test_the_contract_of_a_search(search: Any, goal: str) -> None:
    """What holds for every search, ours or not, whether there is a solution or none."""
    counted = Counted(goal)
    result = run(counted.tree(search))
    thoughts = result.tree.thoughts
    assert [t.number for t in thoughts] == list(range(len(thoughts)))
    assert all(t.parent < t.number for t in thoughts[1:])
    assert all(t.depth == thoughts[t.parent].depth + 1 <= 3 for t in thoughts[1:])
    assert len({t.state for t in thoughts}) == len(thoughts)
    assert len(set(counted.proposed)) == len(counted.proposed), "a state grew twice"
    assert len(set(counted.valued)) == len(counted.valued), "a state was valued twice"
    assert result.state == thoughts[result.tree.best].state
    assert result.answer == "\n".join(t.text for t in result.tree.path())
    assert result.solved == (result.state == goal and bool(goal))
    assert [t.state for t in thoughts if t.terminal] == ([goal] if result.solved else [])
    assert thoughts[ROOT].kept
    assert thoughts[result.tree.best].kept
    again = run(Counted(goal).tree(search))
    assert again.tree.rows() == result.tree.rows(), "not the same twice"


@pytest.mark.parametrize("search", ALL[:-2], ids=range(len(ALL) - 2))
def test_searches_of_many_inputs_grow_in_lockstep(search: Any) -> None:
    counted = Counted("cab")
    results = run_many(counted.tree(search), [{}, {}, {}])
    assert {str(r.tree.rows()) for r in results} == {str(results[0].tree.rows())}


@pytest.mark.parametrize("search", ALL, ids=range(len(ALL)))
def test_a_problem_without_a_legal_step_ends(search: Any) -> None:
    problem = Problem(step=lambda state, thought: None)
    result = run(Counted().tree(search, problem=problem))
    assert (result.state, result.solved, len(result.tree.thoughts)) == ("", False, 1)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_finds_a_solution_that_the_values_lead_to(name: str) -> None:
    counted = Counted("cabac")
    result = run(counted.tree(name, depth=5))
    assert result.solved
    assert len(counted.proposed) <= 21, "of 121 states above the last level"


def expanded(counted: Counted, search: Any, **options: Any) -> list[str]:
    run(counted.tree(search, **options))
    return counted.proposed


def test_depth_first_goes_down_and_comes_back() -> None:
    order = expanded(Counted(letters="ab"), "depth_first")
    assert order == ["", "a", "aa", "ab", "b", "ba", "bb"]


def test_the_deepest_states_cost_no_step() -> None:
    assert len(expanded(Counted(letters="ab"), DepthFirst(steps=7))) == 7


def test_depth_first_tries_the_best_child_first_and_so_many_of_them() -> None:
    order = expanded(Counted("bbb", letters="ab"), "depth_first", breadth=1)
    assert order == ["", "b", "bb"]


def test_depth_first_never_enters_what_is_called_impossible() -> None:
    counted = Counted(letters="ab")
    worth = {"a": 0.001, "b": 1.0}
    problem = Problem(step=counted.step, worth=lambda state: worth[state[-1]])
    result = run(counted.tree("depth_first", problem=problem))
    assert counted.proposed == ["", "b", "bb"]
    assert [t.state for t in result.tree.thoughts if t.pruned] == ["a", "ba", "bba"]
    assert result.state == "bbb"


def test_a_threshold_prunes_more() -> None:
    counted = Counted("ab", letters="ab")
    assert expanded(counted, DepthFirst(threshold=1.5)) == ["", "a"]


def test_a_value_that_failed_is_not_pruned() -> None:
    counted = Counted(letters="a")
    problem = Problem(step=counted.step)
    tree = counted.tree("depth_first", problem=problem)
    growth = Growth(_how(tree), {})
    [number] = _answered(growth.expand([ROOT]))
    assert growth.prune([number], 5.0) == [number]


def _how(tree: TreeOfThoughts) -> Any:
    from dataclasses import fields

    from promptflow.modules.tree import Growing

    return Growing(**{f.name: getattr(tree, f.name) for f in fields(Growing)})


def _answered(steps: Any) -> Any:
    """Drive a step that makes no call."""
    try:
        calls = next(steps)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"asked {calls}")


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("kind", [DepthFirst, BestFirst, MonteCarlo])
def test_steps_bound_the_expansions(kind: Any, steps: int) -> None:
    assert len(expanded(Counted(), kind(steps=steps), breadth=3)) == steps


def test_best_first_returns_to_a_better_state_of_an_upper_level() -> None:
    values = {"a": 3.0, "b": 2.0, "aa": 1.0, "ab": 1.5}
    counted = Counted(letters="ab")
    problem = Problem(step=counted.step, worth=lambda state: values.get(state, 0.5))
    assert expanded(counted, "best_first", problem=problem, breadth=1)[:4] == ["", "a", "b", "ab"]


def test_monte_carlo_explores_what_it_neglected() -> None:
    values = {"a": 1.0, "b": 0.9}
    counted = Counted(letters="ab")
    problem = Problem(step=counted.step, worth=lambda state: values[state[0]])
    options: dict[str, Any] = {"problem": problem, "breadth": 1, "depth": 6}
    greedy = expanded(counted, MonteCarlo(0.0, steps=20), **options)
    assert all(state.startswith("a") for state in greedy[1:])
    counted.proposed.clear()
    both = expanded(counted, MonteCarlo(1.0, steps=20), **options)
    firsts = [state[0] for state in both[1:]]
    assert firsts.count("a") > firsts.count("b") > 4


def test_monte_carlo_grows_different_leaves_at_once_and_exhausts_a_small_tree() -> None:
    counted = Counted(letters="ab")
    assert sorted(expanded(counted, MonteCarlo(steps=100), breadth=4)) == sorted(
        "".join(word) for n in range(3) for word in itertools.product("ab", repeat=n)
    )


def test_sampled_selection_draws_by_worth() -> None:
    worths = {"a": 8.0, "b": 1.0, "c": 1.0}
    kept = dict.fromkeys(worths, 0)
    counted = Counted()
    problem = Problem(step=counted.step, worth=lambda state: worths[state])
    for seed in range(300):
        search = BreadthFirst("sampled", seed)
        result = run(counted.tree(search, problem=problem, depth=1, breadth=1))
        kept[result.state] += 1
    assert 210 <= kept["a"] <= 270, kept
    assert min(kept.values()) >= 10


def test_what_is_worth_nothing_is_drawn_last() -> None:
    counted = Counted()
    problem = Problem(step=counted.step, worth=lambda state: float(state == "b"))
    for seed in range(20):
        search = BreadthFirst("sampled", seed)
        result = run(counted.tree(search, problem=problem, depth=1, breadth=1))
        assert result.state == "b"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("deepth_first", "Did you mean 'depth_first'"),
        ("", "breadth_first, depth_first, best_first, monte_carlo"),
        ({"name": "breath_first"}, "Did you mean 'breadth_first'"),
        (7, "cannot be called"),
        ({"name": "breadth_first", "selection": "gready"}, "neither 'greedy' nor 'sampled'"),
    ],
)
def test_a_search_that_there_is_not(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TreeOfThoughts(search=given)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (DepthFirst, {"step": 3}, "steps"),
        (MonteCarlo, {"exploraton": 1.0}, "exploration"),
        (BreadthFirst, {"select": "greedy"}, "selection"),
        (BestFirst, {"steps": 0}, "steps=0 is below 1"),
        (MonteCarlo, {"exploration": -1.0}, "exploration=-1.0"),
    ],
)
def test_options_of_searches_are_checked(kind: Any, options: Any, says: str) -> None:
    with pytest.raises((ValueError, UnknownOption), match=says):
        kind(**options)


@pytest.mark.parametrize("best", [None, -1, 99, "cab"])
def test_a_search_that_returns_no_thought_is_told(best: Any) -> None:
    def search(growth: Growth) -> Any:
        yield from growth.expand([ROOT])
        return best

    with pytest.raises(ProgramError, match=r"returns the number of a thought, 0 to 3"):
        run(Counted().tree(search))


@pytest.mark.parametrize("name", ["best_first", "monte_carlo"])
def test_votes_are_refused_where_states_of_several_votes_compete(name: str) -> None:
    with pytest.raises(ValueError, match="not voted on together"):
        TreeOfThoughts(search=name, votes=True)


def test_names_settings_and_objects_mean_the_same() -> None:
    assert find_search("depth_first") == DepthFirst() == find_search({"name": "depth_first"})
    given: Mapping[str, Any] = {"name": "monte_carlo", "exploration": 2.0, "steps": 5}
    assert find_search(given) == MonteCarlo(2.0, 5)
    assert pf.DepthFirst is DepthFirst


def test_settings_are_given_back() -> None:
    for search in SEARCHES:
        settings = TreeOfThoughts(search=search).settings()
        assert settings["search"]["name"] == search
        assert TreeOfThoughts(**settings).search == find_search(search)
    assert TreeOfThoughts(search=widest_worth).settings()["search"] == {
        "code": f"{__name__}:widest_worth"
    }


@pytest.fixture(scope="module")
def logged(data_dir: Path) -> list[dict[str, Any]]:
    """The searches of Yao et al. 2023 in Game of 24: 100 games of four levels."""
    name = "gpt-4_0.7_propose1_value3_greedy5_start900_end1000.json.gz"
    file = data_dir / "game24" / name
    if not file.is_file():
        pytest.skip(f"no {file}: set PROMPTFLOW_DATA")
    with gzip.open(file) as log:
        return list(json.load(log))


class Replayed:
    """One logged game: a state is all that was written; what is proposed and valued is logged."""

    def __init__(self, game: dict[str, Any]) -> None:
        self.proposed: dict[str, list[str]] = {}
        self.values: dict[str, float] = {}
        for level in game["steps"]:
            for text, value in zip(level["new_ys"], level["values"], strict=True):
                parent = max((y for y in level["ys"] if text.startswith(y)), key=len)
                self.proposed.setdefault(parent, []).append(text)
                self.values.setdefault(text, value)  # written again it was given 0 there

    def tree(self) -> TreeOfThoughts:
        problem = Problem(step=lambda state, text: text)
        return TreeOfThoughts(
            lambda state: self.proposed.get(state, []),
            lambda state: self.values[state],
            problem=problem,
            depth=4,
            breadth=5,
        )


def test_breadth_first_keeps_what_the_paper_kept(logged: list[dict[str, Any]]) -> None:
    levels = 0
    for game in logged:
        thoughts = run(Replayed(game).tree()).tree.thoughts
        for depth, level in enumerate(game["steps"], 1):
            kept = [t.state for t in thoughts if t.depth == depth and t.kept]
            assert set(kept) == set(level["select_new_ys"]), (game["idx"], depth)
            levels += 1
    assert levels == 400
