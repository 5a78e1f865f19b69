"""Predict: one call of a signature, zero-shot without demos and few-shot with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.predict.predict import (
    _get_type_name,
    _is_value_compatible_with_type,
    logger,
)

from promptflow.engine.request import Beam, Sampling
from promptflow.errors import ProgramError, UnknownField, UnsupportedOption, nearest
from promptflow.flow import Call, Flow, Prediction, answered
from promptflow.layout import Decoding
from promptflow.lm import seed_of
from promptflow.lm.options import KNOWN
from promptflow.lm.remote import check_options, seeded_option
from promptflow.modules.exemplars import Chooser, demos_of
from promptflow.modules.settings import code_name
from promptflow.modules.show import said, shown
from promptflow.signatures import document_of

EQUAL, VARIED = 0.15, 0.7
"""Up to which temperature several samples are all but equal, as in DSPy, and what they get then."""

OWN = (
    "beam",
    "callbacks",
    "demos",
    "embedder",
    "k",
    "label",
    "layout",
    "pool",
    "reasoning_tokens",
    "sampling",
    "thinking",
    "until",
    "weigh",
)


class Predict(dspy.Predict):
    """A ``dspy.Predict`` whose output cannot fail to parse, and which costs one call.

    ``signature`` is a string, the name or path of a document, or a class. What is left out comes
    from the document, then from the LM; ``layout`` is then chat, or completion for a model without
    a chat template. ``demos`` may be a function of the inputs: ``nearest`` is
    ``Nearest(pool, k, embedder, label)``, ``balanced`` is ``Balanced(pool, k, label)``. Outputs
    after ``until`` are not written. ``beam`` searches in the place of ``sampling``. ``weigh``
    looks at every option of a Literal: see ``Prediction.weighed``. ``thinking`` chooses whether
    reasoning stands in the block that a thinking model has for it: see ``layout.Decoding``. Raises
    SignatureError.

    >>> predict = Predict("question -> answer, sure: bool")
    >>> sorted(predict.signature.output_fields)
    ['answer', 'sure']
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        demos: Sequence[Mapping[str, Any]] | Chooser | Literal["nearest", "balanced"] = (),
        layout: str | Path | None = None,
        sampling: Sampling | None = None,
        beam: Beam | None = None,
        max_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        until: str | None = None,
        weigh: bool = False,
        thinking: bool | Literal["auto"] | Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        check_options(type(self).__name__, config, OWN)
        document = document_of(signature)
        if isinstance(thinking, Mapping):  # an option of a remote provider's
            config["thinking"], thinking = thinking, None
        chosen = demos_of(document, demos, config)
        super().__init__(document.signature, **config)
        self.chooser = chosen if callable(chosen) else None
        self.demos = [] if callable(chosen) else [dspy.Example(**demo) for demo in chosen]
        self.decoding = Decoding(
            sampling=sampling,
            beam=beam,
            max_tokens=max_tokens,
            reasoning_tokens=reasoning_tokens,
            weigh=weigh or None,
            until=until,
            layout=str(layout or document.layout) or None,
            thinking=thinking,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a part of ``decoding`` as an attribute of its own, which nobody would read."""
        if name in Decoding.__dataclass_fields__:
            raise ProgramError(
                f"{name} is a part of decoding: write predict.decoding = "
                f"dataclasses.replace(predict.decoding, {name}=...)"
            )
        if name in KNOWN - {"metadata"}:  # which DSPy sets on loading
            raise ProgramError(f"{name} is an option: write predict.update_config({name}=...)")
        super().__setattr__(name, value)

    def settings(self) -> dict[str, Any]:
        """Return how it decodes as JSON data, and what chooses its demos by its name."""
        chooser = {} if self.chooser is None else {"chooser": code_name(self.chooser)}
        return {**self.decoding.to_json(), **chooser}

    def call(self, /, **inputs: Any) -> Call:
        """Return the call for these inputs. Raises UnknownField for a wrong or missing one.

        An output field may be given too; the program then writes it, and the model goes on after.
        DSPy's ``config=``, ``demos=``, ``signature=`` and ``lm=`` apply to this call alone, unless
        the signature has an input of that name. Raises UnknownOption for an unknown option.
        """
        own = {
            name: inputs.pop(name)
            for name in ("config", "demos", "signature", "lm")
            if name in inputs and name not in self.signature.input_fields
        }
        config = dict(own.get("config") or {})
        check_options(f"the config of {type(self).__name__}", config)
        seed = None
        if config.get("seed") is not None or config.get("rollout_id") is not None:
            asked = {**self.config, **config}
            seed = seed_of(asked.get("seed"), asked.get("rollout_id"))
        signature = own.get("signature")
        if signature is not None:
            signature = document_of(signature).signature
        inputs = _checked(signature or self.signature, inputs)
        demos = own.get("demos")
        if demos is None and self.chooser is not None:
            demos = [*self.demos, *self.chooser(inputs)]
        return Call(
            self,
            inputs,
            seed=seed,
            lm=own.get("lm"),
            signature=signature,
            demos=None if demos is None else tuple(demos),
            config=config,
        )

    def flow(self, /, **inputs: Any) -> Flow:
        """Yield one call, or ``n`` of them where ``config`` says so."""
        call = self.call(**inputs)
        lm = call.lm or self.lm or dspy.settings.lm
        asked = {**getattr(lm, "kwargs", {}), **self.config, **call.config}
        n = 1 if asked.get("n") is None else asked["n"]
        if not isinstance(n, int) or n < 1:
            raise UnsupportedOption(f"n={n!r}: give a whole number from 1")
        if n == 1:
            [prediction] = yield [call]
            return prediction
        sampling = call.complete(lm).decoding.sampling
        if sampling is None or sampling.temperature <= EQUAL:
            call = replace(call, config={**call.config, "temperature": VARIED})
        seeds = [None if call.seed is None else seed_of(call.seed, k) for k in range(n)]
        predictions = yield [
            replace(call, seed=seed, config={**call.config, **seeded_option(asked, k)})
            for k, seed in enumerate(seeds)
        ]
        return _merged(predictions)

    def forward(self, /, **inputs: Any) -> Any:
        """Drive the flow with the configured LM."""
        return answered(self.flow(**inputs))

    async def aforward(self, /, **inputs: Any) -> Any:
        """Drive the flow in a thread; the context's settings go with it."""
        return await dspy.asyncify(answered)(self.flow(**inputs))

    def show(self, /, *, lm: Any = None, **inputs: Any) -> str:
        """Print the exact prompt for these inputs, its parts by their origin, and return its text.

        Nothing is generated. Slots appear as ``{name}``. ``format`` is text, with a colour for each
        origin and the tokens of each part, of which some are cached; json or html, which return
        what they print. An input of that name is an input.
        """
        form = "text" if "format" in self.signature.input_fields else inputs.pop("format", "text")
        return said(shown(self, inputs, lm), form)


def _merged(predictions: Sequence[Prediction]) -> Prediction:
    first = predictions[0]
    merged: Prediction = Prediction.from_completions([dict(p.items()) for p in predictions])
    merged._fills, merged._weighed = first._fills, first._weighed
    return merged


def _checked(signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    from dspy.adapters.utils import annotation_allows_none
    from pydantic_core import PydanticUndefined

    inputs = dict(inputs)
    expected = signature.input_fields
    follows = any(isinstance(value, dspy.History) and value.messages for value in inputs.values())
    unknown = [name for name in inputs if name not in signature.fields]
    for name, field in expected.items():
        if name in inputs:
            continue
        if field.default is not PydanticUndefined:
            inputs[name] = field.default
        elif annotation_allows_none(field.annotation) and not follows:
            inputs[name] = None
    optional = {name for name in expected if annotation_allows_none(expected[name].annotation)}
    missing = [name for name in expected if name not in inputs and name not in optional]
    if unknown or missing:
        faults = [f"has no field {name!r}{nearest(name, signature.fields)}" for name in unknown]
        faults += [f"needs {name!r}" for name in missing]
        usage = ", ".join(f"{name}=..." for name in expected)
        raise UnknownField(
            f"the signature '{signature.signature}' {' and '.join(faults)}; call it with {usage}"
        )
    if dspy.settings.warn_on_type_mismatch:
        _warn_of_types(expected, inputs)
    return inputs


def _warn_of_types(expected: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Warn as DSPy does, where it does, of inputs that are not of their fields' types."""
    for name, field in expected.items():
        value = inputs.get(name)
        # A field without a type is text in our signatures, and any value can be shown as text.
        if value is None or field.annotation is str:
            continue
        if not _is_value_compatible_with_type(value, field.annotation):
            logger.warning(
                "Type mismatch for field '%s': expected %s, and the value is %r",
                name,
                _get_type_name(field.annotation),
                value,
            )
