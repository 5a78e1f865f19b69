"""Flows: programs written as generators, and the loop that answers them in batches.

A flow yields a list of calls and is sent the list of their predictions; what it returns is the
result. Many flows advance in lockstep: the calls that all of them wait for go to the engine as one
batch, so the composition of a batch follows from the inputs and the seed alone. Knows how a call
becomes a request; knows nothing of how a prompt is worded (``layout``) or decoded (``engine``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from promptflow import layout
from promptflow.engine.request import Completion, Fill, Request, Sampling, TextEngine, Usage
from promptflow.errors import EngineError, ProgramError, PromptflowError
from promptflow.lm import record_call, sampling_of, seed_of, trace_call


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a predictor. What is ``None`` comes from the predictor, then from its LM.

    ``inputs`` may hold output fields too: they are written into the prompt, not generated.
    """

    predictor: Any
    inputs: Mapping[str, Any]
    sampling: Sampling | None = None
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: int | None = None
    signature: Any = None
    demos: Sequence[Mapping[str, Any]] | None = None


class Attempts(list[Call]):
    """Calls whose failures are sent back as values in their places, not thrown into the flow."""


class Prediction(dspy.Prediction):  # type: ignore[misc]
    """A ``dspy.Prediction`` that knows what the model wrote and what it cost."""

    _fills: Mapping[str, Fill] = {}
    _usage: Usage = Usage()
    _trace: tuple[tuple[Any, Mapping[str, Any], Any], ...] = ()

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Return what the model wrote, by output field: text, finish, log-probability."""
        return self._fills

    @property
    def usage(self) -> Usage:
        """Return the tokens of every call that led here."""
        return self._usage

    @property
    def trace(self) -> tuple[tuple[Any, Mapping[str, Any], Any], ...]:
        """Return each call that led here as (predictor, inputs, prediction), in order."""
        return self._trace


Flow = Generator[list[Call], list[Any], Any]


class Module(dspy.Module):  # type: ignore[misc]
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
        return await asyncio.to_thread(run, self, **inputs)


def run(module: Any, *, lm: Any = None, seed: int = 0, **inputs: Any) -> Prediction:
    """Run a module on one input and return its prediction; raise what went wrong.

    ``lm`` stands in for the configured LM; a predictor's own LM comes first.
    """
    [result] = _run_all(module, [inputs], lm, seed, None)
    if isinstance(result, BaseException):
        raise result
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


def resample(flow: Flow, sampling: Sampling) -> Flow:
    """Pass a flow through with every call sampled in this way."""
    answers: list[Any] | None = None
    error: Exception | None = None
    while True:
        try:
            calls = flow.throw(error) if error else flow.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value
        error = None
        try:
            answers = yield type(calls)(replace(call, sampling=sampling) for call in calls)
        except PromptflowError as caught:
            error = caught


@dataclass(slots=True)
class _Running:
    """A flow in progress: what it waits for, and what it ended in."""

    flow: Flow
    calls: list[Call] | None = None
    result: Any = None
    usage: Usage = Usage()
    trace: list[tuple[Any, Mapping[str, Any], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._advance(None)

    def answer(self, answers: list[Any]) -> None:
        """Hand over the answers to the calls it waits for, and run to its next list."""
        calls = self.calls or []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Prediction):
                self.usage += answer.usage
                self.trace.append((call.predictor, call.inputs, answer))
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


@dataclass(frozen=True, slots=True)
class Order:
    """A call with everything filled in: whom to ask, how to decode, from which seed."""

    call: Call
    lm: Any
    decoding: layout.Decoding
    seed: int

    @classmethod
    def of(cls, call: Call, lm: Any, path: tuple[int, ...]) -> Order:
        """Fill in a call from its predictor and its LM; ``path`` is where its seed comes from."""
        lm = getattr(call.predictor, "lm", None) or lm
        if lm is None:
            raise ProgramError("no model is configured: call pf.configure('NAME') or pass lm=")
        config = {**getattr(lm, "kwargs", {}), **getattr(call.predictor, "config", {})}
        return cls(call, lm, _decoding(call, config), _seed(call, config, path))


def _decoding(call: Call, config: Mapping[str, Any]) -> layout.Decoding:
    own = call.predictor
    sampling = call.sampling or getattr(own, "sampling", None) or sampling_of(config)
    max_tokens = call.max_tokens or getattr(own, "max_tokens", None) or config.get("max_tokens")
    decoding = layout.Decoding(sampling=sampling, logprobs=call.logprobs)
    if max_tokens:
        decoding = replace(decoding, max_tokens=int(max_tokens))
    if (reasoning := getattr(own, "reasoning_tokens", None)) is not None:
        decoding = replace(decoding, reasoning_tokens=reasoning)
    return decoding


def _seed(call: Call, config: Mapping[str, Any], path: tuple[int, ...]) -> int:
    if call.seed is not None:
        return call.seed
    return seed_of(config.get("seed"), config.get("rollout_id"), *path)


def request_of(order: Order) -> Request:
    """Return the engine's request for an order: the exact prompt, with its slots."""
    call, own = order.call, order.call.predictor
    parts = layout.render(
        call.signature or own.signature,
        own.demos if call.demos is None else call.demos,
        call.inputs,
        order.lm.text_engine.scaffold,
        layout=getattr(own, "layout", None) or layout.DEFAULT,
        decoding=order.decoding,
    )
    return Request(parts, order.seed)


def answer(
    orders: Sequence[Order], on_done: Callable[[int], None] | None = None
) -> list[Prediction | PromptflowError]:
    """Answer orders in one batch an engine; what failed is an error in its place."""
    answers: list[Any] = [None] * len(orders)
    batches: dict[int, tuple[TextEngine, list[tuple[int, Request]]]] = {}
    for place, order in enumerate(orders):
        engine = getattr(order.lm, "text_engine", None)
        try:
            if engine is None:
                answers[place] = _elsewhere(order)
            else:
                batch = batches.setdefault(id(engine), (engine, []))[1]
                batch.append((place, request_of(order)))
                continue
        except PromptflowError as error:
            answers[place] = error
        if on_done is not None:
            on_done(place)
    for engine, batch in batches.values():
        completions = engine.generate([request for _, request in batch], on_done)
        for (place, request), completion in zip(batch, completions, strict=True):
            answers[place] = _predicted(orders[place], request, completion)
    return answers


def _predicted(
    order: Order, request: Request, completion: Completion
) -> Prediction | PromptflowError:
    call = order.call
    if completion.error is not None:
        return completion.error
    try:
        values = layout.read(call.signature or call.predictor.signature, completion)
    except PromptflowError as error:
        return error
    prediction: Prediction = Prediction.from_completions([values], signature=call.signature)
    prediction._fills = completion.fills
    prediction._usage = completion.usage
    prediction.set_lm_usage(record_call(order.lm, request, completion))
    trace_call(call.predictor, call.inputs, prediction)
    return prediction


def _elsewhere(order: Order) -> Prediction:
    """Ask an LM that is not ours, through DSPy's own adapter for it."""
    call, own = order.call, order.call.predictor
    demos = own.demos if call.demos is None else call.demos
    config = {"temperature": order.decoding.sampling.temperature}
    try:
        plain = dspy.Predict.forward(
            own,
            lm=order.lm,
            signature=call.signature or own.signature,
            demos=list(demos),
            config=config,
            **call.inputs,
        )
    except Exception as error:
        raise EngineError(f"{order.lm.model}: {type(error).__name__}: {error}") from error
    prediction = Prediction()
    prediction.__dict__.update(plain.__dict__)
    return prediction
