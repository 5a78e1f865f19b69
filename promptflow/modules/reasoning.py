"""Chain of thought: reasoning before the answer, in one call, or in two by trigger phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dspy

from promptflow.flow import Flow, Module
from promptflow.lm.remote import check_options
from promptflow.modules.exemplars import Chooser, demos_of
from promptflow.modules.predict import OWN, Predict
from promptflow.signatures import document_of, label_of, plain_label, read_document

REASONING = "reasoning"


class ChainOfThought(Module):
    """Reason, then fill the typed outputs, in one call (Wei et al., 2022, arXiv:2201.11903).

    The reasoning ends at the next label, at the end of the turn, or after ``reasoning_tokens``:
    left out, 4096, and what the context leaves. The outputs follow in any case, and
    ``Prediction.cut`` tells of a chain that ended at its limit. Demos may carry ``reasoning``.

    >>> [*ChainOfThought("question -> answer: int").predict.signature.output_fields]
    ['reasoning', 'answer']
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        reasoning_tokens: int | None = None,
        demos: Sequence[Mapping[str, Any]] | Chooser | Literal["nearest", "balanced"] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("ChainOfThought", options, OWN)
        document = document_of(signature)
        self.predict = Predict(
            _reasoned(document.signature),
            demos=demos_of(document, demos, options),
            reasoning_tokens=reasoning_tokens,
            **{"layout": document.layout, **options},
        )

    def flow(self, **inputs: Any) -> Flow:
        """Yield one call."""
        return (yield from self.predict.flow(**inputs))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, without the predictor."""
        tokens = self.predict.decoding.reasoning_tokens
        return {} if tokens is None else {"reasoning_tokens": tokens}

    def show(self, **inputs: Any) -> str:
        """Print the exact prompt, token by token, and return its text."""
        return self.predict.show(**inputs)


class ZeroShotCoT(Module):
    """Reason after a trigger phrase, then extract the answer after another.

    Two calls (Kojima et al., 2022, arXiv:2205.11916); the second prompt goes on where the first
    ended, so its prefix is still in the cache. ``triggers`` names the document whose labels of
    ``reasoning`` and ``answer`` are the phrases; the second stands before the first output.
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        reasoning_tokens: int | None = None,
        triggers: str | Path = "zero_shot_cot",
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("ZeroShotCoT", options, (*OWN, "triggers"))
        document = document_of(signature)
        made = _triggered(_reasoned(document.signature), triggers)
        demos = demos_of(document, options.pop("demos", ()), options)
        shared = {"layout": document.layout, **options, "demos": demos}
        self.triggers = str(triggers)
        self.reason = Predict(made, reasoning_tokens=reasoning_tokens, until=REASONING, **shared)
        self.extract = Predict(made, **shared)

    def flow(self, **inputs: Any) -> Flow:
        """Yield the call that reasons, then the one that extracts."""
        [thought] = yield [replace(self.reason.call(**inputs), continued=True)]
        [final] = yield [self.extract.call(**inputs, reasoning=thought.reasoning)]
        prediction = thought.extended(**final)
        prediction._fills = {**thought._fills, **final._fills}
        return prediction

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, without the predictors."""
        tokens = self.reason.decoding.reasoning_tokens
        chosen = {} if tokens is None else {"reasoning_tokens": tokens}
        return {**chosen, "triggers": self.triggers}

    def show(self, **inputs: Any) -> str:
        """Print the exact prompt of the first stage, token by token, and return its text."""
        return self.reason.show(**inputs)


def _reasoned(signature: Any) -> Any:
    """Return the signature with a first output ``reasoning``, unless it has one."""
    if REASONING in signature.output_fields:
        return signature
    return signature.prepend(REASONING, dspy.OutputField(), str)


def _triggered(signature: Any, triggers: str | Path) -> Any:
    """Return the signature with trigger phrases for labels, where nobody wrote others."""
    phrases = read_document(triggers, bundled_only=triggers == "zero_shot_cot").signature.fields
    answer = next(name for name in signature.output_fields if name != REASONING)
    for name, trigger in ((REASONING, REASONING), (answer, "answer")):
        if label_of(signature.fields[name]) == plain_label(name):
            label = label_of(phrases[trigger])
            signature = signature.with_updated_fields(name, prefix=label)
    return signature
