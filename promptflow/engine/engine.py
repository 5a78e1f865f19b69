"""The engine as programs see it: submit requests, get completions, survive the child's death.

Light to import: numpy, llguidance and llama.cpp are loaded by the child alone.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptflow.engine import template
from promptflow.engine.frames import Message
from promptflow.engine.host import ChildHost, Host, ThreadHost, describe, usable_cores
from promptflow.engine.request import (
    Completion,
    ModelInfo,
    Part,
    Request,
    Stats,
    Text,
    TokenLogprob,
    completion_from_wire,
    error_from_wire,
    to_wire,
)
from promptflow.errors import EngineLost, ForkedUse, PromptflowError

if TYPE_CHECKING:
    from promptflow.engine.scheduler import Model

log = logging.getLogger("promptflow")
REPLAYS = 2  # how often a request that had not started is given to a new child


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine loads and runs its model.

    ``context`` counts the cells that all sequences share, ``batch`` the tokens of one decode call,
    ``max_running`` the sequences decoded together. ``threads=None`` takes the physical cores that
    this process may use. ``isolate=False`` runs llama.cpp in this process, which it may abort.
    ``batch_invariant=True`` makes a request's text independent of what else runs or is cached, by
    running requests alone and from an empty cache.
    """

    context: int = 8192
    batch: int = 512
    max_running: int = 16
    threads: int | None = None
    gpu_layers: int = 0
    isolate: bool = True
    batch_invariant: bool = False
    flash_attention: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that llama.cpp would abort on."""
        for name, low, high in (
            ("context", 16, 1 << 22),
            ("batch", 1, 1 << 16),
            ("max_running", 1, 64),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"EngineOptions({name}={value}) is outside {low} to {high}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"EngineOptions(threads={self.threads}) is below 1")


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request on its way: what to send again, and the future that somebody waits for."""

    future: Future[Any]
    message: Message  # how a single one is sent again
    started: bool = False
    replays: int = 0


class Engine:
    """Fill requests with a GGUF model, many at a time, in a supervised child process.

    ``model`` is a catalogue name, a path to a GGUF file, or an object with the methods of
    ``fake.FakeModel``. Raises ModelNotFound and ModelInvalid. Any thread may call it.
    """

    def __init__(self, model: str | Path | Model, options: EngineOptions = EngineOptions()) -> None:
        """Load the model; falls back where the default load path does not survive a decode."""
        self.options = options
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._tickets: dict[int, _Ticket] = {}
        self._next = 0
        self._restarts = 0
        self._closed = False
        self._host: Host | None = None
        self._scaffolds: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._fake: Model | None = None
        threads = options.threads or usable_cores()
        self._settings: Message = {
            "max_running": options.max_running,
            "batch_invariant": options.batch_invariant,
            "load": {
                "context": options.context,
                "batch": options.batch,
                "sequences": min(256, options.max_running + 48),
                "threads": threads,
                "gpu_layers": options.gpu_layers,
                "extra_buffers": True,
                "flash_attention": options.flash_attention,
            },
        }
        if isinstance(model, str | Path):
            # Not at the top: a program that brings its own model needs no catalogue.
            from promptflow import catalog

            path = catalog.locate(model)
            catalog.check_gguf(path)
            name = str(model) if str(model) in catalog.models() else path.stem
            self._settings |= {
                "path": str(path),
                "name": name,
                "sha256": catalog.sha256_cached(path),
            }
        else:
            self._fake = model
        self._host = self._start()
        self.info = ModelInfo(**{**describe(self._host.ready), "threads": threads})
        _open.add(self)

    # Life and death

    def _start(self) -> Host:
        """Start a host; a child that dies while loading is retried with safer settings."""
        if self._fake is not None or not self.options.isolate:
            host: Host = ThreadHost(self._settings, self._fake)
        else:
            host = self._start_child()
        host.start(self._receive, self._lost)
        return host

    def _start_child(self) -> ChildHost:
        safer: list[Message] = [{}, {"extra_buffers": False}]
        safer.append({"extra_buffers": False, "threads": 1})
        for number, change in enumerate(safer):
            settings = {**self._settings, "load": {**self._settings["load"], **change}}
            try:
                host = ChildHost(settings)
            except EngineLost as error:
                if number == len(safer) - 1:
                    raise
                log.warning(
                    "Loading %s did not survive a probe decode (%s); trying %s.",
                    settings["path"],
                    str(error).split(". Last log", 1)[0],
                    safer[number + 1],
                )
                continue
            if "fatal" in host.ready:
                host.close()
                raise error_from_wire(host.ready["fatal"])
            self._settings = settings
            return host
        raise AssertionError("unreachable")

    def _lost(self, error: EngineLost) -> None:
        """Fail what had started, and give what had not to a new child."""
        with self._lock:
            self._host = None
            if self._closed:
                error = EngineLost("the engine was closed")
            replay: dict[int, _Ticket] = {}
            for key, ticket in list(self._tickets.items()):
                if self._closed or ticket.started or ticket.replays >= REPLAYS:
                    del self._tickets[key]
                    _resolve(ticket.future, error)
                else:
                    ticket.replays += 1
                    replay[key] = ticket
            if not replay:
                return
            try:
                host = self._running()
            except PromptflowError as failure:
                for key, ticket in replay.items():
                    del self._tickets[key]
                    _resolve(ticket.future, failure)
                return
            for key, ticket in replay.items():
                host.send(_with_key(ticket.message, key))

    def _running(self) -> Host:
        """Return the host, started anew if it died. The lock is held."""
        if os.getpid() != self._pid:
            raise ForkedUse(
                "this engine was made in another process: make a new Engine in the forked child, "
                "or start processes with the 'spawn' method"
            )
        if self._closed:
            raise EngineLost("the engine was closed: make a new one")
        if self._host is None:
            self._restarts += 1
            self._host = self._start()
        return self._host

    def close(self) -> None:
        """Stop the engine; whatever still runs ends with EngineLost. Idempotent."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
            host, self._host = self._host, None
            tickets = list(self._tickets.values())
            self._tickets.clear()
        if host is not None:
            host.close()
        for ticket in tickets:
            _resolve(ticket.future, EngineLost("the engine was closed"))

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

    def _post(self, messages: Sequence[Message]) -> list[tuple[int, Future[Any]]]:
        """Send ``messages`` of one kind as one frame; return their keys and futures."""
        with self._lock:
            host = self._running()
            posted: list[tuple[int, Future[Any]]] = []
            for message in messages:
                self._next += 1
                future: Future[Any] = Future()
                self._tickets[self._next] = _Ticket(future, message)
                posted.append((self._next, future))
            keys = [key for key, _ in posted]
            if len(messages) == 1 or "jobs" not in messages[0]:
                for key, message in zip(keys, messages, strict=True):
                    host.send(_with_key(message, key))
            else:
                jobs = [
                    [key, message["jobs"][0][1]]
                    for key, message in zip(keys, messages, strict=True)
                ]
                host.send({**messages[0], "jobs": jobs})
            return posted

    def _receive(self, message: Message) -> None:
        """Take a frame from the worker; runs in the host's thread."""
        if "done" in message:
            for key, outcome in message["done"]:
                self._settle(key, _outcome(outcome))
        elif "started" in message:
            with self._lock:
                for key in message["started"]:
                    if key in self._tickets:
                        self._tickets[key].started = True
        elif "reply" in message:
            self._settle(message["reply"], message["value"])

    def _settle(self, key: int, outcome: Any) -> None:
        with self._lock:
            ticket = self._tickets.pop(key, None)
        if ticket is not None:
            _resolve(ticket.future, outcome)

    # What programs call

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Fill every slot of every request, in order; an error is a value in its place.

        Requests of one call arrive together, so that each shared prefix is computed once.
        ``on_done`` is told how many have ended so far. Ctrl-C cancels what is unfinished.
        """
        if not requests:
            return []
        posted = self._post([_submission(request) for request in requests])
        try:
            for number, _ in enumerate(as_completed([future for _, future in posted])):
                if on_done is not None:
                    on_done(number + 1)
        except BaseException:
            self._cancel([key for key, future in posted if not future.done()])
            raise
        return [_completion(future) for _, future in posted]

    def submit(self, request: Request) -> Future[Completion]:
        """Queue one request; its future gives a completion, errors included."""
        [(key, inner)] = self._post([_submission(request)])
        outer: Future[Completion] = Future()
        inner.add_done_callback(lambda _: _resolve(outer, _completion(inner)))
        # A future that is cancelled before it is done takes its request with it.
        outer.add_done_callback(lambda done: self._cancel([key]) if done.cancelled() else None)
        return outer

    def _cancel(self, keys: list[int]) -> None:
        with self._lock:
            if self._host is not None and keys:
                self._host.send({"op": "cancel", "keys": keys})

    def score(
        self, prefix: Sequence[Text], continuations: Sequence[str]
    ) -> list[tuple[TokenLogprob, ...]]:
        """Return the natural-log probability of each token of each continuation after ``prefix``.

        Raises the first error.
        """
        head = [[text.text, text.trusted] for text in prefix]
        messages = [{"op": "score", "prefix": head, "jobs": [[0, c]]} for c in continuations]
        outcomes = [future.result() for _, future in self._post(messages)] if messages else []
        for outcome in outcomes:
            if isinstance(outcome, Completion) and outcome.error is not None:
                raise outcome.error
        return outcomes

    def scaffold(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Return the chat template's texts around contents: one more than ``roles``.

        The last one opens the assistant's turn, unless the last role is ``assistant``. Raises
        TemplateError for a model without a usable template.
        """
        key = tuple(roles)
        if key not in self._scaffolds:
            info = self.info
            texts = template.scaffold(info.template or "", key, info.bos, info.eos)
            self._scaffolds[key] = texts
        return self._scaffolds[key]

    def pieces(self, parts: Sequence[Part]) -> list[str]:
        """Return the text of each prompt token of ``parts``."""
        texts = [[part.text, part.trusted] for part in parts if isinstance(part, Text)]
        [(_, future)] = self._post([{"op": "pieces", "parts": texts}])
        pieces: list[str] = future.result()
        return pieces

    def count(self, parts: Sequence[Part]) -> int:
        """Return how many prompt tokens the texts of ``parts`` make."""
        return len(self.pieces(parts))

    def stats(self) -> Stats:
        """Return the totals since the child started, and how often it was restarted."""
        [(_, future)] = self._post([{"op": "stats"}])
        values = {k: v for k, v in future.result().items() if k != "_"}
        return replace(Stats(**values), restarts=self._restarts)

    @property
    def child_pid(self) -> int:
        """Return the process number of the child, 0 where there is none."""
        host = self._host
        return 0 if host is None else host.pid


def _submission(request: Request) -> Message:
    return {"op": "submit", "jobs": [[0, to_wire(request)]]}


def _with_key(message: Message, key: int) -> Message:
    if "jobs" in message:
        return {**message, "jobs": [[key, message["jobs"][0][1]]]}
    return {**message, "key": key}


def _outcome(wire: Any) -> Any:
    if isinstance(wire, dict):
        return completion_from_wire(wire)
    names = [f.name for f in fields(TokenLogprob)]
    return tuple(TokenLogprob(**{n: item[n] for n in names}) for item in wire)


def _completion(future: Future[Any]) -> Completion:
    try:
        completion: Completion = future.result()
    except PromptflowError as error:
        return Completion(error=error)
    return completion


def _resolve(future: Future[Any], outcome: Any) -> None:
    """Give a future its result, unless its owner has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, PromptflowError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


_open: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_open):
        engine.close()
