"""Local models as DSPy language models: the only file that knows DSPy's LM contract.

``LocalLM`` carries an engine; DSPy reaches it as text through ``ChatEngine``, and promptflow's flows
and ``SlotAdapter`` reach it as requests with slots. ``record_call`` and ``trace_call`` leave behind
what DSPy's own calls leave: usage, history, trace.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.base_lm import LM_CLASS_STATE_KEY, record_history

from promptflow import layout
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.request import (
    Completion,
    Constraint,
    Fill,
    Json,
    Part,
    Request,
    Sampling,
    Slot,
    Text,
    TextEngine,
    Usage,
)
from promptflow.errors import ContextOverflow, EngineError, EngineLost, PromptflowError

TEXT = "text"  # the one slot of a plain text call
TEXT_TOKENS = 512


class LocalLM(dspy.LM):  # type: ignore[misc]
    """A DSPy LM on an engine in this process; greedy unless ``temperature`` says otherwise.

    A sampled call is a function of its prompt, ``seed`` and ``rollout_id``: the same three give the
    same text. ``source`` is the model that ``load`` was given; without one the LM cannot be saved.
    """

    def __init__(self, engine: TextEngine, *, source: str = "", **kwargs: Any) -> None:
        chat = ChatEngine(engine)
        self.text_engine = engine
        self.source = source
        kwargs.setdefault("cache", False)
        super().__init__(
            f"promptflow/{engine.info.identity}",
            engine=chat,
            async_engine=AsyncChatEngine(chat),
            **kwargs,
        )

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model as DSPy does; unknown options raise."""
        return super().__call__(prompt, messages=messages, **self._options(prompt, kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model from async code."""
        options = self._options(prompt, kwargs)
        return await super().acall(prompt, messages=messages, **options)

    def _options(self, prompt: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Move what DSPy drops or refuses into ``metadata``, which it passes on."""
        if isinstance(prompt, lm15.Request):
            return dict(kwargs)
        given = {**self.kwargs, **kwargs}
        own = {name: given[name] for name in _OWN_OPTIONS if given.get(name) is not None}
        hidden = {name: None for name in _REFUSED if name in given}
        if not own:
            return {**kwargs, **hidden}
        return {**kwargs, **hidden, "metadata": {**(given.get("metadata") or {}), _CHANNEL: own}}

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalLM:
        """Return itself: copies of a program share the model."""
        return self

    def dump_state(self) -> dict[str, Any]:
        """Return what ``load_state`` needs: the model's name or path, options and settings."""
        if not self.source:
            raise TypeError("this LM was made around an engine; save the program without it")
        options = getattr(self.text_engine, "options", EngineOptions())
        return {
            LM_CLASS_STATE_KEY: f"{type(self).__module__}.{type(self).__qualname__}",
            "source": self.source,
            "options": asdict(options),
            "identity": self.text_engine.info.identity,
            "kwargs": {k: v for k, v in self.kwargs.items() if v is not None},
        }

    @classmethod
    def load_state(
        cls, state: Mapping[str, Any], *, allow_custom_lm_class: bool = False
    ) -> LocalLM:
        """Return the LM that ``dump_state`` described; one engine serves all that are equal."""
        loaded = load(state["source"], options=EngineOptions(**state["options"]))
        copied: LocalLM = loaded.copy(**state["kwargs"])
        return copied


_CHANNEL = "promptflow"
_REFUSED = ("min_p", "repetition_penalty")
_OWN_OPTIONS = ("n", "rollout_id", *_REFUSED)

_loaded: dict[tuple[str, EngineOptions], LocalLM] = {}
_loading = threading.Lock()


def load(
    model: str | Path, *, options: EngineOptions = EngineOptions(), engine: TextEngine | None = None
) -> LocalLM:
    """Return the LM of a catalogue name or of a GGUF file; equal arguments share one engine.

    ``engine`` takes the place of loading. Raises ModelNotFound and ModelInvalid.
    """
    if engine is not None:
        return LocalLM(engine, source=str(model))
    path = Path(model).expanduser()
    key = (str(path.resolve()) if path.exists() else str(model), options)
    with _loading:
        held = _loaded.get(key)
        if held is None or getattr(held.text_engine, "closed", False):
            _loaded[key] = held = LocalLM(Engine(model, options), source=str(model))
        return held


def configure(lm: LocalLM | str | Path) -> LocalLM:
    """Make a model and ``SlotAdapter`` DSPy's defaults, and return the LM.

    DSPy's disk cache is switched off: it pickles, and it cannot tell engines apart.
    """
    chosen = lm if isinstance(lm, LocalLM) else load(lm)
    dspy.configure_cache(enable_disk_cache=False)
    dspy.configure(lm=chosen, adapter=SlotAdapter())
    return chosen


class SlotAdapter(dspy.Adapter):  # type: ignore[misc]
    """The DSPy adapter whose answers cannot fail to parse, with one model call each.

    Falls back to ``dspy.ChatAdapter`` for LMs that are not local.
    """

    def __init__(self, layout: str | Path = layout.DEFAULT, callbacks: Any = None) -> None:
        super().__init__(callbacks=callbacks)
        self.layout = layout

    def __call__(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: Any,
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Fill the outputs of a signature, ``n`` times where ``lm_kwargs`` says so."""
        if not isinstance(lm, LocalLM):
            plain: list[dict[str, Any]] = dspy.ChatAdapter()(lm, lm_kwargs, signature, demos, inputs)
            return plain
        config = {**lm.kwargs, **lm_kwargs}
        signature, demos, inputs = _without_history(signature, demos, inputs)
        known = {k: v for k, v in inputs.items() if k in signature.input_fields}
        for name in signature.input_fields:
            known.setdefault(name, None)
        parts = layout.render(
            signature,
            demos,
            known,
            lm.text_engine.scaffold,
            layout=self.layout,
            decoding=decoding_of(config),
        )
        return [layout.read(signature, done) for done in _samples(lm, parts, config)]

    async def acall(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: Any,
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Do the same in a thread; the context's settings go with it."""
        if not isinstance(lm, LocalLM):
            plain: list[dict[str, Any]] = await dspy.ChatAdapter().acall(
                lm, lm_kwargs, signature, demos, inputs
            )
            return plain
        return await asyncio.to_thread(self, lm, lm_kwargs, signature, demos, inputs)


def _samples(
    lm: LocalLM, parts: tuple[Part, ...], config: Mapping[str, Any]
) -> list[Completion]:
    n = config.get("n") or 1
    seed = seed_of(config.get("seed"), config.get("rollout_id"))
    requests = [Request(parts, seed if n == 1 else seed_of(seed, k)) for k in range(n)]
    completions = lm.text_engine.generate(requests)
    for request, completion in zip(requests, completions, strict=True):
        if isinstance(completion.error, ContextOverflow):
            # ReAct shortens its history on this one.
            raise dspy.ContextWindowExceededError(
                model=lm.model, message=str(completion.error)
            ) from completion.error
        if completion.error is not None:
            raise completion.error
        record_call(lm, request, completion)
    return completions


def _without_history(
    signature: Any, demos: Sequence[Any], inputs: Mapping[str, Any]
) -> tuple[Any, list[Any], dict[str, Any]]:
    """Turn a ``dspy.History`` input into demos: the turns before this one."""
    for name, info in signature.input_fields.items():
        if info.annotation is dspy.History:
            past = inputs.get(name)
            rest = {key: value for key, value in inputs.items() if key != name}
            turns = list(past.messages) if past is not None else []
            return signature.delete(name), [*demos, *turns], rest
    return signature, list(demos), dict(inputs)


def sampling_of(config: Mapping[str, Any]) -> Sampling:
    """Return the sampling that DSPy's keyword arguments describe; greedy where they are silent."""
    names = Sampling.__dataclass_fields__
    given = {name: config[name] for name in names if config.get(name) is not None}
    if (bias := given.get("logit_bias")) is not None:
        given["logit_bias"] = tuple((int(token), float(value)) for token, value in bias.items())
    return Sampling(**given)


def decoding_of(config: Mapping[str, Any]) -> layout.Decoding:
    """Return the decoding that DSPy's keyword arguments describe."""
    decoding = layout.Decoding(sampling=sampling_of(config))
    if max_tokens := config.get("max_tokens"):
        decoding = replace(decoding, max_tokens=int(max_tokens), reasoning_tokens=int(max_tokens))
    return decoding


def seed_of(*path: int | str | None) -> int:
    """Return a 63-bit seed that depends on every step of a path, and on nothing else."""
    digest = hashlib.sha256(repr(path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def record_call(lm: Any, request: Request, completion: Completion) -> dict[str, Any]:
    """Leave a call in DSPy's usage tracker and histories; return its usage by model."""
    settings = dspy.settings
    usage = completion.usage
    written = usage.generated + usage.forced
    entry = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": written,
        "total_tokens": usage.prompt + written,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
    }
    if settings.usage_tracker:
        settings.usage_tracker.add_usage(lm.model, entry)
    if not settings.disable_history:
        first = next(i for i, part in enumerate(request.parts) if isinstance(part, Slot))
        record_history(
            lm,
            {
                "prompt": prompt_text(request.parts),
                "messages": [{"role": "user", "content": prompt_text(request.parts)}],
                "kwargs": {"seed": request.seed},
                "response": completion,
                "outputs": [prompt_text(request.parts[first:], completion.fills)],
                "usage": entry,
                "cost": None,
                "timestamp": datetime.datetime.now().isoformat(),
                "uuid": str(uuid.uuid4()),
                "model": lm.model,
                "response_model": lm.model,
                "model_type": "chat",
            },
        )
    return {lm.model: entry}


def prompt_text(parts: Sequence[Part], fills: Mapping[str, Fill] | None = None) -> str:
    """Return the text of parts, slots as ``{name}`` or as what was filled in."""
    pieces = []
    for part in parts:
        if isinstance(part, Text):
            pieces.append(part.text)
        elif fills is not None and part.name in fills:
            pieces.append(part.lead + fills[part.name].text)
        else:
            pieces.append(f"{part.lead}{{{part.name}}}")
    return "".join(pieces)


def trace_call(predictor: Any, inputs: Mapping[str, Any], prediction: Any) -> None:
    """Append a call to ``dspy.settings.trace`` as ``dspy.Predict`` does."""
    trace = dspy.settings.trace
    if trace is None or dspy.settings.max_trace_size <= 0:
        return
    if len(trace) >= dspy.settings.max_trace_size:
        trace.pop(0)
    trace.append((predictor, dict(inputs), prediction))


class ChatEngine:
    """DSPy's engine protocol over a TextEngine: a request's messages in, one text out.

    DSPy asks ``n`` times with one request object; the first asking decodes all n as one batch.
    """

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset(
        "response_format seed stop temperature top_p top_k max_tokens logprobs "
        "frequency_penalty presence_penalty logit_bias".split()
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
        own = metadata.get(_CHANNEL, {})
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
    if isinstance(error, ContextOverflow):
        return lm15.ContextLengthError(str(error))
    if isinstance(error, EngineLost):
        return lm15.ServerError(str(error))
    return lm15.InvalidRequestError(f"{type(error).__name__}: {error}")


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
