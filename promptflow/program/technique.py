"""A technique by its name around a program: chain of thought, self-consistency, tree of thoughts.

What a program cannot take is refused by name before anything is asked.
"""

from __future__ import annotations

from typing import Any, Literal

import dspy

from promptflow.errors import UnsupportedOption
from promptflow.fields import to_text
from promptflow.flow import Flow, Module
from promptflow.modules import (
    ChainOfThought,
    Predict,
    SelfConsistency,
    TreeOfThoughts,
    ZeroShotCoT,
)
from promptflow.signatures import label_of

Technique = Literal["cot", "sc", "tot"]
TECHNIQUES: tuple[Technique, ...] = ("cot", "sc", "tot")
SAMPLES = 8
"""Chains of self-consistency where nobody says how many."""


def with_technique(
    program: Any, technique: str, *, n: int | None = None, temperature: float | None = None
) -> Any:
    """Return a program that answers by a technique; ``n`` is its samples, at ``temperature``.

    ``cot`` reasons before the outputs of a signature. ``sc`` votes among ``n`` samples (8) of the
    program, of a signature's among chains of thought. ``tot`` searches for steps, ``n`` proposals
    (5) a state, and fills the signature's outputs after the best ones. Raises UnsupportedOption.
    """
    if technique not in TECHNIQUES:
        raise UnsupportedOption(f"technique {technique!r}: give one of {', '.join(TECHNIQUES)}")
    if technique == "cot":
        if n is not None and n > 1:
            raise UnsupportedOption(f"cot answers once: with n={n} choose sc, which votes")
        return _reasoning(program, technique)
    if temperature is not None and temperature <= 0:
        raise UnsupportedOption(
            f"{technique} compares samples, and at temperature {temperature:g} all are the same: "
            "leave it out, or give 0.7"
        )
    options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    if technique == "tot":
        _reasoning(program, technique)
        options |= {} if n is None else {"proposals": n}
        return _Searched(program, TreeOfThoughts(**options))
    base = _reasoning(program, technique) if _is_lone(program) else program
    return SelfConsistency(base, n or SAMPLES, field=_answer_of(base), **options)


def _is_lone(program: Any) -> bool:
    return isinstance(program, dspy.Predict)


def _reasoning(program: Any, technique: str) -> Any:
    """Return a chain of thought over a predictor's signature, with all that was chosen for it."""
    if isinstance(program, ChainOfThought | ZeroShotCoT) and technique == "cot":
        return program
    if not _is_lone(program):
        raise UnsupportedOption(
            f"technique {technique!r} reasons about one signature, and this program is a "
            f"{type(program).__name__}: leave it out, or give a signature"
        )
    made = ChainOfThought(program.signature, demos=program.demos, **program.config)
    if isinstance(program, Predict):
        made.predict.decoding, made.predict.chooser = program.decoding, program.chooser
    made.predict.lm = program.lm
    return made


def _answer_of(program: Any) -> str:
    """Return the output that samples vote on: ``answer`` where there is one, else the last."""
    outputs = [
        name
        for _, predictor in program.named_predictors()
        for name in predictor.signature.output_fields
    ]
    return "answer" if "answer" in outputs or not outputs else outputs[-1]


class _Searched(Module):
    """Search for steps, then fill the outputs of a signature after the best of them."""

    def __init__(self, predict: Any, search: TreeOfThoughts) -> None:
        super().__init__()
        self.search = search
        self.answer = _reasoning(predict, "tot").predict

    def flow(self, **inputs: Any) -> Flow:
        """Return the outputs, the steps as ``reasoning``, and the ``tree``."""
        fields = self.answer.signature.input_fields
        texts = {name: to_text(inputs[name]) for name in fields if name in inputs}
        alone = len(texts) == 1
        problem = "\n".join(t if alone else f"{label_of(fields[n])} {t}" for n, t in texts.items())
        found = yield from self.search.flow(problem=problem)
        [final] = yield [self.answer.call(**inputs, reasoning=found.state)]
        return final.extended(reasoning=found.state, tree=found.tree)
