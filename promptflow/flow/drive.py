"""Modules whose work is a generator, and the loop that answers many of them in batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import DSPyError

from promptflow.engine.request import Completion, Usage
from promptflow.engine.stream import Delta
from promptflow.errors import ProgramError, PromptflowError, UnsupportedOption, names_options
from promptflow.flow.call import (
    Attempts,
    Call,
    Chosen,
    Prediction,
    Taken,
    answer,
    told,
    usage_of_answer,
)
from promptflow.flow.programs import plain_flow
from promptflow.lm import Posted, fault_of, lm_of

Flow = Generator[list[Any], list[Any], Any]
NOTES = (Chosen, Taken)
"""Lists without calls, that flows yield to tell something."""


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

    def forward(self, /, **inputs: Any) -> Any:
        """Drive the flow with the configured LM."""
        return answered(self.flow(**inputs))

    async def aforward(self, /, **inputs: Any) -> Any:
        """Drive the flow in a thread; the context's settings go with it."""
        return await dspy.asyncify(answered)(self.flow(**inputs))


def run(module: Any, /, *, lm: Any = None, seed: int = 0, **inputs: Any) -> Prediction:
    """Run a module on one input and return its prediction; raise what went wrong.

    ``lm`` stands in for the configured LM; a predictor's own LM comes first. Inputs that are called
    ``lm`` or ``seed`` go through ``run_many``, or through calling the module.
    """
    return answered(flow_of(module, inputs), lm=lm, seed=seed)


def answered(flow: Flow, *, lm: Any = None, seed: int = 0) -> Prediction:
    """Drive one flow and return its prediction; raise what went wrong."""
    [result] = _results([flow], lm, seed, None)
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, Prediction)
    return result


def streamed(
    module: Any, /, *, lm: Any = None, seed: int = 0, **inputs: Any
) -> Generator[tuple[Call, Delta], None, Prediction]:
    """Do what ``run`` does, and yield what is written while it is written, with its call.

    A step of several calls is answered as one batch, of which nothing is told. Closing the
    generator cancels what is under way.
    """
    lm = lm or dspy.settings.lm
    lm = lm and lm_of(lm)
    # Settings go in and out around each step: between them the reader has its own.
    with dspy.context(lm=lm):
        is_flow = hasattr(module, "flow")
        flow = flow_of(module, inputs) if is_flow else plain_flow(module, inputs, alone=True)
        running = _Running(flow)
        waits = _waits(running)
    while waits:
        path = (seed, 0, running.step)
        calls = [_complete(call, lm, (*path, n)) for n, call in enumerate(running.calls or ())]
        if len(calls) == 1 and isinstance(calls[0], Call) and not calls[0].sampled:
            answers: list[Any] = [(yield from told(calls[0]))]
        else:
            with dspy.context(lm=lm):
                answers = _answers(calls, None)
        with dspy.context(lm=lm):
            running.answer(answers)
            waits = _waits(running)
    if isinstance(running.result, Exception):
        raise running.result
    assert isinstance(running.result, Prediction)
    return running.result


@names_options
def run_many(
    module: Any,
    inputs: Sequence[Mapping[str, Any]],
    *,
    lm: Any = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction | PromptflowError]:
    """Run a module on many inputs in lockstep, one engine batch a step; errors are values.

    Of calls that will be continued (``Call.continued``) 8 to 32 are asked at a time, as the cache
    has room for their ends; the next ones in the step in which these are continued.

    What a module without a flow asks of local models goes into the batches too, except from threads
    and event loops of its own: each runs until it asks, by turns in this thread, so none may hold a
    lock while it asks. ``progress(done, known)`` counts calls: those answered, and those asked for
    so far; a module that asks nothing counts as one. Anything raised that is not a PromptflowError
    becomes a ProgramError with that as its cause.
    """
    return run_flows((flow_of(module, one) for one in inputs), lm=lm, seed=seed, progress=progress)


def run_flows(
    flows: Iterable[Flow],
    *,
    lm: Any = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction | PromptflowError]:
    """Run flows of any modules in lockstep, as ``run_many`` runs those of one."""
    return [_as_value(result) for result in _results(flows, lm, seed, progress)]


def flow_of(
    module: Any, inputs: Mapping[str, Any], *, sample: tuple[int, float] | None = None
) -> Flow:
    """Return the flow of a module; of a module without one, a flow that calls it.

    ``sample`` is the number and temperature of one of several samples of such a module, whose
    requests the caller heats: it is another rollout to DSPy's caches and to other models.
    """
    if hasattr(module, "flow"):
        flow: Flow = module.flow(**inputs)
        return flow
    return plain_flow(module, inputs, sample=sample)


def changed(flow: Flow, change: Callable[[Any, int, int], Any], *, quiet: bool = False) -> Flow:
    """Pass a flow through with each call replaced by ``change(call, step, position)``.

    ``step`` counts the flow's lists of calls from 0, ``position`` the calls of a list. Nobody is
    told of samples that a ``quiet`` flow chooses.
    """
    answers: list[Any] | None = None
    error: Exception | None = None
    for step in itertools.count():
        try:
            calls = flow.throw(error) if error else flow.send(answers)  # type: ignore[arg-type]
            while isinstance(calls, NOTES):  # a step that asks nothing: the seeds stay as they are
                if not (quiet and isinstance(calls, Chosen)):
                    yield calls
                calls = flow.send([])
        except StopIteration as stop:
            return stop.value
        error = None
        try:
            answers = yield type(calls)(change(call, step, n) for n, call in enumerate(calls))
        except PromptflowError as caught:
            error = caught


def within(flow: Flow, context: Callable[[], AbstractContextManager[Any]]) -> Flow:
    """Pass a flow through, each of its steps run inside a context of its own.

    Calls that it yields are answered outside; a plain program that it begins stays inside.
    """
    answers: list[Any] | None = None
    error: Exception | None = None
    while True:
        try:
            with context():
                calls = flow.throw(error) if error else flow.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value
        error = None
        try:
            answers = yield calls
        except PromptflowError as caught:
            error = caught


def together(flows: Iterable[Flow]) -> Generator[list[Any], list[Any], list[Any]]:
    """Advance several flows in lockstep inside a flow: ``results = yield from together(flows)``.

    Returns the flows' predictions in order; a flow that ended in a PromptflowError has it there.
    """
    running = [_Running(flow) for flow in flows]
    while waiting := [r for r in running if r.calls is not None]:
        for r in waiting:
            while isinstance(r.calls, NOTES):
                yield r.calls
                r.answer([])
        if asking := [r for r in waiting if r.calls is not None]:
            answers = yield Attempts(call for r in asking for call in r.calls or ())
            _hand_out(asking, answers)
    for r in running:
        if isinstance(r.result, Exception) and not isinstance(r.result, PromptflowError):
            raise r.result
    return [r.result for r in running]


@dataclass(slots=True)
class _Running:
    """A flow in progress: what it waits for, and what it ended in."""

    flow: Flow
    calls: list[Any] | None = None
    result: Any = None
    asked: bool = False
    step: int = 0  # lists of calls that were answered
    usage: Usage = field(default_factory=Usage)
    trace: list[tuple[Any, Mapping[str, Any], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._advance(None)

    def answer(self, answers: list[Any]) -> None:
        """Hand over the answers to the calls it waits for, and run to its next list."""
        calls = [] if self.calls is None else self.calls
        self.asked = True
        self.step += not isinstance(calls, NOTES)
        if isinstance(calls, Taken):
            self.usage += calls.usage
            self.trace += calls.steps
        for call, given in zip(calls, answers, strict=True):
            if isinstance(given, Completion):
                continue  # its program tells, once it has ended
            self.usage += usage_of_answer(given)
            if isinstance(given, Prediction):
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
            if isinstance(error, PromptflowError) and (self.asked or error.usage is None):
                error.usage = self.usage

    def _finished(self, value: Any) -> Any:
        if not isinstance(value, dspy.Prediction):
            shown = type(value).__name__
            return ProgramError(f"a flow returned {shown}; it must return a Prediction(field=...)")
        value = Prediction.of(value)
        if self.asked:
            value._usage, value._trace = self.usage, tuple(self.trace)
        return value


def _hand_out(waiting: Sequence[_Running], answers: Sequence[Any]) -> None:
    start = 0
    for r in waiting:
        end = start + len(r.calls or ())
        r.answer(list(answers[start:end]))
        start = end


def _as_value(result: Any) -> Prediction | PromptflowError:
    if isinstance(result, Prediction | PromptflowError):
        return result
    error: PromptflowError
    if isinstance(result, DSPyError):  # of a plain program
        error = fault_of(result, "the program")
    else:
        error = ProgramError(f"the program raised {type(result).__name__}: {result}")
    error.__cause__ = result
    error.usage = getattr(result, "usage", None)
    return error


def _results(
    flows: Iterable[Flow],
    lm: Any,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[Any]:
    lm = lm or dspy.settings.lm
    lm = lm and lm_of(lm)
    with dspy.context(lm=lm):
        running = _begun(list(flows), progress)
        done, ends = sum(r.calls is None for r in running), _Ends()
        while waiting := [(n, r) for n, r in enumerate(running) if _waits(r)]:
            known = done + sum(len(r.calls or ()) for _, r in waiting)
            waiting = ends.admitted(waiting)
            calls = [
                _complete(call, lm, (seed, number, r.step, position))
                for number, r in waiting
                for position, call in enumerate(r.calls or ())
            ]
            counter = _counter(progress, done, known)
            answers = _answers(calls, counter)
            ends.learn(calls, answers)
            _hand_out([r for _, r in waiting], answers)
            done += len(calls)
    return [r.result for r in running]


LEAST_ENDS, FIRST_ENDS, MOST_ENDS = 8, 16, 32
"""Calls to be continued that are asked in one batch; an engine holds up to 48 ends by default."""
END = 256.0  # tokens that nobody else holds of the end of such a call, before any was seen


@dataclass(slots=True)
class _Ends:
    """Lets so many flows ask what will be continued that the cache holds the ends until then.

    The next ones ask when these go on. Who that is follows from inputs, seeds and answers alone.
    """

    size: float = END
    most: int = FIRST_ENDS  # calls asked at a time

    def admitted(self, waiting: Sequence[tuple[int, _Running]]) -> list[tuple[int, _Running]]:
        """Return the flows that ask now: all but those whose calls' ends have no room yet."""
        admitted, ends = [], 0
        for number, r in waiting:
            count = sum(call.continued for call in r.calls or ())
            if count and ends and ends + count > self.most:
                continue
            ends += count
            admitted.append((number, r))
        return admitted

    def learn(self, calls: Sequence[Any], answers: Sequence[Any]) -> None:
        """Note how many tokens the ends of answered calls take that nothing else holds."""
        for call, given in zip(calls, answers, strict=True):
            owner = call if isinstance(call, Posted) else getattr(call, "lm", None)
            engine = getattr(owner, "engine" if owner is call else "text_engine", None)
            if engine is not None and call.continued:
                usage = usage_of_answer(given)
                fresh = usage.prefilled + usage.generated + usage.forced
                self.size += (fresh - self.size) / 8
                room = int(engine.info.context / 2 / max(1.0, self.size))
                self.most = max(LEAST_ENDS, min(MOST_ENDS, room))


def _waits(r: _Running) -> bool:
    """Say whether a flow waits for answers, after telling of the samples that it chose."""
    while isinstance(r.calls, NOTES):
        if isinstance(r.calls, Chosen):
            r.calls.tell()
        r.answer([])
    return r.calls is not None


def _answers(
    calls: Sequence[Call | Posted | PromptflowError], counter: Callable[[int], None] | None
) -> list[Any]:
    """Return the answers to those that could be asked, and the errors of the others."""
    good = [call for call in calls if not isinstance(call, PromptflowError)]
    given = iter(answer(good, counter))
    return [call if isinstance(call, PromptflowError) else next(given) for call in calls]


def _complete(
    call: Call | Posted, lm: Any, path: tuple[int, ...]
) -> Call | Posted | PromptflowError:
    if isinstance(call, Posted):
        return call
    try:
        return call.complete(lm, *path)
    except PromptflowError as error:
        return error
    except (TypeError, ValueError) as error:  # a value that an option cannot have
        refused = UnsupportedOption(str(error))
        refused.__cause__ = error
        return refused


def _begun(flows: list[Flow], progress: Callable[[int, int], None] | None) -> list[_Running]:
    """Start flows in order; those that end without a call are counted as one."""
    running: list[_Running] = []
    ended = 0
    for flow in flows:
        running.append(_Running(flow))
        if not _waits(running[-1]):
            ended += 1
            if progress is not None:
                progress(ended, len(flows))
    return running


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
