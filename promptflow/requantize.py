"""Make a model's file in the format that this processor decodes fastest, and say what it costs.

The new file becomes a model of the catalogue, ``NAME-FORMAT``, once its speed and its quality have
been measured beside the original's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from promptflow import catalog, storage
from promptflow.doctor import Speed, measure
from promptflow.engine.model.quantize import quantize
from promptflow.engine.request import Text
from promptflow.engine.tuned import BRANCHES
from promptflow.errors import DataError
from promptflow.progress import bar

CANDIDATES = ("q4_0", "q4_0_pure", "iq4_nl", "q8_0")
"""What ``auto`` tries: llama.cpp repacks these for the processor's widest integer kernels."""
PASSAGES = 24  # that the perplexity is taken over


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two files: bytes, speed, perplexity over passages and F1 of each question."""

    name: str
    path: str
    size: int
    speed: Speed | None = None
    perplexity: float | None = None
    f1: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Requantized:
    """What was made. ``after`` is None where the original is faster than all that was tried.

    ``f1_difference`` is the new file's mean F1 minus the old one's with its 95 % interval (paired),
    None where no questions were asked.
    """

    before: Side
    after: Side | None
    tried: dict[str, Speed]
    f1_difference: tuple[float, float, float] | None = None

    def rows(self) -> list[list[str]]:
        """Return the comparison as rows: what, before, after."""
        sides = [side for side in (self.before, self.after) if side is not None]
        rows = [["size", *(f"{side.size / 1e6:,.0f} MB" for side in sides)]]
        speeds = [side.speed for side in sides if side.speed is not None]
        if speeds:
            rows.append(["prompt tokens/s", *(f"{speed.prefill:.0f}" for speed in speeds)])
            rows.append(["1 branch, tokens/s", *(f"{speed.alone:.0f}" for speed in speeds)])
            together = [f"{speed.together:.0f}" for speed in speeds]
            rows.append([f"{BRANCHES} branches, tokens/s", *together])
        if self.f1_difference is not None:
            rows.append(["perplexity", *(f"{side.perplexity:.2f}" for side in sides)])
            rows.append(["F1", *(f"{sum(side.f1) / len(side.f1):.3f}" for side in sides)])
            mean, low, high = self.f1_difference
            rows.append(["F1, difference", "", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"])
        return rows


def requantize(
    model: str,
    form: str = "auto",
    questions: Sequence[Any] = (),
    *,
    compare: bool = True,
    progress: bool = True,
) -> Requantized:
    """Make ``model`` (a name or a path) in ``form``, or in the fastest of ``CANDIDATES``.

    ``questions`` are examples with passage, question and gold answers: see ``read_questions``. With
    ``compare=False`` nothing is measured but what "auto" needs. Raises ModelError, EngineError and
    DiskFull; a call that fails leaves the catalogue as it was.
    """
    source = catalog.obtain(model)
    known = catalog.models()
    # It becomes the name of a catalogue's entry, which has fewer characters than files' names.
    title = re.sub(r"[^A-Za-z0-9_.+-]+", "-", catalog.title(model, source)).strip("-.+_") or "model"
    sides = [_side(title, source)]
    root = storage.cache_dir() / "models"
    with storage.scratch_folder(root / f"{title}-new") as scratch:
        for one in CANDIDATES if form == "auto" else (form,):
            path = scratch / f"{title}-{one}.gguf"
            _write(source, path, one, progress)
            sides.append(_side(path.stem, path))
        if compare or form == "auto":
            sides = _timed(sides, progress)
        before, *tried = sides
        speeds = {side.name: side.speed for side in sides if side.speed is not None}
        best = max(sides, key=_rate) if form == "auto" else tried[0]
        if best is before:
            return Requantized(before, None, speeds)
        found = Requantized(before, best, speeds)
        if compare and questions:
            found = _compared(before, best, speeds, questions, progress)
        named = title in known
        licence = known[title].licence if named else "unknown"
        return _kept(found, root / best.name, licence, title if named else str(source))


def read_questions(data: str | Path, count: int = 40, seed: int = 0) -> list[Any]:
    """Read rows with passage, question, and answer or answers, or SQuAD's own JSON; choose some.

    Raises DataError with the first row that lacks one.
    """
    from promptflow.evaluation.data import load_data, split

    rows = load_data(data, ["passage", "question"])
    for number, row in enumerate(rows, 1):
        if not (row.get("answer") or row.get("answers")):
            raise DataError(f"{data}: row {number} has no answer or answers: {row!r:.80}")
    return rows if count >= len(rows) else split(rows, [count / len(rows)], seed)[0]


def _write(source: Path, target: Path, form: str, progress: bool) -> None:
    with bar(f"writing {target.stem}", 1, progress) as advance:
        quantize(source, target, form, lambda done, known: advance(done / known, ""))


def _side(name: str, path: Path) -> Side:
    return Side(name, str(path), catalog.read_gguf(path).size)


def _timed(sides: Sequence[Side], progress: bool) -> list[Side]:
    """Return the sides with their mean speeds; a second round in reverse cancels drift."""
    turns = [*sides, *reversed(sides)]
    speeds: dict[str, list[Speed]] = {side.name: [] for side in sides}
    with bar("speed", len(turns), progress) as advance:
        for number, side in enumerate(turns, 1):
            speeds[side.name].append(_speed(side))
            advance(number, side.name)
    return [replace(side, speed=_mean(speeds[side.name])) for side in sides]


def _speed(side: Side) -> Speed:
    from promptflow.engine import Engine, EngineOptions

    with Engine(side.path, EngineOptions(context=4096)) as engine:
        return measure(engine)


def _mean(speeds: Sequence[Speed]) -> Speed:
    prefill, alone, together = (
        round(fmean(getattr(speed, name) for speed in speeds), 1)
        for name in ("prefill", "alone", "together")
    )
    return Speed(prefill, alone, together, BRANCHES)


def _rate(side: Side) -> float:
    return 0.0 if side.speed is None else side.speed.together


def _compared(
    before: Side, after: Side, speeds: dict[str, Speed], questions: Sequence[Any], progress: bool
) -> Requantized:
    from promptflow.evaluation.stats import paired_interval

    before, after = (_quality(side, questions, progress) for side in (before, after))
    gap = paired_interval(after.f1, before.f1)
    return Requantized(before, after, speeds, (gap.mean, gap.low, gap.high))


def _quality(side: Side, questions: Sequence[Any], progress: bool) -> Side:
    """Return ``side`` with its perplexity over some passages and its F1 on the questions."""
    import dspy

    import promptflow as pf
    from promptflow.evaluation.metrics import f1

    passages = list(dict.fromkeys(example.passage for example in questions))[:PASSAGES]
    steps = len(passages) + len(questions)
    with bar(f"quality of {side.name}", steps, progress) as advance, pf.Engine(side.path) as engine:
        logprobs: list[float] = []
        for number, passage in enumerate(passages, 1):
            head, space, rest = passage.partition(" ")
            [tokens] = engine.score([Text(head)], [space + rest])
            logprobs += [token.logprob for token in tokens]
            advance(number, "")
        with dspy.context(lm=pf.load(side.path, engine=engine)):
            answers = pf.run_many(
                pf.Predict("passage, question -> answer"),
                [example.inputs().toDict() for example in questions],
                progress=lambda done, known: advance(len(passages) + done, ""),
            )
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    marks = (f1(e, p, field="answer") for e, p in zip(questions, answers, strict=True))
    perplexity = math.exp(-sum(logprobs) / len(logprobs))
    return replace(side, perplexity=perplexity, f1=tuple(marks))


def _kept(found: Requantized, folder: Path, licence: str, made_from: str) -> Requantized:
    """Put the new file into the catalogue; its folder holds the entry and the comparison."""
    assert found.after is not None
    new = Path(found.after.path)
    sha256 = storage.sha256_of(new)
    entry = {
        "path": new.name,
        "sha256": sha256,
        "size": found.after.size,
        "licence": licence,
        "made_from": made_from,
    }
    with storage.replace_folder(folder) as target:
        storage.move(new, target / new.name)
        storage.write_text(target / "models.toml", storage.toml_dumps({found.after.name: entry}))
        storage.write_json(target / "comparison.json", asdict(found))
    path = folder / new.name
    storage.remember_sha256(path, sha256)
    return replace(found, after=replace(found.after, path=str(path)))
