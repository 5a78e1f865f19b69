"""Rate several systems by their outputs: every two of them are judged on the questions of both."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptflow.errors import DataError, PromptflowError
from promptflow.evaluation.data import load_rows, plain
from promptflow.evaluation.evaluate import opened_journal
from promptflow.evaluation.identity import language_model, model_identity
from promptflow.evaluation.meaning import text_of
from promptflow.evaluation.rating import Played, Rating, WinRate, rate, win_rate
from promptflow.evaluation.scoring import CHUNK, EXCLUDED
from promptflow.flow import Prediction, run_many
from promptflow.modules import PairJudge, Panel, Reliability, reliability
from promptflow.modules.judge import model_name, same_model
from promptflow.program.identity import hash_of
from promptflow.progress import bar
from promptflow.storage import Journal

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
QUESTIONS = ("question", "instruction", "prompt", "input")
ANSWERS = ("answer", "output", "response", "prediction")


@dataclass(frozen=True, slots=True)
class Output:
    """What one system answered to a question; ``model`` is who wrote it, the system if not said."""

    question: str
    answer: str
    reference: str | None = None
    model: str = ""


Outputs = Mapping[str, Mapping[str, Output]]
"""Of each system its outputs by the question's id, or by its text."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Ratings of systems, with all that stands beside them.

    ``wins`` holds the win rate of the first over the second of every two systems, with length
    taken off; ``own`` the systems whose text the judge's own model wrote; ``unmatched`` how many
    outputs have no counterpart; ``prior`` the judge's log-odds for the place A.
    """

    ratings: tuple[Rating, ...]
    wins: Mapping[tuple[str, str], WinRate]
    reliability: Reliability
    own: tuple[str, ...]
    unmatched: int
    failed: int
    prior: float

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        wins = [{"first": a, "second": b, **asdict(w)} for (a, b), w in self.wins.items()]
        data = {**asdict(self), "wins": wins, "warning": self.reliability.warning}
        return {**data, "own": list(self.own)}


def read_outputs(folder: str | Path) -> dict[str, dict[str, Output]]:
    """Read the outputs of systems: each .jsonl, .json, .csv or .tsv file of a folder is one.

    A row has a ``question``, an ``answer``, and perhaps an ``id``, by which rows of two files are
    matched, a ``reference`` and the ``model`` that wrote it. Raises DataError for fewer than two
    files, rows without an answer, and questions that stand twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds a file a system")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise DataError(
            f"{folder}: an arena needs the outputs of two systems or more, each in a file of its "
            f"own (.jsonl, .json, .csv, .tsv); there are {len(files)}"
        )
    if len(names := {path.stem for path in files}) < len(files):
        raise DataError(f"{folder}: two files name the same system; there are {sorted(names)}")
    return {path.stem: _outputs(path) for path in files}


def _outputs(path: Path) -> dict[str, Output]:
    found: dict[str, Output] = {}
    for number, row in enumerate(load_rows(path, columns=None, encoding=None, key=None), 1):
        question, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
        if question is None or answer is None:
            raise DataError(
                f"{path}, row {number}: needs a question ({', '.join(QUESTIONS)}) and an answer "
                f"({', '.join(ANSWERS)}); it has {', '.join(row)}"
            )
        key = text_of(row["id"]) if row.get("id") is not None else question
        if key in found:
            raise DataError(f"{path}, row {number}: {key!r:.60} stands twice; give the rows an id")
        reference = row.get("reference")
        model = text_of(row.get("model")) or path.stem
        found[key] = Output(
            question, answer, None if reference is None else text_of(reference), model
        )
    return found


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((text_of(row[name]) for name in names if row.get(name) is not None), None)


def arena(
    outputs: Outputs,
    judge: PairJudge | Panel | None = None,
    *,
    pairs: int | None = None,
    lm: Any = None,
    seed: int = 0,
    journal: Journal | str | Path | None = None,
    progress: bool = True,
) -> Arena:
    """Judge every two systems on the questions of both, and return their ratings.

    ``pairs`` bounds how many are judged, drawn evenly by ``seed``. ``journal`` keeps what is
    judged, so that the same call continues. Raises DataError where no two systems share a question,
    and the commonest failure where more than 2 % of the pairs could not be judged.
    """
    judge = judge or PairJudge()
    model = language_model(lm, judge)
    matches, unmatched = _matches(outputs, pairs, seed)
    about = hash_of([judge, model_identity(model), seed])
    said: list[Any] = []
    with opened_journal(journal) as kept, bar("arena", len(matches), progress) as advance:
        for start in range(0, len(matches), CHUNK):
            part = matches[start : start + CHUNK]
            said += _judged(judge, part, (lm, seed), kept, about)
            advance(start + len(part), "")
    failures = [one for one in said if isinstance(one, PromptflowError)]
    if len(failures) > EXCLUDED * len(said):
        raise failures[0]
    good = [(m, one) for m, one in zip(matches, said, strict=True) if isinstance(one, Prediction)]
    played = [m.played(one.preference) for m, one in good]
    places = sorted(one.place for _, one in good if "place" in one)
    return Arena(
        tuple(rate(played, seed=seed)),
        _wins(played, seed),
        reliability([one for _, one in good]),
        tuple(name for name, rows in outputs.items() if _wrote(model, rows)),
        unmatched,
        len(failures),
        places[len(places) // 2] if places else math.nan,
    )


@dataclass(frozen=True, slots=True)
class _Match:
    first: str
    second: str
    one: Output
    other: Output

    @property
    def inputs(self) -> dict[str, Any]:
        return {
            "question": self.one.question,
            "reference": self.one.reference or self.other.reference,
            "first": self.one.answer,
            "second": self.other.answer,
            "first_model": self.one.model,
            "second_model": self.other.model,
        }

    def played(self, preference: float) -> Played:
        lengths = len(self.one.answer), len(self.other.answer)
        return Played(self.first, self.second, preference, lengths)


def _matches(outputs: Outputs, most: int | None, seed: int) -> tuple[list[_Match], int]:
    """Return the pairs to judge, question by question, and how many outputs have no counterpart."""
    counts = Counter(key for rows in outputs.values() for key in rows)
    found = [
        _Match(a, b, outputs[a][key], outputs[b][key])
        for key in counts
        for a, b in itertools.combinations(outputs, 2)
        if key in outputs[a] and key in outputs[b]
    ]
    if not found:
        raise DataError(
            "no two systems answered the same question: give their rows the same id, or the same "
            "question"
        )
    unmatched = sum(count == 1 for count in counts.values())
    if most is None or most >= len(found):
        return found, unmatched
    drawn = sorted(random.Random(seed).sample(range(len(found)), most))
    return [found[place] for place in drawn], unmatched


def _judged(
    judge: PairJudge | Panel,
    part: Sequence[_Match],
    how: tuple[Any, int],
    journal: Journal | None,
    about: str,
) -> list[Any]:
    """Return what the judge says of matches; what the journal has is not asked again."""
    lm, seed = how
    keys = [f"arena/{about}/{hash_of(match.inputs)}" for match in part]
    known = {} if journal is None else {key: journal.get(key) for key in keys}
    said: dict[str, Any] = {
        key: Prediction(**{**held, "verdicts": tuple(held["verdicts"])})
        for key, held in known.items()
        if held is not None
    }
    left = [(key, match) for key, match in zip(keys, part, strict=True) if key not in said]
    given = run_many(judge, [match.inputs for _, match in left], lm=lm, seed=seed)
    for (key, _), one in zip(left, given, strict=True):
        said[key] = one
        if journal is not None and isinstance(one, Prediction):
            names = ("verdicts", "preference", "place", "own", "ratings")
            journal.append(key, plain({name: one[name] for name in names if name in one}))
    return [said[key] for key in keys]


def _wins(played: Sequence[Played], seed: int) -> dict[tuple[str, str], WinRate]:
    sides = dict.fromkeys((one.first, one.second) for one in played)
    return {
        (a, b): win_rate([one for one in played if (one.first, one.second) == (a, b)], seed=seed)
        for a, b in sides
    }


def _wrote(judge: Any, rows: Mapping[str, Output]) -> bool:
    return any(same_model(row.model, model_name(judge)) for row in rows.values())
