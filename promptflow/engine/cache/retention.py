"""How long finished text stays in the cache, for a prompt that begins with it.

A cell that is kept for nobody is not free: every token that is computed attends to it. Prompts of
one program share their beginning and differ in the end, so a tail that is not asked for soon is
mostly not asked for at all, while a beginning is worth its cells for long.

A history of prompts outlives their cells, as in the 2Q policy (Johnson and Shasha, 1994): of
programs called in turn each beginning is computed twice at most. And as in the adaptive replacement
cache (Megiddo and Modha, 2003) it tells what was let go too soon: a prompt that an earlier one
would have shortened by a quarter doubles the age, and each tail that leaves unasked lowers it.
"""

from __future__ import annotations

from collections import deque

from promptflow.engine.cache.prefix import PrefixTree

HISTORY = 256  # prompts that are remembered when their cells may be gone
FIRST_AGE, LEAST_AGE, MOST_AGE = 1024, 64, 16384
"""Tokens computed after its last use that a tail stays for: at first, at least, and at most."""
RENT = 4096
"""Tokens computed until a cell has cost them, in attention, what it costs to compute anew.

Measured 3,900. Keeping for so long what is asked for again, and no longer, costs at most twice what
one would pay who knew the future. Where many long prompts take turns they would all be computed
anew for ever, since that is what ages them: then the age of tails grows past it.
"""


class Retention:
    """Knows the last prompts, whether or not their cells are still there, and learns from them."""

    def __init__(self, limit: int = HISTORY) -> None:
        """Remember ``limit`` prompts."""
        self.limit = limit
        self.age = FIRST_AGE
        self._tree = PrefixTree()
        self._prompts: deque[list[int]] = deque()
        self._added = 0

    def began(self, tokens: list[int], shared: int) -> int:
        """Remember a prompt that took ``shared`` tokens from the cache; forget the oldest.

        Return how many of its tokens one of those before began with.
        """
        met = self._tree.match(tokens)
        if met and 4 * (met[0][0] - shared) > len(tokens):
            self.age = min(2 * self.age, MOST_AGE)
        self._prompts.append(list(tokens))
        self._tree.insert(self._added, self._prompts[-1])
        self._added += 1
        if len(self._prompts) > self.limit:
            self._tree.remove(self._added - 1 - self.limit, self._prompts.popleft())
        return met[0][0] if met else 0

    def trunk(self, tokens: list[int]) -> int:
        """Return how many of ``tokens`` two of the prompts begin with."""
        met = self._tree.match(tokens)
        return next((depth for depth, prompts in met if len(prompts) > 1), 0)

    def kept(self, tokens: list[int], idle: int) -> int:
        """Return how many of ``tokens``, unused for ``idle`` computed tokens, stay."""
        if idle <= self.age:
            return len(tokens)
        trunk = self.trunk(tokens) if idle <= max(RENT, self.age) else 0
        if trunk < len(tokens):
            self.age = max(self.age - self.age // 16, LEAST_AGE)
        return trunk
