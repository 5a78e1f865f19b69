"""Mini crosswords by depth-first tree of thoughts: five words across, five down, 25 letters.

A state is the five rows, with _ for a letter that is not known. A thought is one word in one place,
such as ``v2 otter``: the model writes words for every clue that is open, each held to five letters
and to those that are known from the words that cross it. A state's value comes from verdicts on
every clue that has letters, weighed: where one is all but impossible, the search goes back.

    python examples/crosswords.py [--model qwen2.5-coder-0.5b] [--puzzles 1] [--steps 10]

Puzzles come from $PROMPTFLOW_DATA (or ../shared/data), the 20 that Yao et al. 2023 test; one of our
own stands in where that folder is missing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

import promptflow as pf
from promptflow.modules.tree import verdict_worth

ROOT = Path(__file__).resolve().parent.parent
PLACES = tuple(f"{way}{number}" for way in "hv" for number in range(1, 6))
EMPTY = "\n".join(["_" * 5] * 5)
HOPELESS = 0.1
"""The worth of a clue at which a state is given up: impossible is 0.001, likely 1, sure 20."""

OWN = {
    "heart": "It beats in the chest",
    "ember": "A glowing piece of coal",
    "abuse": "To treat badly",
    "resin": "What drips from a pine",
    "trend": "A general direction",
}
"""A square of words that reads the same across and down."""


def letters_at(state: str, place: str) -> str:
    """What is known of the word in a place: a row, or a column."""
    rows, number = state.split("\n"), int(place[1]) - 1
    return rows[number] if place[0] == "h" else "".join(row[number] for row in rows)


def put(state: str, thought: str) -> str | None:
    """The rows with one more word; None where it contradicts a letter, or is no word for there."""
    place, _, word = thought.partition(" ")
    known = letters_at(state, place) if place in PLACES else ""
    if len(word) != 5 or len(known) != 5 or not (word.isascii() and word.isalpha()):
        return None
    if any(k not in ("_", w) for k, w in zip(known, word, strict=True)):
        return None
    rows, number = [list(row) for row in state.split("\n")], int(place[1]) - 1
    for k, letter in enumerate(word):
        row, column = (number, k) if place[0] == "h" else (k, number)
        rows[row][column] = letter
    return "\n".join(map("".join, rows))


def is_full(state: str) -> bool:
    return "_" not in state


@functools.cache
def held_to(letters: str) -> Any:
    """The signature of a word that has these letters."""
    pattern = "".join("[a-z]" if letter == "_" else letter for letter in letters)
    held = Annotated[str, StringConstraints(pattern=f"^{pattern}$")]
    return pf.signature("crossword_word").with_updated_fields("word", type_=held)


class Words(pf.Module):
    """Words for all open clues of a state, the most probable first."""

    def __init__(self, most: int = 5) -> None:
        super().__init__()
        self.word = pf.Predict("crossword_word")
        self.most = most

    def flow(self, state: str, clues: Sequence[str]) -> Any:
        open_ones = [
            (place, clue, letters)
            for place, clue in zip(PLACES, clues, strict=True)
            if "_" in (letters := letters_at(state, place))
        ]
        written = yield [
            self.word.call(clue=clue, letters=letters, signature=held_to(letters))
            for _, clue, letters in open_ones
        ]
        found = [
            (made.fills["word"].logprob, f"{place} {made.word}")
            for (place, _, _), made in zip(open_ones, written, strict=True)
        ]
        ranked = sorted(found, key=lambda pair: (-pair[0], pair[1]))
        return pf.Prediction(words=[thought for _, thought in ranked[: self.most]])


class Fit(pf.Module):
    """The worth of a state: the mean over its clues, or nothing where one of them is hopeless."""

    def __init__(self) -> None:
        super().__init__()
        self.fit = pf.Predict("crossword_fit", weigh=True)

    def flow(self, state: str, clues: Sequence[str]) -> Any:
        known = [(clue, letters_at(state, p)) for p, clue in zip(PLACES, clues, strict=True)]
        calls = [self.fit.call(clue=c, letters=ls) for c, ls in known if ls != "_" * 5]
        worths = [verdict_worth(verdict) for verdict in (yield calls)]
        return pf.Prediction(worth=0.0 if min(worths) <= HOPELESS else sum(worths) / len(worths))


def solver(steps: int = 10, breadth: int = 3, proposals: int = 1) -> pf.TreeOfThoughts:
    return pf.TreeOfThoughts(
        Words(),
        Fit(),
        problem=pf.Problem(start=lambda inputs: EMPTY, step=put, done=is_full),
        search=pf.DepthFirst(steps=steps),
        depth=10,
        breadth=breadth,
        proposals=proposals,
        samples=1,
    )


def score(state: str, solution: Sequence[str]) -> tuple[float, float, bool]:
    """The shares of right letters and right words, and whether all are right."""
    right = "\n".join("".join(solution[k : k + 5]).lower() for k in range(0, 25, 5))
    letters = [a == b for a, b in zip(state, right, strict=True) if b != "\n"]
    words = [letters_at(state, place) == letters_at(right, place) for place in PLACES]
    return sum(letters) / 25, sum(words) / 10, all(letters)


def puzzles(count: int) -> list[Mapping[str, Any]]:
    folder = Path(os.environ.get("PROMPTFLOW_DATA") or ROOT.parent / "shared" / "data")
    file = folder / "crosswords" / "mini0505_0_100_5.json"
    if not file.is_file():
        return [{"clues": [*OWN.values()] * 2, "solution": list("".join(OWN))}]
    rows = json.loads(file.read_text(encoding="utf-8"))[:count]
    return [{"clues": clues, "solution": solution} for clues, solution in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Mini crosswords by tree of thoughts")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--puzzles", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="states that may grow, a puzzle")
    given = parser.parse_args(arguments)
    pf.configure(given.model)
    chosen = puzzles(given.puzzles)
    began = time.perf_counter()
    results = pf.run_many(solver(given.steps), [{"clues": puzzle["clues"]} for puzzle in chosen])
    seconds = time.perf_counter() - began
    for puzzle, result in zip(chosen, results, strict=True):
        if isinstance(result, pf.PromptflowError):
            print(result)
            continue
        letters, words, solved = score(result.state, puzzle["solution"])
        pruned = sum(thought.pruned for thought in result.tree.thoughts)
        print(result.state)
        print(
            f"letters {letters:.0%}, words {words:.0%}, {'solved' if solved else 'not solved'}; "
            f"{len(result.tree.thoughts)} states, {pruned} pruned"
        )
    print(f"{len(chosen)} puzzles in {seconds:.0f} s")


if __name__ == "__main__":
    main()
