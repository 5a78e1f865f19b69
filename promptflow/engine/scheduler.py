"""Who runs next: admission by shared prefix, one batch a step, eviction and preemption.

Pure: it sees tokens, sequence numbers and counts, decides, and leaves every call into the model to
``decoder.py``. A ``Task`` is the one mutable state object of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from promptflow.engine.prefix import CellLedger, PrefixTree
from promptflow.engine.request import ModelInfo


class Model(Protocol):
    """What the engine needs of a model: ``llama.Model`` and ``fake.FakeModel`` have it."""

    context: int
    batch: int
    max_sequences: int
    vocabulary: int
    end_tokens: frozenset[int]
    bos: int | None
    info: ModelInfo

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of ``text``; control tokens are parsed where ``special``."""

    def control_texts(self) -> list[str]:
        """Return the texts that the tokenizer may read as one special token."""

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; none for control tokens."""

    def control_piece(self, token: int) -> bytes:
        """Return how a control token is written."""

    def decode(
        self, tokens: list[int], positions: list[int], sequences: list[int], outputs: list[bool]
    ) -> int:
        """Compute a batch; return the code of ``llama_decode``."""

    def logits(self, row: int) -> np.ndarray:
        """Return a view of a row's logits, valid until the next decode."""

    def copy(self, source: int, target: int, end: int) -> None:
        """Share the first ``end`` cells of ``source`` with ``target``."""

    def drop(self, sequence: int, start: int) -> None:
        """Free the cells of ``sequence`` from ``start`` on."""

    def close(self) -> None:
        """Free the model."""


@dataclass(eq=False, slots=True)
class Task:
    """A sequence: what is known of its text, and how much of that is in the cache."""

    number: int
    tokens: list[int]
    length_limit: int  # tokens it may hold when it ends
    share_limit: int = 1 << 40  # tokens that it may take from others
    computed: int = 0
    sequence: int = -1
    wants: set[int] = field(default_factory=set)  # positions whose logits others wait for
    rows: dict[int, np.ndarray] = field(default_factory=dict)  # logits kept for them, by position
    ready: np.ndarray | None = None  # logits after the last token, where known without decoding
    waits_for: tuple[Task, int] | None = None
    skipped: int = 0  # admissions that overtook it
    preempted: int = 0
    reused: int = 0

    @property
    def pending(self) -> int:
        """Return how many known tokens are not yet in the cache."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the cells of ``sequence`` from ``start`` on."""

    sequence: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Let ``target`` share the first ``end`` cells of ``source``."""

    source: int
    target: int
    end: int


Move = Drop | Copy


@dataclass(slots=True)
class Plan:
    """One step: moves of cells in the order they must run, then one batch of rows."""

    moves: list[Move] = field(default_factory=list)
    rows: list[tuple[Task, int]] = field(default_factory=list)  # a task and how many of its tokens
    admitted: list[Task] = field(default_factory=list)


PATIENCE = 64  # admissions that may overtake a waiting task before it goes first


class Scheduler:
    """Decide each step's batch over one KV cache that all sequences share."""

    def __init__(self, context: int, batch: int, sequences: int, max_running: int) -> None:
        """Manage ``context`` cells and ``sequences`` numbers; decode at most ``max_running``."""
        self.batch = batch
        self.max_running = min(max_running, sequences)
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.retained: dict[int, list[int]] = {}  # finished sequences by least recent use
        self.tree = PrefixTree()
        self.cells = CellLedger(context)
        self.retain_limit = context // 2
        self.evicted = 0
        self._kept_rows: dict[int, dict[int, np.ndarray]] = {}
        self._free = list(range(sequences - 1, -1, -1))
        self._owners: dict[int, Task] = {}

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self.waiting.append(task)

    def step(self) -> Plan:
        """Admit what fits and fill a batch: decoding sequences first, then chunks of prompts."""
        plan = Plan()
        self._admit(plan)
        if not self.waiting:
            self._kept_rows.clear()
        budget = self.batch
        for task in sorted(self.running, key=lambda task: task.pending > 8):
            take = min(task.pending, budget)
            if take:
                plan.rows.append((task, take))
                budget -= take
        return plan

    def _admit(self, plan: Plan) -> None:
        """Start waiting tasks, longest ready prefix first; siblings of a prefill wait for it."""
        while self.waiting and len(self.running) < self.max_running:
            best: tuple[bool, int, int] | None = None
            choice: tuple[Task, int, int] | None = None
            for task in self.waiting:
                if self._is_blocked(task):
                    continue
                source, shared = self._best_prefix(task)
                if task.waits_for is not None:
                    continue
                rank = (task.skipped > PATIENCE, shared, -task.number)
                if best is None or rank > best:
                    best, choice = rank, (task, source, shared)
            if choice is None or not self._start(*choice, plan):
                return

    def _is_blocked(self, task: Task) -> bool:
        """Return whether a prefill that the task waits for is still on its way."""
        if task.waits_for is None:
            return False
        holder, depth = task.waits_for
        if holder.sequence >= 0 and holder in self.running and holder.computed < depth:
            return True
        task.waits_for = None
        return False

    def _best_prefix(self, task: Task) -> tuple[int, int]:
        """Return the sequence that holds most of the task's prompt and how much of it.

        Sets ``waits_for`` instead where a running prefill will soon hold more.
        """
        tokens = task.tokens
        source, shared = -1, 0
        coming: tuple[Task, int] | None = None
        for matched, holders in self.tree.match(tokens):
            depth = min(matched, task.share_limit)
            if depth <= shared:
                break
            for holder in holders:
                owner = self._owners.get(holder)
                held = depth if owner is None else min(owner.computed, depth)
                if held == len(tokens) and held - 1 not in self._rows(holder):
                    held -= 1  # its last token must be decoded again, for the logits
                if held > shared:
                    source, shared = holder, held
                if owner and owner.computed < depth and (coming is None or coming[1] < depth):
                    coming = (owner, depth)
        if coming is not None and coming[1] > shared:
            task.waits_for = coming
            if coming[1] == len(tokens):
                coming[0].wants.add(len(tokens) - 1)
        return source, shared

    def _rows(self, sequence: int) -> dict[int, np.ndarray]:
        owner = self._owners.get(sequence)
        return owner.rows if owner else self._kept_rows.get(sequence, {})

    def _start(self, task: Task, source: int, shared: int, plan: Plan) -> bool:
        """Give a task a sequence and its prefix; False where the cache has no room for it yet."""
        promised = sum(other.length_limit - other.computed for other in self.running)
        room = self.cells.capacity - promised - (task.length_limit - shared)
        while self.cells.used > room or not self._free:
            if not self._evict(plan.moves, keep=source):
                if self.running:
                    return False
                # Nothing runs, so the prefix itself is in the way: give it up.
                if source < 0 or not self._evict(plan.moves, keep=-1):
                    return False
                source, shared = -1, 0
                room = self.cells.capacity - task.length_limit
        task.sequence = self._free.pop()
        if shared:
            plan.moves.append(Copy(source, task.sequence, shared))
            self.cells.share(source, task.sequence, shared)
            if source in self.retained:
                self.retained[source] = self.retained.pop(source)
            if shared == len(task.tokens):
                task.ready = self._rows(source)[shared - 1]
        task.computed = shared
        task.reused = shared
        self._owners[task.sequence] = task
        self.tree.insert(task.sequence, task.tokens)
        self.waiting.remove(task)
        for other in self.waiting:
            other.skipped += 1
        self.running.append(task)
        plan.admitted.append(task)
        return True

    def _evict(self, moves: list[Move], keep: int = -1) -> bool:
        """Free the finished sequence that was used least recently, but not ``keep``."""
        for sequence in self.retained:
            if sequence != keep:
                self.tree.remove(sequence, self.retained.pop(sequence))
                self._kept_rows.pop(sequence, None)
                self._release(sequence, moves)
                self.evicted += 1
                return True
        return False

    def _release(self, sequence: int, moves: list[Move]) -> None:
        self.cells.drop(sequence)
        self._free.append(sequence)
        moves.append(Drop(sequence))

    def computed(self, task: Task, count: int) -> None:
        """Record that ``count`` more tokens of a task are in the cache."""
        self.cells.extend(task.sequence, count)
        task.computed += count

    def cut(self, task: Task, length: int) -> None:
        """Record that a task's tokens after ``length`` were taken back."""
        if task.computed > length:
            self.cells.drop(task.sequence, length)
            task.computed = length

    def finish(self, task: Task, keep: bool) -> list[Move]:
        """Retire a running task, keeping its cells as a prefix for others if asked to.

        Return the moves that the model has to make.
        """
        self.running.remove(task)
        sequence, task.sequence = task.sequence, -1
        del self._owners[sequence]
        self.tree.remove(sequence, task.tokens)
        held = task.tokens[: task.computed]
        moves: list[Move] = []
        if keep and held and not self._is_covered(held):
            self.tree.insert(sequence, held)
            self.retained[sequence] = held
            self._kept_rows[sequence] = task.rows
            while self.cells.used > self.retain_limit and self._evict(moves):
                pass
        else:
            self._release(sequence, moves)
        task.rows = {}
        return moves

    def _is_covered(self, tokens: list[int]) -> bool:
        """Return whether another finished sequence holds all of ``tokens``, and refresh it."""
        for depth, holders in self.tree.match(tokens):
            for holder in holders:
                if depth == len(tokens) and holder in self.retained:
                    self.retained[holder] = self.retained.pop(holder)
                    return True
        return False

    def preempt(self) -> tuple[Task, list[Move]]:
        """Send the newest running task back to the queue, to recompute what others do not hold."""
        task = max(self.running, key=lambda task: task.number)
        moves = self.finish(task, keep=False)
        task.computed = 0
        task.ready = None
        task.preempted += 1
        self.waiting.insert(0, task)
        return task, moves

    def forget(self, task: Task) -> list[Move]:
        """Remove a task that waits or runs."""
        if task in self.running:
            return self.finish(task, keep=False)
        if task in self.waiting:
            self.waiting.remove(task)
        return []

    def evict_all(self) -> list[Move]:
        """Free every retained sequence."""
        moves: list[Move] = []
        while self._evict(moves):
            pass
        return moves
