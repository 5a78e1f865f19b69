"""One slot being filled: choose a token, follow the constraint, notice the end.

Works on bytes, since a token may hold half a character. Knows nothing of batches or caches.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from promptflow.engine import sampling
from promptflow.engine.constraint import Constraints, Matcher
from promptflow.engine.request import Fill, Slot, TokenLogprob
from promptflow.engine.scheduler import Model


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
        self, slot: Slot, vocabulary: Vocabulary, constraints: Constraints, rng: np.random.Generator
    ) -> None:
        """Open ``slot``; raises ConstraintError where its constraint cannot be compiled."""
        self.slot = slot
        self.tokens: list[int] = []
        self.text = bytearray()
        self.finish: str | None = None
        self.kept = 0  # tokens that stay when the slot has ended
        self.rest = b""  # bytes after them that a stop string cut out of a token
        self._vocabulary = vocabulary
        self._rng = rng
        self._seen: Counter[int] = Counter()
        self._generated = 0
        self._forced = 0
        self._logprob = 0.0
        self._logprobs: list[TokenLogprob] = []
        self._stops = [stop.encode() for stop in slot.stop] if slot.constraint is None else []
        self._matcher: Matcher | None = None
        if slot.constraint is not None:
            self._matcher = constraints.start(slot.constraint, slot.lead)

    def open(self) -> list[int]:
        """Return the tokens that the constraint forces before anything is sampled."""
        before = len(self.tokens)
        self._force()
        return self.tokens[before:]

    def take(self, logits: sampling.Logits) -> list[int]:
        """Sample from a row of logits; return the tokens that this adds, forced ones included.

        Raises NumericError, ConstraintError and ConstraintDeadEnd.
        """
        sampling.check(logits)
        before = len(self.tokens)
        token, ended = self._choose(logits)
        self._generated += 1
        if ended or token in self.slot.stop_tokens:
            self._generated -= 1
            self._end("constraint" if self._matcher else "stop", len(self.text))
            return []
        self._record(logits, token)
        self._append(token)
        if self._matcher is None:
            self._look_for_stop(len(self._vocabulary.pieces[token]))
        else:
            self._matcher.consume(token)
            self._force()
        if self.finish is None and len(self.tokens) >= self.slot.max_tokens:
            self._end("length", len(self.text))
        return self.tokens[before:]

    def _choose(self, logits: sampling.Logits) -> tuple[int, bool]:
        """Return a token and whether it ends the slot."""
        ends = self._vocabulary.ends
        row = sampling.penalize(logits, self.slot.sampling, self._seen)
        if self._matcher is None:
            if self.slot.ignore_eos:
                row = row.copy()
                row[ends] = -np.inf
            token = sampling.choose(row, self.slot.sampling, self._rng)
            return token, token in self._vocabulary.end_set
        allowed = self._matcher.allowed()
        content = allowed.copy()
        content[ends] = False
        if self._matcher.can_end(len(self.text)):
            allowed[self._vocabulary.terminators] = True
        else:
            allowed = content
        ids = np.flatnonzero(allowed)
        token = sampling.choose(row, self.slot.sampling, self._rng, ids)
        return token, not content[token]

    def _record(self, logits: sampling.Logits, token: int) -> None:
        value = sampling.logprob(logits, token)
        self._logprob += value
        self._seen[token] += 1
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

    def _force(self) -> None:
        """Follow the constraint as far as it leaves no choice."""
        if self._matcher is None:
            return
        for token in self._matcher.forced():
            if token in self._vocabulary.end_set:
                break
            if len(self.tokens) >= self.slot.max_tokens:
                break
            self._matcher.consume(token)
            self._append(token)
            self._forced += 1
        if self._matcher.must_end():
            self._end("constraint", len(self.text))
        elif len(self.tokens) >= self.slot.max_tokens:
            self._end("length", len(self.text))

    def _look_for_stop(self, fresh: int) -> None:
        """End at the first stop string that the last ``fresh`` bytes complete."""
        found = -1
        for stop in self._stops:
            at = self.text.find(stop, max(0, len(self.text) - fresh - len(stop) + 1))
            if at >= 0 and (found < 0 or at < found):
                found = at
        if found >= 0:
            self._end("stop", found)

    def _end(self, reason: str, length: int) -> None:
        """End with the first ``length`` bytes of the text."""
        self.finish = reason
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
            generated=self._generated,
            forced=self._forced,
            logprob=self._logprob,
            logprobs=tuple(self._logprobs),
        )
