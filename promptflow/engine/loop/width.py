"""How many sequences are worth decoding together.

In one cache that all sequences share, each further sequence splits the cost of a pass over the
weights among more tokens, and makes every token attend to its cells as well: llama.cpp computes
attention over all cells and masks those of others. Branches of one prefix add few cells and should
run side by side; long prompts with short answers are faster a few at a time.
"""

from __future__ import annotations

from collections import abc

from promptflow.engine.sequence import Sequence

LEAST = 4  # sequences that run together whatever it costs: requests should not stand in a line
PASS = 8192  # cells whose attention costs a pass over the weights; measured 5,000 to 14,000
PASS_GPU = 250_000
"""The same on a GPU. Not measured: for 8B in 4 bits on an H100 the operations come to 600,000, the
bytes to 290,000, where eight tokens read a cell together.
"""
EXPECTED = 32.0  # tokens that an answer has before any was seen


class Width:
    """Decide whether one more sequence makes all of them faster or slower."""

    def __init__(self, cells: int = PASS) -> None:
        """Expect answers of 32 tokens; attention over ``cells`` costs a pass over the weights."""
        self._pass = cells
        self.answer = EXPECTED
        self.refused: tuple[Sequence, int] | None = None  # the best choice, until another may be

    def ended(self, generated: int, room: int) -> None:
        """Learn from an answer; one that filled its ``room`` tells only that it is no shorter."""
        if generated < room or generated > self.answer:
            self.answer += (generated - self.answer) / 8

    def admits(self, running: abc.Sequence[Sequence], sequence: Sequence, shared: int) -> bool:
        """Return whether a ``sequence`` that finds ``shared`` tokens joins; remember a refusal."""
        size = len(sequence.tokens)
        longest = max((other.written for other in running), default=0)
        worth = self.is_worth(len(running), size - shared, sequence.length_limit - size, longest)
        self.refused = None if worth else (sequence, shared)
        return worth

    def still_refuses(self, running: abc.Sequence[Sequence]) -> bool:
        """Return whether what was refused last would be refused again."""
        return self.refused is not None and not self.admits(running, *self.refused)

    def is_worth(self, running: int, fresh: int, room: int, longest: int) -> bool:
        """Return whether to add a prompt of ``fresh`` tokens that nobody holds to ``running`` ones.

        ``room`` is what its answer may have at most, ``longest`` what a running one has by now.

        With k sequences an answer of g tokens costs g / k passes over the weights; each of the
        ``fresh + g`` tokens that come with a sequence attends to the ``fresh`` of each other. So
        the sequence after k pays while g * pass / (k * (k + 1)) exceeds fresh * (fresh + g).
        """
        if running < LEAST:
            return True
        answer = min(room, max(self.answer, longest))
        return running * (running + 1) * fresh * (fresh + answer) <= answer * self._pass
