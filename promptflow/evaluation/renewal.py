"""Steps that end the same wherever they run: each begins with engines that have seen nothing.

What a model writes depends a little on what its engine has cached: the shape of a batch changes the
last bits of its logits, and near-ties flip. A run that was killed goes on with an empty cache, so a
run that can be resumed has one at each of its steps.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from promptflow.program.identity import engines_of


class Exact:
    """The engines that a program, a metric and an LM ask, renewed for each step.

    After the block the engines read prefixes from disk again. ``str`` says what it took.
    """

    def __init__(self, *askers: Any) -> None:
        self._engines = engines_of(*askers)
        self._before = self._seconds()
        self._steps = 0
        self._shared = False

    def _seconds(self) -> float:
        return sum(getattr(engine, "renewal_seconds", 0.0) for engine in self._engines)

    def begin(self) -> None:
        """Begin a step."""
        self._steps += 1
        for engine in self._engines:
            self._shared |= not engine.renew(exact=True)

    def __str__(self) -> str:
        """Return what exactness took in one sentence, nothing where no step was done."""
        if not self._steps or not self._engines:
            return ""
        if self._shared:
            return (
                "resume is not exact: the engine answered other requests beside this run; give it "
                "an engine of its own"
            )
        seconds = self._seconds() - self._before
        steps = "1 step" if self._steps == 1 else f"each of {self._steps} steps"
        return f"exact resume: a fresh engine for {steps}, {seconds:.1f} s"

    def __enter__(self) -> Exact:
        """Return this, to be closed when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the engines be as they were."""
        if self._steps:
            for engine in self._engines:
                engine.renew()
