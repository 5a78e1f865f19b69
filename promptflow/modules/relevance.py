"""A local model as a reranker: how probable it is that it calls a passage an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptflow.engine.request import Sampling
from promptflow.errors import PromptflowError, names_options
from promptflow.flow import run_many
from promptflow.modules.judge import yes
from promptflow.modules.predict import Predict
from promptflow.retrieval import Passage
from promptflow.storage import find_document


@names_options
class Relevance:
    """Rerank by weighed verdicts: ``index.search(query, rerank=Relevance(weight=0.3))``.

    All passages of a search are one batch, and the question stands before the passage, so that what
    comes before is prefilled once. ``weight`` is the share of the verdict's probability in the
    score; the rest is what the search said. ``lm`` is the configured one if left out.
    """

    def __init__(
        self, weight: float = 1.0, signature: str | Path | None = None, *, lm: Any = None
    ) -> None:
        """Take the signature, which has ``question``, ``passage`` and a ``verdict``."""
        if not 0 <= weight <= 1:
            raise PromptflowError(f"Relevance: weight={weight} must lie between 0 and 1")
        own = find_document("signatures", "relevance", bundled_only=True)
        self.predict = Predict(signature or own, sampling=Sampling(), weigh=True)
        self.weight = weight
        self.lm = lm

    def __call__(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """Return a score from 0 to 1 for each passage; raises what the model raised."""
        inputs = [
            {"question": query, "passage": f"{p.heading}\n{p.text}".strip()} for p in passages
        ]
        scores = []
        answers = run_many(self.predict, inputs, lm=self.lm)
        for passage, answer in zip(passages, answers, strict=True):
            if isinstance(answer, PromptflowError):
                raise answer
            verdict = yes(answer, "verdict")
            scores.append(self.weight * verdict + (1 - self.weight) * passage.score)
        return scores
