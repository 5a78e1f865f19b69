"""Who runs next: admission by shared prefix, one batch a step, eviction and preemption.

Pure: it sees tokens, sequence numbers and counts, decides, and leaves every call into the model to
``decoder.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from promptflow.engine.cache.cells import CellLedger, Copy, Drop, Move
from promptflow.engine.cache.prefix import PrefixTree
from promptflow.engine.cache.retention import Retention
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.loop.width import Width
from promptflow.engine.sequence import Task

PATIENCE = 64  # younger tasks that may overtake a waiting one before it goes first
WINDOW = 256  # waiting tasks that are compared with each other
SCORED_ROWS = 128  # scored positions a batch: llama.cpp keeps a row of the vocabulary for each
FEW = 8  # up to so many pending tokens a sequence counts as decoding, and goes first


@dataclass(slots=True)
class Plan:
    """One step: moves of cells in the order they must run, then one batch of rows."""

    moves: list[Move] = field(default_factory=list)
    rows: list[tuple[Task, int]] = field(default_factory=list)  # a task and how many of its tokens
    admitted: list[Task] = field(default_factory=list)
    hopeless: list[Task] = field(default_factory=list)  # no room, though nothing else runs


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
        self.waiting: list[Task] = []
        self.running: list[Task] = []
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
        self._owners: dict[int, Task] = {}
        self._indexed: dict[int, list[int]] = {}  # what the tree knows of running sequences

    # Each step

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self.waiting.append(task)
        self._width.refused = None
        for other in self.running:
            self._ask(other, [task])

    def step(self) -> Plan:
        """Admit what fits and fill a batch: decoding sequences first, then chunks of prompts."""
        plan = Plan()
        self._admit(plan)
        budget, scored = self.batch, SCORED_ROWS
        for task in sorted(self.running, key=lambda task: task.pending > FEW):
            unscored = max(0, task.scored_from - task.computed)
            take = min(task.pending, budget, unscored + scored)
            if take:
                plan.rows.append((task, take))
                budget -= take
                scored -= max(0, take - unscored)
        return plan

    def _admit(self, plan: Plan) -> None:
        """Start waiting tasks for as long as each of them pays and fits."""
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

    def _choose(self) -> tuple[Task, int, int] | None:
        """Return the waiting task with the longest ready prefix, who holds it, and its length.

        Siblings of a prefill wait for it, and new prompts for them: programs one after the other
        need fewer cells at a time, and each token attends to all.
        """
        best, choice, coming = (False, -1, 0), None, 0
        for task in self.waiting[:WINDOW]:
            if not self._is_blocked(task):
                source, shared = self._best_prefix(task)
            if task.waits_for is not None:
                coming = max(coming, task.waits_for[1])
                continue
            rank = (task.skipped > PATIENCE, shared, -task.number)
            if choice is None or rank > best:
                best, choice = rank, (task, source, shared)
        if choice and not best[0] and best[1] < min(coming, len(choice[0].tokens) - 1):
            return None
        return choice

    def _is_blocked(self, task: Task) -> bool:
        """Return whether a prefill that the task waits for is still on its way."""
        if task.waits_for is not None:
            holder, depth = task.waits_for
            if holder in self.running and holder.computed < depth:
                return True
        task.waits_for = None
        return False

    def _best_prefix(self, task: Task) -> tuple[int, int]:
        """Return the sequence that holds most of the task's prompt and how much of it.

        Sets ``waits_for`` instead where a running prefill will soon hold more.
        """
        tokens = task.tokens if self.sharing else []
        source, shared = -1, 0
        coming: tuple[Task, int] | None = None
        for matched, holders in self.tree.match(tokens):
            depth = min(matched, task.share_limit)
            if depth <= shared:
                break
            for holder in holders:
                owner = self._owners.get(holder)
                held = depth if owner is None else min(owner.computed, depth)
                if held == len(tokens) and task.row is None:
                    held -= 1  # its last token must be decoded again, for the logits
                if held > shared:
                    source, shared = holder, held
                if owner and owner.computed < depth and (coming is None or coming[1] < depth):
                    coming = (owner, depth)
        if coming is not None and coming[1] > shared:
            task.waits_for = coming
        return source, shared

    def _start(self, task: Task, source: int, shared: int, plan: Plan) -> bool:
        """Give a task a sequence and its prefix; False where the cache has no room for it yet."""
        task.likely = self._likely(task)
        if not self._make_room(task, source, shared, plan.moves):
            return False
        if not self._free:
            # All numbers are taken and the prefix is all that its sequence holds: take that over.
            task.sequence = source
            del self.retained[source], self._last_use[source]
        else:
            task.sequence = self._free.pop()
            if shared:
                plan.moves.append(Copy(source, task.sequence, shared))
                self.cells.share(source, task.sequence, shared)
            if source in self.retained:
                self._retain(source, self.retained.pop(source))
        task.spares = [self._free.pop() for _ in range(task.forks)]
        if shared < len(task.tokens):
            task.row = None
        task.computed, task.prompt = shared, min(task.prompt, len(task.tokens))
        self._owners[task.sequence] = task
        self._indexed[task.sequence] = list(task.tokens)
        if self.sharing and not task.preempted:
            self._retention.began(task.tokens, shared)
        self.tree.insert(task.sequence, task.tokens)
        self._width.refused = None
        self.waiting.remove(task)
        for other in self.waiting:
            other.skipped += other.number < task.number
        self._ask(task, self.waiting[:WINDOW])
        self.running.append(task)
        plan.admitted.append(task)
        return True

    def _likely(self, task: Task) -> int:
        """Return how many tokens a waiting task is likely to hold when it ends.

        One that was sent back is likely to go on for as long again: so each is sent back a few
        times at most, and what is computed again for it is at most twice what it comes to.
        """
        prompt = min(task.prompt, len(task.tokens))
        again = 2 * (len(task.tokens) - prompt) if task.preempted else 0
        return prompt + max(self._lengths.likely(task.kind), again)

    def _promised(self) -> int:
        """Return how many more cells running tasks are likely to take."""
        return sum(task.promised(len(task.spares)) for task in self.running)

    def relieve(self) -> tuple[bool, list[Move]]:
        """Evict until all known tokens of running tasks have room; return whether they have."""
        moves: list[Move] = []
        pending = sum(task.pending for task in self.running)
        while self.cells.used + pending > self.cells.capacity:
            if not self._evict(moves):
                return False, moves
        return True, moves

    @staticmethod
    def first_to_go(tasks: Iterable[Task]) -> Task:
        """Return the newest of the tasks that have outgrown their cells, else the newest of all.

        So what is within the cells that were set aside for it stays, and the oldest comes to an
        end.
        """
        return max(tasks, key=lambda task: (task.has_outgrown, task.number))

    def _make_room(self, task: Task, source: int, shared: int, moves: list[Move]) -> bool:
        """Evict until ``task`` fits beside what running tasks are likely to take, if it can."""
        # A search in what the context leaves takes all cells at most, whatever its forks may take.
        most = max(len(task.tokens), self.cells.capacity)
        wanted = min(task.promised(task.forks), most) - shared
        room = self.cells.capacity - self._promised() - wanted
        while self.cells.used > room or len(self._free) <= task.forks:
            if self._evict(moves, keep=source):
                continue
            held = self.retained.get(source, ())
            if len(held) > shared:
                self._trim(source, shared, moves)
            else:
                return len(held) > 0 and not task.forks and self.cells.used <= room
        return True

    def _ask(self, holder: Task, waiting: Iterable[Task]) -> None:
        """Have ``holder`` keep the logits at the ends of waiting prompts that it will compute."""
        for task in waiting if self.sharing else ():
            end = len(task.tokens)
            inside = holder.computed < end <= len(holder.tokens) and end <= task.share_limit
            if inside and holder.tokens[:end] == task.tokens:
                holder.wants.add(end - 1)

    def waiting_at(self, holder: Task, position: int) -> list[Task]:
        """Return the waiting tasks whose prompt ends at ``position`` of ``holder``."""
        holder.wants.discard(position)
        prompt = holder.tokens[: position + 1]
        return [task for task in self.waiting if task.tokens == prompt]

    # Forks of a running task

    def fork(self, parent: Task, child: Task, lead: Task) -> list[Move]:
        """Let ``child`` hold what ``parent`` has in the cache; new children take lead's spares."""
        moves: list[Move] = []
        if child.sequence < 0:
            child.sequence = lead.spares.pop()
            self._owners[child.sequence] = child
            self._indexed[child.sequence] = []
            child.likely = lead.likely
            self.running.append(child)
        else:
            self.cells.drop(child.sequence)
            moves.append(Drop(child.sequence))
        self.cells.share(parent.sequence, child.sequence, parent.computed)
        child.computed = parent.computed
        return [*moves, Copy(parent.sequence, child.sequence, parent.computed)]

    def join(self, child: Task, lead: Task) -> list[Move]:
        """End a fork; its sequence number is lead's again."""
        if child.sequence < 0:
            return []
        sequence, child.sequence = child.sequence, -1
        self.running.remove(child)
        del self._owners[sequence], self._indexed[sequence]
        self.cells.drop(sequence)
        lead.spares.append(sequence)
        return [Drop(sequence)]

    # What the decoder reports

    def computed(self, task: Task, count: int) -> None:
        """Record that ``count`` more tokens of a task are in the cache."""
        if task.computed < task.prompt:
            self._width.refused = None
        self.cells.extend(task.sequence, count)
        task.computed += count
        self._clock += count

    def cut(self, task: Task, length: int) -> list[Move]:
        """Take a task's tokens after ``length`` back from the cache."""
        if task.computed <= length:
            return []
        self.cells.drop(task.sequence, length)
        task.computed = length
        return [Drop(task.sequence, length)]

    def finish(self, task: Task, keep: bool) -> list[Move]:
        """Retire a task, keeping its cells as a prefix for others if asked to.

        Return the moves that the model has to make. A task that only waits is forgotten.
        """
        task.row = task.waits_for = None
        task.wants.clear()
        self._width.refused = None
        if task.sequence < 0:
            if task in self.waiting:
                self.waiting.remove(task)
            return []
        self.running.remove(task)
        if keep and task.length_limit > task.prompt:
            self._width.ended(task.written, task.length_limit - task.prompt)
            self._lengths.ended(task.kind, task.written)
        self._free += task.spares
        task.spares = []
        sequence, task.sequence = task.sequence, -1
        del self._owners[sequence]
        self.tree.remove(sequence, self._indexed.pop(sequence))
        held = task.tokens[: task.computed]
        moves: list[Move] = []
        if keep and self.sharing and held and not self._is_covered(held):
            for shorter in self._covered_by(held):
                self._give_up(shorter, moves)
            self.tree.insert(sequence, held)
            self._retain(sequence, held)
            self._age(moves)
            while self.cells.used > self.retain_limit and self._evict(moves):
                pass
        else:
            self._release(sequence, moves)
        return moves

    def preempt(self, task: Task) -> list[Move]:
        """Send a running task back to the queue, to recompute what others do not hold."""
        if task.has_outgrown:
            self._lengths.outgrew(task.kind, task.written)
        moves = self.finish(task, keep=False)
        task.computed = 0
        task.preempted += 1
        self.waiting.insert(0, task)
        return moves

    def evict_all(self) -> list[Move]:
        """Free every retained sequence."""
        moves: list[Move] = []
        while self._evict(moves):
            pass
        return moves

    # Prefixes that come from elsewhere

    def held(self, tokens: Sequence[int]) -> int:
        """Return how many of ``tokens`` the cache holds, or soon will."""
        found = self.tree.match(list(tokens)) if self.sharing else []
        return found[0][0] if found else 0

    def holder_of(self, tokens: Sequence[int]) -> int:
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

    def adopt(self, sequence: int, tokens: list[int]) -> None:
        """Count a vacated sequence, which now holds ``tokens``, among the finished ones."""
        self._width.refused = None
        self.cells.extend(sequence, len(tokens))
        self.tree.insert(sequence, tokens)
        self._retain(sequence, tokens)

    def give_back(self, sequence: int) -> None:
        """Return a vacated sequence that holds nothing."""
        self._free.append(sequence)

    def _retain(self, sequence: int, tokens: list[int]) -> None:
        """Count a sequence as the finished one that was used last."""
        self.retained[sequence] = tokens
        self._last_use[sequence] = self._clock

    def _age(self, moves: list[Move]) -> None:
        """Cut from old sequences what is not worth its cells, and what others hold as well."""
        for sequence, tokens in list(self.retained.items()):
            kept = self._retention.kept(tokens, self._clock - self._last_use[sequence])
            if kept == len(tokens):
                continue
            holders = self.tree.match(tokens[:kept])[0][1] if kept else set()
            if kept == 0 or len(holders & self.retained.keys()) > 1:
                self._give_up(sequence, moves)
            else:
                self._trim(sequence, kept, moves)

    def _evict(self, moves: list[Move], keep: int = -1) -> bool:
        """Free the finished sequence that was used least recently, but not ``keep``."""
        for sequence in self.retained:
            if sequence != keep:
                self._give_up(sequence, moves)
                self.evicted += 1
                return True
        return False

    def _give_up(self, sequence: int, moves: list[Move]) -> None:
        self.tree.remove(sequence, self.retained.pop(sequence))
        del self._last_use[sequence]
        self._release(sequence, moves)

    def _release(self, sequence: int, moves: list[Move]) -> None:
        self.cells.drop(sequence)
        self._free.append(sequence)
        moves.append(Drop(sequence))

    def _trim(self, sequence: int, length: int, moves: list[Move]) -> None:
        """Shorten a retained sequence to the prefix that a task is about to take from it."""
        tokens = self.retained[sequence]
        self.tree.remove(sequence, tokens)
        self.tree.insert(sequence, tokens[:length])
        self.retained[sequence] = tokens[:length]
        self.cells.drop(sequence, length)
        moves.append(Drop(sequence, length))

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
