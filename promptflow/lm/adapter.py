"""``SlotAdapter``: plain DSPy modules on local models, through the same layouts as our own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from promptflow import fields, layout
from promptflow.engine.request import Completion, Request
from promptflow.errors import ContextOverflow, names_options
from promptflow.lm.listeners import agenerate, audiences, generate
from promptflow.lm.local import LocalLM, load
from promptflow.lm.record import decoding_of, record_call, seed_of
from promptflow.signatures import label_of


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
        if not isinstance(lm, LocalLM):
            plain: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)
            return plain
        requests = self._requests(lm, lm_kwargs, signature, demos, inputs)
        heard = audiences([(dspy.settings.caller_predict, requests[0])], lm.model)
        completions = generate(lm.text_engine, requests, heard)
        return _values(lm, signature, requests, completions)

    async def acall(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: Any,
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        if not isinstance(lm, LocalLM):
            plain: list[dict[str, Any]] = await super().acall(
                lm, lm_kwargs, signature, demos, inputs
            )
            return plain
        # In a thread: a chat template is rendered in a process of its own, once.
        requests = await asyncio.to_thread(self._requests, lm, lm_kwargs, signature, demos, inputs)
        heard = audiences([(dspy.settings.caller_predict, requests[0])], lm.model)
        completions = await agenerate(lm.text_engine, requests, heard)
        return _values(lm, signature, requests, completions)

    def _requests(
        self,
        lm: LocalLM,
        lm_kwargs: Mapping[str, Any],
        signature: Any,
        demos: Sequence[Any],
        inputs: Mapping[str, Any],
    ) -> list[Request]:
        """Return one request for each of ``n`` samples."""
        config = {**lm.kwargs, **lm_kwargs}
        signature, demos, inputs = _without_history(signature, demos, inputs)
        known = {k: v for k, v in inputs.items() if k in signature.input_fields}
        for name in signature.input_fields:
            known.setdefault(name, None)
        chosen = replace(decoding_of(config), layout=layout.layout_for(lm.text_engine, self.layout))
        parts = layout.render(signature, demos, known, lm.text_engine.scaffold, chosen)
        n = config.get("n") or 1
        seed = seed_of(config.get("seed"), config.get("rollout_id"))
        return [Request(parts, seed if n == 1 else seed_of(seed, k)) for k in range(n)]

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return labelled inputs as our layouts write them: DSPy's agents build on this."""
        lines = [
            f"{label_of(info)} {fields.to_text(inputs[name])}"
            for name, info in signature.input_fields.items()
            if name in inputs
        ]
        return "\n".join(text for text in (prefix, *lines, suffix) if text)


@names_options
def configure(lm: LocalLM | str | Path, *, trust: bool = False) -> LocalLM:
    """Make a model and ``SlotAdapter`` DSPy's defaults, and return the LM.

    ``trust`` lets ./models.toml give a known name to another model: see ``catalog.models``.
    DSPy's disk cache is switched off: it pickles, and it cannot tell engines apart.
    """
    chosen = lm if isinstance(lm, LocalLM) else load(lm, trust=trust)
    dspy.configure_cache(enable_disk_cache=False)
    dspy.configure(lm=chosen, adapter=SlotAdapter())
    return chosen


def _values(
    lm: LocalLM, signature: Any, requests: Sequence[Request], completions: Sequence[Completion]
) -> list[dict[str, Any]]:
    """Return the outputs of each completion; raise DSPy's error for a prompt that is too long."""
    for request, completion in zip(requests, completions, strict=True):
        if isinstance(completion.error, ContextOverflow):
            # ReAct shortens its history on this one.
            raise dspy.ContextWindowExceededError(
                model=lm.model, message=str(completion.error)
            ) from completion.error
        if completion.error is not None:
            raise completion.error
        record_call(lm, request, completion)
    return [layout.read(signature, completion) for completion in completions]


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
