"""One slot being filled: choose a token, follow the constraint, notice the end.

Works on bytes, since a token may hold half a character. Knows nothing of batches or caches.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promptflow.engine.model.constraint import Constraints, Matcher
from promptflow.engine.model.protocol import Model
from promptflow.engine.request import Fill, Slot, TokenLogprob
from promptflow.engine.slot import sampling
from promptflow.engine.slot.sampling import Flags
from promptflow.errors import ConstraintDeadEnd


class Vocabulary:
    """What slots need of a model's tokens, gathered once."""

    def __init__(self, model: Model) -> None:
        """Read every token's bytes."""
        self.pieces = [model.piece(token) for token in range(model.vocabulary)]
        self.ends = np.array(sorted(model.end_tokens), dtype=np.int64)
        self.end_set = model.end_tokens
        breaks = [i for i, piece in enumerate(self.pieces) if piece[:1] == b"\n"]
        # A complete constraint ends at a line break as well as at an end token: the label of the
        # next field follows on a new line, and that is what models write there.
        self.terminators = np.array(sorted({*breaks, *model.end_tokens}), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Pick:
    """A token that may come next, or None for the end, with its natural-log probability."""

    token: int | None
    logprob: float


class Filling:
    """The state of a slot while the model fills it."""

    def __init__(
        self,
        slot: Slot,
        vocabulary: Vocabulary,
        constraints: Constraints,
        rng: np.random.Generator,
        before: Sequence[int] = (),
    ) -> None:
        """Open ``slot`` after the tokens ``before`` it.

        Raises ConstraintError where its constraint cannot be compiled.
        """
        self.slot = slot
        self.tokens: list[int] = []
        self.text = bytearray()
        self.finish: str | None = None
        self.kept = 0  # tokens that stay when the slot has ended
        self.rest = b""  # bytes after them that a stop string cut out of a token
        self._vocabulary = vocabulary
        self._rng = rng
        self._sampled: Counter[int] = Counter()
        self._sequence = set(before) if slot.sampling.repetition_penalty != 1.0 else set()
        self._forced = 0
        self._logprob = 0.0
        self._logprobs: list[TokenLogprob] = []
        self._stops = [stop.encode("utf-8", "replace") for stop in slot.stop]
        self._matcher: Matcher | None = None
        if slot.constraint is not None:
            self._matcher = constraints.start(slot.constraint, slot.lead, slot.name)

    def open(self) -> list[int]:
        """Return the tokens that the constraint forces before anything is sampled."""
        if self._matcher is not None:
            self._force(self._matcher)
        return list(self.tokens)

    def take(self, logits: sampling.Logits) -> list[int]:
        """Sample from a row of logits; return the tokens that this adds, forced ones included.

        Raises NumericError, ConstraintError and ConstraintDeadEnd.
        """
        return self.put(self.draw(logits))

    def draw(self, logits: sampling.Logits) -> Pick:
        """Return the token sampled from a row of logits, for ``put``; raises as ``take`` does.

        It touches nothing that slots share, so that many may draw at the same time.
        """
        sampling.check(logits)
        row = sampling.penalize(logits, self.slot.sampling, self._sampled, self._sequence)
        content, allowed = self._allowed()
        if allowed is None and self.slot.ignore_eos:
            row = row.copy()
            row[self._vocabulary.ends] = -np.inf
        token = sampling.choose(row, self.slot.sampling, self._rng, allowed)
        if self._is_end(token, content):
            return Pick(None, 0.0)
        value = sampling.logprob(logits, token)
        self._note(logits, token, value)
        return Pick(token, value)

    def picks(self, logits: sampling.Logits, count: int, within: bool = False) -> list[Pick]:
        """Return the ``count`` most probable tokens that may follow, and the end, best first.

        With ``within`` probabilities are shares of what the constraint allows. Raises as ``take``.
        """
        sampling.check(logits)
        content, allowed = self._allowed()
        if allowed is None:
            flags = np.ones(len(logits), dtype=np.bool_)
            flags[self._vocabulary.ends] = False
            flags[list(self.slot.stop_tokens)] = False
            ends = np.flatnonzero(~flags)
        else:
            assert content is not None
            flags, ends = content, np.flatnonzero(allowed & ~content)
        total = sampling.log_total(logits, allowed if within else None)
        ids = np.flatnonzero(flags)
        best = ids if len(ids) <= count else ids[sampling.largest(logits[ids], count)]
        picks = [Pick(int(i), float(logits[i]) - total) for i in best if np.isfinite(logits[i])]
        if len(ends) and not (allowed is None and self.slot.ignore_eos):
            # Whichever token ends it, the text is the same.
            picks.append(Pick(None, sampling.log_total(logits[ends]) - total))
        return sorted(picks, key=lambda pick: -pick.logprob)

    def put(self, pick: Pick) -> list[int]:
        """Take a pick; return the tokens that this adds, forced ones included."""
        before = len(self.tokens)
        if pick.token is None:
            self._end("stop" if self._matcher is None else "constraint", len(self.text))
            return []
        self._logprob += pick.logprob
        self._sampled[pick.token] += 1
        self._append(pick.token)
        if self._matcher is None:
            self._look_for_stops(len(self._vocabulary.pieces[pick.token]))
        else:
            self._matcher.consume(pick.token)
            self._force(self._matcher)
        if self.finish is None and len(self.tokens) >= self.slot.max_tokens:
            self._end("length", len(self.text))
        return self.tokens[before:]

    def fork(self) -> Filling:
        """Return a copy that goes on by itself."""
        twin = copy.copy(self)
        twin.tokens, twin.text = self.tokens.copy(), self.text.copy()
        twin._sampled, twin._logprobs = self._sampled.copy(), self._logprobs.copy()
        twin._sequence = self._sequence.copy()
        if self._matcher is not None:
            twin._matcher = self._matcher.fork()
        return twin

    def _allowed(self) -> tuple[Flags | None, Flags | None]:
        """Return flags of the tokens that continue the text, and of those and the end.

        None where there is no constraint.
        """
        if self._matcher is None:
            return None, None
        allowed = self._matcher.allowed()
        allowed[self._vocabulary.ends] = False
        content = allowed
        # Asked to go on, the model may end only where nothing else can follow.
        may_go_on = self.slot.ignore_eos and bool(content.any())
        if self._matcher.can_end(len(self.text)) and not may_go_on:
            allowed = content.copy()
            allowed[self._vocabulary.terminators] = True
        if not allowed.any():
            raise ConstraintDeadEnd(
                f"slot {self.slot.name!r}: its constraint is not complete and allows no token of "
                "this model; check that some finite text fits it"
            )
        return content, allowed

    def _is_end(self, token: int, content: Flags | None) -> bool:
        if content is not None:
            return not content[token]
        return token in self._vocabulary.end_set or token in self.slot.stop_tokens

    def _look_for_stops(self, fresh: int) -> None:
        after = 0
        if self.slot.needs_text:
            after = len(self.text) - len(self.text.lstrip()) + 1
        ends = [
            at
            for stop in self._stops
            if (at := self.text.find(stop, max(after, len(self.text) - fresh - len(stop) + 1))) >= 0
        ]
        if ends:
            self._end("stop", min(ends))

    def _note(self, logits: sampling.Logits, token: int, value: float) -> None:
        """Keep a token's log-probability and alternatives, if the slot asks for them."""
        count = self.slot.logprobs
        if count is None:
            return
        pieces = self._vocabulary.pieces
        alternatives = tuple(
            (pieces[i].decode("utf-8", "replace"), p) for i, p in sampling.top(logits, count)
        )
        text = pieces[token].decode("utf-8", "replace")
        self._logprobs.append(TokenLogprob(text, token, value, alternatives))

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self.text += self._vocabulary.pieces[token]
        if self.slot.sampling.repetition_penalty != 1.0:
            self._sequence.add(token)

    def _force(self, matcher: Matcher) -> None:
        """Follow the constraint as far as it leaves no choice."""
        for token in matcher.forced():
            if token in self._vocabulary.end_set or len(self.tokens) >= self.slot.max_tokens:
                break
            matcher.consume(token)
            self._append(token)
            self._forced += 1
        if matcher.must_end():
            self._end("constraint", len(self.text))
        elif len(self.tokens) >= self.slot.max_tokens:
            self._end("length", len(self.text))

    def _end(self, reason: str, length: int) -> None:
        """End with the first ``length`` bytes of the text, less half a character at their end."""
        self.finish = reason
        length -= _half_character(self.text[:length])
        held = 0
        self.kept = 0
        for token in self.tokens:
            size = len(self._vocabulary.pieces[token])
            if held + size > length:
                break
            held += size
            self.kept += 1
        self.rest = bytes(self.text[held:length])
        del self.text[length:]

    @property
    def settled(self) -> int:
        """Return how many bytes of the text stand, whatever the model writes next.

        Not half a character, and nothing that may be the beginning of a stop string.
        """
        length = len(self.text)
        if self._matcher is None:
            length -= max((_overlap(self.text, stop) for stop in self._stops), default=0)
        return length - _half_character(self.text[max(0, length - 3) : length])

    @property
    def may_stop(self) -> bool:
        """Return whether the text ends in what may be the beginning of a stop string."""
        return self._matcher is None and any(_overlap(self.text, stop) for stop in self._stops)

    def cut(self) -> None:
        """End here, because of an error."""
        self._end("error", len(self.text))

    @property
    def written(self) -> str:
        """Return the text so far, without the lead."""
        return self.text.decode("utf-8", "replace").removeprefix(self.slot.lead)

    def fill(self) -> Fill:
        """Return what was written."""
        return Fill(
            text=self.written,
            finish=self.finish or "length",
            generated=self._sampled.total(),
            forced=self._forced,
            logprob=self._logprob,
            logprobs=tuple(self._logprobs),
        )


def _overlap(text: bytearray, stop: bytes) -> int:
    """Return how many bytes at the end of ``text`` begin ``stop`` and do not complete it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _half_character(text: bytes | bytearray) -> int:
    """Return how many bytes at the end of ``text`` begin a UTF-8 character and do not end it."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed and byte < 0xF8 else 0
        if byte < 0x80:
            return 0
    return 0
