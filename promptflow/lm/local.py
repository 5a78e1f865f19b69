"""``LocalLM``: an engine in this process as a ``dspy.LM``, loaded once and shared by all copies."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.base_lm import LM_CLASS_STATE_KEY
from dspy.primitives.facade import SandboxLM

from promptflow import catalog
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.interface import TextEngine
from promptflow.engine.options import DEFAULTS
from promptflow.errors import ProgramError, UnsupportedOption
from promptflow.lm.chat import CHANNEL, AsyncChatEngine, ChatEngine
from promptflow.lm.options import refuse_unknown
from promptflow.lm.remote import check_options, provider_of


class LocalLM(dspy.LM):
    """A DSPy LM on an engine in this process; greedy unless ``temperature`` says otherwise.

    A sampled call is a function of its prompt, ``seed`` and ``rollout_id``: the same three give the
    same text. ``thinking`` is what ``layout.Decoding`` takes where a predictor did not choose; a
    plain call with True writes in the model's reasoning block first, ``reasoning_content``.
    ``source`` is the model that ``load`` was given; without one the LM cannot be saved.
    """

    def __init__(self, engine: TextEngine, *, source: str = "", **kwargs: Any) -> None:
        chat = ChatEngine(engine)
        self.text_engine = engine
        self.source = source
        self._restored: dict[str, LocalLM] = {}  # copies by their settings, for load_state
        kwargs.setdefault("cache", False)
        model = f"promptflow/{engine.info.identity}"
        refuse_unknown(kwargs, model, beside=_SETTINGS)
        super().__init__(
            model,
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
        refuse_unknown(given, self.model)
        own = {name: given[name] for name in _OWN_OPTIONS if given.get(name) is not None}
        hidden: dict[str, Any] = {name: None for name in _REFUSED if name in given}
        if bias := given.get("logit_bias"):  # JSON has no other keys
            hidden["logit_bias"] = {str(token): value for token, value in bias.items()}
        if not own:
            return {**kwargs, **hidden}
        return {**kwargs, **hidden, "metadata": {**(given.get("metadata") or {}), CHANNEL: own}}

    def update_history(self, entry: dict[str, Any]) -> None:
        """Leave a call in the histories, with all the options that it had."""
        asked = {**self.kwargs, **entry["kwargs"]}
        metadata = dict(asked.pop("metadata", None) or {})
        asked |= metadata.pop(CHANNEL, {})
        asked |= {"metadata": metadata} if metadata else {}
        options = {name: value for name, value in asked.items() if value is not None}
        super().update_history({**entry, "kwargs": options})

    def __copy__(self) -> LocalLM:
        """Return another with the same engine: what ``copy(**settings)`` begins with."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> Any:
        """Cross to another process by source and settings: the model is loaded there by name.

        Callbacks and history stay here. Raises TypeError for an LM that ``load`` did not make.
        """
        return _crossed, (type(self), self.dump_state())

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalLM:
        """Return itself: copies of a program share the model."""
        return self

    def dump_state(self) -> dict[str, Any]:
        """Return what ``load_state`` needs: the model's name or path, options and settings."""
        if not self.source:
            raise TypeError("this LM was made around an engine; save the program without it")
        options = getattr(self.text_engine, "options", DEFAULTS)
        return {
            LM_CLASS_STATE_KEY: f"{type(self).__module__}.{type(self).__qualname__}",
            "source": self.source,
            "options": asdict(options),
            "identity": self.text_engine.info.identity,
            "kwargs": {k: v for k, v in self.kwargs.items() if v is not None},
            "cache": self.cache,
            "num_retries": self.num_retries,
        }

    @classmethod
    def load_state(
        cls, state: Mapping[str, Any], *, allow_custom_lm_class: bool = False
    ) -> LocalLM:
        """Return the LM that ``dump_state`` described: one engine a model, one LM for equal states.

        DSPy loads a program's LM once for each predictor, and ``get_lm`` wants them to be the same.
        """
        if catalog.scheme_of(source := state["source"]):
            catalog.locate(source)  # a state may be a stranger's: it downloads nothing
        loaded: LocalLM = load(source, options=EngineOptions(**state["options"]))
        given = {**state["kwargs"], **{name: state[name] for name in _KEPT if name in state}}
        settings = json.dumps(given, sort_keys=True)
        with _loading:
            if settings not in loaded._restored:
                loaded._restored[settings] = loaded.copy(**given)
            return loaded._restored[settings]


def _crossed(kind: type[LocalLM], state: Mapping[str, Any]) -> LocalLM:
    return kind.load_state(state)


_KEPT = ("cache", "num_retries")  # attributes of an LM, beside its options
_SETTINGS = frozenset(inspect.signature(dspy.LM.__init__).parameters)
_REFUSED = ("min_p", "repetition_penalty", "thinking", "typical_p")
_OWN_OPTIONS = ("n", "rollout_id", *_REFUSED)

_loaded: dict[tuple[str, EngineOptions, bool], LocalLM] = {}
_remote: dict[str, dspy.LM] = {}
_loading = threading.Lock()


def load(
    model: str | Path,
    *,
    options: EngineOptions | Mapping[str, Any] = DEFAULTS,
    engine: TextEngine | None = None,
    trust: bool = False,
    **settings: Any,
) -> dspy.LM:
    """Return the LM of a local model, or the ``dspy.LM`` of a provider's.

    A local one is named as ``catalog.obtain`` takes it: of the catalogue, a path, ``hf:org/repo``.
    ``openai/gpt-4o-mini`` and its like are a provider's where no file has that name. Equal
    arguments share one engine. ``settings`` are the LM's own options: ``temperature``,
    ``api_base``, ... ``engine`` takes the place of loading. ``trust`` as for ``Engine``. Raises
    ModelNotFound, ModelInvalid, UnknownOption and UnsupportedOption.
    """
    check_options("load", settings, ("options", "engine", "trust", *_SETTINGS))
    chosen = options if isinstance(options, EngineOptions) else EngineOptions(**options)
    if engine is None and provider_of(model):
        if chosen != DEFAULTS:
            raise UnsupportedOption(f"{model}: a remote model has no engine; leave out options=")
        return dspy.LM(str(model), **settings)
    refuse_unknown(settings, str(model), beside=_SETTINGS)
    if engine is not None:
        return LocalLM(engine, source=str(model), **settings)
    held = _held(model, chosen, trust)
    return held.copy(**settings) if settings else held


def is_local(model: Any) -> bool:
    """Say whether an LM, or the one of that name, runs on an engine of ours."""
    return model is not None and hasattr(lm_of(model), "text_engine")


def local_of(lm: Any) -> LocalLM | None:
    """Return the local LM that an LM is, or that code in DSPy's sandboxes (Flex, RLM) calls."""
    if isinstance(lm, SandboxLM):
        lm = lm._lm
    return lm if isinstance(lm, LocalLM) else None


def answers_by_engine(lm: Any) -> bool:
    """Say whether calls may go to the engine of an LM: what a subclass does in them is its own."""
    own = vars(type(lm)).keys() | vars(lm).keys()
    return type(lm) is LocalLM or not own & {"__call__", "forward"}


def lm_of(model: Any) -> Any:
    """Return the LM that ``model`` is or names. Raises ProgramError where it is neither."""
    if isinstance(model, str | Path):
        if not provider_of(model):
            return load(model)
        with _loading:
            if str(model) not in _remote:
                _remote[str(model)] = load(model)
            return _remote[str(model)]
    if isinstance(model, dspy.BaseLM):
        return model
    if model is None:
        raise ProgramError("no model is configured: call pf.configure('NAME') or pass lm=")
    raise ProgramError(
        f"a {type(model).__name__} is no model: give a name, a path, or a dspy.LM such as "
        "pf.load('NAME')"
    )


def _held(model: str | Path, options: EngineOptions, trust: bool) -> LocalLM:
    path = Path(model).expanduser()
    template = options.template().get("given_template")  # its file may have been edited since
    asked = options if template is None else replace(options, chat_template=template)
    key = (str(path.resolve()) if path.exists() else str(model), asked, trust)
    with _loading:
        held = _loaded.get(key)
        if held is None or getattr(held.text_engine, "_closed", False):
            _loaded[key] = held = LocalLM(Engine(model, options, trust=trust), source=str(model))
        return held
