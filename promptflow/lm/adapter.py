"""``SlotAdapter``: plain DSPy modules on local models, through the same layouts as our own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy
from dspy.clients._deprecation import adapter_message_call
from dspy.utils.callback import BaseCallback

from promptflow import layout
from promptflow.engine.request import Part, Request, Slot
from promptflow.errors import ParseError, UnsupportedOption, ValueRefused, names_options
from promptflow.fields import to_text
from promptflow.lm.callbacks import Step
from promptflow.lm.chat import FILLING, Filling
from promptflow.lm.faults import as_dspys, without_frames
from promptflow.lm.listeners import audiences
from promptflow.lm.local import LocalLM, lm_of, load, local_of
from promptflow.lm.options import TOOL_OPTIONS, calls_tools, refuse_unknown
from promptflow.lm.record import AGAIN, Turns, decoding_of, seed_of, written_text
from promptflow.lm.shown import Shown
from promptflow.prompt import Prompt
from promptflow.signatures import label_of

_FOREIGN: ContextVar[bool] = ContextVar("promptflow_foreign", default=False)


@names_options
class SlotAdapter(dspy.ChatAdapter):
    """The DSPy adapter whose answers cannot fail to parse, with one model call each.

    For LMs that are not local it is a ``dspy.ChatAdapter``.
    """

    def __init__(self, layout: str | Path | None = None, callbacks: Any = None) -> None:
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
        if isinstance(lm, _Mirror):
            raise _Seen(signature, demos, inputs)
        if (local := local_of(lm)) is None:
            with _foreign():
                plain: list[dict[str, Any]] = super().__call__(
                    lm, lm_kwargs, signature, demos, inputs
                )
            return plain
        asked = self._asked(local, lm_kwargs, signature, demos, inputs)
        with asked.filling(local) as filling:
            outputs = lm(messages=asked.messages, **asked.options)
        try:
            return self._values(local, asked, filling, outputs)
        except ValueRefused:
            asked = asked.again()
        with asked.filling(local) as filling:
            outputs = lm(messages=asked.messages, **asked.options)
        return self._values(local, asked, filling, outputs)

    async def acall(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: Any,
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        if (local := local_of(lm)) is None:
            with _foreign():
                plain: list[dict[str, Any]] = await super().acall(
                    lm, lm_kwargs, signature, demos, inputs
                )
            return plain
        # In a thread: a chat template is rendered in a process of its own, once.
        asked = await asyncio.to_thread(self._asked, local, lm_kwargs, signature, demos, inputs)
        with asked.filling(local) as filling:
            outputs = await lm.acall(messages=asked.messages, **asked.options)
        try:
            return self._values(local, asked, filling, outputs)
        except ValueRefused:
            asked = asked.again()
        with asked.filling(local) as filling:
            outputs = await lm.acall(messages=asked.messages, **asked.options)
        return self._values(local, asked, filling, outputs)

    def _asked(
        self,
        lm: LocalLM,
        lm_kwargs: Mapping[str, Any],
        signature: Any,
        demos: Sequence[Any],
        inputs: Mapping[str, Any],
    ) -> _Asked:
        """Return what the LM is asked: a request for each of ``n`` samples. Tells callbacks."""
        given = {"signature": signature, "demos": list(demos), "inputs": dict(inputs)}
        with _step("adapter_format", self, given) as outputs:
            options = _options(lm, lm_kwargs, signature)
            config = {**lm.kwargs, **options}
            chosen = replace(
                decoding_of(config), layout=layout.layout_for(lm.text_engine, self.layout)
            )
            shown = Shown.of(signature, inputs, lm_kwargs)
            scaffold = Turns(lm.text_engine.scaffold)
            prompt = layout.render(
                shown.signature, demos, shown.inputs, scaffold, chosen, shown.turns
            )
            outputs.append(messages := scaffold.messages(prompt.parts))
        n = config.get("n") or 1
        seed = seed_of(config.get("seed"), config.get("rollout_id"))
        seeds = [seed] if n == 1 else [seed_of(seed, k) for k in range(n)]
        requests = [Request(prompt.parts, seed) for seed in seeds]
        return _Asked(signature, shown, messages, options, requests, prompt)

    def _values(
        self, lm: LocalLM, asked: _Asked, filling: Filling, outputs: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Return the outputs of each completion. Tells callbacks; raises DSPy's errors."""
        found = []
        for request, completion, output in zip(
            asked.requests, filling.completions, outputs, strict=True
        ):
            text = written_text(request, completion)
            given = {"signature": asked.signature, "completion": text}
            with _step("adapter_parse", self, given) as told:
                try:
                    values = asked.shown.read(asked.prompt.plain(completion))
                except ParseError as error:
                    if asked.is_second:
                        error.args = (f"{error} (it was asked for twice)",)
                    raise as_dspys(error, lm.model, asked.signature, text) from error
                told.append(values)
            if isinstance(output, dict) and output.get("logprobs"):
                values = {**values, "logprobs": output["logprobs"]}
            found.append(values)
        return found

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return labelled inputs as our layouts write them: DSPy's agents build on this.

        For LMs that are not local it is what ``dspy.ChatAdapter`` writes.
        """
        if _FOREIGN.get() or not _is_local():
            plain: str = super().format_user_message_content(
                signature, inputs, prefix, suffix, main_request
            )
            return plain
        lines = [
            f"{label_of(info)} {without_frames(to_text(inputs[name]))}"
            for name, info in signature.input_fields.items()
            if name in inputs
        ]
        return "\n".join(text for text in (prefix, *lines, suffix) if text)


def as_adapted(
    lm: LocalLM, signature: Any, demos: Sequence[Any], inputs: Mapping[str, Any]
) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
    """Return what the adapter in force makes of a call before it is written as a prompt.

    Adapters that wrap another one change signature or inputs on the way: ``dspy.Refine`` gives its
    advice so. Our modules write their prompts themselves, and ask here what was changed.
    """
    adapter = dspy.settings.adapter
    if adapter is None or _writes_prompts(adapter):
        return signature, demos, inputs
    seen: list[_Seen] = []

    class Watcher(BaseCallback):  # of DSPy's own adapters, which ask the LM with messages alone
        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(_Seen(inputs["signature"], inputs["demos"], inputs["inputs"]))

    mirror = _Mirror.__new__(_Mirror)
    mirror.__dict__.update(lm.__dict__)
    try:
        with dspy.context(callbacks=[Watcher()]):
            adapter(mirror, {}, signature, list(demos), dict(inputs))
    except _Seen as error:
        seen = seen or [error]
    return (
        (seen[0].signature, seen[0].demos, seen[0].inputs) if seen else (signature, demos, inputs)
    )


def _writes_prompts(adapter: Any) -> bool:
    """Return whether an adapter is one that writes prompts, and wraps none."""
    kind = type(adapter)
    return kind is SlotAdapter or kind.__module__.startswith("dspy.adapters.")


class _Seen(Exception):
    """What reached the LM."""

    def __init__(self, signature: Any = None, demos: Any = (), inputs: Any = None) -> None:
        self.signature, self.demos, self.inputs = signature, demos, inputs


class _Mirror(LocalLM):
    """An LM that answers nothing: an adapter is asked what it would send."""

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Raise ``_Seen``."""
        raise _Seen


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an LM is asked, as DSPy's records show it and as the engine takes it."""

    signature: Any
    shown: Shown
    messages: list[dict[str, str]]
    options: Mapping[str, Any]
    requests: Sequence[Request]
    prompt: Prompt
    is_second: bool = False

    def again(self) -> _Asked:
        """Return the same from other seeds, and sampled, after a type refused a value.

        A greedy call would write the same again. Nobody hears it while it is written.
        """
        requests = [
            replace(
                request,
                parts=tuple(map(_varied, request.parts)),
                seed=seed_of(request.seed, "again"),
            )
            for request in self.requests
        ]
        return replace(self, requests=requests, is_second=True)

    @contextlib.contextmanager
    def filling(self, lm: LocalLM) -> Iterator[Filling]:
        """Have the LM's next call fill the requests, and say to listeners what it writes."""
        asking = [(dspy.settings.caller_predict, self.requests[0], self.prompt)]
        heard = {} if self.is_second else audiences(asking, lm.model)
        filling = Filling(self.requests, heard, dspy.settings.send_stream)
        token = FILLING.set(filling)
        try:
            with dspy.context(send_stream=None), adapter_message_call(lm, self.messages):
                yield filling
        finally:
            FILLING.reset(token)


def _varied(part: Part) -> Part:
    """Return a slot that is not greedy."""
    if isinstance(part, Slot) and part.sampling.temperature == 0 and part.beam is None:
        return replace(part, sampling=replace(part.sampling, temperature=AGAIN))
    return part


def _options(lm: LocalLM, lm_kwargs: Mapping[str, Any], signature: Any) -> dict[str, Any]:
    """Return a call's options; refuse what the slots cannot honour."""
    taken = TOOL_OPTIONS if calls_tools(signature) else ()
    refuse_unknown({**lm.kwargs, **lm_kwargs}, lm.model, beside=taken, typed=True)
    given = {name: value for name, value in lm_kwargs.items() if name not in taken}
    return {**given, "cache": False}  # a text of DSPy's cache has no slots


@contextlib.contextmanager
def _step(kind: str, adapter: Any, inputs: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Tell callbacks of a step; what is appended to the list is what it gave."""
    step = Step(kind, adapter, inputs)
    outputs: list[Any] = []
    try:
        yield outputs
    except BaseException as error:
        step.end(exception=error)
        raise
    step.end(*outputs)


@contextlib.contextmanager
def _foreign() -> Iterator[None]:
    token = _FOREIGN.set(True)
    try:
        yield
    finally:
        _FOREIGN.reset(token)


def _is_local() -> bool:
    """Return whether the LM of the module that is running is local, or else the configured one."""
    for module in reversed(dspy.settings.caller_modules or []):
        for predictor in module.predictors():
            if predictor.lm is not None:
                return local_of(predictor.lm) is not None
    return local_of(dspy.settings.lm) is not None


def configure(lm: dspy.BaseLM | str | Path, *, trust: bool = False, **settings: Any) -> dspy.BaseLM:
    """Make a model DSPy's default, and return its LM; ``settings`` are the LM's: see ``load``.

    For a local one ``SlotAdapter`` becomes the default too, and DSPy's disk cache is switched off:
    it pickles, and it cannot tell engines apart. ``trust`` lets ./models.toml give a known name to
    another model: see ``catalog.models``.
    """
    named = isinstance(lm, str | Path)
    chosen = load(lm, trust=trust, **settings) if named else lm_of(lm)
    if settings and not named:
        raise UnsupportedOption(f"configure: give {', '.join(settings)} to the LM itself")
    if not isinstance(chosen, LocalLM):
        dspy.configure(lm=chosen)
        return chosen
    dspy.configure_cache(enable_disk_cache=False)
    dspy.configure(lm=chosen, adapter=SlotAdapter())
    return chosen
