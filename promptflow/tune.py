"""Find how a model is loaded to run fastest on this machine, and keep it for every later engine.

One thing is varied at a time, from the defaults on; what is faster is measured again beside what
it would replace, so that a moment in which the machine did something else does not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from promptflow import catalog
from promptflow.child import usable_cores
from promptflow.doctor import Speed, measure
from promptflow.engine.options import EngineOptions
from promptflow.engine.tuned import Choices, Tuned, remember
from promptflow.errors import CapacityError, EngineError, ModelInvalid

GAIN = 1.03  # what a change must be faster by, twice, to be taken: less is noise
BUDGET = 140.0  # seconds
PROMPT, ANSWERS = 512, 8 * 24
"""Tokens of the traffic that is weighed: a cold prompt, then eight answers side by side."""

Say = Callable[[str], None]
Measure = Callable[[Choices], Speed]


@dataclass(slots=True)
class _Search:
    """What has been measured so far; ``ends`` is when the time is used up, by perf_counter."""

    speed_of: Measure
    say: Say
    ends: float
    measured: list[dict[str, Any]]

    def seconds(self, choices: Choices) -> float:
        """Return the seconds that the traffic takes; raises what ``speed_of`` raises."""
        self.say(_shown(choices))
        speed = self.speed_of(choices)
        self.measured.append({**asdict(choices), **_speeds(speed)})
        return PROMPT / speed.prefill + ANSWERS / speed.together

    def tried(self, choices: Choices) -> float:
        """Return the seconds that the traffic takes; infinite where llama.cpp refuses them."""
        try:
            return self.seconds(choices)
        except (EngineError, ModelInvalid, CapacityError) as error:
            self.measured.append({**asdict(choices), "error": str(error).splitlines()[0]})
            return float("inf")

    @property
    def is_over(self) -> bool:
        """Whether the time is used up."""
        return perf_counter() > self.ends


def variants(cores: int) -> Iterator[dict[str, Any]]:
    """Yield changes to try, each made to the best choices at that time."""
    yield {"flash_attention": True}
    yield {"micro_batch": 256}
    yield {"micro_batch": 128}
    yield {"batch": 1024, "micro_batch": 1024}
    yield {"kv_type": "f32"}
    yield {"extra_buffers": False}
    yield from ({"threads": n} for n in sorted({cores - 1, cores // 2} - {0, cores}, reverse=True))


def search(
    speed_of: Measure, cores: int, say: Say = lambda what: None, budget: float = BUDGET
) -> Tuned:
    """Return the fastest choices and all that was measured; ``speed_of`` measures some choices.

    Takes ``budget`` seconds at most, plus one measurement. Raises what ``speed_of`` raises for the
    defaults.
    """
    start = Choices(threads=cores)
    state = _Search(speed_of, say, perf_counter() + budget, [])
    best, seconds = start, state.seconds(start)
    for change in variants(cores):
        if state.is_over:
            break
        candidate = best.but(**change)
        if state.tried(candidate) * GAIN < seconds and not state.is_over:
            # The other way round: a machine that grows faster or slower favours each once.
            rival, again = state.tried(candidate), state.tried(best)
            if rival * GAIN < again:
                best, seconds = candidate, min(rival, seconds)
    if not state.is_over:
        # A cache of 8 bits loses quality: it is measured, and left for a person to choose.
        state.tried(best.but(kv_type="q8_0", flash_attention=True))
    found = [_speeds_of(state.measured, choices) for choices in (start, best)]
    return Tuned(best, found[0], found[1], tuple(state.measured))


def _speeds(speed: Speed) -> dict[str, float]:
    return {"prefill": speed.prefill, "alone": speed.alone, "together": speed.together}


def _speeds_of(measured: list[dict[str, Any]], choices: Choices) -> dict[str, float]:
    """Return the median speeds of what was measured with these choices."""
    rows = [
        row for row in measured if row.items() >= asdict(choices).items() and "error" not in row
    ]
    return {
        name: sorted(float(row[name]) for row in rows)[len(rows) // 2]
        for name in ("prefill", "alone", "together")
    }


def _shown(choices: Choices) -> str:
    """Return what differs from the defaults, for people."""
    usual = asdict(replace(Choices(), threads=choices.threads))
    changed = {k: v for k, v in asdict(choices).items() if v != usual[k]}
    return ", ".join(f"{k}={v}" for k, v in changed.items()) or f"{choices.threads} threads"


def tune(model: str | Path, say: Say = lambda what: None) -> tuple[Tuned, Path]:
    """Measure ``model`` under many choices and keep the best; return it and where it is kept.

    Takes under three minutes for models of up to some 1.5 billion parameters on two cores; what
    there was no time for is not in ``measured``. Raises ModelError and EngineError.
    """
    from promptflow.engine import Engine

    path = catalog.obtain(model)

    def speed_of(choices: Choices) -> Speed:
        with Engine(path, EngineOptions(context=4096, **choices.as_json())) as engine:
            return measure(engine)

    tuned = search(speed_of, usable_cores(), say)
    return tuned, remember(catalog.model_sha256(path), tuned)
