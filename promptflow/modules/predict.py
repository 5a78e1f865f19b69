"""Predict: one call of a signature, zero-shot without demos and few-shot with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from promptflow.engine.request import Sampling
from promptflow.errors import UnknownField
from promptflow.flow import Call, Flow, Prediction, request_of, run
from promptflow.layout import Decoding
from promptflow.lm import decoding_of, prompt_text, seed_of
from promptflow.signatures import document_of

_VARIED = Sampling(temperature=0.7)  # of several samples where nobody chose


class Predict(dspy.Predict):
    """A ``dspy.Predict`` whose output cannot fail to parse, and which costs one call.

    ``signature`` is a string, the name or path of a document, or a class. What is left out comes
    from the document, then from the LM; ``layout`` is then chat, or completion for a model without
    a chat template. Outputs after ``until`` are not written. ``weigh`` looks at every option of a
    Literal: see ``Prediction.weighed``. Raises SignatureError.

    >>> predict = Predict("question -> answer, sure: bool")
    >>> sorted(predict.signature.output_fields)
    ['answer', 'sure']
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        demos: Sequence[Mapping[str, Any]] = (),
        layout: str | Path | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        until: str | None = None,
        weigh: bool = False,
        **config: Any,
    ) -> None:
        document = document_of(signature)
        super().__init__(document.signature, **config)
        self.demos = [dspy.Example(**demo) for demo in (*document.demos, *demos)]
        self.decoding = Decoding(
            sampling=sampling,
            max_tokens=max_tokens,
            reasoning_tokens=reasoning_tokens,
            weigh=weigh or None,
            until=until,
            layout=str(layout or document.layout) or None,
        )

    def settings(self) -> dict[str, Any]:
        """Return how it decodes as JSON data: the constructor's settings that were chosen."""
        return self.decoding.to_json()

    def call(self, **inputs: Any) -> Call:
        """Return the call for these inputs. Raises UnknownField for a wrong or missing one.

        An output field may be given too; the program then writes it, and the model goes on after.
        DSPy's ``config=``, ``demos=`` and ``signature=`` apply to this call alone.
        """
        config = inputs.pop("config", None)
        demos = inputs.pop("demos", None)
        signature = inputs.pop("signature", None)
        signature = signature and document_of(signature).signature
        call = Call(self, _checked(signature or self.signature, inputs), signature=signature)
        if demos is not None:
            call = replace(call, demos=tuple(demos))
        return _configured(call, config) if config else call

    def flow(self, **inputs: Any) -> Flow:
        """Yield one call, or ``n`` of them where ``config`` says so."""
        n = {**self.config, **(inputs.get("config") or {})}.get("n") or 1
        call = self.call(**inputs)
        if n == 1:
            [prediction] = yield [call]
            return prediction
        if call.chosen.sampling is None:
            call = replace(call, decoding=replace(call.decoding, sampling=_VARIED))
        seeds = [None if call.seed is None else seed_of(call.seed, k) for k in range(n)]
        predictions = yield [replace(call, seed=seed) for seed in seeds]
        return _merged(predictions)

    def forward(self, **inputs: Any) -> Any:
        """Drive the flow with the configured LM."""
        lm = inputs.pop("lm", None)
        return run(self, lm=lm, **inputs)

    async def aforward(self, **inputs: Any) -> Any:
        """Drive the flow in a thread; the context's settings go with it."""
        lm = inputs.pop("lm", None)
        return await dspy.asyncify(run)(self, lm=lm, **inputs)

    def show(self, *, lm: Any = None, **inputs: Any) -> str:
        """Print the exact prompt for these inputs with its tokens counted, and return its text.

        Nothing is generated. Slots appear as ``{name}``.
        """
        call = self.call(**inputs).complete(lm or dspy.settings.lm)
        parts = request_of(call).parts
        text = prompt_text(parts)
        _print(text, call.lm.text_engine.pieces(parts))
        return text


def _print(text: str, tokens: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(text)
    console.print("")
    console.print("|".join(token.replace("\n", "\\n") for token in tokens))
    console.print(f"{len(tokens)} prompt tokens")


def _merged(predictions: Sequence[Prediction]) -> Prediction:
    first = predictions[0]
    merged: Prediction = Prediction.from_completions([dict(p.items()) for p in predictions])
    merged._fills, merged._weighed = first.fills, first.weighed
    return merged


def _configured(call: Call, config: Mapping[str, Any]) -> Call:
    """Apply DSPy's per-call ``config`` to a call."""
    merged = {**call.predictor.config, **config}
    chosen = replace(decoding_of(merged), reasoning_tokens=None)
    call = replace(call, decoding=chosen.over(call.decoding))
    if merged.get("seed") is not None or merged.get("rollout_id") is not None:
        call = replace(call, seed=seed_of(merged.get("seed"), merged.get("rollout_id")))
    return call


def _checked(signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    from dspy.adapters.utils import annotation_allows_none
    from pydantic_core import PydanticUndefined

    inputs = dict(inputs)
    expected = signature.input_fields
    unknown = [name for name in inputs if name not in signature.fields]
    for name, field in expected.items():
        if name in inputs:
            continue
        if field.default is not PydanticUndefined:
            inputs[name] = field.default
        elif annotation_allows_none(field.annotation):
            inputs[name] = None
    missing = [name for name in expected if name not in inputs]
    if unknown or missing:
        faults = [f"has no field {name!r}" for name in unknown]
        faults += [f"needs {name!r}" for name in missing]
        usage = ", ".join(f"{name}=..." for name in expected)
        raise UnknownField(
            f"the signature '{signature.signature}' {' and '.join(faults)}; call it with {usage}"
        )
    return inputs
