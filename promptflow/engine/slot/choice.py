"""Look at every option of a choice instead of sampling one: the slot of a weighed ``Choice``.

One sequence is enough. Where a token decides for an option, what follows is forced and need not be
decoded; only where options begin alike is the branch decoded, one after the other, each from the
place where it left the others.
"""

from __future__ import annotations

import math

import numpy as np

from promptflow.engine.request import Alternative, Choice, Fill
from promptflow.engine.sequence import common
from promptflow.engine.slot import sampling
from promptflow.engine.slot.filling import Filling
from promptflow.errors import ConstraintDeadEnd

NEGLIGIBLE = math.log(1e-9)
"""A branch less probable than this is not decoded: it adds nothing to the options behind it."""
WIDEST = 4096  # tokens that may begin an option


class Weighing:
    """A slot whose options are all given their probability, summed over their tokenizations."""

    def __init__(self, filling: Filling, rng: np.random.Generator) -> None:
        """Weigh the options of an opened ``filling``; ``rng`` draws one if the slot samples."""
        self.slot = filling.slot
        assert isinstance(self.slot.constraint, Choice)
        self._options = self.slot.constraint.options
        self.finish: str | None = None
        self.generated = 0
        self._rng = rng
        self._found: dict[str, tuple[float, Filling]] = {}
        self._branches: list[tuple[float, Filling]] = []
        self._at: tuple[float, Filling] = (0.0, filling)
        self.best = filling  # of the options, once it is decided
        if filling.finish is not None:
            self._add(0.0, filling)
            self._decide()

    @property
    def tokens(self) -> list[int]:
        """Return the tokens of the branch that is looked at."""
        return self._at[1].tokens

    def take(self, logits: sampling.Logits) -> int:
        """Weigh what may follow; go on to the next branch. Return how many tokens stand.

        Raises NumericError, ConstraintError and ConstraintDeadEnd.
        """
        logprob, filling = self._at
        for pick in filling.picks(logits, WIDEST, within=True):
            share = logprob + pick.logprob
            twin = filling.fork()
            twin.put(pick)
            if twin.finish == "length" and twin.written not in self._options:
                continue  # an option spelled in more tokens than max_tokens: others spell it too
            if twin.finish is not None:
                self._add(share, twin)
            elif share > NEGLIGIBLE:
                self._branches.append((share, twin))
        before = filling.tokens
        if not self._branches:
            self._decide()
            return common(before, self.best.tokens, len(before))
        self._at = self._branches.pop()
        stands = common(before, self.tokens, len(before))
        self.generated += len(self.tokens) - stands
        return stands

    def _add(self, logprob: float, filling: Filling) -> None:
        text = filling.written
        known, shortest = self._found.get(text, (-math.inf, filling))
        if len(filling.tokens) < len(shortest.tokens):
            shortest = filling
        self._found[text] = (float(np.logaddexp(known, logprob)), shortest)

    def _decide(self) -> None:
        """Choose an option by its probability. Raises ConstraintDeadEnd where none was written."""
        texts = list(self._found)
        if not texts:
            raise ConstraintDeadEnd(
                f"slot {self.slot.name!r}: no option has room in {self.slot.max_tokens:,} tokens: "
                "raise max_tokens"
            )
        weights = np.array([self._found[text][0] for text in texts], dtype=np.float32)
        text = texts[sampling.choose(weights, self.slot.sampling, self._rng)]
        self.best = self._found[text][1]
        self.finish = self.best.finish

    def fill(self) -> Fill:
        """Return the chosen option and what each of them weighs."""
        if self.finish is None:
            return Fill("", "length", generated=self.generated)
        total = sampling.log_total(np.array([share for share, _ in self._found.values()]))
        shares = {text: share - total for text, (share, _) in self._found.items()}
        shares |= {o: -math.inf for o in self._options if o not in shares}
        ranked = sorted(shares, key=lambda text: -shares[text])
        return Fill(
            text=self.best.written,
            finish=self.best.finish or "constraint",
            generated=self.generated,
            logprob=shares[self.best.written],
            alternatives=tuple(Alternative(text, shares[text], shares[text]) for text in ranked),
        )
