"""Requests on their way to the worker and back, and what becomes of them when it dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from promptflow.engine.frames import Message
from promptflow.errors import EngineLost, PromptflowError

REPLAYS = 2  # children that may die before they begin anything, until what waits is given up


@dataclass(eq=False, slots=True)
class _Ticket:
    """What to send again, and the future that somebody waits for."""

    future: Future[Any]
    message: Message
    posted: float = field(default_factory=time.monotonic)
    started: bool = False
    replays: int = 0


class Tickets:
    """Futures by key. Any thread may call; futures are resolved outside of the lock."""

    def __init__(self) -> None:
        """Start without any."""
        self._lock = threading.Lock()
        self._open: dict[int, _Ticket] = {}
        self._last = 0
        self._moved = False  # whether the worker has begun or ended any of them

    def issue(self, messages: Sequence[Message]) -> list[tuple[int, Future[Any]]]:
        """Return a key and a future for each message."""
        with self._lock:
            issued: list[tuple[int, Future[Any]]] = []
            for message in messages:
                self._last += 1
                ticket = _Ticket(Future(), message)
                self._open[self._last] = ticket
                issued.append((self._last, ticket.future))
            return issued

    def start(self, keys: Sequence[int]) -> None:
        """Note that the model has begun with these."""
        with self._lock:
            for key in keys:
                if key in self._open:
                    self._open[key].started = self._moved = True

    def settle(self, key: int, outcome: Any) -> None:
        """Resolve the future of ``key``, if it is still open."""
        with self._lock:
            ticket = self._open.pop(key, None)
            self._moved |= ticket is not None
        if ticket is not None:
            resolve(ticket.future, outcome)

    def fail(self, error: PromptflowError) -> None:
        """Fail every open ticket."""
        with self._lock:
            failed = list(self._open.values())
            self._open.clear()
        for ticket in failed:
            resolve(ticket.future, error)

    def sort_out(self, error: EngineLost) -> dict[int, Message]:
        """Fail what had started; return what has not, to be sent to a new worker.

        A request counts as the cause of a death only where nothing had started: it may then be one
        that brings down whoever reads it.
        """
        failed: list[_Ticket] = []
        again: dict[int, Message] = {}
        with self._lock:
            suspect, self._moved = not self._moved, False
            for key, ticket in list(self._open.items()):
                if ticket.started or (suspect and ticket.replays >= REPLAYS):
                    failed.append(self._open.pop(key))
                else:
                    ticket.replays = ticket.replays + 1 if suspect else 0
                    again[key] = _later(ticket.message, time.monotonic() - ticket.posted)
        for ticket in failed:
            resolve(ticket.future, error)
        return again


def frames(messages: dict[int, Message]) -> list[Message]:
    """Return the frames that carry ``messages`` by key; jobs of one kind travel together."""
    made: list[Message] = []
    for key, message in messages.items():
        if "job" not in message:
            made.append({**message, "key": key})
            continue
        job = [key, message["job"]]
        rest = {name: value for name, value in message.items() if name != "job"}
        if made and {**made[-1], "jobs": None} == {**rest, "jobs": None}:
            made[-1]["jobs"].append(job)
        else:
            made.append({**rest, "jobs": [job]})
    return made


def _later(message: Message, seconds: float) -> Message:
    """Return a message whose deadline counts from ``seconds`` later."""
    job = message.get("job")
    if not isinstance(job, dict) or job["deadline"] is None:
        return message
    return {**message, "job": {**job, "deadline": max(0.0, job["deadline"] - seconds)}}


def resolve(future: Future[Any], outcome: Any) -> None:
    """Give a future its result or its exception, unless its owner has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, PromptflowError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
