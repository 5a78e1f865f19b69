"""Self-consistency: sample a module several times and take the answer that most samples agree on.

Votes go to parsed values: 3.5 is not 35, and "-5" is not 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from promptflow.errors import names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.agreement import Agreement
from promptflow.modules.rounds import Rounds, check_rounds
from promptflow.modules.settings import settings_of
from promptflow.modules.stopping import SURE, turned
from promptflow.modules.votes import (
    CONFIDENCE,
    WEIGHTINGS,
    Grouping,
    Votes,
    Weighting,
    by_value,
    count_votes,
)

AGREEMENT = Agreement()


class SelfConsistency(Module):
    """Sample a module ``n`` times and return the answer that most samples agree on.

    Wang et al. 2022, arXiv 2203.11171. ``module`` is any module; its calls are sampled at
    ``temperature``, all samples of a step in one batch behind one prefill. A vote weighs 1
    (``vote="count"``), the probability of the sample's tokens (``logprob``), what its output
    ``confidence`` says (``confidence``), or what a function of the prediction returns. ``same`` is
    a function that tells which values are one vote, such as ``ByMeaning(embedder)``; by default
    those of one type that are equal, texts in their normal form.

    Samples are drawn ``batch`` at a time, by default a quarter of ``n``, until all ``n`` would
    elect the same value with probability ``sure`` (Adaptive-Consistency, Aggarwal et al. 2023,
    arXiv 2305.11860; see ``stopping.turned``). ``sure=1`` stops where no further vote can change
    the winner, ``sure="all"`` draws all. ``calibration`` turns the votes into a probability: see
    ``Agreement``.
    """

    @names_options
    def __init__(
        self,
        module: Any,
        n: int = 5,
        temperature: float = 0.7,
        vote: Weighting = "count",
        field: str = "answer",
        *,
        same: Grouping | Literal["value"] = "value",
        batch: int | None = None,
        sure: float | Literal["all"] = SURE,
        calibration: Callable[[Votes], float] = AGREEMENT,
    ) -> None:
        super().__init__()
        check_rounds("SelfConsistency", n, batch, temperature)
        if not callable(vote) and vote not in WEIGHTINGS:
            raise ValueError(
                f"SelfConsistency: vote={vote!r} is none of {', '.join(WEIGHTINGS)}, and no "
                "function of a prediction"
            )
        if not callable(same) and same != "value":
            raise ValueError(f"SelfConsistency: same={same!r} is no function of values, or 'value'")
        if sure != "all" and not (isinstance(sure, int | float) and 0.5 <= sure <= 1.0):
            raise ValueError(
                f"SelfConsistency: sure={sure!r} is no probability from 0.5 to 1, nor 'all'"
            )
        self.module = module
        self.n = n
        self.temperature = temperature
        self.vote: Weighting = vote
        self.field = field
        self.same = same
        self.batch = batch
        self.sure = sure
        self.calibration = calibration

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings, without the module; functions by their names."""
        names = ["n", "temperature", "vote", "field", "same", "batch", "sure"]
        if self.calibration is not AGREEMENT:
            names.append("calibration")
        return settings_of(self, names)

    def flow(self, **inputs: Any) -> Flow:
        """Return the first sample of the winning value, and how the vote went.

        Added to its fields: ``votes`` (value -> weight, heaviest first), ``agreement`` (the share
        of the winner), ``confidence`` (the probability of being right by ``calibration``; an output
        of that name stays), ``samples`` (drawn) and ``failed`` (of these, ended in an error: no
        vote). Of equal values that wins whose samples are likelier, then the first seen. Raises the
        first error where all failed.
        """
        size = self.batch or (self.n if self.sure == "all" else max(2, math.ceil(self.n / 4)))
        rounds = Rounds(self.module, inputs, self.n, self.temperature, size, self.vote == "logprob")
        votes = Votes()
        while rounds.left:
            yield from rounds.draw()
            grouping = self.same if callable(self.same) else by_value
            votes = count_votes(rounds.samples, self.field, self.vote, grouping)
            if self._decided(votes, rounds.left):
                break
        if not rounds.samples:
            raise rounds.errors[0]
        winner = rounds.samples[votes.first[votes.leader]]
        told = {"votes": votes.table(), "agreement": votes.agreement}
        if CONFIDENCE not in winner:
            told[CONFIDENCE] = float(self.calibration(votes))
        chosen = yield from rounds.chosen(winner, **told)
        chosen._completions = _completions(rounds.samples)
        return chosen

    def _decided(self, votes: Votes, left: int) -> bool:
        if isinstance(self.sure, str) or votes.cast < 2:  # one voice is no agreement
            return False
        if self.sure == 1.0:
            return not callable(self.vote) and votes.decided(left)
        return turned(votes.counts(), left) <= 1.0 - self.sure


def _completions(samples: Sequence[Prediction]) -> Any:
    """Return the samples as DSPy's completions, on which ``dspy.majority`` votes."""
    if any(sample.keys() != samples[0].keys() for sample in samples):
        return None
    return Prediction.from_completions([dict(sample.items()) for sample in samples]).completions
