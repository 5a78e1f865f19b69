"""The engine as programs see it: submit requests, get completions, survive the child's death.

Light to import: numpy, llguidance and llama.cpp are loaded by the child alone.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptflow.engine.interface import ModelInfo, PromptTokens, Stats
from promptflow.engine.model import chat_template
from promptflow.engine.options import DEFAULTS, EngineOptions, worker_settings
from promptflow.engine.process.frames import Message
from promptflow.engine.process.host import Host, ThreadHost, describe, launch
from promptflow.engine.process.wire import Outcome, from_wire, submission, texts
from promptflow.engine.request import Completion, Part, Request, Slot, Text, TokenLogprob
from promptflow.engine.stream import Feed, Stream, runs_event_loop
from promptflow.engine.tickets import OnDelta, Tickets, frames, resolve
from promptflow.errors import (
    Cancelled,
    EngineError,
    EngineLost,
    ForkedUse,
    PromptflowError,
    QueueFull,
    TemplateError,
    names_options,
)

if TYPE_CHECKING:
    from promptflow.engine.model.protocol import Model


@names_options
class Engine:
    """Fill requests with a GGUF model, many at a time, in a supervised child process.

    ``model`` is a name or a path as ``catalog.obtain`` takes them, or an object with the methods of
    ``fake.FakeModel``. Raises ModelNotFound, ModelInvalid, and CapacityError for a model that does
    not fit into memory. Any thread may call it.
    """

    info: ModelInfo

    def __init__(
        self, model: str | Path | Model, options: EngineOptions = DEFAULTS, *, trust: bool = False
    ) -> None:
        """Load the model; falls back where the default load path does not survive a decode.

        ``trust`` lets ./models.toml give a known name to another model: see ``catalog.models``.
        """
        self.options = options
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._tickets = Tickets(options.max_waiting)
        self._expiry: threading.Timer | None = None
        self._abandoned: queue.SimpleQueue[int] = queue.SimpleQueue()  # streams nobody reads
        self._restarts = 0
        self._closed = False
        self._host: Host | None = None
        self._past = Stats()  # of workers that have died
        self._latest = Stats()  # of the one that runs, as it last said
        self._exact = self._used = self._retired = False
        self.renewals = 0
        self.renewal_seconds = 0.0
        self._scaffolds: dict[tuple[str, ...], tuple[str, ...] | TemplateError] = {}
        self._model = None if isinstance(model, str | Path) else model
        path = model if isinstance(model, str | Path) else None
        self._template = options.template()
        self._settings = worker_settings(options, path, trust=trust)
        with self._lock:
            self._start()
        _open.add(self)

    # Life and death

    def _start(self) -> Host:
        """Start a worker. The lock is held."""
        prefixes = self._settings["prefixes"]
        settings = {**self._settings, "prefixes": prefixes and not self._exact}
        if self._model is not None:
            host: Host = ThreadHost(settings, self._model)
        else:
            # What has crashed once is not tried again: later workers start with what survived.
            host, settings = launch(settings)
            self._settings = {**settings, "prefixes": prefixes}
            if not self.options.isolate:
                host.close()  # it has shown that loading ends well
                host = ThreadHost(settings)
        threads = self._settings["load"]["threads"]
        self.info = ModelInfo(**{**describe(host.ready), "threads": threads, **self._template})
        self._host = host
        host.start(self._receive, lambda error: self._lost(host, error))
        return host

    def _lost(self, host: Host, error: EngineLost) -> None:
        """Fail what had started, and give what had not to a new worker."""
        with self._lock:
            if self._host is not host and not self._closed:
                return  # renew has ended it: nobody's loss
            self._host = None
            if self._closed:
                self._tickets.fail(EngineLost("the engine was closed"))
                return
            self._past, self._latest = self._past + self._latest, Stats()
            self._tickets.sort_out(error)
            while self._tickets.in_line:
                try:
                    self._send_due(self._running())
                except EngineLost as failure:
                    self._tickets.sort_out(failure)  # a start that failed counts as one more try
                    continue
                except PromptflowError as failure:
                    self._tickets.fail(failure)
                return

    def _running(self) -> Host:
        """Return the worker's host, started anew if it died. The lock is held."""
        if self._closed:
            raise EngineLost("the engine was closed: make a new one")
        if self._host is None and self._retired:
            begun, self._retired = time.perf_counter(), False
            self._start()
            self.renewals += 1
            self.renewal_seconds += time.perf_counter() - begun
        elif self._host is None:
            self._restarts += 1
            self._start()
        assert self._host is not None
        return self._host

    def renew(self, *, exact: bool = False) -> bool:
        """End the worker; the next request starts one that has seen nothing.

        Until the next ``renew``, an ``exact`` one answers from the requests alone: equal batches in
        equal order give equal text in any process, since no prefix is read from disk and no batch
        is mixed with another. Returns False, and does nothing, while requests are under way.
        """
        self._check_process()
        with self._lock:
            if self._tickets.is_busy:
                return False
            if self._closed or (exact == self._exact and not self._used):
                return True
            self._exact, self._used = exact, False
            if self._host is not None:
                self._past, self._latest = self._past + self._latest, Stats()
                ended, self._host, self._retired = self._host, None, True
                ended.close()
        return True

    def close(self) -> None:
        """Stop the engine; whatever still runs ends with EngineLost. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            host, self._host = self._host, None
        if host is not None:
            host.close()
        self._tickets.fail(EngineLost("the engine was closed"))
        self._expire()  # ends its timer

    def __enter__(self) -> Engine:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __deepcopy__(self, memo: object) -> Engine:
        """Return the engine itself: copies of a program share it."""
        return self

    # Messages

    def _check_process(self) -> None:
        """Raise ForkedUse in a forked child; before any lock, which a lost thread may have held."""
        if os.getpid() != self._pid:
            raise ForkedUse(
                "this engine was made in another process: make a new Engine in the forked child, "
                "or start processes with the 'spawn' method"
            )

    def _post(
        self, messages: Sequence[Message], on_delta: OnDelta | None = None
    ) -> list[tuple[int, Future[Any]]]:
        """Put ``messages`` into the line and send what is due; return their keys and futures."""
        self._check_process()
        with self._lock:
            host = self._running()
            self._used = self._used or any("job" in message for message in messages)
            issued = self._tickets.issue(messages, on_delta)
            self._send_due(host)
            if self._tickets.in_line:
                self._expire()
            return issued

    def _send_due(self, host: Host) -> None:
        """Send as many as may wait at the worker. The lock is held."""
        for frame in frames(self._tickets.due()):
            host.send(frame)

    def _expire(self) -> None:
        """Fail what stands in line beyond its deadline, now and when the next one is due."""
        with self._lock:
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            seconds = self._tickets.expire()
            if seconds is not None:
                self._expiry = threading.Timer(seconds, self._expire)
                self._expiry.daemon = True
                self._expiry.start()

    def _receive(self, message: Message) -> None:
        """Take a frame from the worker; runs in the host's thread."""
        if "deltas" in message:
            for key, slot, text in message["deltas"]:
                self._tickets.tell(key, slot, text)
        elif "done" in message:
            self._latest = from_wire(Stats, message["stats"])
            for key, outcome in message["done"]:
                self._tickets.settle(key, _outcome(outcome))
        elif "started" in message:
            self._tickets.start(message["started"])
        elif "reply" in message:
            self._tickets.settle(message["reply"], message["value"])
        if self._tickets.in_line:
            with self._lock:
                if self._host is not None:
                    self._send_due(self._host)
        while not self._abandoned.empty():
            self._cancel([self._abandoned.get()])

    def _cancel(self, keys: Sequence[int]) -> None:
        with self._lock:
            sent = self._tickets.withdraw(keys)
            if self._host is not None and sent:
                self._host.send({"op": "cancel", "keys": sent})

    def _enter(
        self, message: Message, timeout: float | None, on_delta: OnDelta | None = None
    ) -> tuple[int, Future[Any]]:
        """Post a message, and wait until it has its place among those that wait at the worker."""
        [(key, future)] = self._post([message], on_delta)
        if runs_event_loop():
            timeout = 0.0  # it must not be blocked
        try:
            if self._tickets.wait(key, timeout):
                return key, future
        except BaseException:
            self._cancel([key])
            raise
        self._cancel([key])
        raise QueueFull(
            f"{self.options.max_waiting:,} requests wait already, and room for one more did not "
            f"come within {timeout:g} s: give a longer timeout, raise "
            "EngineOptions(max_waiting=...), or let generate, or agenerate in asyncio, wait for it"
        )

    def _gather(
        self, messages: Sequence[Message], on_done: Callable[[int], None] | None = None
    ) -> list[Any]:
        """Send ``messages`` and return their outcomes, errors as values; cancel if interrupted."""
        posted = self._post(messages)
        try:
            for number, _ in enumerate(as_completed([future for _, future in posted])):
                if on_done is not None:
                    on_done(number + 1)
        except BaseException:
            self._cancel([key for key, future in posted if not future.done()])
            raise
        return [future.exception() or future.result() for _, future in posted]

    # What programs call

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Fill every slot of every request, in order; an error is a value in its place.

        Requests of one call arrive together, so that each shared prefix is computed once; however
        many they are, they go to the worker as there is room. ``on_done`` is told how many have
        ended so far. Ctrl-C cancels what is unfinished.
        """
        messages = [submission(request) for request in requests]
        # What does not fit into the line follows when others have begun: the clock says when.
        size = self.options.max_waiting if self._exact else max(1, len(messages))
        outcomes: list[Any] = []
        for start in range(0, len(messages), size):
            told = None if on_done is None else partial(_told, on_done, start)
            outcomes += self._gather(messages[start : start + size], told)
        return [_completion(outcome) for outcome in outcomes]

    async def agenerate(self, requests: Sequence[Request]) -> list[Completion]:
        """Do what ``generate`` does without blocking the event loop.

        Cancelling the task cancels what is unfinished.
        """
        posted = self._post([submission(request) for request in requests]) if requests else []
        futures = [asyncio.wrap_future(future) for _, future in posted]
        try:
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        except BaseException:
            self._cancel([key for key, _ in posted])
            raise
        return [_completion(outcome) for outcome in outcomes]

    def submit(self, request: Request, timeout: float | None = None) -> Future[Completion]:
        """Queue one request; its future gives a completion, errors included.

        Where ``max_waiting`` requests wait already, wait for room: up to ``timeout`` seconds, None
        for as long as it takes. Raises QueueFull after that, and at once in a thread that runs an
        event loop. Cancelling the future before it is done cancels the request.
        """
        key, inner = self._enter(submission(request), timeout)
        outer: Future[Completion] = Future()
        inner.add_done_callback(lambda done: resolve(outer, _result(done)))
        outer.add_done_callback(lambda done: self._cancel([key]) if done.cancelled() else None)
        return outer

    def stream(self, request: Request, timeout: float | None = None) -> Stream:
        """Queue one request and return its text while it is written: an iterator of ``Delta``.

        The last delta carries the completion. Waits for room and raises QueueFull as ``submit``.
        """
        feed = Feed()
        key, future = self._enter(submission(request, stream=True), timeout, feed.tell)
        future.add_done_callback(lambda done: feed.end(_result(done)))
        return Stream(feed, lambda: self._cancel([key]), lambda: self._abandoned.put(key))

    def score(
        self, prefix: Sequence[Text], continuations: Sequence[str]
    ) -> list[tuple[TokenLogprob, ...]]:
        """Return the natural-log probability of each token of each continuation after ``prefix``.

        Raises the first error.
        """
        head = texts(prefix)
        messages = [{"op": "score", "prefix": head, "job": text} for text in continuations]
        return [_answer(outcome) for outcome in self._gather(messages)] if messages else []

    def keep(self, prefix: Sequence[Text]) -> int:
        """Keep the KV state of ``prefix`` on disk, for processes to come; return its bytes.

        A later engine on the same file, build and options takes up a request that begins with it as
        if it had been computed. Raises EngineError and StoreError.
        """
        if not prefix:
            raise EngineError("there is nothing to keep: give the texts of a prefix")
        last = replace(prefix[-1], boundary=True)
        [completion] = self.generate([Request((*prefix[:-1], last, Slot("next", max_tokens=1)))])
        completion.text("next")
        [size] = self._gather([{"op": "keep", "prefix": texts(prefix)}])
        return int(_answer(size))

    def scaffold(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Return the chat template's texts around contents: one more than ``roles``.

        The last one opens the assistant's turn, its reasoning block closed, unless the last role is
        ``assistant``. The contents of a role ``reasoning`` stand in the block of the turn that
        follows: see ``TextEngine``. Raises TemplateError for a model without a usable template, and
        NoReasoningBlock.
        """
        key = tuple(roles)
        if key not in self._scaffolds:
            info = self.info
            try:
                made = chat_template.scaffold(info.template, key, info.bos, info.eos)
                self._scaffolds[key] = made
            except TemplateError as error:
                self._scaffolds[key] = error
        held = self._scaffolds[key]
        if isinstance(held, TemplateError):
            raise held.with_traceback(None)
        return held

    def pieces(self, parts: Sequence[Part]) -> list[str]:
        """Return the text of each prompt token of ``parts``."""
        return [piece.decode("utf-8", "replace") for piece in self.look(parts).pieces]

    def look(self, parts: Sequence[Part]) -> PromptTokens:
        """Return the prompt tokens of ``parts``, and how many of them the cache holds now."""
        [outcome] = self._gather([{"op": "look", "parts": texts(parts)}])
        pieces, held = _answer(outcome)
        return PromptTokens(tuple(piece.encode("latin-1") for piece in pieces), held)

    def count(self, parts: Sequence[Part]) -> int:
        """Return how many prompt tokens the texts of ``parts`` make."""
        return len(self.pieces(parts))

    def stats(self) -> Stats:
        """Return the totals since the engine was made, of workers that have died too."""
        self._check_process()
        with self._lock:
            past = replace(self._past, restarts=self._restarts)
            if self._host is None:
                return past + self._latest
        [latest] = self._gather([{"op": "stats"}])
        now: Stats = from_wire(Stats, _value(latest))
        return replace(past + now, restarts=self._restarts)

    @property
    def child_pid(self) -> int:
        """Return the process number of the child, 0 where there is none."""
        host = self._host
        return 0 if host is None else host.pid


def _told(on_done: Callable[[int], None], before: int, done: int) -> None:
    on_done(before + done)


def _outcome(data: Any) -> Outcome | EngineError:
    """Return what a job came to; where that cannot be read, the error, since somebody waits."""
    try:
        outcome: Outcome = from_wire(Outcome, data)
    except EngineError as error:
        return error
    return outcome


def _completion(outcome: Any) -> Completion:
    """Return a completion, or one that holds the error which came in its place."""
    if isinstance(outcome, PromptflowError):
        return Completion(error=outcome)
    completion: Completion = _value(outcome)
    return completion


def _result(done: Future[Any]) -> Completion:
    """Return the completion of a future that is done; one that was cancelled has been withdrawn."""
    if done.cancelled():
        return Completion(error=Cancelled("the request was cancelled"))
    return _completion(done.exception() or done.result())


def _answer(outcome: Any) -> Any:
    """Return what a worker answered to anything but a request; raise the error it came to."""
    if isinstance(outcome, Completion) and outcome.error is not None:
        raise outcome.error
    return _value(outcome)


def _value(outcome: Any) -> Any:
    """Return what a worker answered; raise the error that came in its place."""
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


_open: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_open):
        engine.close()
