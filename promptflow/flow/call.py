"""Calls, what they need to be answered, and the predictions that answer them.

Knows how a call becomes an engine's request; knows nothing of how a prompt is worded (``layout``)
or decoded (``engine``), or of who waits for the answer (``drive``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from promptflow import layout
from promptflow.engine.request import Completion, Fill, Request, Sampling, Slot, TextEngine, Usage
from promptflow.errors import EngineError, ProgramError, PromptflowError
from promptflow.lm import audiences, generate, record_call, sampling_of, seed_of, trace_call


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a predictor. What is ``None`` comes from the predictor, then from its LM.

    ``inputs`` may hold output fields too: they are written into the prompt, not generated. Outputs
    after ``until`` are left out.
    """

    predictor: Any
    inputs: Mapping[str, Any]
    sampling: Sampling | None = None
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: int | None = None
    signature: Any = None
    demos: Sequence[Mapping[str, Any]] | None = None
    until: str | None = None


class Attempts(list[Call]):
    """Calls whose failures are sent back as values in their places, not thrown into the flow."""


class Prediction(dspy.Prediction):
    """A ``dspy.Prediction`` that knows what the model wrote and what it cost."""

    _fills: Mapping[str, Fill] = {}
    _weighed: Mapping[str, Mapping[str, float]] = {}
    _usage: Usage = Usage()
    _trace: tuple[tuple[Any, Mapping[str, Any], Any], ...] = ()

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Return what the model wrote, by output field: text, finish, log-probability."""
        return self._fills

    @property
    def weighed(self) -> Mapping[str, Mapping[str, float]]:
        """Return the probability of each option's text, for each output that was weighed."""
        return self._weighed

    @property
    def usage(self) -> Usage:
        """Return the tokens of every call that led here."""
        return self._usage

    @property
    def trace(self) -> tuple[tuple[Any, Mapping[str, Any], Any], ...]:
        """Return each call that led here as (predictor, inputs, prediction), in order."""
        return self._trace


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
    weigh = getattr(own, "weigh", False)
    decoding = layout.Decoding(sampling=sampling, logprobs=call.logprobs, weigh=weigh)
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
        layout=layout.layout_for(order.lm.text_engine, getattr(own, "layout", None)),
        until=call.until or getattr(own, "until", None),
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
                request = request_of(order)
                batches.setdefault(id(engine), (engine, []))[1].append((place, request))
                continue
        except PromptflowError as error:
            answers[place] = error
        if on_done is not None:
            on_done(place)
    for engine, batch in batches.values():
        model = orders[batch[0][0]].lm.model
        heard = audiences([(orders[place].call.predictor, r) for place, r in batch], model)
        completions = generate(engine, [request for _, request in batch], heard, on_done)
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
    prediction._weighed = {
        part.name: {a.text: math.exp(a.logprob) for a in completion.fills[part.name].alternatives}
        for part in request.parts
        if isinstance(part, Slot) and part.is_weighed
    }
    prediction._usage = completion.usage
    prediction.set_lm_usage(record_call(order.lm, request, completion))
    trace_call(call.predictor, call.inputs, prediction)
    return prediction


def _elsewhere(order: Order) -> Prediction:
    """Ask an LM that is not ours, through DSPy's own adapter for it."""
    call, own = order.call, order.call.predictor
    demos = own.demos if call.demos is None else call.demos
    chosen = call.sampling or getattr(own, "sampling", None)
    config = {} if chosen is None else {"temperature": chosen.temperature}
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
