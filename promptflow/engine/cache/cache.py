"""Who holds which cells of one KV cache: running sequences, finished ones, and what of them stays.

Pure: it sees tokens, sequence numbers and counts, and returns the moves that the model must make.
"""

from __future__ import annotations

from collections import abc

from promptflow.engine.cache.cells import CellLedger, Copy, Drop, Move
from promptflow.engine.cache.prefix import PrefixTree
from promptflow.engine.cache.retention import Retention
from promptflow.engine.sequence import Sequence


class Cache:
    """One KV cache that all sequences share."""

    def __init__(self, cells: int, seq_ids: int, sharing: bool = True) -> None:
        """Manage ``cells`` and the sequence numbers below ``seq_ids``.

        Without ``sharing`` no sequence takes anything from another, nor leaves anything behind.
        """
        self.sharing = sharing
        self.retained: dict[int, list[int]] = {}  # finished sequences by least recent use
        self.tree = PrefixTree()
        self.cells = CellLedger(cells)
        # Attention reads every cell up to the highest used one, whoever holds it.
        self.retain_limit = cells // 2
        self.evicted = 0
        self._last_use: dict[int, int] = {}  # of a finished sequence, in tokens computed
        self._clock = 0
        self._retention = Retention()
        self._free = list(range(seq_ids - 1, -1, -1))
        self._owners: dict[int, Sequence] = {}
        self._indexed: dict[int, list[int]] = {}  # what the tree knows of running sequences

    # What is there

    def best_prefix(self, sequence: Sequence) -> tuple[int, int]:
        """Return the number that holds most of a waiting sequence's prompt and how much of it.

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

    def held(self, tokens: abc.Sequence[int]) -> int:
        """Return how many of ``tokens`` the cache holds, or soon will."""
        found = self.tree.match(list(tokens)) if self.sharing else []
        return found[0][0] if found else 0

    def holder_of(self, tokens: abc.Sequence[int]) -> int:
        """Return a number that has computed all of ``tokens``, -1 if there is none."""
        for depth, holders in self.tree.match(list(tokens)):
            for holder in holders:
                owner = self._owners.get(holder)
                if depth == len(tokens) and (owner is None or owner.computed >= depth):
                    return holder
        return -1

    def promised(self) -> int:
        """Return how many more cells running sequences are likely to take."""
        return sum(owner.promised(len(owner.spares)) for owner in self._owners.values())

    # Running sequences

    def make_room(self, sequence: Sequence, source: int, shared: int, moves: list[Move]) -> bool:
        """Evict until ``sequence`` fits beside what running ones are likely to take, if it can."""
        # A search in what the context leaves takes all cells at most, whatever its forks may take.
        most = max(len(sequence.tokens), self.cells.capacity)
        wanted = min(sequence.promised(sequence.forks), most) - shared
        room = self.cells.capacity - self.promised() - wanted
        while self.cells.used > room or len(self._free) <= sequence.forks:
            if self._evict(moves, keep=source):
                continue
            held = self.retained.get(source, ())
            if len(held) > shared:
                self._trim(source, shared, moves)
            else:
                return len(held) > 0 and not sequence.forks and self.cells.used <= room
        return True

    def begin(self, sequence: Sequence, source: int, shared: int, moves: list[Move]) -> None:
        """Give a sequence that has room a number, and ``shared`` cells of ``source``."""
        if not self._free:
            # All numbers are taken and the prefix is all that its sequence holds: take that over.
            sequence.seq_id = source
            del self.retained[source], self._last_use[source]
        else:
            sequence.seq_id = self._free.pop()
            if shared:
                moves.append(Copy(source, sequence.seq_id, shared))
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

    def extend(self, sequence: Sequence, count: int) -> None:
        """Record that ``count`` more tokens of a sequence are in the cache."""
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

    def fork(self, parent: Sequence, child: Sequence, lead: Sequence) -> list[Move]:
        """Let ``child`` hold what ``parent`` has in the cache; new children take lead's spares."""
        moves: list[Move] = []
        if child.seq_id < 0:
            child.seq_id = lead.spares.pop()
            self._owners[child.seq_id] = child
            self._indexed[child.seq_id] = []
            child.likely = lead.likely
        else:
            self.cells.drop(child.seq_id)
            moves.append(Drop(child.seq_id))
        self.cells.share(parent.seq_id, child.seq_id, parent.computed)
        child.computed = parent.computed
        return [*moves, Copy(parent.seq_id, child.seq_id, parent.computed)]

    def join(self, child: Sequence, lead: Sequence) -> list[Move]:
        """End a fork; its sequence number is lead's again."""
        seq_id, child.seq_id = child.seq_id, -1
        del self._owners[seq_id], self._indexed[seq_id]
        self.cells.drop(seq_id)
        lead.spares.append(seq_id)
        return [Drop(seq_id)]

    def end(self, sequence: Sequence, keep: bool) -> list[Move]:
        """Take a sequence's number away, keeping its cells as a prefix for others if asked to."""
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

    # Finished sequences

    def relieve(self, pending: int) -> tuple[bool, list[Move]]:
        """Evict until ``pending`` tokens have room; return whether they have."""
        moves: list[Move] = []
        while self.cells.used + pending > self.cells.capacity:
            if not self._evict(moves):
                return False, moves
        return True, moves

    def evict_all(self) -> list[Move]:
        """Free every retained sequence."""
        moves: list[Move] = []
        while self._evict(moves):
            pass
        return moves

    def vacate(self, count: int, spare: int = -1) -> tuple[int, list[Move]]:
        """Take an unused sequence number, with room for ``count`` tokens beside what runs.

        Finished sequences but ``spare`` may be evicted. Return -1 where that is not enough.
        """
        moves: list[Move] = []
        room = self.cells.capacity - self.promised() - count
        while self.cells.used > room or not self._free:
            if not self._evict(moves, keep=spare):
                return -1, moves
        return self._free.pop(), moves

    def adopt(self, seq_id: int, tokens: list[int]) -> None:
        """Count a vacated number, which now holds ``tokens``, among the finished sequences."""
        self.cells.extend(seq_id, len(tokens))
        self.tree.insert(seq_id, tokens)
        self._retain(seq_id, tokens)

    def give_back(self, seq_id: int) -> None:
        """Return a vacated number that holds nothing."""
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
