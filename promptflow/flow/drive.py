"""Modules whose work is a generator, and the loop that answers many of them in batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from promptflow.engine.request import Usage
from promptflow.errors import ProgramError, PromptflowError
from promptflow.flow.call import Attempts, Call, Order, Prediction, answer

Flow = Generator[list[Call], list[Any], Any]


class Module(dspy.Module):
    """A DSPy module whose work is written as a flow.

    >>> class Twice(Module):
    ...     def __init__(self, predict):
    ...         super().__init__()
    ...         self.predict = predict
    ...
    ...     def flow(self, **inputs):
    ...         [draft] = yield [self.predict.call(**inputs)]
    ...         [final] = yield [self.predict.call(question=draft.answer)]
    ...         return Prediction(answer=final.answer)
    """

    def flow(self, **inputs: Any) -> Flow:
        """Yield lists of calls, receive lists of predictions, return the result."""
        raise NotImplementedError(f"{type(self).__name__} has no flow(self, **inputs)")

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, without the predictors."""
        return {}

    def forward(self, **inputs: Any) -> Any:
        """Drive the flow with the configured LM."""
        return run(self, **inputs)

    async def aforward(self, **inputs: Any) -> Any:
        """Drive the flow in a thread; the context's settings go with it."""
        return await dspy.asyncify(run)(self, **inputs)


def run(module: Any, *, lm: Any = None, seed: int = 0, **inputs: Any) -> Prediction:
    """Run a module on one input and return its prediction; raise what went wrong.

    ``lm`` stands in for the configured LM; a predictor's own LM comes first.
    """
    [result] = _run_all(module, [inputs], lm, seed, None)
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, Prediction)
    return result


def run_many(
    module: Any,
    inputs: Sequence[Mapping[str, Any]],
    *,
    lm: Any = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction | PromptflowError]:
    """Run a module on many inputs in lockstep, one engine batch a step; errors are values.

    ``progress(done, known)`` counts calls: those answered, and those asked for so far. A module
    without a flow runs one input after the other. Anything raised that is not a PromptflowError
    becomes a ProgramError with that as its cause.
    """
    results = _run_all(module, inputs, lm, seed, progress)
    return [_as_value(module, result) for result in results]


def together(flows: Iterable[Flow]) -> Generator[list[Call], list[Any], list[Any]]:
    """Advance several flows in lockstep inside a flow: ``results = yield from together(flows)``.

    Returns the flows' predictions in order; a flow that ended in a PromptflowError has it there.
    """
    running = [_Running(flow) for flow in flows]
    while waiting := [r for r in running if r.calls is not None]:
        answers = yield Attempts(call for r in waiting for call in r.calls or ())
        _hand_out(waiting, answers)
    for r in running:
        if isinstance(r.result, Exception) and not isinstance(r.result, PromptflowError):
            raise r.result
    return [r.result for r in running]


@dataclass(slots=True)
class _Running:
    """A flow in progress: what it waits for, and what it ended in."""

    flow: Flow
    calls: list[Call] | None = None
    result: Any = None
    usage: Usage = field(default_factory=Usage)
    trace: list[tuple[Any, Mapping[str, Any], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._advance(None)

    def answer(self, answers: list[Any]) -> None:
        """Hand over the answers to the calls it waits for, and run to its next list."""
        calls = self.calls or []
        for call, given in zip(calls, answers, strict=True):
            if isinstance(given, Prediction):
                self.usage += given.usage
                self.trace.append((call.predictor, call.inputs, given))
        self._advance(answers)

    def _advance(self, answers: list[Any] | None) -> None:
        failed = None
        if answers is not None and not isinstance(self.calls, Attempts):
            failed = next((a for a in answers if isinstance(a, PromptflowError)), None)
        try:
            if failed is not None:
                self.calls = self.flow.throw(failed)
            else:
                self.calls = self.flow.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            self.calls, self.result = None, self._finished(stop.value)
        except Exception as error:
            self.calls, self.result = None, error

    def _finished(self, value: Any) -> Any:
        if not isinstance(value, dspy.Prediction):
            shown = type(value).__name__
            return ProgramError(f"a flow returned {shown}; it must return a Prediction(field=...)")
        if not isinstance(value, Prediction):
            value, plain = Prediction(), value
            value.__dict__.update(plain.__dict__)
        value._usage = self.usage
        value._trace = tuple(self.trace)
        return value


def _hand_out(waiting: Sequence[_Running], answers: Sequence[Any]) -> None:
    start = 0
    for r in waiting:
        end = start + len(r.calls or ())
        r.answer(list(answers[start:end]))
        start = end


def _as_value(module: Any, result: Any) -> Prediction | PromptflowError:
    if isinstance(result, Prediction | PromptflowError):
        return result
    error = ProgramError(f"{type(module).__name__} raised {type(result).__name__}: {result}")
    error.__cause__ = result
    return error


def _run_all(
    module: Any,
    inputs: Sequence[Mapping[str, Any]],
    lm: Any,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[Any]:
    lm = lm or dspy.settings.lm
    with dspy.context(lm=lm):
        if not hasattr(module, "flow"):
            return _run_plain(module, inputs, progress)
        running = [_Running(module.flow(**one)) for one in inputs]
        done = step = 0
        while waiting := [(n, r) for n, r in enumerate(running) if r.calls is not None]:
            orders = [
                Order.of(call, lm, (seed, number, step, position))
                for number, r in waiting
                for position, call in enumerate(r.calls or ())
            ]
            counter = _counter(progress, done, done + len(orders))
            _hand_out([r for _, r in waiting], answer(orders, counter))
            done += len(orders)
            step += 1
    return [r.result for r in running]


def _run_plain(
    module: Any,
    inputs: Sequence[Mapping[str, Any]],
    progress: Callable[[int, int], None] | None,
) -> list[Any]:
    results: list[Any] = []
    for one in inputs:
        try:
            result = module(**one)
        except Exception as error:
            results.append(error)
        else:
            running = _Running(_returning(result))
            results.append(running.result)
        if progress is not None:
            progress(len(results), len(inputs))
    return results


def _returning(value: Any) -> Flow:
    return value
    yield  # a generator that yields nothing


def _counter(
    progress: Callable[[int, int], None] | None, done: int, known: int
) -> Callable[[int], None] | None:
    if progress is None:
        return None
    answered = 0

    def count(_: int) -> None:
        nonlocal answered
        answered += 1
        progress(done + answered, known)

    return count
