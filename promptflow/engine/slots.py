"""One slot being filled: choose a token, follow the constraint, notice the end.

Works on bytes, since a token may hold half a character. Knows nothing of batches or caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from promptflow.engine import sampling
from promptflow.engine.constraint import Constraints, Matcher
from promptflow.engine.model import Model
from promptflow.engine.request import Fill, Slot, TokenLogprob
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
            self._matcher = constraints.start(slot.constraint, slot.lead)

    def open(self) -> list[int]:
        """Return the tokens that the constraint forces before anything is sampled."""
        if self._matcher is not None:
            self._force(self._matcher)
        return list(self.tokens)

    def take(self, logits: sampling.Logits) -> list[int]:
        """Sample from a row of logits; return the tokens that this adds, forced ones included.

        Raises NumericError, ConstraintError and ConstraintDeadEnd.
        """
        sampling.check(logits)
        before = len(self.tokens)
        row = sampling.penalize(logits, self.slot.sampling, self._sampled, self._sequence)
        if self._matcher is None:
            self._write(logits, row)
        else:
            self._follow(self._matcher, logits, row)
        if self.finish is None and len(self.tokens) >= self.slot.max_tokens:
            self._end("length", len(self.text))
        return self.tokens[before:]

    def _write(self, logits: sampling.Logits, row: sampling.Logits) -> None:
        """Add a token of free text, or end at an end token or at a stop."""
        if self.slot.ignore_eos:
            row = row.copy()
            row[self._vocabulary.ends] = -np.inf
        token = sampling.choose(row, self.slot.sampling, self._rng)
        if token in self._vocabulary.end_set or token in self.slot.stop_tokens:
            self._end("stop", len(self.text))
            return
        self._record(logits, token)
        self._append(token)
        fresh = len(self._vocabulary.pieces[token])
        ends = [
            at
            for stop in self._stops
            if (at := self.text.find(stop, max(0, len(self.text) - fresh - len(stop) + 1))) >= 0
        ]
        if ends:
            self._end("stop", min(ends))

    def _follow(self, matcher: Matcher, logits: sampling.Logits, row: sampling.Logits) -> None:
        """Add a token that the constraint allows and what it forces then, or end where complete."""
        allowed = matcher.allowed()
        allowed[self._vocabulary.ends] = False
        content = allowed
        # Asked to go on, the model may end only where nothing else can follow.
        may_go_on = self.slot.ignore_eos and bool(content.any())
        if matcher.can_end(len(self.text)) and not may_go_on:
            allowed = content.copy()
            allowed[self._vocabulary.terminators] = True
        if not allowed.any():
            raise ConstraintDeadEnd("the constraint is not complete and allows no token")
        token = sampling.choose(row, self.slot.sampling, self._rng, allowed)
        if not content[token]:
            self._end("constraint", len(self.text))
            return
        self._record(logits, token)
        self._append(token)
        matcher.consume(token)
        self._force(matcher)

    def _record(self, logits: sampling.Logits, token: int) -> None:
        value = sampling.logprob(logits, token)
        self._logprob += value
        self._sampled[token] += 1
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

    def fill(self) -> Fill:
        """Return what was written, without the lead."""
        text = self.text.decode("utf-8", "replace").removeprefix(self.slot.lead)
        return Fill(
            text=text,
            finish=self.finish or "length",
            generated=self._sampled.total(),
            forced=self._forced,
            logprob=self._logprob,
            logprobs=tuple(self._logprobs),
        )


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
