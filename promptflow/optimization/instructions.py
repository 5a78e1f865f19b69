"""Instruction variants: short additions kept in a document, and proposals of the model itself.

Small models make poor reflectors, so the additions come first and a proposal is only one more
candidate. Proposals are bounded in length, and those that copy the training data are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import numpy as np

from promptflow.engine.request import Sampling, Usage
from promptflow.errors import EngineError, PromptflowError
from promptflow.evaluation.data import plain
from promptflow.evaluation.scoring import LASTING
from promptflow.flow import run_many, usage_of_answer
from promptflow.modules.predict import Predict
from promptflow.normal import normalize
from promptflow.optimization.study import Spent, Study
from promptflow.signatures import read_document

COPIED = 8
"""Words in a row that mark an instruction as copied from the data."""

EXAMPLES = 3


def additions() -> dict[str, str]:
    """Return the bundled additions by name."""
    extra = read_document("propose_instruction", bundled_only=True).extra
    return {str(name): str(text) for name, text in extra["additions"].items()}


def with_addition(instructions: Mapping[str, str], text: str) -> dict[str, str]:
    """Return the instructions of every predictor followed by ``text``."""
    return {name: f"{one.rstrip()}\n{text}".strip() for name, one in instructions.items()}


def propose(
    study: Study,
    program: Any,
    data: Sequence[dspy.Example],
    count: int,
    *,
    lm: Any = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Ask the model for ``count`` instructions a predictor; return those that are fit to try.

    Each dictionary has one predictor's new instruction, by name.
    """
    document = read_document("propose_instruction", bundled_only=True)
    proposer = Predict(document.path or "propose_instruction", sampling=Sampling(temperature=0.8))
    asked = []
    for name, predictor in program.named_predictors():
        for number in range(count):
            random = np.random.default_rng([seed, number])
            asked.append((name, _inputs(predictor.signature, data, random)))
    if not asked:
        return []

    def work() -> tuple[Any, Spent]:
        began = time.perf_counter()
        answers = run_many(proposer, [inputs for _, inputs in asked], lm=lm, seed=seed)
        for answer in answers:
            if isinstance(answer, EngineError) and not isinstance(answer, LASTING):
                raise answer  # of the engine, not of the proposals: the same run asks again
        texts = [None if isinstance(a, PromptflowError) else a.instruction for a in answers]
        usage = sum(map(usage_of_answer, answers), Usage())
        tokens = usage.prefilled + usage.generated + usage.forced
        return texts, Spent(0, tokens, time.perf_counter() - began)

    texts = study.step("propose", [list(pair) for pair in asked], work)
    known = {normalize(p.signature.instructions) for _, p in program.named_predictors()}
    proposals = []
    for (name, _), text in zip(asked, texts, strict=True):
        if text and normalize(text) not in known and not is_copied(text, data):
            known.add(normalize(text))
            proposals.append({name: " ".join(text.split())})
    return proposals


def _inputs(
    signature: Any, data: Sequence[dspy.Example], random: np.random.Generator
) -> dict[str, Any]:
    picks = random.permutation(len(data))[:EXAMPLES]
    return {
        "task": signature.instructions,
        "form": signature.signature,
        "examples": [
            "\n".join(f"{name}: {value!s:.200}" for name, value in plain(data[int(i)]).items())
            for i in picks
        ],
    }


def is_copied(text: str, data: Sequence[dspy.Example]) -> bool:
    """Say whether ``text`` has eight words in a row from any value of the data."""
    words = normalize(text).split()
    runs = {" ".join(words[i : i + COPIED]) for i in range(len(words) - COPIED + 1)}
    if not runs:
        return False
    sources = (normalize(str(value)) for example in data for value in plain(example).values())
    return any(run in source for source in sources for run in runs)
