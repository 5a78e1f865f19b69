"""Text for whoever listens through ``dspy.streamify``, while it is written.

DSPy's own listeners look for its adapters' markers in one text. Slots have names: what is written
into one goes to the listeners of its field as it is, and without listeners all text goes out as
the chunks that DSPy's own models send.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import dspy
from dspy import lm15
from dspy.clients.engines.streaming import ListenerBridge
from dspy.streaming import StreamListener, StreamResponse
from dspy.streaming.messages import sync_send_to_stream

from promptflow.engine.interface import TextEngine
from promptflow.engine.request import Completion, Request, Text
from promptflow.engine.stream import Delta
from promptflow.fields import to_text
from promptflow.lm.waiting import complete
from promptflow.prompt import Prompt
from promptflow.signatures import label_of


class Audience(Protocol):
    """Who hears one request."""

    def messages(self, delta: Delta) -> Iterator[Any]:
        """Yield what to send for a delta."""


def audiences(calls: Sequence[tuple[Any, Request, Prompt]], model: str) -> dict[int, Audience]:
    """Return who hears which of ``calls``, by place: a predictor, its request and that's prompt.

    Of several calls of a predictor the first one is heard: it becomes the prediction.
    """
    if dspy.settings.send_stream is None:
        return {}
    found: dict[int, Audience] = {}
    seen: set[int] = set()
    for place, (predictor, request, prompt) in enumerate(calls):
        if id(predictor) in seen:
            continue
        seen.add(id(predictor))
        if not dspy.settings.stream_listeners:
            found[place] = _Everybody(predictor, request, model)
        elif mine := _listeners(predictor):
            found[place] = _Plain(prompt, _Listeners(mine))
    return found


def _listeners(predictor: Any) -> list[StreamListener]:
    return [
        listener
        for listener in dspy.settings.stream_listeners
        if listener.predict is predictor and (listener.allow_reuse or not listener.stream_end)
    ]


class _Plain:
    """Says values to others without JSON's marks, where a layout writes these."""

    def __init__(self, prompt: Prompt, others: Audience) -> None:
        self._plain, self._others = prompt.heard(), others

    def messages(self, delta: Delta) -> Iterator[Any]:
        """Yield what the others say of the plain text."""
        for plain in self._plain(delta):
            yield from self._others.messages(plain)


class _Listeners:
    """Each hears its own field as ``StreamResponse``s, without the space around its value."""

    def __init__(self, listeners: Sequence[StreamListener]) -> None:
        self._listeners = listeners
        self._field = ""  # that is being written
        self._began = False
        self._held = ""  # space that may be followed by more

    def messages(self, delta: Delta) -> Iterator[Any]:
        """Yield a field's text, and that it has ended once the next one begins."""
        if delta.slot != self._field:
            if self._began:
                yield from self._say("", True)
            self._field, self._began, self._held = delta.slot, False, ""
        text = self._held + delta.text
        if not self._began:
            text = text.lstrip()
        said = text.rstrip()
        self._held = text[len(said) :]
        if said:
            self._began = True
            yield from self._say(said, False)

    def _say(self, text: str, is_last: bool) -> Iterator[StreamResponse]:
        for listener in self._listeners:
            if listener.signature_field_name == self._field:
                # What streamify asks to know whether a listener has heard anything.
                listener.stream_start, listener.stream_end = True, is_last
                yield StreamResponse(listener.predict_name, self._field, text, is_last)


class _Everybody:
    """The whole answer as one text, with what the program writes between slots."""

    def __init__(self, predictor: Any, request: Request, model: str) -> None:
        self._bridge = ListenerBridge(model, id(predictor))
        self._bridge.chunk(lm15.StreamStartEvent())
        self._before: dict[str, str] = {}  # the program's text before each slot to come
        text = ""
        for part in request.parts:
            if isinstance(part, Text):
                text += part.text if self._before else ""
            else:
                self._before[part.name] = text + part.lead
                text = ""

    def messages(self, delta: Delta) -> Iterator[Any]:
        """Yield chunks like those of any other streaming model."""
        text = self._up_to(delta) + delta.text
        if text:
            yield self._bridge.chunk(lm15.StreamDeltaEvent(lm15.TextDelta(text)))
        if delta.completion is not None and delta.completion.error is None:
            cut = any(fill.finish == "length" for fill in delta.completion.fills.values())
            finish = lm15.StreamEndEvent(finish_reason="length" if cut else "stop")
            yield self._bridge.chunk(finish)

    def _up_to(self, delta: Delta) -> str:
        """Return what the program wrote up to a delta, past slots that stayed empty too."""
        names = list(self._before)
        if delta.completion is None:
            names = names[: names.index(delta.slot) + 1] if delta.slot in names else []
        elif delta.completion.error is not None:
            names = []
        return "".join(self._before.pop(name) for name in names)


def tell(predictor: Any, prediction: Any) -> None:
    """Send a finished prediction's outputs to who hears its predictor, each in one piece."""
    send = dspy.settings.send_stream
    if send is None:
        return
    outputs = predictor.signature.output_fields
    values = {name: to_text(prediction[name]) for name in outputs if name in prediction}
    if dspy.settings.stream_listeners:
        heard = _Listeners(_listeners(predictor))
        for name, text in values.items():
            _send(send, heard.messages(Delta(name, text)))
        _send(send, heard.messages(Delta("", "")))  # the last field ends
        return
    bridge = ListenerBridge("", id(predictor))
    bridge.chunk(lm15.StreamStartEvent())
    # The label before the first output is the program's, as when it is heard while it is written.
    labels = ["", *(f"\n{label_of(outputs[name])} " for name in list(values)[1:])]
    text = "".join(label + text for label, text in zip(labels, values.values(), strict=True))
    _send(send, [bridge.chunk(lm15.StreamDeltaEvent(lm15.TextDelta(text)))])
    _send(send, [bridge.chunk(lm15.StreamEndEvent(finish_reason="stop"))])


def _send(send: Any, messages: Iterable[Any]) -> None:
    for message in messages:
        sync_send_to_stream(send, message)


def generate(
    engine: TextEngine,
    requests: Sequence[Request],
    heard: Mapping[int, Audience],
    on_done: Callable[[int], None] | None = None,
    *,
    send: Any = None,
) -> list[Completion]:
    """Do what ``engine.generate`` does, and send what is written to who hears it, by place.

    ``send`` is the stream; without it the one in DSPy's settings.
    """
    if not heard:
        return complete(engine, requests, on_done)
    done: dict[int, Completion] = {}
    send = send or dspy.settings.send_stream
    with contextlib.ExitStack() as whatever_happens:
        streams = {
            place: whatever_happens.enter_context(engine.stream(requests[place])) for place in heard
        }
        rest = {n: engine.submit(r) for n, r in enumerate(requests) if n not in heard}
        for future in rest.values():
            whatever_happens.callback(future.cancel)  # of no effect once it is done
        for place, stream in streams.items():
            for delta in stream:
                for message in heard[place].messages(delta):
                    sync_send_to_stream(send, message)
                done[place] = delta.completion or Completion()
            if on_done is not None:
                on_done(len(done))
        for place, future in rest.items():
            done[place] = future.result()
            if on_done is not None:
                on_done(len(done))
    return [done[place] for place in range(len(requests))]


async def agenerate(
    engine: TextEngine,
    requests: Sequence[Request],
    heard: Mapping[int, Audience],
    *,
    send: Any = None,
) -> list[Completion]:
    """Do the same without blocking the event loop."""
    if not heard:
        return await engine.agenerate(requests)
    send = send or dspy.settings.send_stream
    places = [place for place in range(len(requests)) if place not in heard]
    rest = asyncio.create_task(engine.agenerate([requests[place] for place in places]))
    done: dict[int, Completion] = {}
    try:
        for place, audience in heard.items():
            # In a thread: it waits for room.
            with await asyncio.to_thread(engine.stream, requests[place]) as stream:
                async for delta in stream:
                    for message in audience.messages(delta):
                        await send.send(message)
                    done[place] = delta.completion or Completion()
        done |= dict(zip(places, await rest, strict=True))
    finally:
        rest.cancel()
    return [done[place] for place in range(len(requests))]
