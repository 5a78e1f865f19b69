"""How sure a vote is: agreement as the probability that the value with most votes is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from promptflow.modules.abstention import fit_logistic, logit
from promptflow.modules.votes import Votes


@dataclass(frozen=True, slots=True)
class Agreement:
    """Votes to a probability: the log-odds of the leader's share, times ``slope``, plus ``bias``.

    Half a vote is added for the leader and half against it, so that few votes say little (Platt
    1999 on log-odds). The default takes the share as it is, fitted on nothing; ``fit_agreement``
    fits one's own, as ``benchmarks/self_consistency.py`` does.
    """

    slope: float = 1.0
    bias: float = 0.0

    def __call__(self, votes: Votes) -> float:
        """Return the probability, 0 to 1, that the leader of ``votes`` is right."""
        return 1.0 / (1.0 + math.exp(-self.slope * _odds(votes) - self.bias))


def fit_agreement(votes: Sequence[Votes], right: Sequence[bool]) -> Agreement:
    """Return the ``Agreement`` under which what was ``right`` is most probable."""
    weights, bias = fit_logistic([{"odds": _odds(v)} for v in votes], right, ["odds"])
    return Agreement(weights["odds"], bias)


def _odds(votes: Votes) -> float:
    lead = max(votes.counts(), default=0.0)
    return logit((lead + 0.5) / (votes.cast + 1.0))
