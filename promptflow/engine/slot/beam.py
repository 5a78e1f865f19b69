"""Beam search in one slot: hypotheses side by side, each in a sequence forked from the slot's.

Pure: it is handed rows of logits and says which sequences to fork; the decoder makes the forks.
"""

from __future__ import annotations

import math
from collections import abc
from dataclasses import dataclass, replace

import numpy as np

from promptflow.engine.request import Alternative, Fill
from promptflow.engine.sequence import Sequence
from promptflow.engine.slot.filling import Filling, Pick


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text in the making: the sequence that holds it, and what it has cost."""

    sequence: Sequence
    filling: Filling
    logprob: float = 0.0
    steps: int = 0  # tokens sampled, the end among them


@dataclass(frozen=True, slots=True)
class Fork:
    """Let ``child`` hold what ``parent`` has in the cache."""

    parent: Sequence
    child: Sequence


class Beams:
    """A slot that is searched. Ends when no live hypothesis can still enter the n best.

    A step takes the most probable continuations of all live hypotheses until ``width`` of them
    live on; those that ended on the way are kept aside. The result does not depend on when the
    search stops: a live hypothesis could at best end at no further cost.
    """

    def __init__(self, lead: Sequence, filling: Filling) -> None:
        """Search from an opened ``filling``, at the end of ``lead``."""
        beam = filling.slot.beam
        assert beam is not None
        self.slot = filling.slot
        self.lead = lead
        self.children: list[Sequence] = []  # sequences forked so far
        self.is_done = filling.finish is not None
        self.opened = filling
        self.base = len(lead.tokens) - len(filling.tokens)  # where the slot's tokens begin
        self._width = beam.width
        self._penalty = beam.length_penalty
        self._within = beam.within
        self._live = [Hypothesis(lead, filling.fork())]
        self._ended = [self._live[0]] if self.is_done else []
        self._heard: dict[Sequence, list[Pick]] = {}
        self._sampled = 0

    def take(self, sequence: Sequence, logits: np.ndarray) -> list[Fork]:
        """Note what may follow in ``sequence``; once all have been heard, go one step further.

        Return the forks that this takes, to be made in order and before anything is decoded.
        Raises NumericError, ConstraintError and ConstraintDeadEnd.
        """
        [filling] = [h.filling for h in self._live if h.sequence is sequence]
        self._heard[sequence] = filling.picks(logits, self._width)
        if len(self._heard) < len(self._live):
            return []
        found = [
            (parent.logprob + pick.logprob, parent, pick)
            for parent in self._live
            for pick in self._heard[parent.sequence]
        ]
        self._heard.clear()
        forks = self._go_on(sorted(found, key=lambda candidate: -candidate[0]))
        self.is_done = self._is_decided()
        return [] if self.is_done else forks

    def _go_on(self, candidates: abc.Sequence[tuple[float, Hypothesis, Pick]]) -> list[Fork]:
        """Let the best candidates live; give each a sequence."""
        chosen: list[tuple[Hypothesis, Hypothesis]] = []
        for logprob, parent, pick in candidates:
            if len(chosen) == self._width or logprob < self._least():
                break
            filling = parent.filling.fork()
            filling.put(pick)
            made = Hypothesis(parent.sequence, filling, logprob, parent.steps + 1)
            if filling.finish is None:
                chosen.append((parent, made))
            else:
                self._ended.append(made)
        least = self._least()
        self._ended = [ended for ended in self._ended if ended.logprob >= least]
        self._ended.sort(key=lambda ended: -self._score(ended))
        del self._ended[self._width :]
        self._sampled += len(chosen)
        return self._assign(chosen)

    def _least(self) -> float:
        """Return the log-probability below which no hypothesis goes on."""
        if self._within is None or not self._ended:
            return -math.inf
        return max(ended.logprob for ended in self._ended) - self._within

    def _assign(self, chosen: abc.Sequence[tuple[Hypothesis, Hypothesis]]) -> list[Fork]:
        """Let the first child of a hypothesis go on in its sequence, and fork the others."""
        parents = {parent.sequence: list(parent.sequence.tokens) for parent, _ in chosen}
        idle = [sequence for sequence in (self.lead, *self.children) if sequence not in parents]
        taken: set[Sequence] = set()
        forks: list[Fork] = []
        self._live = []
        for parent, made in chosen:
            sequence = parent.sequence
            if sequence in taken:
                if not idle:
                    idle.append(Sequence(0, [], self.base + self.slot.max_tokens))
                    self.children.append(idle[0])
                sequence = idle.pop(0)
                forks.append(Fork(parent.sequence, sequence))
            taken.add(sequence)
            added = made.filling.tokens[len(parent.filling.tokens) :]
            sequence.tokens[:] = parents[parent.sequence] + added
            self._live.append(replace(made, sequence=sequence))
        return forks

    def _score(self, hypothesis: Hypothesis) -> float:
        return float(hypothesis.logprob / max(1, hypothesis.steps) ** self._penalty)

    def _is_decided(self) -> bool:
        """Return whether no live hypothesis can still enter the n best."""
        best = max((live.logprob for live in self._live), default=-math.inf)
        if not self._live or best < self._least():
            return True
        if len(self._ended) < self._width:
            return False
        first = max(self._live, key=lambda live: live.logprob)
        steps = self.slot.max_tokens + 1 if self._penalty > 0 else first.steps + 1
        return self._score(self._ended[-1]) >= float(best / steps**self._penalty)

    @property
    def best(self) -> Filling:
        """Return the best text that ended."""
        return self._ended[0].filling

    def rewind(self) -> int:
        """Take the lead back to where the search began; return how many tokens stand there."""
        self.lead.tokens[self.base :] = self.opened.tokens
        return len(self.lead.tokens)

    def fill(self) -> Fill:
        """Return the best text, and the n best."""
        if not self._ended:
            return Fill("", "length", generated=self._sampled)
        return replace(
            self.best.fill(),
            generated=self._sampled,
            alternatives=tuple(
                Alternative(h.filling.written, h.logprob, self._score(h)) for h in self._ended
            ),
        )
