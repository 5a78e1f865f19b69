"""A request on its way through one sequence: texts are appended, slots filled, tokens counted.

Knows tokens and slots, and nothing of batches: ``loop/decoder.py`` hands it rows of logits.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field, replace

import numpy as np

from promptflow.engine.loop import admission
from promptflow.engine.model.constraint import Constraints
from promptflow.engine.model.protocol import Model
from promptflow.engine.model.tokenizer import Prompts
from promptflow.engine.request import Dependent, Fill, Slot, TokenLogprob, Usage
from promptflow.engine.sequence import Sequence
from promptflow.engine.slot import sampling
from promptflow.engine.slot.beam import Beams
from promptflow.engine.slot.choice import Weighing
from promptflow.engine.slot.drawing import Drawn
from promptflow.engine.slot.filling import Filling, Vocabulary
from promptflow.engine.slot.prompt_lookup import Lookup, Odds
from promptflow.errors import PromptflowError

SEAM = 8  # tokens that a stop string which cuts a token may add
STRIDE = 8  # tokens between the states that are kept of a request which will be continued


class Tools:
    """What every job needs of a model, made once."""

    def __init__(self, model: Model) -> None:
        """Read the vocabulary of ``model``."""
        self.prompts = Prompts(model)
        self.vocabulary = Vocabulary(model)
        self.constraints: Constraints = model.constraints()
        self.odds = Odds()
        self.context = model.info.context
        self.cells = model.cells


@dataclass(eq=False, slots=True)
class Meter:
    """Counts how the tokens of a sequence came to be: see Usage."""

    prompt: int = 0
    prefilled: int = 0
    reused: int = 0
    _spans: list[tuple[int, int]] = field(default_factory=list)  # where program text is
    _seen: int = 0  # tokens that were computed or taken over at least once

    def add_prompt(self, start: int, count: int) -> None:
        """Note that ``count`` tokens from ``start`` on are program text."""
        self.prompt += count
        self._spans.append((start, start + count))

    def take_over(self, count: int) -> None:
        """Note that the first ``count`` tokens were in the cache already."""
        self.reused += self._prompt_in(self._seen, count)
        self._seen = max(self._seen, count)

    def compute(self, start: int, end: int) -> None:
        """Note that the tokens from ``start`` to ``end`` were computed."""
        again = max(0, min(end, self._seen) - start)
        self.prefilled += again + self._prompt_in(max(start, self._seen), end)
        self._seen = max(self._seen, end)

    def cut(self, length: int) -> None:
        """Note that the tokens after ``length`` were taken back."""
        self._seen = min(self._seen, length)

    def begin_again(self) -> None:
        """Note that the sequence is written anew: what was generated so far counts as prefilled."""
        self.prefilled += self._seen - self._prompt_in(0, self._seen)
        self._spans.clear()
        self.prompt = self._seen = 0

    def _prompt_in(self, start: int, end: int) -> int:
        return sum(max(0, min(end, b) - max(start, a)) for a, b in self._spans)


class FillJob:
    """Fills the slots of one request in order."""

    def __init__(
        self, slots: abc.Sequence[Slot], texts: abc.Sequence[list[int]], seed: int, tools: Tools
    ) -> None:
        """Prepare to fill ``slots``, each after the tokens of ``texts`` at its place."""
        self.sequence = Sequence(
            0, [], 0, kind=tuple((slot.name, slot.max_tokens) for slot in slots)
        )
        self.meter = Meter()
        self.fills: dict[str, Fill] = {}
        self.prompt = sum(map(len, texts))
        self._slots = slots
        self._texts = texts
        self._seed = seed
        self._tools = tools
        self._at = 0
        self._filling: Filling | Weighing | Beams | None = None  # of the slot that is open
        self._may_stop = False  # the open slot's text ends in what may be taken back
        self._lookup = Lookup(tools.odds)
        searched = [slot for slot in slots if slot.beam is not None]
        self.sequence.forks = max(
            (slot.beam.width - 1 for slot in searched if slot.beam), default=0
        )
        self.sequence.fork_limit = max((slot.max_tokens for slot in searched), default=0)

    @property
    def is_done(self) -> bool:
        """Return whether every slot is filled."""
        return self._at == len(self._slots)

    @property
    def _is_last(self) -> bool:
        """Return whether nothing follows the open slot, so that it takes nothing back."""
        return self._at == len(self._slots) - 1

    @property
    def beams(self) -> Beams | None:
        """Return the search that is going on, if there is one."""
        return self._filling if isinstance(self._filling, Beams) else None

    @property
    def plain(self) -> Filling | None:
        """Return the open slot where a token is to be sampled next, not searched or weighed."""
        return self._filling if isinstance(self._filling, Filling) else None

    def draft(self, limit: int, least: float) -> list[int]:
        """Return up to ``limit`` tokens that may come next, within what the slot may hold.

        Each is accepted with a chance of ``least`` or more.
        """
        filling = self.plain
        if filling is None:
            return []
        left = filling.slot.max_tokens - len(filling.tokens) - 1
        return self._lookup.draft(self.sequence.tokens, min(limit, left), least)

    def need(self) -> int:
        """Return how many tokens must have room after those before the slot to be filled."""
        return self._beside() + sum(slot.need for slot in self._slots[self._at :])

    def room(self) -> int:
        """Return how many tokens may follow those before the slot that is to be filled."""
        return self._beside() + sum(slot.max_tokens for slot in self._slots[self._at :])

    def _beside(self) -> int:
        """Return the tokens of the texts after the slot to be filled, and of what stops may add."""
        seams = sum(SEAM for slot in self._slots[self._at : -1] if slot.stop)
        return seams + sum(map(len, self._texts[self._at + 1 :]))

    def _fitted(self, slot: Slot) -> Slot:
        """Return a slot to be opened with its own constraint, and a bound within what is left.

        Raises ContextOverflow where that is less than its ``least``, and ConstraintError.
        """
        if isinstance(slot.constraint, Dependent):
            text = self.fills[slot.constraint.slot].text
            slot = replace(slot, constraint=slot.constraint.on(text))
        if not slot.fits:
            return slot
        here, cells = len(self.sequence.tokens), self._tools.cells
        left = self._tools.context - here - (self.need() - slot.least)
        left = min(left, (cells - here) // _width(slot))
        end = here + SEAM * bool(slot.stop)
        for number in range(self._at + 1, len(self._slots)):
            later = self._slots[number]
            end += len(self._texts[number])
            left = min(left, cells - end - _width(later) * later.need)
            end += later.need + SEAM * bool(later.stop)
        if left < slot.least:
            raise admission.no_rest(slot, left, here, self._tools.context)
        return replace(slot, max_tokens=min(slot.max_tokens, left))

    def open(self) -> None:
        """Append the texts before the next slot, and open it; go on where it is all forced.

        Raises ConstraintError and ContextOverflow.
        """
        while not self.is_done:
            text, sequence, tools = self._texts[self._at], self.sequence, self._tools
            self.meter.add_prompt(len(sequence.tokens), len(text))
            sequence.tokens += text
            sequence.length_limit = min(tools.context, len(sequence.tokens) + self.room())
            slot = self._fitted(self._slots[self._at])
            admission.check_options(tools.prompts, slot)
            rng = sampling.generator(self._seed, self._at)
            filling = Filling(slot, tools.vocabulary, tools.constraints, rng, sequence.tokens)
            if slot.beam is not None or slot.is_weighed or (slot.stop and not self._is_last):
                sequence.stops.add(len(sequence.tokens))  # it may be taken back to here
            sequence.tokens += filling.open()
            self._filling, self._may_stop = filling, False
            if slot.beam is not None:
                self._filling = Beams(sequence, filling)
            elif slot.is_weighed:
                self._filling = Weighing(filling, rng)
            if filling.finish is None:
                return
            self._close(self._filling.fill(), filling, len(sequence.tokens) - len(filling.tokens))

    def take(self, logits: np.ndarray, drawn: Drawn | None = None) -> int:
        """Sample a token, unless ``drawn``; go on to the next slot where this one has ended.

        Return how many of the tokens known before still stand. Raises EngineError.
        """
        filling, tokens = self._filling, self.sequence.tokens
        assert isinstance(filling, Filling | Weighing)
        stands = len(tokens)
        base = stands - len(filling.tokens)
        if isinstance(filling, Weighing):
            stands = base + filling.take(logits)
            if filling.finish is None:
                tokens[base:] = filling.tokens
                self.meter.cut(stands)
        else:
            if isinstance(drawn, PromptflowError):
                raise drawn
            tokens += filling.take(logits) if drawn is None else filling.put(drawn)
            goes_on = self.sequence.continued or not self._is_last
            may_stop = filling.finish is None and filling.may_stop and goes_on
            is_due = self.sequence.continued and len(filling.tokens) % STRIDE == 0
            if (may_stop and not self._may_stop) or (is_due and not may_stop):
                self.sequence.stops.add(stands)
            self._may_stop = may_stop
        if filling.finish is not None:
            best = filling.best if isinstance(filling, Weighing) else filling
            stands = min(stands, self._close(filling.fill(), best, base))
            self.open()
        return stands

    def close_beams(self) -> int:
        """Keep the best text of a search that has ended and go on; return how many tokens stand."""
        beams = self.beams
        assert beams is not None
        stands = beams.rewind()
        self.meter.cut(stands)
        stands = min(stands, self._close(beams.fill(), beams.best, beams.base))
        self.open()
        return stands

    def restart(self, from_scratch: bool) -> None:
        """Go on without the cache: begin a search again, and ``from_scratch`` everything.

        What is computed again in another batch is not the same to the last bit, and neither is what
        the model says next.
        """
        if from_scratch:
            self.fills.clear()
            self.sequence.tokens.clear()
            self.meter.begin_again()
            self._at = 0
            self.open()
        elif (beams := self.beams) is not None:
            beams.rewind()
            self._filling = Beams(self.sequence, beams.opened)

    def _close(self, fill: Fill, filling: Filling, base: int) -> int:
        """Keep what was written from ``base`` on, less what a stop cut off, and its ``fill``.

        Return how many tokens stand.
        """
        sequence = self.sequence
        self.fills[filling.slot.name] = fill
        self._filling = None
        self._at += 1
        if self.is_done:
            return len(sequence.tokens)
        sequence.tokens[base:] = filling.tokens[: filling.kept]
        kept = len(sequence.tokens)
        self.meter.cut(kept)
        sequence.tokens += self._tools.prompts.continuation(filling.rest.decode("utf-8", "replace"))
        return kept

    def cut(self) -> dict[str, Fill]:
        """Return the fills of a job that has failed: the last one as far as it was written."""
        filling = self.plain
        if filling is None or not filling.tokens:
            return self.fills
        filling.cut()
        return {**self.fills, filling.slot.name: filling.fill()}

    def usage(self) -> Usage:
        """Return the counts so far, those of an unfinished slot included."""
        fills = list(self.fills.values())
        if self._filling is not None:
            fills.append(self._filling.fill())
        return Usage(
            self.meter.prompt,
            self.meter.prefilled,
            self.meter.reused,
            generated=sum(fill.generated for fill in fills),
            forced=sum(fill.forced for fill in fills),
        )


def _width(slot: Slot) -> int:
    """Return how many sequences a slot is filled with side by side."""
    return 1 if slot.beam is None else slot.beam.width


class ScoreJob:
    """Reads the log-probabilities of given tokens after a prefix."""

    def __init__(self, before: list[int], expected: list[int], tools: Tools) -> None:
        """Prepare to score ``expected`` after the tokens ``before`` it; neither is empty."""
        tokens = before + expected[:-1]
        # The logits after the prefix are wanted, so its last token is computed for each.
        first = len(before) - 1
        self.sequence = Sequence(0, tokens, len(tokens), share_limit=first, scored_from=first)
        self.meter = Meter()
        self.meter.add_prompt(0, len(tokens))
        self.scores: list[TokenLogprob] = []
        self._expected = expected
        self._tools = tools

    @property
    def is_done(self) -> bool:
        """Return whether every token has its score."""
        return len(self.scores) == len(self._expected)

    def take(self, logits: np.ndarray) -> None:
        """Score the next token. Raises NumericError."""
        sampling.check(logits)
        token = self._expected[len(self.scores)]
        text = self._tools.prompts.text(token)
        logprob, rank, expected, variance = sampling.standing(logits, token)
        self.scores.append(TokenLogprob(text, token, logprob, (), rank, expected, variance))

    def restart(self, from_scratch: bool) -> None:
        """Score everything again: the rows that were scored are computed again too."""
        self.scores.clear()

    def usage(self) -> Usage:
        """Return the counts so far."""
        return Usage(self.meter.prompt, self.meter.prefilled, self.meter.reused)
