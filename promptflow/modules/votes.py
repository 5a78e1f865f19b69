"""Votes: which values are one vote, what a sample's vote weighs, and which value leads."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel

from promptflow.errors import UnknownField
from promptflow.flow import Prediction
from promptflow.modules.rounds import mean_logprob

Weighting = Literal["count", "logprob"]


def vote_key(value: Any) -> Hashable:
    """Return what makes two values the same vote.

    Numbers agree by value (3 and 3.0), strings without regard to case and white space, containers
    item by item. Values of different kinds never agree: 5, "5" and True are three votes.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return ("constant", value)
    if isinstance(value, int | float):
        return ("number", Fraction(value) if math.isfinite(value) else repr(value))
    if isinstance(value, str):
        return ("text", " ".join(value.casefold().split()))
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return ("mapping", frozenset((str(key), vote_key(item)) for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(map(vote_key, value)))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(vote_key, value)))
    return (type(value).__name__, repr(value))


def _shown(value: Any) -> Hashable:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, Hashable):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Votes:
    """A count of votes in the order in which the values were first seen.

    ``weights`` and ``values`` are parallel: the weight of each distinct value and its first
    spelling. ``first`` and ``keys`` say which sample brought it and what it compares as.
    """

    keys: tuple[Hashable, ...]
    values: tuple[Any, ...]
    weights: tuple[float, ...]
    first: tuple[int, ...]

    def table(self) -> dict[Any, float]:
        """Return the weight of each value, heaviest first; unhashable values as JSON text."""
        order = sorted(range(len(self.weights)), key=lambda i: (-self.weights[i], i))
        return {_shown(self.values[i]): self.weights[i] for i in order}

    @property
    def leader(self) -> int:
        """Return the position of the heaviest value; of equal ones the first seen."""
        return max(range(len(self.weights)), key=lambda i: (self.weights[i], -i))

    @property
    def agreement(self) -> float:
        """Return the leader's share of all weight, 0 to 1."""
        total = math.fsum(self.weights)
        return self.weights[self.leader] / total if total else 0.0

    def decided(self, remaining: int) -> bool:
        """Say whether ``remaining`` further votes of weight 1 at most could not change the leader.

        Ties go to the first seen, so a value seen later must overtake the leader.
        """
        if not self.weights:
            return remaining == 0
        lead = self.leader
        if remaining > self.weights[lead]:
            return False
        rivals = (i for i in range(len(self.weights)) if i != lead)
        return all(
            self.weights[i] + remaining < self.weights[lead]
            or (self.weights[i] + remaining == self.weights[lead] and i > lead)
            for i in rivals
        )


def count_votes(samples: Sequence[Prediction], field: str, weighting: Weighting) -> Votes:
    """Return the votes of ``samples`` for the values of ``field``.

    A vote weighs 1, or under ``logprob`` the geometric mean probability of the sample's tokens:
    the normalised weighting of Wang et al. 2022, table 1. Raises UnknownField.
    """
    order: dict[Hashable, int] = {}
    values: list[Any] = []
    weights: list[float] = []
    first: list[int] = []
    for number, sample in enumerate(samples):
        if field not in sample:
            raise UnknownField(
                f"the vote is on the field {field!r}, but the module returns "
                f"{', '.join(sample.keys())}; pass field=... to SelfConsistency"
            )
        value = sample[field]
        place = order.setdefault(vote_key(value), len(order))
        if place == len(values):
            values.append(value)
            weights.append(0.0)
            first.append(number)
        weights[place] += math.exp(mean_logprob(sample)) if weighting == "logprob" else 1.0
    return Votes(tuple(order), tuple(values), tuple(weights), tuple(first))
