"""The decode loop: schedule, decode, sample, advance. One thread owns it and its model."""

from __future__ import annotations

import itertools
import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptflow.engine.cache.cache import Cache, whole_from_of
from promptflow.engine.cache.cells import Copy, Move, carry_out
from promptflow.engine.cache.disk import DiskPrefixes
from promptflow.engine.interface import Stats
from promptflow.engine.loop import admission
from promptflow.engine.loop.batch import batch_of
from promptflow.engine.loop.scheduler import Scheduler
from promptflow.engine.loop.totals import Totals
from promptflow.engine.loop.width import PASS
from promptflow.engine.model.protocol import Model
from promptflow.engine.request import Completion, Request, Slot, Text, TokenLogprob, Usage
from promptflow.engine.sequence import NEVER, Sequence, common
from promptflow.engine.slot.beam import Fork
from promptflow.engine.slot.drawing import Drawers, Drawn
from promptflow.engine.slot.filling import Filling
from promptflow.engine.slot.job import FillJob, ScoreJob, Tools
from promptflow.engine.slot.prompt_lookup import LONGEST, least_chance
from promptflow.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    PromptflowError,
)

Finished = tuple[int, Completion | tuple[TokenLogprob, ...]]
DRAFTED_ROWS = 64  # tokens a batch, drafts included: llama.cpp keeps a row of logits for each
CUT = (
    "refused to take back or to share a part of its memory, and again after a new start: load it "
    "with EngineOptions(batch_invariant=True), and run `promptflow doctor`"
)
RETRIES = 1  # how often a sequence starts again after a decode that failed


@dataclass(eq=False, slots=True)
class _Entry:
    """A job, whose it is, and since when."""

    key: int
    job: FillJob | ScoreJob
    started: float
    deadline: float | None = None
    faults: int = 0
    cramped: int = 0  # times that there was no room though it ran alone


class Decoder:
    """Runs many jobs over one model, a batch at a time."""

    def __init__(
        self,
        model: Model,
        *,
        max_running: int = 16,
        batch_invariant: bool = False,
        pass_rows: float = 0.0,
        drawers: int = 1,
        pass_cells: int = PASS,
        prefixes: Path | None = None,
        on_start: Callable[[list[int]], None] | None = None,
    ) -> None:
        """Take over ``model``. ``batch_invariant`` runs jobs alone, each from an empty cache.

        ``pass_rows``, if not 0, has tokens drafted from each job's own text: see prompt_lookup.py.
        ``pass_cells`` is what width.py weighs sequences by. ``drawers`` threads choose tokens.
        ``prefixes`` is the folder of prefixes kept on disk.
        ``on_start`` is told the keys of jobs before the decode call that first touches them.
        """
        self.model = model
        self.tools = Tools(model)
        whole_from = whole_from_of(model.info.memory, model.info.window)
        self.cache = Cache(model.cells, model.max_sequences, not batch_invariant, whole_from)
        running = min(1 if batch_invariant else max_running, model.max_sequences)
        self.scheduler = Scheduler(self.cache, model.batch, running, pass_cells)
        self._pass_rows = pass_rows
        self._disk = DiskPrefixes(model, self.cache, prefixes)
        self._on_start = on_start
        self._drawers = Drawers(drawers)
        self._entries: dict[int, _Entry] = {}
        self._by_number: dict[int, _Entry] = {}
        self._numbers = itertools.count(1)
        self._refused: list[Move] = []
        self._totals = Totals()

    @property
    def busy(self) -> bool:
        """Return whether any job is unfinished."""
        return bool(self._entries)

    # Submitting

    def submit(self, key: int, request: Request, waited: float = 0.0) -> list[Finished]:
        """Queue a request ``waited`` seconds old; return it if nothing is left to the model.

        Raises ContextOverflow, ConstraintError and EngineError for what cannot run.
        """
        started, elsewhere = time.monotonic(), self._accounted()
        slots = [part for part in request.parts if isinstance(part, Slot)]
        admission.check_ids(self.model, slots)
        for slot in slots:
            admission.check_options(self.tools.prompts, slot)
        texts = self.tools.prompts.before_slots(request.parts)
        job = FillJob(slots, texts, request.seed, self.tools)
        job.sequence.continued = request.continued
        length = len(texts[0]) + job.need()
        fits = any(slot.fits for slot in slots)
        admission.check_length(self.model, job.prompt, length - job.prompt, fits)
        searched = [slot.need for slot in slots if slot.beam is not None]
        admission.check_cells(self.model, length, job.sequence.forks, max(searched, default=0))
        if self.cache.whole_from < NEVER:
            job.sequence.boundaries = self.tools.prompts.boundaries(request.parts)
        job.open()
        self._disk.recall(job.sequence.tokens)
        entry = _Entry(key, job, started - waited, request.deadline)
        self._enqueue(entry)
        self._totals.bookkeeping += time.monotonic() - started + elsewhere - self._accounted()
        return [self._finish(entry)] if job.is_done else []

    def keep(self, prefix: abc.Sequence[Text]) -> int:
        """Keep the state of ``prefix``, which the cache must hold, on disk; return its bytes."""
        return self._disk.keep(self.tools.prompts.stable(prefix))

    def score(self, key: int, prefix: abc.Sequence[Text], continuation: str) -> None:
        """Queue the scoring of ``continuation`` after ``prefix``; raises as ``submit`` does."""
        before = self.tools.prompts.tokens(prefix)
        expected = self.tools.prompts.continuation(continuation)
        if not expected:
            raise EngineError("there is nothing to score: the continuation is empty")
        admission.check_length(self.model, len(before), len(expected))
        self._enqueue(_Entry(key, ScoreJob(before, expected, self.tools), time.monotonic()))

    def _enqueue(self, entry: _Entry) -> None:
        entry.job.sequence.number = next(self._numbers)
        self._by_number[entry.job.sequence.number] = entry
        self._entries[entry.key] = entry
        if not entry.job.is_done:
            self.scheduler.submit(entry.job.sequence)

    def job(self, key: int) -> FillJob | ScoreJob | None:
        """Return a job while it is unfinished."""
        return self._entries[key].job if key in self._entries else None

    def cancel(self, key: int) -> list[Finished]:
        """Stop a job; return it, unless it has already finished."""
        entry = self._entries.get(key)
        return [] if entry is None else [self._fail(entry, Cancelled("the request was cancelled"))]

    def expire(self) -> list[Finished]:
        """Stop the jobs whose deadline has passed; return them."""
        now = time.monotonic()
        return [
            self._fail(entry, DeadlineExceeded.after(entry.deadline, "done"))
            for entry in list(self._entries.values())
            if entry.deadline is not None and now - entry.started >= entry.deadline
        ]

    # Stepping

    def step(self) -> list[Finished]:
        """Run one batch; return the jobs that it finished, errors included."""
        begun, elsewhere = time.perf_counter(), self._accounted()
        finished = self._restart()
        finished += self._relieve()
        plan = self.scheduler.step()
        finished += [self._no_room(sequence) for sequence in plan.hopeless]
        self._move(plan.moves)
        if self._refused:
            finished += self._restart()
            plan.rows = [(sequence, take) for sequence, take in plan.rows if sequence.seq_id >= 0]
            plan.admitted = [sequence for sequence in plan.admitted if sequence.seq_id >= 0]
        for sequence in plan.admitted:
            self._by_number[sequence.number].job.meter.take_over(sequence.computed)
        if plan.admitted and self._on_start is not None:
            self._on_start([self._by_number[sequence.number].key for sequence in plan.admitted])
        if plan.rows:
            self._draft(plan.rows if self._pass_rows else ())
            code = self._decode(plan.rows)
            if code == 0:
                finished += self._collect(plan.rows)
            else:
                finished += self._recover(code, [sequence for sequence, _ in plan.rows])
        for sequence in plan.admitted:
            if sequence.row is not None and sequence.seq_id >= 0:
                row, sequence.row = sequence.row, None
                finished += self._advance(self._by_number[sequence.number], row, sequence)
        self._totals.bookkeeping += time.perf_counter() - begun + elsewhere - self._accounted()
        return finished

    def _accounted(self) -> float:
        """Return the seconds that were spent on anything but bookkeeping."""
        return self._totals.decode + self._totals.sample + self.tools.constraints.clock.seconds

    def _move(self, moves: abc.Sequence[Move]) -> None:
        self._refused += carry_out(moves, self.model)

    def _restart(self) -> list[Finished]:
        """Start jobs again whose sequences the model refused to cut or to share; once."""
        refused, self._refused = self._refused, []
        finished: list[Finished] = []
        for move in refused:
            source, target = (
                (move.source, move.target) if isinstance(move, Copy) else (-1, move.seq_id)
            )
            self._move([*self.cache.forget(source), *self.cache.forget(target)])
            held = [one for one in self.scheduler.running if one.seq_id == target]
            for entry in [self._by_number[one.number] for one in held]:
                entry.faults += 1
                if entry.faults > RETRIES:
                    finished.append(self._fail(entry, EngineError(f"{self.model.info.name} {CUT}")))
                else:
                    self._preempt(entry)
        return finished

    def _draft(self, rows: abc.Sequence[tuple[Sequence, int]]) -> None:
        """Let jobs that are about to sample guess what they will say, while the batch has room."""
        free = self.cache.cells.capacity - self.cache.cells.used
        room = min(self.model.batch, DRAFTED_ROWS, free) - sum(take for _, take in rows)
        for sequence, take in rows:
            job = self._by_number[sequence.number].job
            far = len(sequence.tokens) + LONGEST > self.cache.whole_from
            if take == sequence.pending and isinstance(job, FillJob) and not far:
                sequence.draft = job.draft(room, least_chance(self._pass_rows, len(rows)))
                room -= len(sequence.draft)

    def _decode(self, rows: abc.Sequence[tuple[Sequence, int]]) -> int:
        batch = batch_of(rows)
        self._totals.decodes += 1
        self._totals.rows += len(rows)
        begun = time.perf_counter()
        code = self.model.decode(batch.tokens, batch.positions, batch.sequences, batch.outputs)
        self._totals.decode += time.perf_counter() - begun
        return code

    def _collect(self, rows: abc.Sequence[tuple[Sequence, int]]) -> list[Finished]:
        """Read the logits of a batch and move every job on."""
        finished: list[Finished] = []
        drawn = self._draw(rows)
        row = 0
        for sequence, take in rows:
            start, first = sequence.computed, row
            row += take + len(sequence.draft)
            entry = self._by_number.get(sequence.number)
            if entry is None:
                continue  # a fork whose search another row of this batch has ended
            self.scheduler.computed(sequence, take)
            self._move(self.cache.keep(sequence))
            if sequence is entry.job.sequence:
                entry.job.meter.compute(start, start + take)
            for position in sorted(p for p in sequence.wants if start <= p < start + take):
                self._hand_over(sequence, position, first + position - start)
            if isinstance(entry.job, ScoreJob):
                scored = range(max(start, sequence.scored_from) - start, take)
                finished += self._score(entry, [first + offset for offset in scored])
            elif sequence.draft:
                finished += self._verify(entry, first + take - 1)
            elif sequence.pending == 0:
                logits = self.model.logits(row - 1)
                finished += self._advance(entry, logits, sequence, drawn.get(sequence.number))
        return finished

    def _draw(self, rows: abc.Sequence[tuple[Sequence, int]]) -> dict[int, Drawn]:
        """Sample for all sequences whose next token is plainly sampled, side by side."""
        numbers: list[int] = []
        asked: list[tuple[Filling, np.ndarray]] = []
        row = 0
        for sequence, take in rows:
            row += take + len(sequence.draft)
            job = self._by_number[sequence.number].job
            if take < sequence.pending or sequence.draft or isinstance(job, ScoreJob):
                continue
            if job.plain is not None:
                numbers.append(sequence.number)
                asked.append((job.plain, self.model.logits(row - 1)))
        with self._totals.sampling(self.tools.constraints.clock):
            return dict(zip(numbers, self._drawers.draw(asked), strict=True))

    def _hand_over(self, sequence: Sequence, position: int, row: int) -> None:
        """Keep a row of logits for the waiting sequences whose prompt ends there."""
        waiting = self.scheduler.waiting_at(sequence, position)
        if waiting:
            logits = self.model.logits(row).copy()
            if np.isfinite(logits.max()):  # otherwise each computes its own
                for other in waiting:
                    other.row = logits

    def _score(self, entry: _Entry, rows: abc.Sequence[int]) -> list[Finished]:
        job = entry.job
        assert isinstance(job, ScoreJob)
        try:
            with self._totals.sampling(self.tools.constraints.clock):
                for row in rows:
                    job.take(self.model.logits(row))
        except PromptflowError as error:
            return [self._fail(entry, error)]
        return [self._finish(entry)] if job.is_done else []

    def _advance(
        self, entry: _Entry, logits: np.ndarray, sequence: Sequence, drawn: Drawn | None = None
    ) -> list[Finished]:
        """Take a token, sampled unless ``drawn``; take back what no longer stands of a sequence."""
        job = entry.job
        assert isinstance(job, FillJob)
        try:
            with self._totals.sampling(self.tools.constraints.clock):
                if job.beams is None:
                    stands = job.take(logits, drawn)
                else:
                    self._fork(entry, job.beams.take(sequence, logits))
                    if not job.beams.is_done:
                        return []
                    self._join(entry)
                    stands = job.close_beams()
        except PromptflowError as error:
            return [self._fail(entry, error)]
        return self._settle(entry, stands)

    def _settle(self, entry: _Entry, stands: int) -> list[Finished]:
        """Take back what no longer stands of a sequence; end its job if it is done."""
        job = entry.job
        # Where nothing follows what stands, its last token is decoded again, for the logits.
        last = len(job.sequence.tokens) - (not job.is_done)
        self._move(self.cache.cut(job.sequence, min(stands, last)))
        self._move(self.cache.keep(job.sequence))
        return [self._finish(entry)] if job.is_done else []

    def _verify(self, entry: _Entry, row: int) -> list[Finished]:
        """Sample from ``row`` on for as long as the draft has it right; drop the rest of it."""
        job, sequence = entry.job, entry.job.sequence
        assert isinstance(job, FillJob)
        draft, sequence.draft = sequence.draft, []
        base = stands = len(sequence.tokens)
        self.scheduler.computed(sequence, len(draft))
        accepted, right = -1, True
        try:
            with self._totals.sampling(self.tools.constraints.clock):
                while right and job.plain is not None:
                    accepted += 1
                    stands = min(stands, job.take(self.model.logits(row + accepted)))
                    right = sequence.tokens[base:] == draft[: accepted + 1]
        except PromptflowError as error:
            return [self._fail(entry, error)]
        self._totals.drafted += len(draft)
        self._totals.accepted += accepted
        if stands == base:
            stands += common(draft, sequence.tokens[base:], len(draft))
            job.meter.compute(base, stands)
        return self._settle(entry, stands)

    def _fork(self, entry: _Entry, forks: abc.Sequence[Fork]) -> None:
        job = entry.job
        for fork in forks:
            if fork.child.seq_id < 0:
                fork.child.number = next(self._numbers)
                self._by_number[fork.child.number] = entry
            self._move(self.scheduler.fork(fork.parent, fork.child, job.sequence))
            if fork.child is job.sequence:
                job.meter.cut(job.sequence.computed)

    def _join(self, entry: _Entry) -> None:
        """End the forks of a search."""
        if isinstance(entry.job, ScoreJob) or entry.job.beams is None:
            return
        for child in entry.job.beams.children:
            self._by_number.pop(child.number, None)
            self._move(self.scheduler.join(child, entry.job.sequence))

    # Ending

    def _finish(self, entry: _Entry) -> Finished:
        usage = self._retire(entry, keep=True)
        if isinstance(entry.job, ScoreJob):
            return entry.key, tuple(entry.job.scores)
        return entry.key, Completion(entry.job.fills, usage, time.monotonic() - entry.started)

    def _fail(self, entry: _Entry, error: PromptflowError) -> Finished:
        usage = self._retire(entry, keep=False)
        fills = entry.job.cut() if isinstance(entry.job, FillJob) else {}
        return entry.key, Completion(fills, usage, time.monotonic() - entry.started, error)

    def _retire(self, entry: _Entry, keep: bool) -> Usage:
        self._join(entry)
        del self._entries[entry.key]
        del self._by_number[entry.job.sequence.number]
        self._move(self.scheduler.finish(entry.job.sequence, keep=keep))
        usage = entry.job.usage()
        self._totals.usage += usage
        self._totals.requests += 1
        return usage

    # Recovering

    def _recover(self, code: int, sequences: abc.Sequence[Sequence]) -> list[Finished]:
        """Deal with a failed decode. 1: no room. 2: aborted. -1: bad batch. Below: fatal.

        After 2 and the fatal codes an unknown part of the batch is in the cache (llama.h at
        llama_decode), so its sequences are dropped whole and start again, once. A fatal code may
        have damaged more: everything starts again.
        """
        for sequence in sequences:
            sequence.draft = []
        if code == 1:
            return self._make_room()
        finished: list[Finished] = []
        for entry in dict.fromkeys(self._by_number[sequence.number] for sequence in sequences):
            entry.faults += 1
            if entry.faults > RETRIES:
                reason = f"llama_decode failed with code {code}, and again after a new start: "
                reason += "send the request once more; if it fails too, run `promptflow doctor`"
                finished.append(self._fail(entry, EngineError(reason)))
        restart = list(sequences)
        if code < -1:
            restart = list(self.scheduler.running)
            self._move(self.cache.evict_all())
        for sequence in reversed(restart):
            if sequence.seq_id >= 0:
                self._preempt(self._by_number[sequence.number])
        if code < -1:
            self.model.reset()
        return finished

    def _make_room(self) -> list[Finished]:
        """Give up cached prefixes, then a job."""
        freed = self.cache.evict_all()
        self._move(freed)
        self.scheduler.is_full = not freed
        return [] if freed else self._send_back()

    def _relieve(self) -> list[Finished]:
        """Give up cached prefixes, then jobs, until what is known of the others has room."""
        finished: list[Finished] = []
        while True:
            has_room, moves = self.scheduler.relieve()
            self._move(moves)
            if has_room:
                return finished
            finished += self._send_back()

    def _send_back(self) -> list[Finished]:
        """Preempt a job; fail one that was alone thrice."""
        running = {
            self._by_number[sequence.number].job.sequence for sequence in self.scheduler.running
        }
        entry = self._by_number[self.scheduler.first_to_go(running).number]
        self._preempt(entry)
        entry.cramped += len(running) == 1
        return [self._no_room(entry.job.sequence)] if entry.cramped > 2 else []

    def _preempt(self, entry: _Entry) -> None:
        """Send a job back to the queue."""
        self._join(entry)
        self._move(self.scheduler.preempt(entry.job.sequence))
        entry.job.restart(from_scratch=not self.cache.sharing)
        self._totals.preempted += 1

    def _no_room(self, sequence: Sequence) -> Finished:
        error = admission.no_room(self.model, sequence.length_limit)
        return self._fail(self._by_number[sequence.number], error)

    def close(self) -> None:
        """End the threads that sample; idempotent."""
        self._drawers.close()

    def stats(self) -> Stats:
        """Return the totals so far."""
        return self._totals.stats(self.cache.evicted, self.tools.constraints.clock.seconds)
