"""The engine as DSPy's engine protocol wants it: messages in, one text out."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from dspy import lm15

from promptflow.engine.request import (
    Completion,
    Constraint,
    Json,
    Part,
    Request,
    Slot,
    Text,
    TextEngine,
)
from promptflow.errors import ContextOverflow, EngineError, EngineLost, PromptflowError
from promptflow.lm.record import sampling_of, seed_of

CHANNEL = "promptflow"
"""The key in ``metadata`` under which ``LocalLM`` passes what DSPy would drop."""
TEXT = "text"  # the one slot of a plain text call
TEXT_TOKENS = 512


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
        self._waiting: OrderedDict[int, tuple[Any, list[Completion]]] = OrderedDict()
        self._lock = threading.Lock()

    def __copy__(self) -> ChatEngine:
        """Return itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ChatEngine:
        """Return itself."""
        return self

    def complete(self, request: Any) -> Any:
        """Return the next sample for a request. Raises DSPy's errors."""
        with self._lock:
            held = self._waiting.pop(id(request), None)
        if held is None or held[0] is not request:
            held = (request, self._decode(request))
        completion = held[1].pop(0)
        if held[1]:
            with self._lock:
                self._waiting[id(request)] = held
                while len(self._waiting) > 64:  # abandoned by a call that failed half way
                    self._waiting.popitem(last=False)
        return _response(request, completion)

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield a finished response as events."""
        from dspy._vendor.lm15.result import response_to_events

        yield from response_to_events(self.complete(request))

    def close(self) -> None:
        """Do nothing: the engine belongs to whoever loaded it."""

    def _decode(self, request: Any) -> list[Completion]:
        metadata = (request.config.extensions or {}).get("metadata") or {}
        own = metadata.get(CHANNEL, {})
        n = own.get("n", 1)
        seed = seed_of(request.config.seed, own.get("rollout_id"))
        try:
            parts = self._parts(request, own)
            seeds = [seed if n == 1 else seed_of(seed, k) for k in range(n)]
            completions = self._engine.generate([Request(parts, s) for s in seeds])
        except PromptflowError as error:
            raise _dspy_error(error) from error
        except ValueError as error:
            raise lm15.InvalidRequestError(str(error)) from error
        for completion in completions:
            if completion.error is not None:
                raise _dspy_error(completion.error) from completion.error
        return completions

    def _parts(self, request: Any, own: Mapping[str, Any]) -> tuple[Part, ...]:
        turns = [("system", request.system)] if request.system else []
        turns += [(message.role, message.parts) for message in request.messages]
        roles = [_ROLES.get(role, role) for role, _ in turns]
        open_ = roles[-1] == "assistant"  # a prefill: the model goes on writing in that turn
        texts = self._engine.scaffold(roles[:-1] if open_ else roles)
        parts: list[Part] = []
        for text, (_, content) in zip(texts, turns, strict=False):
            parts += [Text(text, trusted=True), Text(_plain(content))]
        if not open_:
            parts.append(Text(texts[-1], trusted=True))
        return (*parts, _text_slot(request.config, own))


_ROLES = {"developer": "system", "tool": "user"}


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if not hasattr(part, "text"):
            kind = type(part).__name__
            raise EngineError(f"a message holds a {kind}; local models read text alone")
        texts.append(part.text)
    return "\n".join(texts)


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
        max_tokens=config.max_tokens or TEXT_TOKENS,
        stop=() if constraint else config.stop,
        sampling=sampling_of({**given, **own}),
        logprobs=config.logprobs,
    )


def _response(request: Any, completion: Completion) -> Any:
    fill, usage = completion.fills[TEXT], completion.usage
    logprobs = None
    if request.config.logprobs is not None:
        logprobs = tuple(
            lm15.TokenLogprob(
                token=t.token,
                logprob=t.logprob,
                token_id=t.token_id,
                top=tuple(lm15.TopLogprob(token=token, logprob=p) for token, p in t.top),
            )
            for t in fill.logprobs
        )
    return lm15.Response(
        id=str(uuid.uuid4()),
        model=request.model,
        message=lm15.Message.assistant(fill.text),
        finish_reason="length" if fill.finish == "length" else "stop",
        usage=lm15.Usage(
            input_tokens=usage.prompt,
            output_tokens=usage.generated + usage.forced,
            cache_read_tokens=usage.reused,
        ),
        logprobs=logprobs,
        provider_data={"seconds": completion.seconds, "forced": usage.forced},
    )


def _dspy_error(error: PromptflowError) -> Exception:
    """Return DSPy's error for ours: it retries the lost engine, and nothing else."""
    made: Exception
    if isinstance(error, ContextOverflow):
        made = lm15.ContextLengthError(str(error))
    elif isinstance(error, EngineLost):
        made = lm15.ServerError(str(error))
    else:
        made = lm15.InvalidRequestError(f"{type(error).__name__}: {error}")
    return made


class AsyncChatEngine:
    """The async twin of ``ChatEngine``: each call waits in a thread."""

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
        return await asyncio.to_thread(self._chat.complete, request)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield a finished response as events."""
        from dspy._vendor.lm15.result import response_to_events

        for event in response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Do nothing: the engine belongs to whoever loaded it."""
