"""The decode loop: schedule, decode, sample, advance. One thread owns it and its model.

A job walks the parts of its request in one sequence: texts are appended as tokens, slots are filled
by the model, and what a slot's stop string cut off is taken back from the cache.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from promptflow.engine import sampling
from promptflow.engine.constraint import Constraints
from promptflow.engine.request import (
    Completion,
    Fill,
    Part,
    Request,
    Slot,
    Stats,
    Text,
    TokenLogprob,
    Usage,
)
from promptflow.engine.scheduler import Copy, Model, Move, Scheduler, Task
from promptflow.engine.slots import Filling, Vocabulary
from promptflow.errors import (
    Cancelled,
    CapacityError,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    PromptflowError,
)

_SEAM = 8  # tokens that cutting a slot inside a token may add


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way: its task, the part it stands at, what is filled so far."""

    key: int
    request: Request
    task: Task
    started: float
    part: int = 0  # index of the slot being filled
    base: int = 0  # tokens before that slot
    filling: Filling | None = None
    fills: dict[str, Fill] = field(default_factory=dict)
    prompt: int = 0
    lost: int = 0  # prompt tokens that preemption made us compute again
    expected: list[int] = field(default_factory=list)  # tokens whose logprobs are asked
    scores: list[TokenLogprob] = field(default_factory=list)


Finished = tuple[int, Completion | tuple[TokenLogprob, ...]]


class Decoder:
    """Runs many jobs over one model, a batch at a time."""

    def __init__(
        self,
        model: Model,
        constraints: Constraints,
        *,
        max_running: int = 16,
        batch_invariant: bool = False,
        on_start: Callable[[list[int]], None] | None = None,
    ) -> None:
        """Take over ``model``. ``batch_invariant`` runs jobs alone, each from an empty cache.

        ``on_start`` is told the keys of jobs before the decode call that first touches them.
        """
        self.model = model
        self._on_start = on_start
        self._vocabulary = Vocabulary(model)
        self._constraints = constraints
        self._keep = not batch_invariant
        running = 1 if batch_invariant else max_running
        self._scheduler = Scheduler(model.context, model.batch, model.max_sequences, running)
        self._jobs: dict[int, Job] = {}
        self._by_task: dict[int, Job] = {}
        self._number = 0
        controls = sorted(filter(None, model.control_texts()), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls))) if controls else None
        self._totals = Usage()
        self._counts = {"requests": 0, "decodes": 0, "rows": 0, "preempted": 0}
        self._seconds = dict.fromkeys(("decode", "sample", "bookkeeping"), 0.0)

    @property
    def busy(self) -> bool:
        """Return whether any job is unfinished."""
        return bool(self._jobs)

    # Texts to tokens

    def tokenize(self, parts: Sequence[Part]) -> list[int]:
        """Return the tokens of the texts among ``parts``, each run between slots as one."""
        tokens: list[int] = []
        run: list[Text] = []
        for part in (*parts, None):
            if isinstance(part, Text):
                run.append(part)
            elif run:
                tokens += self._tokenize_run(run, first=not tokens)
                run = []
        return tokens

    def _tokenize_run(self, run: Sequence[Text], first: bool) -> list[int]:
        """Tokenize texts as one, unless untrusted text spells a control token.

        Then control texts in untrusted text are cut after their first character, so that no
        tokenizer can read them as one token, and the pieces are tokenized apart.
        """
        whole = "".join(text.text for text in run)
        if self._count_controls(whole) == sum(
            self._count_controls(text.text) for text in run if text.trusted
        ):
            return self._with_bos(self.model.tokenize(whole, special=True), first)
        tokens: list[int] = []
        for text in run:
            if text.trusted:
                tokens += self.model.tokenize(text.text, special=True)
            else:
                for piece in self._disarmed(text.text):
                    tokens += self.model.tokenize(piece, special=False)
        return self._with_bos(tokens, first)

    def _count_controls(self, text: str) -> int:
        return 0 if self._controls is None else len(self._controls.findall(text))

    def _disarmed(self, text: str) -> list[str]:
        assert self._controls is not None
        cuts = [0, *(m.start() + 1 for m in self._controls.finditer(text)), len(text)]
        return [text[a:b] for a, b in pairwise(cuts) if a < b]

    def _with_bos(self, tokens: list[int], first: bool) -> list[int]:
        bos = self.model.bos
        if first and bos is not None and tokens[:1] != [bos]:
            return [bos, *tokens]
        return tokens

    def piece_text(self, token: int) -> str:
        """Return a token as text; a control token by its name."""
        piece = self._vocabulary.pieces[token] or self.model.control_piece(token)
        return piece.decode("utf-8", "replace")

    # Submitting

    def submit(self, key: int, request: Request) -> None:
        """Queue a request; raises ContextOverflow and ConstraintError for what cannot run."""
        begun = time.monotonic()
        total = len(self.tokenize(request.parts))
        slots = [part for part in request.parts if isinstance(part, Slot)]
        room = sum(slot.max_tokens + _SEAM * bool(slot.stop) for slot in slots)
        self._check_fits(total, room)
        first = next(i for i, part in enumerate(request.parts) if isinstance(part, Slot))
        tokens = self.tokenize(request.parts[:first]) or [self._blank()]
        task = Task(self._number, tokens, total + room + 1)
        job = Job(key, request, task, begun, part=first, prompt=len(tokens))
        self._open(job, slots[0])
        while job.filling is not None and job.filling.finish is not None:
            self._next_part(job)
        if job.filling is None:
            raise EngineError("every slot of this request is forced: there is nothing to generate")
        self._enqueue(job)

    def _blank(self) -> int:
        """Return a token to start from where a request begins with a slot."""
        return self.model.bos if self.model.bos is not None else min(self.model.end_tokens)

    def _check_fits(self, prompt: int, room: int) -> None:
        over = prompt + room + 1 - self.model.context
        if over > 0:
            raise ContextOverflow(
                f"the prompt has {prompt:,} tokens and asks for up to {room:,} more: {over:,} over "
                f"the context of {self.model.context:,}. Shorten the prompt, lower max_tokens, or "
                "load the model with EngineOptions(context=...)"
            )

    def score(self, key: int, prefix: Sequence[Text], continuation: str) -> None:
        """Queue the scoring of ``continuation`` after ``prefix``."""
        before = self.tokenize(prefix) or [self._blank()]
        expected = self.model.tokenize(continuation, special=False)
        if not expected:
            raise EngineError("there is nothing to score: the continuation is empty")
        self._check_fits(len(before), len(expected))
        tokens = before + expected[:-1]
        # The logits after the prefix are needed, so its last token is computed for each.
        task = Task(self._number, tokens, len(tokens), share_limit=len(before) - 1)
        job = Job(
            key,
            Request((Slot("score"),)),
            task,
            time.monotonic(),
            base=len(before),
            prompt=len(tokens),
            expected=expected,
        )
        task.wants.update(range(len(before) - 1, len(tokens)))
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        self._number += 1
        self._jobs[job.key] = job
        self._by_task[job.task.number] = job
        self._scheduler.submit(job.task)

    def cancel(self, key: int) -> Finished | None:
        """Stop a job; None if it has already finished."""
        job = self._jobs.get(key)
        return None if job is None else self._fail(job, Cancelled("the request was cancelled"))

    # Stepping

    def step(self) -> list[Finished]:
        """Run one batch; return the jobs that it finished, errors included."""
        begun = time.monotonic()
        finished = self._expire(begun)
        plan = self._scheduler.step()
        self._move(plan.moves)
        if plan.admitted and self._on_start is not None:
            self._on_start([self._by_task[task.number].key for task in plan.admitted])
        ready = [task for task in plan.admitted if task.ready is not None]
        planned = time.monotonic()
        self._seconds["bookkeeping"] += planned - begun
        if plan.rows:
            code = self._decode(plan.rows)
            decoded = time.monotonic()
            self._seconds["decode"] += decoded - planned
            if code != 0:
                return finished + self._recover(code, [task for task, _ in plan.rows])
            finished += self._collect(plan.rows)
            self._seconds["sample"] += time.monotonic() - decoded
        for task in ready:
            if task.ready is not None and task.sequence >= 0:
                row, task.ready = task.ready, None
                finished += self._advance(self._by_task[task.number], row)
        return finished

    def _move(self, moves: Sequence[Move]) -> None:
        for move in moves:
            if isinstance(move, Copy):
                self.model.copy(move.source, move.target, move.end)
            else:
                self.model.drop(move.sequence, move.start)

    def _decode(self, rows: Sequence[tuple[Task, int]]) -> int:
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        outputs: list[bool] = []
        for task, take in rows:
            end = task.computed + take
            tokens += task.tokens[task.computed : end]
            positions += range(task.computed, end)
            sequences += [task.sequence] * take
            last = len(task.tokens) - 1
            outputs += [p == last or p in task.wants for p in range(task.computed, end)]
        self._counts["decodes"] += 1
        self._counts["rows"] += len(rows)
        return self.model.decode(tokens, positions, sequences, outputs)

    def _collect(self, rows: Sequence[tuple[Task, int]]) -> list[Finished]:
        """Read the logits of a batch and move every job on."""
        finished: list[Finished] = []
        row = 0
        for task, take in rows:
            job = self._by_task[task.number]
            start = task.computed
            self._scheduler.computed(task, take)
            try:
                for position in sorted(p for p in task.wants if start <= p < start + take):
                    self._keep_row(job, position, self.model.logits(row + position - start))
                    task.wants.discard(position)
            except PromptflowError as error:
                finished.append(self._fail(job, error))
                row += take
                continue
            row += take
            if task.pending == 0:
                finished += self._advance(job, self.model.logits(row - 1))
        return finished

    def _keep_row(self, job: Job, position: int, logits: np.ndarray) -> None:
        """Copy a row for a job that waits for it, or score the token that follows it."""
        if not job.expected or position < job.base - 1:
            job.task.rows[position] = logits.copy()
            return
        sampling.check(logits)
        token = job.expected[position + 1 - job.base]
        piece = self.model.piece(token).decode("utf-8", "replace")
        job.scores.append(TokenLogprob(piece, token, sampling.logprob(logits, token)))

    def _advance(self, job: Job, logits: np.ndarray) -> list[Finished]:
        """Sample a token for a job and go on to its next part where the slot has ended."""
        if job.expected:
            return [self._finish(job)]
        assert job.filling is not None
        try:
            job.task.tokens += job.filling.take(logits)
            while job.filling is not None and job.filling.finish is not None:
                self._next_part(job)
        except PromptflowError as error:
            return [self._fail(job, error)]
        return [self._finish(job)] if job.filling is None else []

    def _next_part(self, job: Job) -> None:
        """Close the slot that has ended, append the texts after it, and open the next slot."""
        filling, task = job.filling, job.task
        assert filling is not None
        job.fills[filling.slot.name] = filling.fill()
        parts = job.request.parts
        later = [i for i in range(job.part + 1, len(parts)) if isinstance(parts[i], Slot)]
        if not later:
            job.filling = None
            return
        kept = job.base + filling.kept
        if task.computed > kept:
            self._scheduler.cut(task, kept)
            self.model.drop(task.sequence, kept)
        del task.tokens[kept:]
        if filling.rest:
            rest = filling.rest.decode("utf-8", "replace")
            task.tokens += self.model.tokenize(rest, special=False)
        texts = [part for part in parts[job.part + 1 : later[0]] if isinstance(part, Text)]
        fresh = self._tokenize_run(texts, first=False) if texts else []
        task.tokens += fresh
        job.prompt += len(fresh)
        job.part = later[0]
        slot = parts[later[0]]
        assert isinstance(slot, Slot)
        self._open(job, slot)

    def _open(self, job: Job, slot: Slot) -> None:
        rng = sampling.generator(job.request.seed, job.part)
        job.base = len(job.task.tokens)
        job.filling = Filling(slot, self._vocabulary, self._constraints, rng)
        job.task.tokens += job.filling.open()

    # Ending

    def _finish(self, job: Job) -> Finished:
        usage = self._usage(job)
        self._retire(job, usage, keep=self._keep)
        if job.expected:
            return job.key, tuple(job.scores)
        return job.key, Completion(job.fills, usage, time.monotonic() - job.started)

    def _fail(self, job: Job, error: PromptflowError) -> Finished:
        usage = self._usage(job)
        self._retire(job, usage, keep=False)
        return job.key, Completion(job.fills, usage, time.monotonic() - job.started, error)

    def _usage(self, job: Job) -> Usage:
        generated = sum(fill.generated for fill in job.fills.values())
        forced = sum(fill.forced for fill in job.fills.values())
        reused = min(job.task.reused, job.prompt)
        return Usage(job.prompt, job.prompt - reused + job.lost, reused, generated, forced)

    def _retire(self, job: Job, usage: Usage, keep: bool) -> None:
        del self._jobs[job.key]
        del self._by_task[job.task.number]
        if job.task.sequence >= 0:
            self._move(self._scheduler.finish(job.task, keep=keep))
        else:
            self._scheduler.forget(job.task)
        self._totals += usage
        self._counts["requests"] += 1

    def _expire(self, now: float) -> list[Finished]:
        late = [
            job
            for job in self._jobs.values()
            if job.request.deadline is not None and now - job.started > job.request.deadline
        ]
        return [
            self._fail(job, DeadlineExceeded(f"not done within {job.request.deadline:g} s"))
            for job in late
        ]

    def _recover(self, code: int, tasks: Sequence[Task]) -> list[Finished]:
        """Deal with a failed decode. 1: no room. 2: aborted. -1: bad batch. Below: fatal.

        After 2 and the fatal codes an unknown part of the batch is in the cache, so its sequences
        are dropped whole (llama.h at llama_decode).
        """
        if code == 1:
            return self._make_room()
        finished = [
            self._fail(
                self._by_task[task.number],
                EngineError(f"llama_decode failed with code {code} on a batch of {len(tasks)}"),
            )
            for task in tasks
        ]
        self._move(self._scheduler.evict_all())
        return finished

    def _make_room(self) -> list[Finished]:
        """Give up cached prefixes, then the newest sequence; fail one that was given up before."""
        freed = self._scheduler.evict_all()
        self._move(freed)
        if freed:
            return []
        task, moves = self._scheduler.preempt()
        self._move(moves)
        self._counts["preempted"] += 1
        job = self._by_task[task.number]
        if task.preempted > 1 or not self._scheduler.running:
            return [self._fail(job, CapacityError("the KV cache has no room for this request"))]
        job.lost += max(0, job.prompt - task.reused)
        return []

    def stats(self) -> Stats:
        """Return the totals so far."""
        decodes = self._counts["decodes"]
        return Stats(
            requests=self._counts["requests"],
            prefilled=self._totals.prefilled,
            reused=self._totals.reused,
            generated=self._totals.generated,
            forced=self._totals.forced,
            decodes=decodes,
            occupancy=self._counts["rows"] / decodes if decodes else 0.0,
            preempted=self._counts["preempted"],
            evicted=self._scheduler.evicted,
            decode_seconds=self._seconds["decode"],
            sample_seconds=self._seconds["sample"],
            bookkeeping_seconds=self._seconds["bookkeeping"],
        )
