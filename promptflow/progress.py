"""Progress bars on stderr, for work that is counted; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from promptflow.terminal import visible


class Show(Protocol):
    """Tells how far a titled piece of work is; a new title is a new bar."""

    def __call__(self, title: str, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total``."""


class Advance(Protocol):
    """Tells how far the one piece of work is."""

    def __call__(self, done: float, note: str = "") -> None:
        """Show ``done`` of the total."""


def _nothing(title: str, done: float, total: float, note: str = "") -> None:
    """Draw nothing."""


@contextmanager
def bars(shown: bool = True, *, in_bytes: bool = False) -> Iterator[Show]:
    """Give ``show(title, done, total, note)``; the counts are of bytes where ``in_bytes``."""
    if not (shown and sys.stderr.isatty()):
        yield _nothing
        return
    from rich import progress
    from rich.console import Console

    counted = (
        (progress.DownloadColumn(), progress.TransferSpeedColumn())
        if in_bytes
        else (progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
    )
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        *counted,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        tasks: dict[str, progress.TaskID] = {}

        def show(title: str, done: float, total: float, note: str = "") -> None:
            if title not in tasks:
                tasks[title] = drawn.add_task("", total=total)
            text = visible(f"{title} {note}".strip(), in_line=True)
            drawn.update(tasks[title], completed=min(done, total), description=text)

        yield show


@contextmanager
def bar(
    title: str, total: float, shown: bool = True, *, in_bytes: bool = False
) -> Iterator[Advance]:
    """Give ``advance(done, note)`` of one piece of work."""
    with bars(shown, in_bytes=in_bytes) as show:
        show(title, 0, total)
        yield lambda done, note="": show(title, done, total, note)


@contextmanager
def status(shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Give a function that says what is being done."""
    if not (shown and sys.stderr.isatty()):
        yield lambda what: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as drawn:
        yield lambda what: drawn.update(Text(visible(what, in_line=True)))
