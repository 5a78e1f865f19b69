"""How long answers are likely to be, learned from those of like requests that have ended.

``max_tokens`` is a bound: most answers are far shorter, and cells set aside for what nobody
writes let fewer requests run together. An estimate may be wrong: the scheduler lets answers
grow past it, and sends the newest of those back where the cache is really full.
"""

from __future__ import annotations

from collections.abc import Hashable

FIRST = 256  # tokens that an answer is taken to have until one of its kind has ended
KINDS = 256  # kinds of requests that are remembered


class Lengths:
    """A mean by kind of request. Several run together, so it is their sum that has to fit."""

    def __init__(self, first: int = FIRST) -> None:
        """Expect ``first`` tokens of a kind that is not known."""
        self._first = first
        self._means: dict[Hashable, float] = {}

    def likely(self, kind: Hashable) -> int:
        """Return how many tokens an answer of a ``kind`` is likely to have."""
        return round(self._means.get(kind, self._first))

    def ended(self, kind: Hashable, written: int) -> None:
        """Learn from an answer of ``written`` tokens; the kind that ended least recently goes."""
        mean = self._means.pop(kind, written)
        self._means[kind] = mean + (written - mean) / 8
        if len(self._means) > KINDS:
            del self._means[next(iter(self._means))]

    def outgrew(self, kind: Hashable, written: int) -> None:
        """Learn from an answer that had no end after ``written`` tokens, when it was sent back."""
        self._means[kind] = max(written, self._means.get(kind, self._first))
