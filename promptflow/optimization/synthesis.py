"""What synthetic examples must pass, and the rounds in which they are written and filtered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from promptflow.errors import PromptflowError
from promptflow.evaluation.evaluate import opened_journal
from promptflow.evaluation.identity import language_model, model_identity
from promptflow.evaluation.meaning import text_of
from promptflow.evaluation.ngrams import shared_sequence, tokens
from promptflow.flow import run_many
from promptflow.modules import Judge
from promptflow.program.identity import hash_of
from promptflow.progress import bar

ROUNDS = 4

Drafts = Callable[[int, int], list[dspy.Example]]
"""Given the number of a round and how many to write, return what passed all but the judge."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What an example must pass.

    ``novelty``: its ROUGE-L with every one before it is below this (Self-Instruct: 0.7).
    ``answerable``: a question is answered with its passage and not without it. ``quality``: the
    least score of a judge, 1 to 5, None for no judge; ``rubric`` in the place of the bundled one.
    """

    novelty: float = 0.7
    answerable: bool = True
    quality: float | None = 3.0
    rubric: str = ""


FILTERS = Filters()


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The examples that passed, with the judge's score of each, and how many fell where."""

    examples: tuple[dspy.Example, ...]
    quality: tuple[float | None, ...]
    rejected: Mapping[str, int]
    asked: int

    def __iter__(self) -> Iterator[dspy.Example]:
        """Give the examples."""
        return iter(self.examples)

    def __len__(self) -> int:
        """Return how many examples passed."""
        return len(self.examples)


@dataclass(slots=True)
class Pool:
    """What was accepted and rejected so far; ``known`` are the tokens of all texts before."""

    count: int
    filters: Filters
    known: list[list[str]] = field(default_factory=list)
    examples: list[dspy.Example] = field(default_factory=list)
    quality: list[float | None] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    asked: int = 0

    def novel(self, drafts: Sequence[dspy.Example], text: Any) -> list[dspy.Example]:
        """Return the drafts that are unlike all before them, and note them."""
        kept = []
        for draft in drafts:
            words = tokens(text(draft))
            if any(shared_sequence(words, other) >= self.filters.novelty for other in self.known):
                self.rejected["like one before"] += 1
            else:
                self.known.append(words)
                kept.append(draft)
        return kept

    def state(self) -> dict[str, Any]:
        """Return it as JSON data."""
        rows = [[dict(one), list(one.inputs().keys())] for one in self.examples]
        return {
            "examples": rows,
            "quality": self.quality,
            "known": self.known,
            "rejected": dict(self.rejected),
            "asked": self.asked,
        }

    def resume(self, held: Mapping[str, Any]) -> None:
        """Go on from a state."""
        rows = held["examples"]
        self.examples = [dspy.Example(**row).with_inputs(*names) for row, names in rows]
        self.quality, self.known = list(held["quality"]), [list(words) for words in held["known"]]
        self.rejected, self.asked = Counter(held["rejected"]), held["asked"]

    def done(self) -> Synthesis:
        """Return what passed."""
        rejected = {reason: count for reason, count in self.rejected.items() if count}
        return Synthesis(tuple(self.examples), tuple(self.quality), rejected, self.asked)


def good(given: Sequence[Any]) -> list[Any]:
    """Return answers, None where there is none. Raises the first error if there is no other."""
    errors = [one for one in given if isinstance(one, PromptflowError)]
    if errors and len(errors) == len(given):
        raise errors[0]
    return [None if isinstance(one, PromptflowError) else one for one in given]


@dataclass(frozen=True, slots=True)
class Run:
    """How rounds are run: the model, the seed, where they are kept, and what they depend on."""

    lm: Any
    seed: int
    journal: str | Path | None
    about: Any
    progress: bool


def filled(pool: Pool, drafts: Drafts, rubric: str, run: Run) -> Synthesis:
    """Draft, filter and judge in rounds until there are enough, or nothing new comes."""
    judge = Judge(pool.filters.rubric or rubric)
    key = hash_of([run.about, model_identity(language_model(run.lm)), judge])
    shown = bar("synthesize", pool.count, run.progress)
    with opened_journal(run.journal) as kept, shown as advance:
        for number in range(ROUNDS):
            before, wanted = pool.asked, pool.count - len(pool.examples)
            if wanted <= 0:
                break
            place = f"synthesize/{key}/{number}"
            held = None if kept is None else kept.get(place)
            if held is not None:
                pool.resume(held)
            else:
                accept(pool, drafts(number, 2 * wanted), judge, run)
                if kept is not None:
                    kept.append(place, pool.state())
            advance(len(pool.examples), "")
            if pool.asked == before:
                break
    return pool.done()


def accept(pool: Pool, found: Sequence[dspy.Example], judge: Judge, run: Run) -> None:
    """Judge what came through the other filters, and take what scores enough."""
    least = pool.filters.quality
    scores: list[float | None] = [None] * len(found)
    if least is not None and found:
        given = good(run_many(judge, [_judged(one) for one in found], lm=run.lm, seed=run.seed))
        scores = [None if one is None else float(one.score) for one in given]
    for one, score in zip(found, scores, strict=True):
        if least is not None and score is None:
            pool.rejected["failed"] += 1
        elif least is not None and score is not None and score < least:
            pool.rejected[f"quality below {least:g}"] += 1
        elif len(pool.examples) < pool.count:
            pool.examples.append(one)
            pool.quality.append(score)


def _judged(one: dspy.Example) -> dict[str, Any]:
    inputs, outputs = dict(one.inputs()), dict(one.labels())
    outputs.pop("documents", None)
    question, answer = (shown_fields(part, list(part)) for part in (inputs, outputs))
    return {"question": question, "answer": answer}


def shown_fields(one: Any, names: Sequence[str]) -> str:
    """Return some fields as text: the value of one alone, else a line a field."""
    if len(names) == 1:
        return text_of(one[names[0]])
    return "\n".join(f"{name}: {text_of(one[name])}" for name in names)
