"""Drafts from a sequence's own text: what followed when its last tokens stood there before.

Prompt lookup decoding (Saxena 2023) after speculative decoding (Leviathan et al. 2023, arXiv
2211.17192). A draft is certain of its tokens, so accepting one where the sampler draws the same is
exact: the text is drawn as without drafts, from the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAMS = (4, 3, 2)  # tokens that must agree, tried in this order
FIRST, LONGEST = 4, 16  # tokens of a draft: doubled where all are accepted, halved where few are
PATIENCE = 6  # doublings of the pause after a draft of which nothing was accepted


class Lookup:
    """Where every n-gram of one sequence was last followed by something."""

    def __init__(self) -> None:
        """Know nothing."""
        self._followed: dict[tuple[int, ...], int] = {}
        self._latest: dict[tuple[int, ...], int] = {}
        self._read = 0
        self._length = FIRST
        self._misses = 0
        self._resume = 0  # tokens from which on it drafts again

    def draft(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Return up to ``limit`` tokens that may follow ``tokens``; none where it pauses."""
        if len(tokens) < self._resume or limit < 1:
            return []
        self._index(tokens)
        for size in GRAMS:
            if len(tokens) > size:
                at = self._followed.get(tuple(tokens[-size:]))
                if at is not None:
                    return list(tokens[at : at + min(self._length, limit)])
        return []

    def learn(self, tokens: int, drafted: int, accepted: int) -> None:
        """Note how a draft fared; ``tokens`` is how long the text now is."""
        if accepted == 0:
            self._misses = min(self._misses + 1, PATIENCE)
            self._resume = tokens + (1 << self._misses)
        else:
            self._misses = 0
        if accepted == drafted:
            self._length = min(2 * self._length, LONGEST)
        elif 2 * accepted < drafted:
            self._length = max(self._length // 2, 1)

    def _index(self, tokens: Sequence[int]) -> None:
        """Read what is new of ``tokens``; all of it where some was taken back."""
        if len(tokens) < self._read:
            self._followed.clear()
            self._latest.clear()
            self._read = 0
        for end in range(self._read + 1, len(tokens) + 1):
            for size in GRAMS:
                if end >= size:
                    gram = tuple(tokens[end - size : end])
                    # The n-gram at the very end is the one that is looked for: keep the one before.
                    if gram in self._latest:
                        self._followed[gram] = self._latest[gram]
                    self._latest[gram] = end
        self._read = len(tokens)
