"""Metrics that a model measures without being asked: likeness in meaning, and perplexity."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import dspy

from promptflow.engine.interface import TextEngine
from promptflow.engine.request import Text, TokenLogprob
from promptflow.errors import DataError, UnsupportedOption
from promptflow.evaluation.corpus import Corpus
from promptflow.evaluation.meaning import text_of
from promptflow.evaluation.metrics import FIELD, graded, needs
from promptflow.lm import lm_of
from promptflow.retrieval.embed import TextEmbedder, open_embedder

EMBEDDER = "all-minilm-l6-v2"


@needs(FIELD)
def cosine(
    example: Any,
    prediction: Any,
    trace: Any = None,
    *,
    field: str | None = None,
    embedder: str | TextEmbedder = EMBEDDER,
) -> float:
    """Return the cosine of the embeddings of the text and of the nearest gold text, 0 to 1.

    Texts that point apart are 0. ``embedder`` is a name, a path or an object; the default one reads
    English: name a multilingual one for other languages. Equal texts are 1; no text is like any.
    """
    value, golds = graded(example, prediction, field)
    said, texts = text_of(value).strip(), [text_of(gold).strip() for gold in golds]
    if not said or not all(texts):
        return float(said in texts)
    model = _embedder(embedder) if isinstance(embedder, str) else embedder
    own, *others = model.encode([said, *texts])
    return min(1.0, max(0.0, *(float(own @ other) for other in others)))


@functools.lru_cache(maxsize=4)
def _embedder(name: str) -> TextEmbedder:
    return open_embedder(name)


def scored_tokens(texts: Sequence[str], engine: TextEngine) -> list[tuple[TokenLogprob, ...]]:
    """Return what the tokens of each text are to a model that has read nothing before it.

    Raises DataError for a text without a token.
    """
    if empty := [n for n, text in enumerate(texts) if not text.strip()]:
        raise DataError(f"text {empty[0]} is empty: there is nothing to measure")
    begin = engine.info.bos or engine.info.eos or "\n"
    return engine.score([Text(begin, trusted=True)], list(texts))


def perplexity_of(tokens: Sequence[TokenLogprob]) -> float:
    """Return the perplexity of a text, 1 or more, from the log-probabilities of its tokens."""
    return math.exp(-math.fsum(token.logprob for token in tokens) / len(tokens))


def _surprise(example: Any, prediction: Any, *, field: str | None = None) -> list[float]:
    """Return the surprise of a field's text in nats, and its tokens."""
    engine = getattr(lm_of(dspy.settings.lm), "text_engine", None)
    if engine is None:
        raise UnsupportedOption(
            "perplexity needs a local model, which says the probability of a given text: "
            "pf.configure('qwen2.5-coder-0.5b')"
        )
    names = [field] if field else [name for name in ("answer", *prediction) if name in prediction]
    if names[0] not in prediction:
        raise DataError(f"no field {names[0]!r}: the prediction has {', '.join(prediction)}")
    [tokens] = scored_tokens([text_of(prediction[names[0]])], engine)
    return [-math.fsum(token.logprob for token in tokens), len(tokens)]


def _of_surprise(sums: Sequence[Sequence[float]]) -> float:
    return math.exp(math.fsum(nats for nats, _ in sums) / math.fsum(count for _, count in sums))


perplexity = Corpus(
    "perplexity",
    _surprise,
    _of_surprise,
    lower_is_better=True,
    bounds=(1.0, math.inf),
    needs="",
)
"""The perplexity of all texts together under the configured local model, 1 or more."""
