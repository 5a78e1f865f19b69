"""Programs that wait where they ask an engine, so that whoever drives them asks for many at once.

The only import of greenlet: a program runs in a greenlet of its own, in the thread of its driver,
so that many run by turns in an order that nothing but their calls decides.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import greenlet

from promptflow.engine.interface import TextEngine
from promptflow.engine.request import Completion, Part, Request, Slot
from promptflow.lm.record import seed_of


@dataclass(frozen=True, slots=True)
class Posted:
    """A request of a program that waits for its completion."""

    engine: TextEngine
    request: Request

    @property
    def continued(self) -> bool:
        """Say whether the program's next request begins with this one."""
        return self.request.continued

    @property
    def seed(self) -> int:
        """Return the request's seed."""
        return self.request.seed

    def heated(self, temperature: float, number: int) -> Posted:
        """Return the request of sample ``number``, its slots at ``temperature``."""
        parts = tuple(_heated(part, temperature) for part in self.request.parts)
        seed = seed_of(self.request.seed, number)
        return replace(self, request=replace(self.request, parts=parts, seed=seed))


def _heated(part: Part, temperature: float) -> Part:
    if not isinstance(part, Slot) or part.beam is not None:
        return part
    return replace(part, sampling=replace(part.sampling, temperature=temperature))


class Waiting(greenlet.greenlet):
    """A function that runs until it asks an engine, and goes on with the completions.

    What it sees of DSPy's settings is what held where it was made. Calls from threads and event
    loops of its own do not wait: they go to the engine as they come.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self._function = function
        self._loop = asyncio._get_running_loop()
        self.gr_context = contextvars.copy_context()
        self.value: Any = None
        self.asked: list[tuple[Any, list[Completion]]] = []  # who asked, and what came back

    def run(self, _: None) -> None:
        """Run the function to its end; what it raises is raised where it was resumed."""
        self.value = self._function()

    def resume(self, completions: Sequence[Completion] | None = None) -> list[Posted]:
        """Run to the next request, or to the end, where nothing is asked."""
        self.parent = greenlet.getcurrent()
        posted: list[Posted] | None = self.switch(completions)
        return posted or []

    def close(self) -> None:
        """End what waits: its ``finally`` clauses run, and asking once more ends it again."""
        while not self.dead and self:
            self.parent = greenlet.getcurrent()
            self.throw(greenlet.GreenletExit)

    def asks(self, engine: TextEngine, requests: Sequence[Request]) -> list[Completion]:
        """Wait for the completions of requests."""
        assert self.parent is not None
        completions = list(self.parent.switch([Posted(engine, request) for request in requests]))
        callers = dspy.settings.caller_modules or [None]
        self.asked.append((callers[-1], completions))
        return completions


def complete(
    engine: TextEngine,
    requests: Sequence[Request],
    on_done: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Do what ``engine.generate`` does; a program that is driven waits for its driver's batch."""
    program = greenlet.getcurrent()
    if (
        not requests
        or not isinstance(program, Waiting)
        or asyncio._get_running_loop() is not program._loop
    ):
        return engine.generate(requests, on_done)
    completions = program.asks(engine, requests)
    if on_done is not None:
        for place in range(len(completions)):
            on_done(place)
    return completions
