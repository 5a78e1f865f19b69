"""Files to texts in limited children, several at once and in order, with little held here.

A child reads many files; one that dies or takes too long is replaced, and only the file that it
was at is rejected. Texts that are ready before their turn wait in their child, once a few
megabytes wait here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any, TypeVar

from promptflow import child
from promptflow.errors import DocumentDelayed, DocumentRejected
from promptflow.retrieval.kinds import Parsed
from promptflow.retrieval.parser import HEAD, HEAD_LIMIT, READY, Request, receive

WAITING = 8 << 20
"""Bytes of texts that may wait here for their turn."""
_READY = 20
"""Seconds in which a child starts; they are not the file's."""

Made = TypeVar("Made")
Gate = Callable[[int], None]


class Child:
    """A child that reads files; it starts with the first one, and again after a death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._done = 0
        self._ended = False
        self._starting = threading.Lock()

    def parse(self, request: Request, descriptor: int, gate: Gate) -> tuple[Parsed, str]:
        """Return what an open file says and its SHA-256; ``gate`` is asked before text comes.

        Raises DocumentRejected with the reason; DocumentDelayed where the file has had its time but
        not the processor: one that uses its processor time up dies of it before.
        """
        while True:
            before, began = self._done, time.monotonic()
            try:
                head, body = self._ask(request, descriptor, gate)
            except (EOFError, ConnectionError, BrokenPipeError):
                reason = self._death(request)
                if before and "died" in reason and time.monotonic() - began < 1:
                    continue  # perhaps of what an earlier file did to it
                raise DocumentRejected(reason) from None
            except TimeoutError:
                self.close()
                raise DocumentDelayed(
                    f"not read in {request.limits.wall} s, in which its reader waited or the "
                    "machine was busy: the next build or update reads it again"
                ) from None
            if head.get("last"):
                self.close()
            if "error" in head:
                raise DocumentRejected(head["error"])
            parsed = Parsed(
                body.decode(), head["title"], tuple(head["pages"]), tuple(head["warnings"])
            )
            return parsed, head["sha256"]

    def _ask(
        self, request: Request, descriptor: int, gate: Gate
    ) -> tuple[dict[str, Any], bytearray]:
        if self._connection is None:
            self._start()
        assert self._connection is not None
        message = json.dumps(asdict(request)).encode()
        os.lseek(descriptor, 0, os.SEEK_SET)
        deadline = time.monotonic() + request.limits.wall
        socket.send_fds(self._connection, [HEAD.pack(len(message)) + message], [descriptor])
        size = HEAD.unpack(self._receive(HEAD.size, deadline))[0]
        if size > HEAD_LIMIT:
            raise EOFError
        head = json.loads(self._receive(size, deadline))
        body = bytearray()
        if length := head.get("length", 0):
            if length > request.limits.text:
                raise EOFError
            gate(length)
            body = self._receive(length, time.monotonic() + request.limits.wall)
        self._done += 1
        return head, body

    def _receive(self, size: int, deadline: float) -> bytearray:
        assert self._connection is not None
        self._connection.settimeout(max(0.01, deadline - time.monotonic()))
        return receive(self._connection, size)

    def _start(self) -> None:
        with self._starting:
            if self._ended:
                raise DocumentRejected("its reading was given up")
            self._spawn()
        self._receive(len(READY), time.monotonic() + _READY)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                child.command("promptflow.retrieval.parser"),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=child.environment(),
            )
        self._connection, self._done = ours, 0

    def _death(self, request: Request) -> str:
        """End what is left of a child that has gone, and say why it went."""
        process = self._process
        self.close(1.0)
        status = process.returncode if process is not None else 0
        if -status == signal.SIGXCPU:
            return f"took more than {request.cpu} s of processor time to read"
        named = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"its parser died ({named})"

    def end(self) -> None:
        """Stop what another thread has it read, for good; ``close`` is that thread's, or later."""
        with self._starting:
            self._ended = True
            connection, process = self._connection, self._process
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if process is not None:
            process.kill()

    def close(self, patience: float = 0.0) -> None:
        """End the child, after ``patience`` seconds in which it may end itself."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._connection = None


class _Gate:
    """Lets texts in as long as few bytes wait, and always the one whose turn it is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[int, int] = {}
        self._turn = 0
        self._closed = False

    def enter(self, number: int, size: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or number <= self._turn
                    or sum(self._held.values()) + size <= WAITING
                )
            )
            if self._closed:
                raise DocumentRejected("its reading was given up")
            self._held[number] = size

    def turn(self, number: int) -> None:
        """Say whose turn it is; what stood before it has been taken away."""
        with self._changed:
            self._turn = number
            self._held = {at: size for at, size in self._held.items() if at >= number}
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def in_children(
    items: Iterable[Any], make: Callable[[Any, Child, Gate], Made], children: int
) -> Iterator[Made]:
    """Give ``make(item, child, gate)`` of each item in order, worked at ahead in threads."""
    gate = _Gate()
    free: SimpleQueue[Child] = SimpleQueue()
    all_children = [Child() for _ in range(children)]
    for one in all_children:
        free.put(one)

    def work(number: int, item: Any) -> Made:
        one = free.get()
        try:
            return make(item, one, lambda size: gate.enter(number, size))
        finally:
            free.put(one)

    pool = ThreadPoolExecutor(children, thread_name_prefix="reading")
    waiting: deque[Future[Made]] = deque()
    try:
        given = 0
        for number, item in enumerate(items):
            waiting.append(pool.submit(work, number, item))
            if len(waiting) > 8 * children:
                gate.turn(given)
                yield waiting.popleft().result()
                given += 1
        while waiting:
            gate.turn(given)
            yield waiting.popleft().result()
            given += 1
    finally:
        gate.close()
        pool.shutdown(wait=False, cancel_futures=True)
        for one in all_children:
            one.end()
        pool.shutdown(wait=True)
        for one in all_children:
            one.close()
