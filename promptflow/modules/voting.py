"""Self-consistency: sample a module several times and take the answer that most samples agree on.

Votes go to parsed values: 3.5 is not 35, and "-5" is not 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptflow.errors import names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.rounds import Rounds, check_rounds
from promptflow.modules.settings import settings_of
from promptflow.modules.votes import Weighting, count_votes


class SelfConsistency(Module):
    """Sample a module ``n`` times and return the answer that most samples agree on.

    Wang et al. 2022. ``module`` is anything with a flow; its calls are sampled at ``temperature``,
    all samples of a step in one batch behind one prefill. ``vote`` weighs samples by ``count`` or
    ``logprob``. With ``batch`` below ``n``, samples are drawn in rounds until the vote is decided.
    """

    @names_options
    def __init__(
        self,
        module: Any,
        n: int = 5,
        temperature: float = 0.7,
        vote: Weighting = "count",
        field: str = "answer",
        batch: int | None = None,
    ) -> None:
        super().__init__()
        check_rounds("SelfConsistency", n, batch, temperature)
        if vote not in ("count", "logprob"):
            raise ValueError(f"SelfConsistency: vote={vote!r} is neither 'count' nor 'logprob'")
        self.module = module
        self.n = n
        self.temperature = temperature
        self.vote: Weighting = vote
        self.field = field
        self.batch = batch

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings, without the module."""
        return settings_of(self, ("n", "temperature", "vote", "field", "batch"))

    def flow(self, **inputs: Any) -> Flow:
        """Return the first sample of the winning value, and how the vote went.

        Added to its fields: ``votes`` (value -> weight, heaviest first), ``agreement`` (the share
        of the winner), ``samples`` (drawn) and ``failed`` (of these, ended in an error: no vote).
        Of equal values the first seen wins. Raises the first error where all failed.
        """
        rounds = Rounds(
            self.module, inputs, self.n, self.temperature, self.batch, self.vote == "logprob"
        )
        while rounds.left:
            yield from rounds.draw()
            votes = count_votes(rounds.samples, self.field, self.vote)
            if votes.decided(rounds.left):
                break
        if not rounds.samples:
            raise rounds.errors[0]
        winner = rounds.samples[votes.first[votes.leader]]
        chosen = yield from rounds.chosen(winner, votes=votes.table(), agreement=votes.agreement)
        chosen._completions = _completions(rounds.samples)
        return chosen


def _completions(samples: Sequence[Prediction]) -> Any:
    """Return the samples as DSPy's completions, on which ``dspy.majority`` votes."""
    if any(sample.keys() != samples[0].keys() for sample in samples):
        return None
    return Prediction.from_completions([dict(sample.items()) for sample in samples]).completions
