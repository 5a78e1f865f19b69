"""The crossword example: its grid, and a search that a perfect solver leads to the end."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from conftest import ROOT

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine

spec = importlib.util.spec_from_file_location("crosswords", ROOT / "examples" / "crosswords.py")
assert spec is not None
game = importlib.util.module_from_spec(spec)
assert spec.loader is not None
spec.loader.exec_module(game)

WORDS = list(game.OWN)
CLUES = [*game.OWN.values()] * 2


def test_words_go_across_and_down() -> None:
    state = game.put(game.EMPTY, "h1 heart")
    assert state == "heart\n" + "\n".join(["_____"] * 4)
    assert game.letters_at(state, "v2") == "e____"
    both = game.put(state, "v2 ember")
    assert both is not None
    assert game.letters_at(both, "h3") == "_b___"
    assert game.letters_at(both, "v2") == "ember"


@pytest.mark.parametrize(
    "thought",
    ["h1 cat", "h6 heart", "h1 he4rt", "heart", "v1 ember", "h1 ember", "h1 h\u00e9art", ""],
)
def test_a_word_that_does_not_fit_is_illegal(thought: str) -> None:
    state = game.put(game.EMPTY, "h1 heart")
    assert game.put(state, thought) is None


def test_the_score_counts_letters_words_and_games() -> None:
    solution = list("".join(WORDS).upper())
    full = "\n".join(WORDS)
    assert game.score(full, solution) == (1.0, 1.0, True)
    assert game.score(game.EMPTY, solution) == (0.0, 0.0, False)
    first = game.put(game.EMPTY, "h1 heart")
    assert game.score(first, solution) == (5 / 25, 1 / 10, False)


def test_a_solver_that_knows_the_words_fills_the_grid() -> None:
    answers = {clue: word for word, clue in game.OWN.items()}

    def answer(text: str, slot: pf.Slot) -> str:
        clue = text.split("Clue: ")[-1].split("\n")[0]
        return answers[clue] if slot.name == "word" else "sure"

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    result = pf.run(game.solver(steps=10), lm=lm, clues=CLUES)
    assert result.solved
    assert result.state == "\n".join(WORDS)


def test_words_are_held_to_the_letters_that_cross_them() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    result = pf.run(game.solver(steps=4), lm=lm, clues=CLUES)
    assert result.tree.illegal == 0
    assert len(result.tree.thoughts) > 1
    for thought in result.tree.thoughts[1:]:
        parent = result.tree.thoughts[thought.parent].state
        assert game.put(parent, thought.text) == thought.state


def test_a_hopeless_clue_makes_a_hopeless_state() -> None:
    def answer(text: str, slot: pf.Slot) -> str:
        return "impossible" if "Letters: h" in text.split("Clue: ")[-1] else "sure"

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    values: list[Any] = [
        pf.run(game.Fit(), lm=lm, state=game.put(game.EMPTY, thought), clues=CLUES).worth
        for thought in ("h1 heart", "h1 ember")
    ]
    assert values == [0.0, 20.0]
