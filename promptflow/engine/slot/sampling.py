"""Logits to a token. One counter-based generator per slot: nothing depends on other sequences.

Written for rows of 151k: nothing is sorted but the few tokens near the best one that a cut can end
in, and a draw without a cut sums blocks of weights before it looks into one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from promptflow.engine.request import Sampling
from promptflow.errors import NumericError

Logits = NDArray[np.float32]
Flags = NDArray[np.bool_]
_DEPTHS = (3.0, 6.0, 10.0, 16.0, 32.0, math.inf)  # below the best logit, in temperatures
_WIDTHS = (1.0, 2.0, 4.0, 8.0, math.inf)  # around the entropy, in nats
_BLOCK = 512
_COLDEST = 1e-4  # below this only ties of the best token have weight in single precision


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
    allowed: Flags | None = None,
) -> int:
    """Return a token id drawn from ``logits``, among those that ``allowed`` flags if given.

    Order of reductions: allowed ids, temperature, top-k, top-p, min-p, typical, as in transformers
    (llama.cpp applies the temperature last). Ties at temperature 0 go to the lowest id. Raises
    NumericError where every allowed id has a logit of minus infinity.
    """
    best = int(logits.argmax())
    if allowed is not None and not allowed[best]:
        ids = np.flatnonzero(allowed)
        return int(ids[choose(logits[ids], sampling, rng)])
    peak = logits[best]
    if peak == -np.inf:
        raise NumericError("the model gives every token that may follow a probability of zero")
    if sampling.temperature == 0.0:
        return best
    with np.errstate(over="ignore"):
        scaled = logits - peak
        scaled *= np.float32(1 / max(sampling.temperature, _COLDEST))
    if sampling.top_k == 0 and sampling.top_p == 1.0 and sampling.min_p == 0.0:
        weights = np.exp(scaled, out=scaled)
        if allowed is not None:
            weights *= allowed
        if sampling.typical_p == 1.0:
            return _draw(weights, rng)
        ids = np.arange(len(weights))
    else:
        ids, weights = _cut(scaled, sampling, allowed)
    if sampling.typical_p < 1.0:
        ids, weights = _typical(ids, weights, sampling.typical_p)
    return int(ids[_draw(weights, rng)])


def _cut(
    scaled: Logits, sampling: Sampling, allowed: Flags | None
) -> tuple[NDArray[np.int64], Logits]:
    """Return the ids that top-k, top-p and min-p leave, and their weights, best first."""
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    total = 0.0
    if top_p < 1.0 and not top_k:
        weights = np.exp(scaled)
        total = float(weights.sum() if allowed is None else weights[allowed].sum())
    floor = math.log(min_p) if min_p and (total or top_p == 1.0) else -math.inf
    for depth in _DEPTHS:
        near = scaled >= max(-depth, floor)
        if allowed is not None:
            near &= allowed
        ids = np.flatnonzero(near)
        weights = np.exp(scaled[ids])
        is_enough = 0 < top_k <= len(ids) or (total and weights.sum() >= top_p * total)
        if is_enough or -depth <= floor:
            break
    if 0 < top_k < len(ids):
        reach = weights >= np.partition(weights, -top_k)[-top_k]
        ids, weights = ids[reach], weights[reach]
    order = np.argsort(-weights, kind="stable")[: top_k or None]
    ids, weights = ids[order], weights[order]
    if top_p < 1.0:
        sums = np.cumsum(weights, dtype=np.float64)
        kept = np.count_nonzero(sums - weights < top_p * (total or sums[-1]))
        ids, weights = ids[: max(1, kept)], weights[: max(1, kept)]
    kept = np.count_nonzero(weights >= min_p * weights[0])
    return ids[:kept], weights[:kept]


def _typical(
    ids: NDArray[np.int64], weights: Logits, typical_p: float
) -> tuple[NDArray[np.int64], Logits]:
    """Return the ids whose surprisal is nearest the entropy, up to a mass of ``typical_p``.

    Locally typical sampling: Meister et al. 2022, arXiv 2202.00666. Ties go to the id that comes
    first.
    """
    held = weights > 0
    ids, weights = ids[held], weights[held]
    surprisal = np.log(weights, dtype=np.float64)
    shares = np.exp(surprisal)
    total = shares.sum()
    surprisal = math.log(total) - surprisal
    shares /= total
    distance = np.abs(surprisal - (shares * surprisal).sum())
    for width in _WIDTHS:
        near = np.flatnonzero(distance <= width)
        if shares[near].sum() >= typical_p:
            break
    order = near[np.argsort(distance[near], kind="stable")]
    sums = np.cumsum(shares[order])
    kept = np.sort(order[: max(1, np.count_nonzero(sums - shares[order] < typical_p))])
    return ids[kept], weights[kept]


def _draw(weights: Logits, rng: np.random.Generator) -> int:
    """Return an index with probability in proportion to its weight."""
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=np.float64)
    drawn = rng.random() * sums[-1]
    block = min(int(np.searchsorted(sums, drawn, side="right")), len(sums) - 1)
    within = weights[block * _BLOCK : (block + 1) * _BLOCK]
    rest = drawn - (sums[block - 1] if block else 0.0)
    index = int(np.searchsorted(np.cumsum(within, dtype=np.float64), rest, side="right"))
    if index == len(within) or not within[index]:
        # Rounding: a block's sum in single precision may exceed that of its weights.
        index = int(np.flatnonzero(within)[-1])
    return block * _BLOCK + index


def logprob(logits: Logits, token: int) -> float:
    """Return the natural-log probability of ``token`` under the softmax of ``logits``."""
    peak, rest = _log_total(logits)
    return float(logits[token]) - peak - rest


def standing(logits: Logits, token: int) -> tuple[float, int, float, float]:
    """Return a token's log-probability and rank, and what a token drawn here would have.

    The rank counts from 1, ties in its favour. The last two are the expectation of the
    log-probability of a drawn token, which is minus the entropy in nats, and its variance.
    """
    peak, rest = _log_total(logits)
    logprobs = logits.astype(np.float64) - (peak + rest)
    shares = np.exp(logprobs)
    finite = np.where(shares > 0, logprobs, 0.0)  # what cannot be drawn adds nothing
    expected = float(shares @ finite)
    variance = max(0.0, float(shares @ finite**2) - expected**2)
    rank = 1 + int((logits > logits[token]).sum())
    return float(logits[token]) - peak - rest, rank, expected, variance


def top(logits: Logits, count: int) -> list[tuple[int, float]]:
    """Return the ``count`` most probable ids with their log-probabilities, best first."""
    if count == 0:
        return []
    peak, rest = _log_total(logits)
    return [(int(i), float(logits[i]) - peak - rest) for i in largest(logits, count)]


def largest(logits: Logits, count: int) -> NDArray[np.int64]:
    """Return where the ``count`` largest values are, largest first, ties by place."""
    # Partitioning leaves ties at the border to chance; sorting all that reach it does not.
    border = np.partition(logits, -min(count, len(logits)))[-min(count, len(logits))]
    ids = np.flatnonzero(logits >= border)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def log_total(logits: Logits, allowed: Flags | None = None) -> float:
    """Return the logarithm of the sum of exponentials, of ``allowed`` ids alone if given."""
    peak, rest = _log_total(logits if allowed is None else logits[allowed])
    return peak + rest


def _log_total(logits: Logits) -> tuple[float, float]:
    """Return the largest logit, and the logarithm of the sum of exponentials less that."""
    peak = logits.max()
    if peak == -np.inf:
        return -math.inf, 0.0
    with np.errstate(over="ignore"):
        below = logits - peak
    return float(peak), math.log(np.exp(below, out=below).sum())
