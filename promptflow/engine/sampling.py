"""Logits to a token. One counter-based generator per slot: nothing depends on other sequences.

A row of a 151k vocabulary is reduced by a threshold below its maximum before anything is sorted or
exponentiated: what lies 30 temperatures below the best token has under 1e-13 of its probability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from promptflow.engine.request import Sampling
from promptflow.errors import NumericError

Logits = NDArray[np.float32]
_DEPTH = 30.0


def generator(seed: int, slot: int) -> np.random.Generator:
    """Return the generator of a request's slot; Philox streams do not overlap."""
    key = np.array([seed & (2**64 - 1), slot], dtype=np.uint64)  # a list would pass through floats
    return np.random.Generator(np.random.Philox(key=key))


def check(logits: Logits) -> None:
    """Raise NumericError for a row without a finite maximum."""
    peak = logits.max()
    if not np.isfinite(peak):
        raise NumericError(
            f"the model returned {peak} as its largest logit; the model file may be damaged: "
            "run `promptflow models verify`"
        )


def penalize(
    logits: Logits, sampling: Sampling, sampled: Counter[int], sequence: Set[int]
) -> Logits:
    """Return ``logits`` less the penalties and plus the biases.

    ``sampled`` counts the tokens chosen in the slot; ``sequence`` holds every id before and in it.
    """
    if sampling.repetition_penalty != 1.0 and sequence:
        logits = logits.copy()
        ids = np.fromiter(sequence, dtype=np.int64)
        factor = np.float32(sampling.repetition_penalty)
        values = logits[ids]
        logits[ids] = np.where(values > 0, values / factor, values * factor)
    if sampled and (sampling.frequency_penalty or sampling.presence_penalty):
        logits = logits.copy()
        ids = np.fromiter(sampled.keys(), dtype=np.int64)
        counts = np.fromiter(sampled.values(), dtype=np.float32)
        logits[ids] -= sampling.frequency_penalty * counts + np.float32(sampling.presence_penalty)
    if sampling.logit_bias:
        logits = logits.copy()
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

    Order of reductions: allowed ids, temperature, top-k, top-p, min-p, as in transformers
    (llama.cpp applies the temperature last). Ties at temperature 0 go to the lowest id. Raises
    NumericError where every allowed id has a logit of minus infinity.
    """
    values = logits if allowed is None else logits[allowed]
    best = int(values.argmax())
    peak = values[best]
    if peak == -np.inf:
        raise NumericError("the model gives every token that may follow a probability of zero")
    if sampling.temperature == 0.0:
        return best if allowed is None else int(allowed[best])
    near = np.flatnonzero(values >= peak - _DEPTH * sampling.temperature)
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
    peak, rest = _log_total(logits)
    return float(logits[token]) - peak - rest


def top(logits: Logits, count: int) -> list[tuple[int, float]]:
    """Return the ``count`` most probable ids with their log-probabilities, best first."""
    if count == 0:
        return []
    peak, rest = _log_total(logits)
    # Partitioning leaves ties at the border to chance; sorting all that reach it does not.
    border = np.partition(logits, -min(count, len(logits)))[-min(count, len(logits))]
    ids = np.flatnonzero(logits >= border)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    return [(int(i), float(logits[i]) - peak - rest) for i in ids]


def _log_total(logits: Logits) -> tuple[float, float]:
    """Return the largest logit, and the logarithm of the sum of exponentials less that.

    What is 1e-13 of the best is left out.
    """
    peak = logits.max()
    near = logits[logits >= peak - _DEPTH].astype(np.float64)
    return float(peak), float(np.log(np.exp(near - float(peak)).sum()))
