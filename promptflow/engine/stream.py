"""The text of one request while it is written, for ``for`` and for ``async for``."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from dataclasses import dataclass

from promptflow.engine.request import Completion


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that was added to a slot; of a stream's last event the completion, and no text.

    Characters come whole and are never taken back: the joined deltas of a slot are its fill's text.
    Where a stop string may be about to come, text is held back until it is clear.
    """

    slot: str
    text: str
    completion: Completion | None = None


class Feed:
    """Where the engine puts deltas: the end of a stream that its reader does not hold."""

    def __init__(self) -> None:
        """Start with nothing told."""
        self.events: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        self.wake: Callable[[], object] = lambda: None  # an event loop that waits
        self._told: dict[str, int] = {}

    def tell(self, slot: str, text: str) -> None:
        """Add text to a slot."""
        self._told[slot] = self._told.get(slot, 0) + len(text)
        self._put(Delta(slot, text))

    def end(self, completion: Completion) -> None:
        """Add what has not been told of the fills, and the completion."""
        for slot, fill in completion.fills.items():
            if rest := fill.text[self._told.get(slot, 0) :]:
                self.tell(slot, rest)
        self._put(Delta("", "", completion))

    def _put(self, delta: Delta) -> None:
        self.events.put(delta)
        self.wake()


class Stream:
    """An iterator of ``Delta``, the last one with the completion. ``async for`` works too.

    One reader at a time. Leaving the loop early, ``close`` and the end of a ``with`` block cancel
    the request. Errors are values, as everywhere: ``completion.error``.
    """

    def __init__(self, feed: Feed, cancel: Callable[[], None], abandon: Callable[[], None]) -> None:
        """Read from ``feed``. ``abandon`` must be safe to call while memory is collected."""
        self._feed = feed
        self._cancel = cancel
        self._abandon = abandon
        self._is_over = False

    def __iter__(self) -> Stream:
        """Return itself."""
        return self

    def __next__(self) -> Delta:
        """Wait for what comes next."""
        if self._is_over:
            raise StopIteration
        return self._taken(self._feed.events.get())

    def __aiter__(self) -> Stream:
        """Return itself."""
        return self

    async def __anext__(self) -> Delta:
        """Wait for what comes next; other tasks go on meanwhile."""
        if self._is_over:
            raise StopAsyncIteration
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(arrived.set)

        self._feed.wake = wake
        while True:
            with contextlib.suppress(queue.Empty):
                return self._taken(self._feed.events.get_nowait())
            await arrived.wait()
            arrived.clear()

    def _taken(self, delta: Delta) -> Delta:
        self._is_over = delta.completion is not None
        return delta

    def close(self) -> None:
        """Cancel the request unless it has ended; idempotent."""
        if not self._is_over:
            self._is_over = True
            self._cancel()

    def __enter__(self) -> Stream:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        """Cancel what nobody reads."""
        if not self._is_over:
            self._abandon()


def runs_event_loop() -> bool:
    """Return whether this thread runs an event loop, which must not be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
