"""Drafts from a sequence's own text: what followed when its last tokens stood there before.

Prompt lookup decoding (Saxena 2023) after speculative decoding (Leviathan et al. 2023, arXiv
2211.17192). A draft is certain of its tokens, so accepting one where the sampler draws the same is
exact: the text is drawn as without drafts, from the same random numbers.

How long a draft is depends on how much of the text agrees, as in suffix decoding (Oliaro et al.
2024, arXiv 2411.04975), and on what a row of a batch costs beside a pass over the weights. Whether
the next token is the one that a draft would have is seen in each step for nothing, drafted or not:
so drafts end where they do not pay, and begin again without a trial.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAMS = (4, 3, 2)  # tokens that must agree, tried in this order
LONGEST = 16  # tokens of a draft
AGREEING = 64  # tokens that are compared
PRIOR = (0.0, 0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.95)
"""How often text goes on as before where 2, 4, 8, 16, 32, 64 tokens agree, until it is seen."""
PASS_ROWS = 2.0  # what a pass over the weights costs, in rows: 1.9 to 2.3 on two AVX-512 cores
PASS_ROWS_GPU = 16.0  # not measured
MEMORY = 64.0  # matches that are remembered for each of these lengths; a fourth of it for PRIOR


def least_chance(pass_rows: float, sequences: int) -> float:
    """Return how probable a drafted token must be for its row to save more time than it takes.

    ``pass_rows`` is how many rows of a batch cost what a pass over the weights costs. With s
    ``sequences`` a token costs a row and an s-th of a pass; a draft adds a row.
    """
    return 1.0 / (1.0 + pass_rows / sequences)


class Odds:
    """How often text went on as before, by how many tokens agreed; learned from all sequences."""

    def __init__(self) -> None:
        """Believe ``PRIOR``."""
        self._seen = [MEMORY / 4] * len(PRIOR)
        self._right = [MEMORY / 4 * share for share in PRIOR]

    def of(self, agreeing: int) -> float:
        """Return the chance that the next token is as before where so many agree."""
        size = min(agreeing, AGREEING).bit_length()
        return self._right[size] / self._seen[size]

    def saw(self, agreeing: int, right: bool) -> None:
        """Learn from one token, and forget a little of those before."""
        size = min(agreeing, AGREEING).bit_length()
        keep = min(1.0, MEMORY / (self._seen[size] + 1.0))
        self._seen[size] = keep * (self._seen[size] + 1.0)
        self._right[size] = keep * (self._right[size] + right)


class Lookup:
    """Where every n-gram of one sequence was last followed by something."""

    def __init__(self, odds: Odds) -> None:
        """Know nothing of the text yet; share ``odds`` with other sequences."""
        self._odds = odds
        self._followed: dict[tuple[int, ...], int] = {}
        self._latest: dict[tuple[int, ...], int] = {}
        self._read = 0
        self._guess: tuple[int, int, int, int] | None = None  # end, place, agreeing, drafted

    def draft(self, tokens: Sequence[int], limit: int, least: float) -> list[int]:
        """Return up to ``limit`` tokens that may follow, each accepted with chance ``least``."""
        self._learn(tokens)
        self._index(tokens)
        at, end = self._match(tokens), len(tokens)
        if at is None:
            self._guess = None
            return []
        agreeing = _agreeing(tokens, at, end)
        count, chance = 0, 1.0
        while count < min(limit, LONGEST, end - at):
            chance *= self._odds.of(agreeing + count)
            if chance < least:
                break
            count += 1
        self._guess = end, at, agreeing, count
        return list(tokens[at : at + count])

    def _learn(self, tokens: Sequence[int]) -> None:
        """Compare what came with what was drafted, or would have been."""
        if self._guess is None:
            return
        end, at, agreeing, drafted = self._guess
        for n in range(min(len(tokens) - end, max(drafted, 1))):
            right = tokens[at + n] == tokens[end + n]
            self._odds.saw(agreeing + n, right)
            if not right:
                return

    def _match(self, tokens: Sequence[int]) -> int | None:
        """Return what followed the longest n-gram that stands at the end, by its position."""
        for size in GRAMS:
            if len(tokens) > size:
                at = self._followed.get(tuple(tokens[-size:]))
                if at is not None:
                    return at
        return None

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


def _agreeing(tokens: Sequence[int], at: int, end: int) -> int:
    """Return how many tokens before ``at`` are those before ``end``."""
    count = 0
    while count < min(at, AGREEING) and tokens[at - 1 - count] == tokens[end - 1 - count]:
        count += 1
    return count
