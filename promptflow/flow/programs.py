"""Plain DSPy programs as flows: what they ask of local models goes into the batch of all flows."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import dspy

from promptflow.engine.request import Completion, Usage
from promptflow.errors import ProgramError
from promptflow.flow.call import Attempts, Prediction, Taken
from promptflow.lm import Seen, Waiting, is_local, seed_of, usage_of

Step = tuple[Any, Mapping[str, Any], Any]


def plain_flow(
    module: Any,
    inputs: Mapping[str, Any],
    *,
    sample: tuple[int, float] | None = None,
    alone: bool = False,
) -> Generator[Any, Any, Any]:
    """Return the flow of a DSPy module that has none.

    It yields what the program asks of engines of ours; other models are asked at once. Before its
    end it yields ``Taken``: the steps and tokens that DSPy saw. ``sample`` is the number and the
    temperature of one of several samples. ``alone`` has it ask for itself: a flow that several
    threads read by turns cannot wait in one of them.
    """
    program = Plain(module, inputs, sample)
    waiting = Waiting(program.run)
    program.trace = _Trace(waiting.asked)
    failed: Exception | None = None
    try:
        posted = [] if alone else waiting.resume()
        if alone:
            waiting.value = program.run()
        while posted:
            completions = yield Attempts(posted)
            posted = waiting.resume(completions)
    except Exception as error:
        failed = error
    finally:
        waiting.close()
    steps, usage = program.steps(), program.usage(waiting)
    yield Taken(steps, usage)
    if failed is not None:
        failed.usage = usage  # type: ignore[attr-defined]
        raise failed
    return program.result(waiting.value, usage, steps)


class Plain:
    """One run of a program, and what DSPy saw of it."""

    def __init__(
        self, module: Any, inputs: Mapping[str, Any], sample: tuple[int, float] | None = None
    ) -> None:
        self.module, self.inputs = module, inputs
        self.lm = dspy.settings.lm if sample is None else _sampling(module, *sample)
        self.outer = dspy.settings.trace
        self.seen = Seen()
        self.trace = _Trace([])
        self.tracker: Any = None

    def run(self) -> Any:
        """Call the module."""
        callers = [*(dspy.settings.caller_modules or []), self.seen]
        settings = {"lm": self.lm, "trace": self.trace, "caller_modules": callers}
        with dspy.context(**settings), dspy.track_usage() as self.tracker:
            return self.module(**self.inputs)

    def steps(self) -> tuple[Step, ...]:
        """Return the calls of predictors in order, each with what the model wrote for it."""
        if self.outer is not None:
            self.outer.extend(self.trace)
        return tuple(
            (predictor, inputs, self.trace.told(given)) for predictor, inputs, given in self.trace
        )

    def usage(self, waiting: Waiting) -> Usage:
        """Return the tokens of engines as they count them, and of other models as DSPy does."""
        total = usage_of(self.tracker) if self.tracker is not None else Usage()
        told = {name: getattr(total, name) for name in ("prompt", "prefilled", "reused")}
        written = total.generated
        counted = Usage()
        for completion in (one for _, completions in waiting.asked for one in completions):
            usage = completion.usage
            counted += usage
            if completion.error is None:
                written -= usage.generated + usage.forced
                told = {name: told[name] - getattr(usage, name) for name in told}
        rest = Usage(**{k: max(0, v) for k, v in told.items()}, generated=max(0, written))
        return counted + rest

    def result(self, value: Any, usage: Usage, steps: Any) -> Any:
        """Return what the program returned, a prediction as one of ours."""
        if isinstance(value, dspy.Prediction):
            value = Prediction.of(value)
            value._usage, value._trace, value._cut = usage, steps, self.seen.cut
        return value


class _Trace(list[Step]):
    """DSPy's trace of a program: for each step it finds what was asked last by its predictor."""

    def __init__(self, asked: list[tuple[Any, list[Completion]]]) -> None:
        super().__init__()
        self._asked, self._read = asked, 0
        self._waiting: dict[int, Completion] = {}  # what was asked, by predictor
        self._written: dict[int, Completion] = {}  # what a step was made of, by prediction

    def append(self, step: Step) -> None:
        """Take a step."""
        for asker, completions in self._asked[self._read :]:
            self._waiting[id(asker)] = completions[0]
        self._read = len(self._asked)
        if (completion := self._waiting.pop(id(step[0]), None)) is not None:
            self._written[id(step[2])] = completion
        super().append(step)

    def told(self, given: Any) -> Any:
        """Return a step's prediction as one of ours, with what the model wrote."""
        if isinstance(given, Prediction) or not isinstance(given, dspy.Prediction):
            return given
        ours = Prediction.of(given)
        if (completion := self._written.get(id(given))) is not None:
            ours._fills, ours._usage = completion.fills, completion.usage
        return ours


def _sampling(module: Any, number: int, temperature: float) -> Any:
    """Return the LM of a sample: as DSPy has it, another rollout at this temperature.

    Raises ProgramError where predictors have models of their own that would not hear of it.
    """
    for name, predictor in module.named_predictors():
        own, config = getattr(predictor, "lm", None), getattr(predictor, "config", {})
        lm = own or dspy.settings.lm
        is_ours = is_local(lm) and not getattr(lm, "cache", False)
        if not is_ours and (own is not None or config.get("temperature") is not None):
            raise ProgramError(
                f"{type(module).__name__}: {name} has a model or a temperature of its own, which "
                "several samples would share: leave them to dspy.configure, or write the program "
                "as a promptflow.Module with flow(self, **inputs)"
            )
    lm = dspy.settings.lm
    if lm is None:
        return None
    rollout = seed_of(getattr(lm, "kwargs", {}).get("rollout_id"), number) % 2**31
    return lm.copy(rollout_id=rollout, temperature=temperature)
