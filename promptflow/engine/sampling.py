"""Logits to a token. One counter-based generator per slot: nothing depends on other sequences.

A row of a 151k vocabulary is reduced by a threshold below its maximum before anything is sorted or
exponentiated: what lies 30 temperatures below the best token has a probability under 1e-13.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from promptflow.engine.request import Sampling
from promptflow.errors import NumericError

Logits = NDArray[np.float32]
_DEPTH = 30.0


def generator(seed: int, slot: int) -> np.random.Generator:
    """Return the generator of a request's slot; Philox streams do not overlap."""
    return np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), slot]))


def check(logits: Logits) -> None:
    """Raise NumericError for a row without a finite maximum."""
    peak = logits.max()
    if not np.isfinite(peak):
        raise NumericError(
            f"the model returned {peak} as its largest logit; the model file may be damaged: "
            "run `promptflow models verify`"
        )


def penalize(logits: Logits, sampling: Sampling, seen: Counter[int]) -> Logits:
    """Return ``logits`` less the penalties of the tokens in ``seen`` and plus the biases."""
    off = (
        sampling.repetition_penalty == 1.0
        and sampling.frequency_penalty == 0.0
        and sampling.presence_penalty == 0.0
    )
    if (off or not seen) and not sampling.logit_bias:
        return logits
    logits = logits.copy()
    if seen and not off:
        ids = np.fromiter(seen.keys(), dtype=np.int64)
        counts = np.fromiter(seen.values(), dtype=np.float32)
        values = logits[ids]
        divided = np.where(values > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        values = values * divided.astype(np.float32)
        logits[ids] = values - sampling.frequency_penalty * counts - sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        logits[token] += np.float32(bias)
    return logits


def choose(
    logits: Logits,
    sampling: Sampling,
    rng: np.random.Generator,
    allowed: NDArray[np.int64] | None = None,
) -> int:
    """Return a token id drawn from ``logits``, among the ids ``allowed`` if given.

    Order of reductions: allowed ids, temperature, top-k, top-p, min-p, as llama.cpp does for
    temperature first. Ties at temperature 0 go to the lowest id.
    """
    values = logits if allowed is None else logits[allowed]
    if sampling.temperature == 0.0:
        best = int(values.argmax())
        return best if allowed is None else int(allowed[best])
    peak = values.max()
    near = np.flatnonzero(values > peak - _DEPTH * sampling.temperature)
    scaled = (values[near].astype(np.float64) - float(peak)) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp(scaled[order])
    if sampling.top_p < 1.0:
        before = np.cumsum(weights) - weights
        kept = max(1, int(np.count_nonzero(before < sampling.top_p * weights.sum())))
        order, weights = order[:kept], weights[:kept]
    if sampling.min_p > 0.0:
        kept = max(1, int(np.count_nonzero(weights >= sampling.min_p * weights[0])))
        order, weights = order[:kept], weights[:kept]
    cumulated = np.cumsum(weights)
    drawn = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
    index = int(near[order[min(drawn, len(order) - 1)]])
    return index if allowed is None else int(allowed[index])


def logprob(logits: Logits, token: int) -> float:
    """Return the natural-log probability of ``token`` under the softmax of ``logits``."""
    peak = logits.max()
    return float(logits[token] - peak) - float(np.log(np.exp(logits - peak).sum()))


def top(logits: Logits, count: int) -> list[tuple[int, float]]:
    """Return the ``count`` most probable ids with their log-probabilities, best first."""
    if count == 0:
        return []
    peak = logits.max()
    total = float(np.log(np.exp(logits - peak).sum()))
    ids = np.argpartition(-logits, min(count, len(logits)) - 1)[:count]
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return [(int(i), float(logits[i] - peak) - total) for i in ids]
