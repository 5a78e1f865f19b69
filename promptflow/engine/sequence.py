"""A sequence: its tokens, how many of them are in the cache, and what it may still come to."""

from __future__ import annotations

from collections import abc
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

NEVER = 1 << 40
GROWTH = 16  # tokens that an answer longer than was likely is taken to go on for, or half of itself


def common(a: abc.Sequence[int], b: abc.Sequence[int], limit: int) -> int:
    """Return the length of the common prefix of ``a`` and ``b``, at most ``limit``."""
    low, high = 0, min(len(a), len(b), limit)
    if a[:high] == b[:high]:
        return high
    # Slices compare at the speed of C, so halving beats a Python loop over tokens.
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(eq=False, slots=True)
class Sequence:
    """What is known of a text, and how much of it the cache holds under the number ``seq_id``."""

    number: int
    tokens: list[int]
    length_limit: int  # tokens it may hold when it ends
    kind: Hashable = None  # requests of one kind have answers of like lengths
    likely: int = NEVER  # tokens it is likely to hold when it ends: cells are set aside for them
    share_limit: int = NEVER  # tokens that it may take from others
    forks: int = 0  # sequences that it may fork off, each for up to ``fork_limit`` more tokens
    fork_limit: int = 0
    spares: list[int] = field(default_factory=list)  # sequence numbers kept for them
    draft: list[int] = field(default_factory=list)  # guesses decoded in the next batch
    scored_from: int = NEVER  # the logits of every position from here on are wanted
    computed: int = 0
    prompt: int = NEVER  # tokens that it began with, where it is no fork
    seq_id: int = -1
    stops: set[int] = field(default_factory=set)  # positions where its state is to be kept
    boundaries: tuple[int, ...] = ()  # positions where prompts that begin alike are likely to part
    anchor: int = -1  # the number that holds its last state before what may yet be taken back
    wants: set[int] = field(default_factory=set)  # positions whose logits waiting sequences ask for
    row: np.ndarray | None = None  # logits after the last token, computed by another sequence
    waits_for: tuple[Sequence, int] | None = None
    skipped: int = 0  # admissions that overtook it
    preempted: int = 0
    continued: bool = False  # a later one will begin with all of it

    @property
    def pending(self) -> int:
        """Return how many known tokens are not yet in the cache."""
        return len(self.tokens) - self.computed

    @property
    def written(self) -> int:
        """Return how many tokens came since it began; of a fork, none."""
        return max(0, len(self.tokens) - self.prompt)

    @property
    def has_outgrown(self) -> bool:
        """Return whether it holds more than was likely, and than cells were set aside for."""
        return len(self.tokens) > self.likely

    @property
    def reach(self) -> int:
        """Return how many tokens it is now likely to hold when it ends."""
        likely = self.likely
        if self.has_outgrown:
            likely = len(self.tokens) + max(GROWTH, self.written // 2)
        return min(self.length_limit, likely)

    def promised(self, forks: int) -> int:
        """Return how many more cells it is likely to take, those of ``forks`` to come included."""
        answer = self.reach - min(self.prompt, len(self.tokens))
        return self.reach - self.computed + forks * min(self.fork_limit, answer)
