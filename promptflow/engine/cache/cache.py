"""Who holds which cells of one KV cache: running sequences, finished ones, and what of them stays.

Pure: it sees tokens, sequence numbers and counts, and returns the moves that the model must make.

A model with a recurrent state, or with a window whose old cells are used again, cannot take a part
of a sequence: what is longer than ``whole_from`` tokens is shared and cut as a whole or not at all.
There a prefill stops where others will part from it, and a *keeper*, a finished sequence that ends
just there, holds the state for them.
"""

from __future__ import annotations

from collections import abc

from promptflow.engine.cache.cells import CellLedger, Copy, Drop, Move
from promptflow.engine.cache.prefix import PrefixTree
from promptflow.engine.cache.retention import Retention
from promptflow.engine.sequence import NEVER, Sequence, common

GRAIN = 16  # tokens that a keeper must save, all that branch there together
LAPSE = 4  # caches full of tokens computed until a pin lapses that nobody goes on from


def whole_from_of(memory: str, window: int) -> int:
    """Return the length beyond which sequences are whole, for a kind of ``interface.MEMORY``."""
    # What comes after ``window`` tokens does not see the first: its cell may be used again.
    return {"dense": NEVER, "windowed": window - 1}.get(memory, 0)


class Cache:
    """One KV cache that all sequences share."""

    def __init__(
        self, cells: int, seq_ids: int, sharing: bool = True, whole_from: int = NEVER
    ) -> None:
        """Manage ``cells`` and the sequence numbers below ``seq_ids``.

        Without ``sharing`` no sequence takes anything from another, nor leaves anything behind.
        """
        self.sharing = sharing
        self.whole_from = whole_from
        self.retained: dict[int, list[int]] = {}  # finished sequences by least recent use
        self.tree = PrefixTree()
        self.cells = CellLedger(cells)
        # Attention reads every cell up to the highest used one, whoever holds it.
        self.retain_limit = cells // 2
        self.evicted = 0
        self._last_use: dict[int, int] = {}  # of a finished sequence, in tokens computed
        self._pins: dict[int, int] = {}  # finished ones to be continued; how long their prompts are
        self._clock = 0
        self._retention = Retention()
        self._reached: dict[int, int] = {}  # tokens that a number has held since it was empty
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
            # Its last token must be decoded again, for the logits.
            most = min(depth, len(tokens) - (sequence.row is None))
            for holder in holders:
                owner = self._owners.get(holder)
                held = self._usable(holder, most)
                if held > shared:
                    source, shared = holder, held
                soon = self._soon(owner, depth) if owner else 0
                if owner and owner.computed < soon and (coming is None or coming[1] < soon):
                    coming = (owner, soon)
        if coming is not None and coming[1] > shared:
            sequence.waits_for = coming
        return source, shared

    def held(self, tokens: abc.Sequence[int]) -> int:
        """Return how many of ``tokens`` the cache can give, or soon will."""
        best = 0
        for depth, holder in self._holders(tokens) if self.sharing else ():
            owner = self._owners.get(holder)
            soon = self._soon(owner, depth) if owner else 0
            best = max(best, soon, self._usable(holder, depth))
        return best

    def holder_of(self, tokens: abc.Sequence[int]) -> int:
        """Return a number that can give all of ``tokens``, -1 if there is none."""
        for depth, holder in self._holders(tokens):
            if depth == len(tokens) == self._usable(holder, depth):
                return holder
        return -1

    def _holders(self, tokens: abc.Sequence[int]) -> abc.Iterator[tuple[int, int]]:
        """Yield, deepest first, how far ``tokens`` agree with a number's, and the number."""
        for depth, holders in self.tree.match(list(tokens)):
            for holder in holders:
                yield depth, holder

    def is_whole(self, seq_id: int) -> bool:
        """Return whether what a number holds can only be shared and cut as a whole."""
        return self._reached.get(seq_id, 0) > self.whole_from

    def _usable(self, holder: int, most: int) -> int:
        """Return how many tokens, up to ``most``, can be taken from ``holder``."""
        owner = self._owners.get(holder)
        length = owner.computed if owner else len(self.retained[holder])
        if length > most and self.is_whole(holder):
            return 0
        return min(length, most)

    def _soon(self, owner: Sequence, depth: int) -> int:
        """Return how many tokens, up to ``depth``, a running prefill will be able to give."""
        if len(owner.tokens) <= self.whole_from:
            return depth
        return max((stop for stop in owner.stops if stop <= depth), default=0)

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
            number = len(self._free) <= sequence.forks
            if self._evict(moves, keep=source, for_number=number):
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
            self._pins.pop(source, None)
        else:
            sequence.seq_id = self._free.pop()
            if shared:
                self._share(source, sequence.seq_id, shared, moves)
            if source in self.retained:
                self._retain(source, self.retained.pop(source))
            if shared > self._pins.get(source, NEVER):
                del self._pins[source]
        sequence.spares = [self._free.pop() for _ in range(sequence.forks)]
        if shared < len(sequence.tokens):
            sequence.row = None
        sequence.computed, sequence.prompt = shared, min(sequence.prompt, len(sequence.tokens))
        self._owners[sequence.seq_id] = sequence
        self._indexed[sequence.seq_id] = list(sequence.tokens)
        if self.sharing and not sequence.preempted:
            met = self._retention.began(sequence.tokens, shared)
            self._plan(sequence, [*sequence.boundaries, min(met, len(sequence.tokens) - 1)])
        self.tree.insert(sequence.seq_id, sequence.tokens)

    def _share(self, source: int, target: int, count: int, moves: list[Move]) -> None:
        """Give an empty ``target`` the first ``count`` cells of ``source``."""
        moves.append(Copy(source, target, count))
        self.cells.share(source, target, count)
        self._reached[target] = self._reached[source] if self.is_whole(source) else count

    def part(self, holder: Sequence, others: abc.Iterable[Sequence]) -> None:
        """Have a running prefill stop where waiting sequences part from it."""
        if self.makes_keepers(holder):
            depths = (
                min(common(holder.tokens, o.tokens, o.share_limit), len(o.tokens) - 1)
                for o in others
            )
            self._plan(holder, list(depths))

    def makes_keepers(self, sequence: Sequence) -> bool:
        """Return whether a sequence may come to be whole, so that keepers are made of it."""
        return self.sharing and sequence.length_limit > self.whole_from

    def _plan(self, holder: Sequence, depths: list[int]) -> None:
        """Stop at those of ``depths`` that save others enough beyond the stop before."""
        for depth in sorted(set(depths)) if self.makes_keepers(holder) else ():
            before = [stop for stop in holder.stops if stop <= depth]
            saved = depth - max(before, default=holder.computed)
            if saved * sum(other >= depth for other in depths) >= GRAIN:
                holder.stops.add(depth)

    def until_stop(self, sequence: Sequence) -> int:
        """Return how many tokens a sequence may compute before its state is to be kept."""
        if not self.makes_keepers(sequence):
            return NEVER  # before its stops are looked at: nothing ever takes them away
        ahead = (stop for stop in sequence.stops if stop > sequence.computed)
        return min(ahead, default=NEVER) - sequence.computed

    def keep(self, sequence: Sequence) -> list[Move]:
        """Hold the state of a sequence that has come to one of its stops."""
        if sequence.computed not in sequence.stops or not self.makes_keepers(sequence):
            return []
        sequence.stops.discard(sequence.computed)
        tokens, moves = sequence.tokens[: sequence.computed], list[Move]()
        if not tokens or self._is_covered(tokens):
            return moves
        is_answer = sequence.computed > sequence.prompt
        if is_answer and self._anchored(sequence, tokens) > sequence.prompt:
            self._give_up(sequence.anchor, moves)
        if not self._free and not self._evict(moves, for_number=True):
            return moves
        seq_id = self._free.pop()
        self._share(sequence.seq_id, seq_id, len(tokens), moves)
        self.tree.insert(seq_id, tokens)
        self._retain(seq_id, tokens)
        if is_answer:
            sequence.anchor = seq_id
        return moves

    def _anchored(self, sequence: Sequence, tokens: list[int]) -> int:
        """Return how many of its ``tokens`` a sequence's anchor still holds."""
        held = self.retained.get(sequence.anchor, [])
        return len(held) if held == tokens[: len(held)] else 0

    def extend(self, sequence: Sequence, count: int) -> None:
        """Record that ``count`` more tokens of a sequence are in the cache."""
        self.cells.extend(sequence.seq_id, count)
        sequence.computed += count
        self._clock += count
        reached = self._reached.get(sequence.seq_id, 0)
        self._reached[sequence.seq_id] = max(reached, sequence.computed)

    def cut(self, sequence: Sequence, length: int) -> list[Move]:
        """Take a sequence's tokens after ``length`` back from the cache.

        Where that cannot be done it begins again from the longest prefix that others hold.
        """
        if sequence.computed <= length:
            return []
        if self.is_whole(sequence.seq_id):
            return self._rewind(sequence, length)
        self.cells.drop(sequence.seq_id, length)
        sequence.computed = length
        return [Drop(sequence.seq_id, length)]

    def _rewind(self, sequence: Sequence, length: int) -> list[Move]:
        source, held = -1, 0
        for depth, holder in self._holders(sequence.tokens[:length]) if self.sharing else ():
            usable = self._usable(holder, depth) if holder in self.retained else 0
            if usable > held:
                source, held = holder, usable
        moves: list[Move] = [Drop(sequence.seq_id)]
        self.cells.drop(sequence.seq_id)
        self._reached[sequence.seq_id] = 0
        if held:
            self._share(source, sequence.seq_id, held, moves)
            self._retain(source, self.retained.pop(source))
        sequence.computed = held
        return moves

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
        self._share(parent.seq_id, child.seq_id, parent.computed, moves)
        child.computed = parent.computed
        return moves

    def join(self, child: Sequence, lead: Sequence) -> list[Move]:
        """End a fork; its sequence number is lead's again."""
        seq_id, child.seq_id = child.seq_id, -1
        del self._owners[seq_id], self._indexed[seq_id]
        self.cells.drop(seq_id)
        self._reached.pop(seq_id, None)
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
        sequence.stops.clear()
        pin = min(sequence.prompt, len(held) - 1) if sequence.continued else NEVER
        if keep and pin < self._anchored(sequence, held) < len(held):
            # Only this one is a prefix too of a text that parts from the end by its last token.
            self._pins[sequence.anchor], pin = pin, NEVER
        if keep and self.sharing and held and not self._is_covered(held, pin):
            for shorter in [] if self.is_whole(seq_id) else self._covered_by(held):
                self._give_up(shorter, moves)
            self.tree.insert(seq_id, held)
            self._retain(seq_id, held, pin)
            self._age(moves)
            while self.cells.used > self.retain_limit and self._evict(moves, pinned=False):
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
        while self._evict(moves, for_number=True):
            pass
        return moves

    def vacate(self, count: int, spare: int = -1) -> tuple[int, list[Move]]:
        """Take an unused sequence number, with room for ``count`` tokens beside what runs.

        Finished sequences but ``spare`` may be evicted. Return -1 where that is not enough.
        """
        moves: list[Move] = []
        room = self.cells.capacity - self.promised() - count
        while self.cells.used > room or not self._free:
            if not self._evict(moves, keep=spare, for_number=not self._free):
                return -1, moves
        return self._free.pop(), moves

    def adopt(self, seq_id: int, tokens: list[int]) -> None:
        """Count a vacated number, which now holds ``tokens``, among the finished sequences."""
        self.cells.extend(seq_id, len(tokens))
        self._reached[seq_id] = len(tokens)
        self.tree.insert(seq_id, tokens)
        self._retain(seq_id, tokens)

    def give_back(self, seq_id: int) -> None:
        """Return a vacated number that holds nothing."""
        self._free.append(seq_id)

    def forget(self, seq_id: int) -> list[Move]:
        """Drop a finished sequence, if ``seq_id`` is one."""
        moves: list[Move] = []
        if seq_id in self.retained:
            self._give_up(seq_id, moves)
        return moves

    def _retain(self, seq_id: int, tokens: list[int], pin: int = NEVER) -> None:
        """Count a sequence as the finished one that was used last.

        With a ``pin`` it stays until a sequence took more than so many tokens from it.
        """
        self.retained[seq_id] = tokens
        self._last_use[seq_id] = self._clock
        if pin < NEVER:
            self._pins[seq_id] = pin

    def _age(self, moves: list[Move]) -> None:
        """Cut from old sequences what is not worth its cells, and what others hold as well."""
        for seq_id, tokens in list(self.retained.items()):
            idle = self._clock - self._last_use[seq_id]
            if seq_id in self._pins and idle <= LAPSE * self.cells.capacity:
                continue
            kept = self._retention.kept(tokens, idle)
            if kept == len(tokens):
                continue
            holders = self.tree.match(tokens[:kept])[0][1] if kept else set()
            if kept == 0 or self.is_whole(seq_id) or len(holders & self.retained.keys()) > 1:
                self._give_up(seq_id, moves)
            else:
                self._trim(seq_id, kept, moves)

    def _evict(
        self, moves: list[Move], keep: int = -1, for_number: bool = False, pinned: bool = True
    ) -> bool:
        """Free the finished sequence that was used least recently, but not ``keep``.

        Those to be continued are the last, and stay unless ``pinned``. Keepers whose cells are all
        held by others too give none, only their number.
        """
        last = [seq_id for seq_id in self._pins if pinned]
        for seq_id in [*(one for one in self.retained if one not in self._pins), *last]:
            useless = not for_number and self.is_whole(seq_id) and not self.cells.frees(seq_id)
            if seq_id != keep and not useless:
                self._give_up(seq_id, moves)
                self.evicted += 1
                return True
        return False

    def _give_up(self, seq_id: int, moves: list[Move]) -> None:
        self.tree.remove(seq_id, self.retained.pop(seq_id))
        del self._last_use[seq_id]
        self._pins.pop(seq_id, None)
        self._release(seq_id, moves)

    def _release(self, seq_id: int, moves: list[Move]) -> None:
        self.cells.drop(seq_id)
        self._reached.pop(seq_id, None)
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

    def _is_covered(self, tokens: list[int], pin: int = NEVER) -> bool:
        """Return whether another finished sequence holds all of ``tokens``, and refresh it."""
        for depth, holder in self._holders(tokens):
            if holder in self.retained and depth == len(tokens) == self._usable(holder, depth):
                self._retain(holder, self.retained.pop(holder), pin)
                return True
        return False

    def _covered_by(self, tokens: list[int]) -> list[int]:
        """Return the finished sequences that hold nothing but a prefix of ``tokens``."""
        return [
            holder
            for depth, holder in self._holders(tokens)
            if holder in self.retained
            and holder not in self._pins
            and len(self.retained[holder]) == depth
        ]
