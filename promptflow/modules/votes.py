"""Votes: which values are one vote, what a sample's vote weighs, and which value leads."""

from __future__ import annotations

import enum
import json
import math
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel

from promptflow.errors import ProgramError, UnknownField
from promptflow.flow import Prediction
from promptflow.modules.rounds import mean_logprob
from promptflow.normal import normalize
from promptflow.retrieval.embed import TextEmbedder

Weight = Callable[[Prediction], float]
Weighting = Literal["count", "logprob", "confidence"] | Weight
WEIGHTINGS = ("count", "logprob", "confidence")

Grouping = Callable[[Sequence[Any]], Sequence[Hashable]]
"""Values in the order of their samples to a key for each: equal keys are one vote."""

CONFIDENCE = "confidence"
"""The output in which a sample says how sure it is."""


def vote_key(value: Any) -> Hashable:
    """Return what makes two values the same vote.

    Numbers agree by value (3 and 3.0), texts in the form in which metrics compare answers, without
    case, punctuation and articles; containers item by item. Values of different kinds never agree:
    5, "5" and True are three votes.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return ("constant", value)
    if isinstance(value, int | float):
        return ("number", Fraction(value) if math.isfinite(value) else repr(value))
    if isinstance(value, str):
        return ("text", normalize(value))
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return ("mapping", frozenset((str(key), vote_key(item)) for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(map(vote_key, value)))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(vote_key, value)))
    return (type(value).__name__, repr(value))


def by_value(values: Sequence[Any]) -> list[Hashable]:
    """Return the ``vote_key`` of each value: the grouping by type."""
    return list(map(vote_key, values))


@dataclass(frozen=True, slots=True)
class ByMeaning:
    """The grouping of free texts by what they mean: clusters of an embedder's vectors.

    Texts of one normal form are one vote. Of the others those clusters are joined whose least alike
    texts are most alike (complete linkage), while these have a cosine of ``least`` or more. Cosines
    of unrelated texts differ between embedders: measure ``least`` on pairs of one's own. Values
    that are no texts are grouped by value.
    """

    embedder: TextEmbedder
    least: float = 0.85

    def __call__(self, values: Sequence[Any]) -> list[Hashable]:
        """Return the key of each value's cluster: that of its first text."""
        keys = by_value(values)
        texts = {key: v for key, v in zip(keys, values, strict=True) if isinstance(v, str)}
        if len(texts) < 2:
            return keys
        vectors = self.embedder.encode(list(texts.values()))
        alike = (vectors @ vectors.T).astype(float)
        clusters = [[place] for place in range(len(texts))]
        while len(clusters) > 1:
            cosine, one, other = max(
                (round(min(alike[i, j] for i in a for j in b), 6), -n, -m)
                for n, a in enumerate(clusters)
                for m, b in enumerate(clusters[:n])
            )
            if cosine < self.least:
                break
            clusters[-other] += clusters.pop(-one)
        names = list(texts)
        joined = {names[place]: names[min(c)] for c in clusters for place in c}
        return [joined.get(key, key) for key in keys]


def stated_confidence(prediction: Prediction) -> float:
    """Return how sure a sample says it is in its output ``confidence``, 0 to 1.

    A number counts between the limits of its type, or as it stands between 0 and 1; of a Literal or
    an Enum the options count from the least sure to the surest. Raises UnknownField where there is
    no such output, ProgramError for a value without a scale.
    """
    if CONFIDENCE not in prediction:
        raise UnknownField(
            f"vote='confidence' needs an output {CONFIDENCE!r}; the module returns "
            f"{', '.join(prediction.keys())}"
        )
    value = prediction[CONFIDENCE]
    info = next(
        (
            predictor.signature.output_fields[CONFIDENCE]
            for predictor, _, _ in reversed(prediction._trace)
            if hasattr(predictor, "signature") and CONFIDENCE in predictor.signature.output_fields
        ),
        None,
    )
    options = _options(getattr(info, "annotation", None))
    if value in options:
        return (options.index(value) + 1) / len(options)
    if isinstance(value, int | float) and math.isfinite(value):
        low, high = _limits(info)
        if low <= value <= high:
            return (value - low) / (high - low)
    raise ProgramError(
        f"the confidence {value!r} has no scale: declare the output with limits, such as "
        "Annotated[int, Field(ge=0, le=100)], or as a Literal from the least sure to the surest"
    )


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)
    return [False, True] if annotation is bool else []


def _limits(info: Any) -> tuple[float, float]:
    found = {"ge": 0.0, "le": 1.0}
    for limit in getattr(info, "metadata", ()):
        for name, same in (("ge", "ge"), ("gt", "ge"), ("le", "le"), ("lt", "le")):
            if (value := getattr(limit, name, None)) is not None:
                found[same] = float(value)
    return found["ge"], found["le"]


def weight_of(prediction: Prediction, weighting: Weighting) -> float:
    """Return what a sample's vote weighs.

    1 by ``count``, the geometric mean probability of its tokens by ``logprob`` (Wang et al. 2022,
    table 1), what it says by ``confidence``. Raises ProgramError for a function's weight that is
    negative or no number.
    """
    if weighting == "count":
        return 1.0
    if weighting == "logprob":
        return math.exp(mean_logprob(prediction))
    if weighting == "confidence":
        return stated_confidence(prediction)
    assert callable(weighting)
    weight = float(weighting(prediction))
    if not (math.isfinite(weight) and weight >= 0):
        raise ProgramError(f"the vote {weighting!r} weighs {weight}: a weight is 0 or more")
    return weight


def _shown(value: Any) -> Hashable:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, Hashable):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Votes:
    """A count of votes in the order in which the values were first seen.

    ``weights``, ``values``, ``first`` and ``likely`` are parallel to ``keys``: the weight of each
    distinct value, its first spelling, which sample brought it, and the probabilities a token of
    its samples added up, by which ties are decided. ``cast`` counts the samples.
    """

    keys: tuple[Hashable, ...] = ()
    values: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()
    first: tuple[int, ...] = ()
    likely: tuple[float, ...] = ()
    cast: int = 0

    def table(self) -> dict[Any, float]:
        """Return the weight of each value, heaviest first; unhashable values as JSON text."""
        order = sorted(range(len(self.weights)), key=self._rank, reverse=True)
        return {_shown(self.values[i]): self.weights[i] for i in order}

    def _rank(self, place: int) -> tuple[float, float, int]:
        return (self.weights[place], self.likely[place], -place)

    @property
    def leader(self) -> int:
        """Return the position of the heaviest value; of equal ones the likeliest, or the first."""
        return max(range(len(self.weights)), key=self._rank)

    @property
    def agreement(self) -> float:
        """Return the leader's share of all weight, 0 to 1."""
        total = math.fsum(self.weights)
        return self.weights[self.leader] / total if total else 0.0

    def counts(self) -> list[float]:
        """Return the weights in samples: they add up to ``cast``."""
        total = math.fsum(self.weights)
        return [w * self.cast / total for w in self.weights] if total else [0.0] * len(self.weights)

    def decided(self, remaining: int) -> bool:
        """Say whether ``remaining`` further votes of weight 1 at most could not change the leader.

        Not even to a tie, which is decided by what is not known yet.
        """
        if remaining <= 0 or not self.weights:
            return remaining <= 0
        lead = self.leader
        rivals = [w for place, w in enumerate(self.weights) if place != lead]
        return max([0.0, *rivals]) + remaining < self.weights[lead]


def count_votes(
    samples: Sequence[Prediction],
    field: str,
    weighting: Weighting = "count",
    grouping: Grouping = by_value,
) -> Votes:
    """Return the votes of ``samples`` for the values of ``field``.

    Raises UnknownField, and ProgramError where a grouping gives no key for each value.
    """
    for sample in samples:
        if field not in sample:
            raise UnknownField(
                f"the vote is on the field {field!r}, but the module returns "
                f"{', '.join(sample.keys())}; pass field=... to SelfConsistency"
            )
    keys = list(grouping([sample[field] for sample in samples]))
    if len(keys) != len(samples):
        raise ProgramError(f"{grouping!r} gave {len(keys)} keys for {len(samples)} values")
    places: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        places.setdefault(key, []).append(number)
    weights = [weight_of(sample, weighting) for sample in samples]
    likely = [_likelihood(sample) for sample in samples]
    return Votes(
        tuple(places),
        tuple(samples[numbers[0]][field] for numbers in places.values()),
        tuple(math.fsum(weights[n] for n in numbers) for numbers in places.values()),
        tuple(numbers[0] for numbers in places.values()),
        tuple(math.fsum(likely[n] for n in numbers) for numbers in places.values()),
        len(samples),
    )


def _likelihood(sample: Prediction) -> float:
    """Return the probability of a sample a token; 0 where its model did not tell it."""
    try:
        return math.exp(mean_logprob(sample))
    except ProgramError:
        return 0.0
