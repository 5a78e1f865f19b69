"""When a vote is as good as decided: how probable it is that the samples left would turn it.

Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860) stops by the posterior of the leader's
share under a uniform prior. Here the same posterior is asked about the vote itself: whether the
samples that are left would elect another value, so that fewer are drawn near the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SURE = 0.8
"""How probable it must be that all samples would elect the same value."""


def turned(weights: Sequence[float], left: int) -> float:
    """Return the probability that ``left`` more votes elect another value than the heaviest.

    ``weights`` are the votes of each value, in samples. Values have a Dirichlet posterior with one
    vote more for each and one for those not seen yet, and the votes to come are
    Dirichlet-multinomial; a tie counts as half, and rivals are added up to 1. Without votes it is
    1, with none left 0.
    """
    if not weights:
        return 1.0
    if left <= 0:
        return 0.0
    *rivals, lead = sorted(weights)
    total = math.fsum(weights) + len(weights) + 1.0
    chance = _overtaken(lead, 0.0, total, left)  # by a value not seen yet
    by_weight: dict[float, float] = {}
    for rival in rivals:
        if rival not in by_weight:
            by_weight[rival] = _overtaken(lead, rival, total, left)
        chance += by_weight[rival]
    return min(1.0, chance)


def _overtaken(lead: float, rival: float, total: float, left: int) -> float:
    """Return the probability that a rival ends before the leader, half of it where they tie."""
    alphas = (lead + 1.0, rival + 1.0, max(total - lead - rival - 2.0, 1e-9))
    whole = sum(alphas)
    base = math.lgamma(left + 1) + math.lgamma(whole) - math.lgamma(whole + left)
    base -= math.fsum(map(math.lgamma, alphas))
    chance = 0.0
    for won in range(left + 1):  # further votes of the rival
        if rival + won < lead:
            continue
        for more in range(left - won + 1):  # and of the leader
            gap = rival + won - lead - more
            if gap < 0:
                break
            counts = (more, won, left - won - more)
            log = base + math.fsum(
                math.lgamma(alpha + count) - math.lgamma(count + 1)
                for alpha, count in zip(alphas, counts, strict=True)
            )
            chance += math.exp(log) * (0.5 if gap == 0 else 1.0)
    return chance
