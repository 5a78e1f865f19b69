"""Whether a text reads as if a model had written it, by how it stands with the local model.

GLTR (Gehrmann and others 2019, arXiv 1906.04043) looks at the ranks of the words; Fast-DetectGPT
(Bao and others 2024, arXiv 2310.05130) at how far the text's log-probability lies above what the
model expects of text of its own: the curvature. All of this is weak evidence, see ``Rates``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptflow.engine.interface import TextEngine
from promptflow.engine.request import TokenLogprob
from promptflow.errors import DataError
from promptflow.evaluation.likeness import scored_tokens
from promptflow.storage import read_json

WINDOW = 250
"""Words that are read together: a longer text is measured in parts, each read anew."""

LEAST = 50
"""Tokens below which nothing is said about a text."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How often a verdict was wrong on texts that it was not fitted on.

    ``false_alarms`` is the share of texts of people that were called a model's, ``missed`` that of
    a model's that were not; ``auroc`` is 0.5 for chance. ``data`` says on what.
    """

    false_alarms: float
    missed: float
    auroc: float
    people: int
    models: int
    data: str


@dataclass(frozen=True, slots=True)
class Detection:
    """What a local model makes of a text.

    ``perplexity`` and ``log_rank`` (the mean natural logarithm of the ranks) are lower, the share
    of ``top_10`` words and the ``curvature`` higher in texts of models. ``score`` is what the
    verdict goes by; ``verdict`` is "model", "people", "too short", or "not calibrated" for a model
    that nothing was measured with. ``rates`` says how often the verdict is wrong.
    """

    tokens: int
    perplexity: float
    log_rank: float
    top_10: float
    curvature: float
    score: float
    verdict: str
    rates: Rates | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self)


def detect(texts: Sequence[str], engine: TextEngine) -> list[Detection]:
    """Return what a local model makes of each text. Raises DataError for an empty one."""
    if empty := [n for n, text in enumerate(texts, 1) if not text.strip()]:
        raise DataError(f"detect: text {empty[0]} is empty")
    parts = [(n, part) for n, text in enumerate(texts) for part in _windows(text)]
    scored = scored_tokens([part for _, part in parts], engine)
    gathered: list[list[TokenLogprob]] = [[] for _ in texts]
    for (n, _), tokens in zip(parts, scored, strict=True):
        gathered[n] += tokens
    return [_detection(tokens, engine.info.name) for tokens in gathered]


def _windows(text: str) -> list[str]:
    """Cut a text into parts of at most WINDOW words, with the blanks between them."""
    words = re.findall(r"\s*\S+", text.strip())
    # Characters of scripts without spaces would make one endless word.
    pieces = [word[i : i + 40] for word in words for i in range(0, len(word), 40)]
    return ["".join(pieces[i : i + WINDOW]) for i in range(0, len(pieces), WINDOW)]


def measures(tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    """Return perplexity, mean log rank, share of top-10 tokens and curvature of scored tokens."""
    count = len(tokens)
    logprob = math.fsum(token.logprob for token in tokens)
    expected = math.fsum(token.expected for token in tokens)
    variance = math.fsum(token.variance for token in tokens)
    return {
        "perplexity": math.exp(-logprob / count),
        "log_rank": math.fsum(math.log(token.rank) for token in tokens) / count,
        "top_10": sum(token.rank <= 10 for token in tokens) / count,
        "curvature": (logprob - expected) / math.sqrt(variance) if variance else 0.0,
    }


def _detection(tokens: Sequence[TokenLogprob], model: str) -> Detection:
    found = measures(tokens)
    fitted = _calibrations().get(model)
    score = found["curvature"] / math.sqrt(len(tokens))
    if len(tokens) < LEAST:
        verdict = "too short"
    elif fitted is None:
        verdict = "not calibrated"
    else:
        verdict = "model" if score >= fitted["threshold"] else "people"
    rates = None if fitted is None else Rates(**fitted["rates"])
    return Detection(tokens=len(tokens), **found, score=score, verdict=verdict, rates=rates)


@functools.cache
def _calibrations() -> dict[str, Any]:
    return dict(read_json(Path(__file__).with_name("detection.json")))
