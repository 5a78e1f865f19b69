"""Who runs next: admission by shared prefix, one batch a step, eviction and preemption.

Pure: it sees tokens, sequence numbers and counts, decides, and leaves every call into the model to
``decoder.py``.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable
from dataclasses import dataclass, field

from promptflow.engine.cache.cells import CellLedger, Copy, Drop, Move
from promptflow.engine.cache.prefix import PrefixTree
from promptflow.engine.cache.retention import Retention
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.loop.width import Width
from promptflow.engine.sequence import Sequence

PATIENCE = 64  # younger sequences that may overtake a waiting one before it goes first
WINDOW = 256  # waiting sequences that are compared with each other
SCORED_ROWS = 128  # scored positions a batch: llama.cpp keeps a row of the vocabulary for each
FEW = 8  # up to so many pending tokens a sequence counts as decoding, and goes first


@dataclass(slots=True)
class Plan:
    """One step: moves of cells in the order they must run, then one batch of rows."""

    moves: list[Move] = field(default_factory=list)
    rows: list[tuple[Sequence, int]] = field(
        default_factory=list
    )  # a sequence and how many of its tokens
    admitted: list[Sequence] = field(default_factory=list)
    hopeless: list[Sequence] = field(default_factory=list)  # no room, though nothing else runs


class Scheduler:
    """Decide each step's batch over one KV cache that all sequences share."""

    def __init__(
        self, cells: int, batch: int, sequences: int, max_running: int, sharing: bool = True
    ) -> None:
        """Manage ``cells`` and ``sequences`` numbers; decode at most ``max_running``.

        Without ``sharing`` no sequence takes anything from another, nor leaves anything behind.
        """
        self.batch = batch
        self.sharing = sharing
        self.max_running = min(max_running, sequences)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.retained: dict[int, list[int]] = {}  # finished sequences by least recent use
        self._last_use: dict[int, int] = {}  # of a finished sequence, in tokens computed
        self._clock = 0
        self._retention = Retention()
        self._width = Width()
        self._lengths = Lengths()
        self.tree = PrefixTree()
        self.cells = CellLedger(cells)
        # Attention reads every cell up to the highest used one, whoever holds it.
        self.retain_limit = cells // 2
        self.evicted = 0
        self.is_full = False  # the model has said so: what runs goes on before more is admitted
        self._free = list(range(sequences - 1, -1, -1))
        self._owners: dict[int, Sequence] = {}
        self._indexed: dict[int, list[int]] = {}  # what the tree knows of running sequences

    # Each step

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)
        self._width.refused = None
        for other in self.running:
            self._ask(other, [sequence])

    def step(self) -> Plan:
        """Admit what fits and fill a batch: decoding sequences first, then chunks of prompts."""
        plan = Plan()
        self._admit(plan)
        budget, scored = self.batch, SCORED_ROWS
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > FEW):
            unscored = max(0, sequence.scored_from - sequence.computed)
            take = min(sequence.pending, budget, unscored + scored)
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
                source, shared = self._best_prefix(sequence)
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

    def _best_prefix(self, sequence: Sequence) -> tuple[int, int]:
        """Return the sequence that holds most of the sequence's prompt and how much of it.

        Sets ``waits_for`` instead where a running prefill will soon hold more.
        """
        tokens = sequence.tokens if self.sharing else []
        source, shared = -1, 0
        coming: tuple[Sequence, int] | None = None
        for matched, holders in self.tree.match(tokens):
            depth = min(matched, sequence.share_limit)
            if depth <= shared:
                break
            for holder in holders:
                owner = self._owners.get(holder)
                held = depth if owner is None else min(owner.computed, depth)
                if held == len(tokens) and sequence.row is None:
                    held -= 1  # its last token must be decoded again, for the logits
                if held > shared:
                    source, shared = holder, held
                if owner and owner.computed < depth and (coming is None or coming[1] < depth):
                    coming = (owner, depth)
        if coming is not None and coming[1] > shared:
            sequence.waits_for = coming
        return source, shared

    def _start(self, sequence: Sequence, source: int, shared: int, plan: Plan) -> bool:
        """Give a sequence a number and its prefix; False where the cache has no room for it yet."""
        sequence.likely = self._likely(sequence)
        if not self._make_room(sequence, source, shared, plan.moves):
            return False
        if not self._free:
            # All numbers are taken and the prefix is all that its sequence holds: take that over.
            sequence.seq_id = source
            del self.retained[source], self._last_use[source]
        else:
            sequence.seq_id = self._free.pop()
            if shared:
                plan.moves.append(Copy(source, sequence.seq_id, shared))
                self.cells.share(source, sequence.seq_id, shared)
            if source in self.retained:
                self._retain(source, self.retained.pop(source))
        sequence.spares = [self._free.pop() for _ in range(sequence.forks)]
        if shared < len(sequence.tokens):
            sequence.row = None
        sequence.computed, sequence.prompt = shared, min(sequence.prompt, len(sequence.tokens))
        self._owners[sequence.seq_id] = sequence
        self._indexed[sequence.seq_id] = list(sequence.tokens)
        if self.sharing and not sequence.preempted:
            self._retention.began(sequence.tokens, shared)
        self.tree.insert(sequence.seq_id, sequence.tokens)
        self._width.refused = None
        self.waiting.remove(sequence)
        for other in self.waiting:
            other.skipped += other.number < sequence.number
        self._ask(sequence, self.waiting[:WINDOW])
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

    def _promised(self) -> int:
        """Return how many more cells running sequences are likely to take."""
        return sum(sequence.promised(len(sequence.spares)) for sequence in self.running)

    def relieve(self) -> tuple[bool, list[Move]]:
        """Evict until all known tokens of running sequences have room; return whether they have."""
        moves: list[Move] = []
        pending = sum(sequence.pending for sequence in self.running)
        while self.cells.used + pending > self.cells.capacity:
            if not self._evict(moves):
                return False, moves
        return True, moves

    @staticmethod
    def first_to_go(sequences: Iterable[Sequence]) -> Sequence:
        """Return the newest of those that have outgrown their cells, else the newest of all.

        So what is within the cells that were set aside for it stays, and the oldest comes to an
        end.
        """
        return max(sequences, key=lambda sequence: (sequence.has_outgrown, sequence.number))

    def _make_room(self, sequence: Sequence, source: int, shared: int, moves: list[Move]) -> bool:
        """Evict until ``sequence`` fits beside what running ones are likely to take, if it can."""
        # A search in what the context leaves takes all cells at most, whatever its forks may take.
        most = max(len(sequence.tokens), self.cells.capacity)
        wanted = min(sequence.promised(sequence.forks), most) - shared
        room = self.cells.capacity - self._promised() - wanted
        while self.cells.used > room or len(self._free) <= sequence.forks:
            if self._evict(moves, keep=source):
                continue
            held = self.retained.get(source, ())
            if len(held) > shared:
                self._trim(source, shared, moves)
            else:
                return len(held) > 0 and not sequence.forks and self.cells.used <= room
        return True

    def _ask(self, holder: Sequence, waiting: Iterable[Sequence]) -> None:
        """Have ``holder`` keep the logits at the ends of waiting prompts that it will compute."""
        for sequence in waiting if self.sharing else ():
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
        moves: list[Move] = []
        if child.seq_id < 0:
            child.seq_id = lead.spares.pop()
            self._owners[child.seq_id] = child
            self._indexed[child.seq_id] = []
            child.likely = lead.likely
            self.running.append(child)
        else:
            self.cells.drop(child.seq_id)
            moves.append(Drop(child.seq_id))
        self.cells.share(parent.seq_id, child.seq_id, parent.computed)
        child.computed = parent.computed
        return [*moves, Copy(parent.seq_id, child.seq_id, parent.computed)]

    def join(self, child: Sequence, lead: Sequence) -> list[Move]:
        """End a fork; its sequence number is lead's again."""
        if child.seq_id < 0:
            return []
        seq_id, child.seq_id = child.seq_id, -1
        self.running.remove(child)
        del self._owners[seq_id], self._indexed[seq_id]
        self.cells.drop(seq_id)
        lead.spares.append(seq_id)
        return [Drop(seq_id)]

    # What the decoder reports

    def computed(self, sequence: Sequence, count: int) -> None:
        """Record that ``count`` more tokens of a sequence are in the cache."""
        if sequence.computed < sequence.prompt:
            self._width.refused = None
        self.cells.extend(sequence.seq_id, count)
        sequence.computed += count
        self._clock += count

    def cut(self, sequence: Sequence, length: int) -> list[Move]:
        """Take a sequence's tokens after ``length`` back from the cache."""
        if sequence.computed <= length:
            return []
        self.cells.drop(sequence.seq_id, length)
        sequence.computed = length
        return [Drop(sequence.seq_id, length)]

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
        self._free += sequence.spares
        sequence.spares = []
        seq_id, sequence.seq_id = sequence.seq_id, -1
        del self._owners[seq_id]
        self.tree.remove(seq_id, self._indexed.pop(seq_id))
        held = sequence.tokens[: sequence.computed]
        moves: list[Move] = []
        if keep and self.sharing and held and not self._is_covered(held):
            for shorter in self._covered_by(held):
                self._give_up(shorter, moves)
            self.tree.insert(seq_id, held)
            self._retain(seq_id, held)
            self._age(moves)
            while self.cells.used > self.retain_limit and self._evict(moves):
                pass
        else:
            self._release(seq_id, moves)
        return moves

    def preempt(self, sequence: Sequence) -> list[Move]:
        """Send a running sequence back to the queue, to recompute what others do not hold."""
        if sequence.has_outgrown:
            self._lengths.outgrew(sequence.kind, sequence.written)
        moves = self.finish(sequence, keep=False)
        sequence.computed = 0
        sequence.preempted += 1
        self.waiting.insert(0, sequence)
        return moves

    def evict_all(self) -> list[Move]:
        """Free every retained sequence."""
        moves: list[Move] = []
        while self._evict(moves):
            pass
        return moves

    # Prefixes that come from elsewhere

    def held(self, tokens: abc.Sequence[int]) -> int:
        """Return how many of ``tokens`` the cache holds, or soon will."""
        found = self.tree.match(list(tokens)) if self.sharing else []
        return found[0][0] if found else 0

    def holder_of(self, tokens: abc.Sequence[int]) -> int:
        """Return a sequence that has computed all of ``tokens``, -1 if there is none."""
        for depth, holders in self.tree.match(list(tokens)):
            for holder in holders:
                owner = self._owners.get(holder)
                if depth == len(tokens) and (owner is None or owner.computed >= depth):
                    return holder
        return -1

    def vacate(self, count: int, spare: int = -1) -> tuple[int, list[Move]]:
        """Take an unused sequence number, with room for ``count`` tokens beside what runs.

        Finished sequences but ``spare`` may be evicted. Return -1 where that is not enough.
        """
        moves: list[Move] = []
        room = self.cells.capacity - self._promised() - count
        while self.cells.used > room or not self._free:
            if not self._evict(moves, keep=spare):
                return -1, moves
        return self._free.pop(), moves

    def adopt(self, seq_id: int, tokens: list[int]) -> None:
        """Count a vacated sequence, which now holds ``tokens``, among the finished ones."""
        self._width.refused = None
        self.cells.extend(seq_id, len(tokens))
        self.tree.insert(seq_id, tokens)
        self._retain(seq_id, tokens)

    def give_back(self, seq_id: int) -> None:
        """Return a vacated sequence that holds nothing."""
        self._free.append(seq_id)

    def _retain(self, seq_id: int, tokens: list[int]) -> None:
        """Count a sequence as the finished one that was used last."""
        self.retained[seq_id] = tokens
        self._last_use[seq_id] = self._clock

    def _age(self, moves: list[Move]) -> None:
        """Cut from old sequences what is not worth its cells, and what others hold as well."""
        for seq_id, tokens in list(self.retained.items()):
            kept = self._retention.kept(tokens, self._clock - self._last_use[seq_id])
            if kept == len(tokens):
                continue
            holders = self.tree.match(tokens[:kept])[0][1] if kept else set()
            if kept == 0 or len(holders & self.retained.keys()) > 1:
                self._give_up(seq_id, moves)
            else:
                self._trim(seq_id, kept, moves)

    def _evict(self, moves: list[Move], keep: int = -1) -> bool:
        """Free the finished sequence that was used least recently, but not ``keep``."""
        for seq_id in self.retained:
            if seq_id != keep:
                self._give_up(seq_id, moves)
                self.evicted += 1
                return True
        return False

    def _give_up(self, seq_id: int, moves: list[Move]) -> None:
        self.tree.remove(seq_id, self.retained.pop(seq_id))
        del self._last_use[seq_id]
        self._release(seq_id, moves)

    def _release(self, seq_id: int, moves: list[Move]) -> None:
        self.cells.drop(seq_id)
        self._free.append(seq_id)
        moves.append(Drop(seq_id))

    def _trim(self, seq_id: int, length: int, moves: list[Move]) -> None:
        """Shorten a retained sequence to the prefix that a sequence is about to take from it."""
        tokens = self.retained[seq_id]
        self.tree.remove(seq_id, tokens)
        self.tree.insert(seq_id, tokens[:length])
        self.retained[seq_id] = tokens[:length]
        self.cells.drop(seq_id, length)
        moves.append(Drop(seq_id, length))

    def _is_covered(self, tokens: list[int]) -> bool:
        """Return whether another finished sequence holds all of ``tokens``, and refresh it."""
        for depth, holders in self.tree.match(tokens):
            for holder in holders:
                if depth == len(tokens) and holder in self.retained:
                    self._retain(holder, self.retained.pop(holder))
                    return True
        return False

    def _covered_by(self, tokens: list[int]) -> list[int]:
        """Return the finished sequences that hold nothing but a prefix of ``tokens``."""
        return [
            holder
            for depth, holders in self.tree.match(tokens)
            for holder in holders
            if holder in self.retained and len(self.retained[holder]) == depth
        ]
