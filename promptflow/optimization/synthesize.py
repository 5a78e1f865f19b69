"""Questions with answers made from passages, to evaluate on where nobody wrote any.

The answer is a verbatim span of its passage by constraint, so it is true to the document; whether
the question is a good one is filtered by plain rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
import numpy as np

from promptflow.engine.request import Sampling
from promptflow.errors import PromptflowError
from promptflow.flow import run_many
from promptflow.modules.predict import Predict
from promptflow.normal import normalize
from promptflow.signatures import read_document

LONGEST = 12
"""Words of an answer."""

ALIKE = 0.7
"""The share of common words from which two questions count as one."""


def synthesize(
    passages: Sequence[Any], count: int, *, lm: Any = None, seed: int = 0
) -> list[dspy.Example]:
    """Return up to ``count`` examples (question, passage, answer) asked of different passages.

    ``passages`` are texts, or have a ``text`` and perhaps a ``document``, which the example then
    names. All are asked in one batch. Raises the first error if no passage could be asked.
    """
    order = np.random.default_rng(seed).permutation(len(passages))
    chosen = [passages[int(i)] for i in order[: 2 * count]]
    texts = [getattr(passage, "text", passage) for passage in chosen]
    document = read_document("synthesize_question", bundled_only=True)
    asker = Predict(
        document.path or "synthesize_question", sampling=Sampling(temperature=0.7, top_p=0.95)
    )
    answers = run_many(asker, [{"passage": text} for text in texts], lm=lm, seed=seed)
    errors = [answer for answer in answers if isinstance(answer, PromptflowError)]
    if errors and len(errors) == len(answers):
        raise errors[0]
    examples: list[dspy.Example] = []
    asked: list[set[str]] = []
    for passage, text, answer in zip(chosen, texts, answers, strict=True):
        if isinstance(answer, PromptflowError) or len(examples) == count:
            continue
        words = set(normalize(answer.question).split())
        if is_fit(answer.question, answer.answer, text) and not any(
            _alike(words, other) for other in asked
        ):
            asked.append(words)
            fields = {"question": answer.question.strip(), "passage": text, "answer": answer.answer}
            if hasattr(passage, "document"):
                fields["documents"] = [passage.document]
            examples.append(dspy.Example(**fields).with_inputs("question", "passage"))
    return examples


def is_fit(question: str, answer: str, passage: str) -> bool:
    """Say whether this is one question that does not hold its own answer, a span of the passage."""
    asked, told = normalize(question), normalize(answer)
    return (
        question.strip().endswith("?")
        and len(asked.split()) >= 4
        and "passage" not in asked.split()
        and 1 <= len(told.split()) <= LONGEST
        and f" {told} " not in f" {asked} "
        and answer in passage
    )


def _alike(words: set[str], other: set[str]) -> bool:
    return len(words & other) >= ALIKE * max(1, min(len(words), len(other)))
