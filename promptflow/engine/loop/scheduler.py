"""Who runs next: admission by shared prefix, one batch a step, eviction and preemption.

Pure: it sees tokens, sequence numbers and counts, decides, and leaves every call into the model to
``decoder.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from promptflow.engine.cache.cache import Cache
from promptflow.engine.cache.cells import Move
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.loop.width import PASS, Width
from promptflow.engine.sequence import Sequence

PATIENCE = 64  # younger sequences that may overtake a waiting one before it goes first
WINDOW = 256  # waiting sequences that are compared with each other
SCORED_ROWS = 128  # scored positions a batch: llama.cpp keeps a row of the vocabulary for each
FEW = 8  # up to so many pending tokens a sequence counts as decoding, and goes first


@dataclass(slots=True)
class Plan:
    """One step: moves of cells in the order they must run, then one batch of rows."""

    moves: list[Move] = field(default_factory=list)
    # Sequences, and how many tokens of each.
    rows: list[tuple[Sequence, int]] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    hopeless: list[Sequence] = field(default_factory=list)  # no room, though nothing else runs


class Scheduler:
    """Decide each step's batch over one KV cache that all sequences share."""

    def __init__(self, cache: Cache, batch: int, max_running: int, pass_cells: int = PASS) -> None:
        """Fill batches of ``batch`` tokens from ``cache``; decode at most ``max_running``.

        Attention over ``pass_cells`` costs what a pass over the weights does: see width.py.
        """
        self.cache = cache
        self.batch = batch
        self.max_running = max_running
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.is_full = False  # the model has said so: what runs goes on before more is admitted
        self._width = Width(pass_cells)
        self._lengths = Lengths()

    # Each step

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)
        self._width.refused = None
        for other in self.running:
            self._ask(other, [sequence])
            self.cache.part(other, [sequence])

    def step(self) -> Plan:
        """Admit what fits and fill a batch: decoding sequences first, then chunks of prompts."""
        plan = Plan()
        self._admit(plan)
        budget, scored = self.batch, SCORED_ROWS
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > FEW):
            unscored = max(0, sequence.scored_from - sequence.computed)
            take = min(sequence.pending, budget, unscored + scored)
            take = min(take, self.cache.until_stop(sequence))
            if take:
                plan.rows.append((sequence, take))
                budget -= take
                scored -= max(0, take - unscored)
        return plan

    def _admit(self, plan: Plan) -> None:
        """Start waiting sequences for as long as each of them pays and fits."""
        if self.is_full and self.running:
            self.is_full = False
            return
        if self._width.still_refuses(self.running):
            return  # comparing every waiting prompt again would take milliseconds a step
        while self.waiting and len(self.running) < self.max_running:
            choice = self._choose()
            if choice is None or not self._width.admits(self.running, choice[0], choice[2]):
                return
            if not self._start(*choice, plan):
                if self.running:
                    return
                if self._start(choice[0], -1, 0, plan):
                    continue  # a search needs the number too of the prefix that it would share
                self.waiting.remove(choice[0])
                plan.hopeless.append(choice[0])

    def _choose(self) -> tuple[Sequence, int, int] | None:
        """Return the waiting sequence with the longest ready prefix, who holds it, and its length.

        Siblings of a prefill wait for it, and new prompts for them: programs one after the other
        need fewer cells at a time, and each token attends to all.
        """
        best, choice, coming = (False, -1, 0), None, 0
        for sequence in self.waiting[:WINDOW]:
            if not self._is_blocked(sequence):
                source, shared = self.cache.best_prefix(sequence)
            if sequence.waits_for is not None:
                coming = max(coming, sequence.waits_for[1])
                continue
            rank = (sequence.skipped > PATIENCE, shared, -sequence.number)
            if choice is None or rank > best:
                best, choice = rank, (sequence, source, shared)
        if choice and not best[0] and best[1] < min(coming, len(choice[0].tokens) - 1):
            return None
        return choice

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Return whether a prefill that the sequence waits for is still on its way."""
        if sequence.waits_for is not None:
            holder, depth = sequence.waits_for
            if holder in self.running and holder.computed < depth:
                return True
        sequence.waits_for = None
        return False

    def _start(self, sequence: Sequence, source: int, shared: int, plan: Plan) -> bool:
        """Give a sequence its prefix and let it run; False where there is no room for it yet."""
        sequence.likely = self._likely(sequence)
        if not self.cache.make_room(sequence, source, shared, plan.moves):
            return False
        self.cache.begin(sequence, source, shared, plan.moves)
        self._width.refused = None
        self.waiting.remove(sequence)
        for other in self.waiting:
            other.skipped += other.number < sequence.number
        self._ask(sequence, self.waiting[:WINDOW])
        self.cache.part(sequence, self.waiting[:WINDOW])
        self.running.append(sequence)
        plan.admitted.append(sequence)
        return True

    def _likely(self, sequence: Sequence) -> int:
        """Return how many tokens a waiting sequence is likely to hold when it ends.

        One that was sent back is likely to go on for as long again: so each is sent back a few
        times at most, and what is computed again for it is at most twice what it comes to.
        """
        prompt = min(sequence.prompt, len(sequence.tokens))
        again = 2 * (len(sequence.tokens) - prompt) if sequence.preempted else 0
        return prompt + max(self._lengths.likely(sequence.kind), again)

    def relieve(self) -> tuple[bool, list[Move]]:
        """Evict until all known tokens of running sequences have room; return whether they have."""
        return self.cache.relieve(sum(sequence.pending for sequence in self.running))

    @staticmethod
    def first_to_go(sequences: Iterable[Sequence]) -> Sequence:
        """Return the newest of those that have outgrown their cells, else the newest of all.

        So what is within the cells that were set aside for it stays, and the oldest comes to an
        end.
        """
        return max(sequences, key=lambda sequence: (sequence.has_outgrown, sequence.number))

    def _ask(self, holder: Sequence, waiting: Iterable[Sequence]) -> None:
        """Have ``holder`` keep the logits at the ends of waiting prompts that it will compute."""
        if not self.cache.sharing or self.cache.makes_keepers(holder):
            return  # they find a keeper that lacks their last token
        for sequence in waiting:
            end = len(sequence.tokens)
            inside = holder.computed < end <= len(holder.tokens) and end <= sequence.share_limit
            if inside and holder.tokens[:end] == sequence.tokens:
                holder.wants.add(end - 1)

    def waiting_at(self, holder: Sequence, position: int) -> list[Sequence]:
        """Return the waiting sequences whose prompt ends at ``position`` of ``holder``."""
        holder.wants.discard(position)
        prompt = holder.tokens[: position + 1]
        return [sequence for sequence in self.waiting if sequence.tokens == prompt]

    # Forks of a running sequence

    def fork(self, parent: Sequence, child: Sequence, lead: Sequence) -> list[Move]:
        """Let ``child`` hold what ``parent`` has in the cache; new children take lead's spares."""
        if child.seq_id < 0:
            self.running.append(child)
        return self.cache.fork(parent, child, lead)

    def join(self, child: Sequence, lead: Sequence) -> list[Move]:
        """End a fork; its sequence number is lead's again."""
        if child.seq_id < 0:
            return []
        self.running.remove(child)
        return self.cache.join(child, lead)

    # What the decoder reports

    def computed(self, sequence: Sequence, count: int) -> None:
        """Record that ``count`` more tokens of a sequence are in the cache."""
        if sequence.computed < sequence.prompt:
            self._width.refused = None
        self.cache.extend(sequence, count)

    def finish(self, sequence: Sequence, keep: bool) -> list[Move]:
        """Retire a sequence, keeping its cells as a prefix for others if asked to.

        Return the moves that the model has to make. A sequence that only waits is forgotten.
        """
        sequence.row = sequence.waits_for = None
        sequence.wants.clear()
        self._width.refused = None
        if sequence.seq_id < 0:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return []
        self.running.remove(sequence)
        if keep and sequence.length_limit > sequence.prompt:
            self._width.ended(sequence.written, sequence.length_limit - sequence.prompt)
            self._lengths.ended(sequence.kind, sequence.written)
        return self.cache.end(sequence, keep)

    def preempt(self, sequence: Sequence) -> list[Move]:
        """Send a running sequence back to the queue, to recompute what others do not hold."""
        if sequence.has_outgrown:
            self._lengths.outgrew(sequence.kind, sequence.written)
        moves = self.finish(sequence, keep=False)
        sequence.computed = 0
        sequence.preempted += 1
        self.waiting.insert(0, sequence)
        return moves
