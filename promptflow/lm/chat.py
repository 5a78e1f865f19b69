"""The engine as DSPy's engine protocol wants it: messages in, one text out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from dspy import lm15

from promptflow.engine.interface import TextEngine
from promptflow.engine.model.chat_template import stops_of
from promptflow.engine.request import (
    Completion,
    Constraint,
    Json,
    Part,
    Request,
    Sampling,
    Slot,
    Text,
    TokenLogprob,
)
from promptflow.engine.stream import Delta, Stream
from promptflow.errors import (
    EngineError,
    NoReasoningBlock,
    PromptflowError,
    UnsupportedOption,
)
from promptflow.layout import LEAST, MAX_TOKENS
from promptflow.lm.faults import as_dspys
from promptflow.lm.listeners import Audience, agenerate, generate
from promptflow.lm.options import REFUSED
from promptflow.lm.record import sampling_of, seed_of, written_text
from promptflow.prompt import BLOCK

CHANNEL = "promptflow"
"""The key in ``metadata`` under which ``LocalLM`` passes what DSPy would drop."""
TEXT, THINKING = "text", "thinking"  # the slots of a plain text call


@dataclass(slots=True)
class Filling:
    """Requests with slots that an adapter made: a call fills them in the place of its messages.

    ``heard`` and ``send`` are who listens, by place, and where that goes.
    """

    requests: Sequence[Request] = ()
    heard: Mapping[int, Audience] = field(default_factory=dict)
    send: Any = None
    completions: Sequence[Completion] = ()
    _failed: BaseException | None = None

    @contextlib.contextmanager
    def only_once(self) -> Iterator[None]:
        """Let DSPy retry what nobody heard: it would be said twice."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except Exception as error:
            if self.heard:
                self._failed = error
                vars(error)["retry_after"] = 0.0  # no waiting for a retry that will not be
            raise

    def taken(
        self, requests: Sequence[Request], completions: Sequence[Completion]
    ) -> deque[tuple[Request, Completion]]:
        """Keep the completions and return them beside their requests; raise the first error."""
        for completion in completions:
            if completion.error is not None:
                raise completion.error
        self.completions = completions
        return deque(zip(requests, completions, strict=True))


FILLING: ContextVar[Filling | None] = ContextVar("promptflow_filling", default=None)


class ChatEngine:
    """DSPy's engine protocol over a TextEngine: a request's messages in, one text out.

    DSPy asks ``n`` times with one request object; the first asking decodes all n as one batch.
    """

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset(
        {
            "frequency_penalty",
            "logit_bias",
            "logprobs",
            "max_tokens",
            "presence_penalty",
            "response_format",
            "seed",
            "stop",
            "temperature",
            "top_k",
            "top_p",
        }
    )

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._waiting: OrderedDict[int, tuple[Any, deque[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def __copy__(self) -> ChatEngine:
        """Return itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ChatEngine:
        """Return itself."""
        return self

    def complete(self, request: Any) -> Any:
        """Return the next sample for a request. Raises DSPy's errors."""
        done = self._held(request)
        if done is None:
            filling = FILLING.get() or Filling()
            with filling.only_once(), _dspys_errors(request):
                requests = filling.requests or self._requests(request)
                completions = generate(self._engine, requests, filling.heard, send=filling.send)
                done = filling.taken(requests, completions)
        return self._next(request, done)

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the next sample's text as DSPy's events, while it is written."""
        streams = self._held(request) or self._open(request)
        yield lm15.StreamStartEvent(id=str(uuid.uuid4()), model=request.model)
        filled, opened = streams.popleft()
        with opened as stream:
            for delta in stream:
                yield from _events(request, filled, delta)
        self._hold(request, streams)

    async def acomplete(self, request: Any) -> Any:
        """Do what ``complete`` does without blocking the event loop."""
        done = self._held(request)
        if done is None:
            filling = FILLING.get() or Filling()
            with filling.only_once(), _dspys_errors(request):
                # In a thread: a chat template is rendered in a process of its own, once.
                requests = filling.requests or await asyncio.to_thread(self._requests, request)
                completions = await agenerate(
                    self._engine, requests, filling.heard, send=filling.send
                )
                done = filling.taken(requests, completions)
        return self._next(request, done)

    async def astream(self, request: Any) -> AsyncGenerator[Any]:
        """Do what ``stream`` does without blocking the event loop."""
        held = self._held(request)
        streams = held if held is not None else await asyncio.to_thread(self._open, request)
        yield lm15.StreamStartEvent(id=str(uuid.uuid4()), model=request.model)
        filled, opened = streams.popleft()
        with opened as stream:
            async for delta in stream:
                for event in _events(request, filled, delta):
                    yield event
        self._hold(request, streams)

    def _next(self, request: Any, done: deque[tuple[Request, Completion]]) -> Any:
        filled = done.popleft()
        self._hold(request, done)
        return _response(request, *filled)

    def close(self) -> None:
        """Do nothing: the engine belongs to whoever loaded it."""

    def _held(self, request: Any) -> deque[Any] | None:
        """Take what an earlier asking with the same request has left."""
        with self._lock:
            held = self._waiting.pop(id(request), None)
        return held[1] if held is not None and held[0] is request else None

    def _hold(self, request: Any, left: deque[Any]) -> None:
        """Keep what is left for the next asking."""
        if left:
            with self._lock:
                self._waiting[id(request)] = (request, left)
                while len(self._waiting) > 64:  # abandoned by a call that failed half way
                    self._waiting.popitem(last=False)

    def _open(self, request: Any) -> deque[tuple[Request, Stream]]:
        """Begin all samples of a request; they run beside each other."""
        with _dspys_errors(request):
            return deque((one, self._engine.stream(one)) for one in self._requests(request))

    def _requests(self, request: Any) -> list[Request]:
        _refuse_rest(request)
        metadata = (request.config.extensions or {}).get("metadata") or {}
        own = metadata.get(CHANNEL, {})
        n = own.get("n", 1)
        seed = seed_of(request.config.seed, own.get("rollout_id"))
        parts = self._parts(request, own)
        return [Request(parts, seed if n == 1 else seed_of(seed, k)) for k in range(n)]

    def _parts(self, request: Any, own: Mapping[str, Any]) -> tuple[Part, ...]:
        turns = [("system", _plain(request.system))] if request.system else []
        turns += [turn for message in request.messages for turn in _turns(message)]
        # A prefill: the model goes on writing in that turn.
        begun = turns.pop()[1] if turns[-1][0] == "assistant" else ""
        roles = [role for role, _ in turns]
        thinks = own.get("thinking") is True and roles[-1:] != [BLOCK]
        texts = self._scaffold(roles, thinks=thinks)
        parts: list[Part] = []
        for text, (_, content) in zip(texts, turns, strict=False):
            parts += [Text(text, trusted=True), Text(content)]
        slot = _text_slot(request.config, own)
        if thinks:
            stop = (*stops_of(texts[-1]), *slot.stop)
            thought = replace(slot, name=THINKING, constraint=None, stop=stop, logprobs=None)
            slot = replace(slot, least=min(LEAST, slot.max_tokens))
            parts += [Text(texts[-2], trusted=True), thought]
        parts.append(Text(texts[-1], trusted=True))
        return (*parts, *([Text(begun)] if begun else []), slot)

    def _scaffold(self, roles: Sequence[str], *, thinks: bool) -> tuple[str, ...]:
        """Return the texts around turns; with ``thinks``, those around the block to come too."""
        try:
            return self._engine.scaffold([*roles, BLOCK] if thinks else roles)
        except NoReasoningBlock as error:
            if thinks and BLOCK not in roles:
                raise
            raise EngineError(
                "a message holds reasoning, and the model's chat template shows no reasoning "
                "block that it could stand in: leave out its reasoning_content"
            ) from error


def _turns(message: Any) -> list[tuple[str, str]]:
    """Return a message as turns: its reasoning apart, and each result of a tool by itself."""
    if message.role == "tool":
        return [("tool", _result(part)) for part in message.parts]
    thoughts = [part for part in message.parts if isinstance(part, lm15.ThinkingPart)]
    turn = (message.role, _plain(message.parts[len(thoughts) :]))
    thought = "\n".join(part.text for part in thoughts if part.text)
    return [(BLOCK, thought), turn] if thought else [turn]


def _result(part: Any) -> str:
    if part.is_error:
        raise EngineError(
            f"the result of tool call {part.id!r} is marked as an error, which no chat template "
            "can show: say so in its text, without is_error"
        )
    return _plain(part.content)


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if not isinstance(part, lm15.TextPart | lm15.RefusalPart):
            kind = type(part).__name__
            why = _NOT_TEXT.get(kind, "local models read text alone")
            raise EngineError(f"a message holds a {kind}; {why}")
    return "\n".join(part.text for part in content)


_NOT_TEXT = {
    "ThinkingPart": "reasoning comes before the text that it led to",
    "ToolCallPart": "write the call as text, or use dspy.ReAct",
}


def _text_slot(config: Any, own: Mapping[str, Any]) -> Slot:
    names = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
    given = {name: getattr(config, name) for name in names}
    given["logit_bias"] = (config.extensions or {}).get("logit_bias")
    constraint: Constraint | None = None
    if (form := config.response_format) is not None:
        schema = form.get("schema", {"type": "object"})
        constraint = Json(json.dumps(schema))
    return Slot(
        TEXT,
        constraint,
        max_tokens=config.max_tokens or MAX_TOKENS,
        fits=True,
        stop=() if constraint else config.stop,
        sampling=sampling_of({**given, **own}) or Sampling(),
        logprobs=config.logprobs,
    )


def _refuse_rest(request: Any) -> None:
    """Refuse what a typed request asks for beyond text: all of it would be dropped silently."""
    config = request.config
    asked = {
        "tools": request.tools,
        "tool_choice": config.tool_choice,
        "reasoning_effort": config.reasoning,
        "prompt_cache": config.cache,
        "service_tier": config.service_tier,
        "user": config.user_id,
        "store": config.store,
        "probabilities": config.probabilities,
        **(config.extensions or {}),
    }
    for name in asked.keys() - {"metadata", "logit_bias"}:
        if asked[name]:
            reason = REFUSED.get(name, "it is not known here")
            raise UnsupportedOption(f"a local model cannot honour {name!r}: {reason}")


def _response(request: Any, filled: Request, completion: Completion) -> Any:
    usage = completion.usage
    names = [part.name for part in filled.parts if isinstance(part, Slot)]
    fills = [completion.fills[name] for name in names if name in completion.fills]
    slots = FILLING.get() is not None
    text = written_text(filled, completion) if slots else completion.fills[TEXT].text
    thought = None if slots else completion.fills.get(THINKING)
    thinking = [] if thought is None else [lm15.ThinkingPart(thought.text)]
    logprobs = None
    if request.config.logprobs is not None:
        logprobs = tuple(_token(t) for fill in fills for t in fill.logprobs)
    return lm15.Response(
        id=str(uuid.uuid4()),
        model=request.model,
        message=lm15.Message.assistant([*thinking, lm15.TextPart(text)]),
        finish_reason="length" if any(fill.finish == "length" for fill in fills) else "stop",
        usage=lm15.Usage(
            input_tokens=usage.prompt,
            output_tokens=usage.generated + usage.forced,
            total_tokens=usage.prompt + usage.generated + usage.forced,
            reasoning_tokens=None if thought is None else thought.generated,
            cache_read_tokens=usage.reused,
        ),
        logprobs=logprobs,
        provider_data={
            "seconds": completion.seconds,
            "forced": usage.forced,
            "seed": str(filled.seed),
        },
    )


def _token(t: TokenLogprob) -> Any:
    top = tuple(lm15.TopLogprob(token=token, logprob=p) for token, p in t.top)
    return lm15.TokenLogprob(token=t.token, logprob=t.logprob, token_id=t.token_id, top=top)


def _events(request: Any, filled: Request, delta: Delta) -> Iterator[Any]:
    """Yield DSPy's events for a delta; raise its error for a completion that has one."""
    place = sum(isinstance(part, Slot) for part in filled.parts) - 1  # after reasoning, if any
    if delta.completion is None:
        thinks = delta.slot == THINKING
        yield lm15.StreamDeltaEvent(
            lm15.ThinkingDelta(delta.text) if thinks else lm15.TextDelta(delta.text, place)
        )
        return
    with _dspys_errors(request):
        if delta.completion.error is not None:
            raise delta.completion.error
    response = _response(request, filled, delta.completion)
    if response.logprobs or not response.text:
        # They are counted per token, and text comes in whole characters: they follow it.
        yield lm15.StreamDeltaEvent(lm15.TextDelta("", place, response.logprobs or ()))
    yield lm15.StreamEndEvent(response.finish_reason, response.usage, response.provider_data)


@contextlib.contextmanager
def _dspys_errors(request: Any) -> Iterator[None]:
    """Raise what DSPy knows, and retries where it should, for our errors and for wrong values."""
    try:
        yield
    except PromptflowError as error:
        raise as_dspys(error, request.model) from error
    except ValueError as error:
        raise lm15.InvalidRequestError(str(error)) from error


class AsyncChatEngine:
    """The async twin of ``ChatEngine``: calls wait on the event loop, and all are one batch."""

    supports_response_schema = True

    def __init__(self, chat: ChatEngine) -> None:
        self._chat = chat

    def __copy__(self) -> AsyncChatEngine:
        """Return itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncChatEngine:
        """Return itself."""
        return self

    async def complete(self, request: Any) -> Any:
        """Return the next sample for a request."""
        return await self._chat.acomplete(request)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield the next sample's text as DSPy's events, while it is written."""
        async with contextlib.aclosing(self._chat.astream(request)) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """Do nothing: the engine belongs to whoever loaded it."""
