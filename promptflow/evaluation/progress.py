"""A progress bar on stderr for work that is counted in runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float, str], None]


def _nothing(completed: float, note: str = "") -> None:
    """Draw nothing."""


@contextmanager
def bar(title: str, total: int, shown: bool = True) -> Iterator[Advance]:
    """Give ``advance(completed, note)``; draws nothing where stderr is no terminal."""
    if not (shown and sys.stderr.isatty()):
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(title, total=total)

        def advance(completed: float, note: str = "") -> None:
            drawn.update(task, completed=completed, description=f"{title} {note}".strip())

        yield advance
