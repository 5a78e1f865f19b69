"""Requests on their way to the worker and back: who waits in line, and what a death leaves of them.

Jobs are sent in the order they were issued, and no more of them than may wait at the worker; the
others wait in line here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from promptflow.engine.process.frames import Message
from promptflow.errors import Cancelled, DeadlineExceeded, EngineLost, PromptflowError

REPLAYS = 2  # children that may die before they begin anything, until what waits is given up
OnDelta = Callable[[str, str], None]


@dataclass(eq=False, slots=True)
class _Ticket:
    """What to send, and the future that somebody waits for."""

    future: Future[Any]
    message: Message
    on_delta: OnDelta | None = None
    posted: float = field(default_factory=time.monotonic)
    sent: bool = False
    started: bool = False
    replays: int = 0

    @property
    def is_job(self) -> bool:
        """Return whether it takes the model's time, and so a place among those that wait."""
        return "job" in self.message

    @property
    def is_waiting(self) -> bool:
        """Return whether it takes such a place now."""
        return self.is_job and self.sent and not self.started

    @property
    def deadline(self) -> float | None:
        """Return the seconds that its request gave it from when it was posted."""
        job = self.message.get("job")
        return job["deadline"] if isinstance(job, dict) else None


class Tickets:
    """Futures by key. Any thread may call; futures are resolved outside of the lock."""

    def __init__(self, max_waiting: int) -> None:
        """Let ``max_waiting`` jobs wait at the worker."""
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._open: dict[int, _Ticket] = {}
        self._line: deque[int] = deque()  # keys to be sent; some may have been settled since
        self._waiting = 0
        self._last = 0
        self._moved = False  # whether the worker has begun or ended any of them

    def issue(
        self, messages: Sequence[Message], on_delta: OnDelta | None = None
    ) -> list[tuple[int, Future[Any]]]:
        """Put messages into the line; return a key and a future for each.

        ``on_delta`` is told the slot and the text of each delta.
        """
        with self._changed:
            issued: list[tuple[int, Future[Any]]] = []
            for message in messages:
                self._last += 1
                ticket = _Ticket(Future(), message, on_delta)
                self._open[self._last] = ticket
                if ticket.is_job:
                    self._line.append(self._last)
                else:
                    self._line.appendleft(self._last)  # costs the model nothing
                issued.append((self._last, ticket.future))
            return issued

    @property
    def in_line(self) -> int:
        """Return about how many have not been sent; settled ones may be among them."""
        return len(self._line)

    @property
    def is_busy(self) -> bool:
        """Return whether somebody waits for anything."""
        return bool(self._open)

    def due(self) -> dict[int, Message]:
        """Take out of the line what is to be sent now."""
        due: dict[int, Message] = {}
        with self._changed:
            while self._line:
                ticket = self._open.get(self._line[0])
                if ticket is not None:
                    if ticket.is_job and self._waiting >= self._max_waiting:
                        break
                    ticket.sent = True
                    self._waiting += ticket.is_waiting
                    due[self._line[0]] = _aged(ticket)
                self._line.popleft()
            self._changed.notify_all()
        return due

    def wait(self, key: int, timeout: float | None) -> bool:
        """Wait until a ticket has been sent or settled; return whether it was, within seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: key not in self._open or self._open[key].sent, timeout
            )

    def start(self, keys: Sequence[int]) -> None:
        """Note that the model has begun with these."""
        with self._changed:
            for key in keys:
                if key in self._open:
                    self._waiting -= self._open[key].is_waiting
                    self._open[key].started = self._moved = True

    def tell(self, key: int, slot: str, text: str) -> None:
        """Pass on what has been added to the text of a slot."""
        with self._changed:
            ticket = self._open.get(key)
        if ticket is not None and ticket.on_delta is not None:
            ticket.on_delta(slot, text)

    def settle(self, key: int, outcome: Any) -> None:
        """Resolve the future of ``key``, if it is still open."""
        with self._changed:
            ticket = self._close(key)
            self._moved |= ticket is not None
        if ticket is not None:
            resolve(ticket.future, outcome)

    def _close(self, key: int) -> _Ticket | None:
        ticket = self._open.pop(key, None)
        if ticket is not None:
            self._waiting -= ticket.is_waiting
            self._changed.notify_all()
        return ticket

    def withdraw(self, keys: Sequence[int]) -> list[int]:
        """Cancel those that stand in line; return those that have been sent."""
        with self._changed:
            sent = [key for key in keys if key in self._open and self._open[key].sent]
        for key in set(keys).difference(sent):
            self.settle(key, Cancelled("the request was cancelled"))
        return sent

    def expire(self) -> float | None:
        """Fail those in line whose deadline has passed; return the seconds to the next one's."""
        now = time.monotonic()
        late: list[tuple[int, float]] = []
        ahead: list[float] = []
        with self._changed:
            for key in self._line:
                ticket = self._open.get(key)
                if ticket is None or ticket.deadline is None:
                    continue
                left = ticket.posted + ticket.deadline - now
                if left <= 0:
                    late.append((key, ticket.deadline))
                else:
                    ahead.append(left)
        for key, deadline in late:
            self.settle(key, DeadlineExceeded.after(deadline, "begun"))
        return min(ahead, default=None)

    def fail(self, error: PromptflowError) -> None:
        """Fail every open ticket."""
        with self._changed:
            failed = [self._open[key] for key in self._open]
            self._open.clear()
            self._line.clear()
            self._waiting = 0
            self._changed.notify_all()
        for ticket in failed:
            resolve(ticket.future, error)

    def sort_out(self, error: EngineLost) -> None:
        """Fail what had started; put what has not back into the line, for a new worker.

        A request counts as the cause of a death only where nothing had started: it may then be one
        that brings down whoever reads it.
        """
        failed: list[_Ticket] = []
        with self._changed:
            suspect, self._moved = not self._moved, False
            for key, ticket in list(self._open.items()):
                if ticket.started or (suspect and ticket.replays >= REPLAYS):
                    failed.append(self._open.pop(key))
                else:
                    ticket.replays = ticket.replays + 1 if suspect else 0
                    ticket.sent = False
            self._line = deque(sorted(self._open, key=lambda key: self._open[key].is_job))
            self._waiting = 0
            self._changed.notify_all()
        for ticket in failed:
            resolve(ticket.future, error)


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


def _aged(ticket: _Ticket) -> Message:
    """Return a ticket's message; where it has a deadline, with the seconds that it has waited."""
    if ticket.deadline is None:
        return ticket.message
    waited = time.monotonic() - ticket.posted
    return {**ticket.message, "job": {**ticket.message["job"], "waited": waited}}


def resolve(future: Future[Any], outcome: Any) -> None:
    """Give a future its result or its exception, unless its owner has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, PromptflowError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
