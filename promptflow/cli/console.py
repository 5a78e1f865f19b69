"""What all commands share: printing, and one clear line for an error or Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from promptflow.errors import PromptflowError
from promptflow.terminal import say, visible, visible_json

if TYPE_CHECKING:
    from promptflow.engine.request import Usage

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Commands(TyperGroup):
    """Turns the project's errors and Ctrl-C into a line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--trust`` wherever it stands: nearly all commands name models."""
        own = args[: args.index("--")] if "--" in args else args
        if ctx.parent is None and "--trust" in own:
            args = ["--trust", *(arg for arg in own if arg != "--trust"), *args[len(own) :]]
        with _told():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    """Say what ended a command in a line."""
    try:
        yield
    except PromptflowError as error:
        if os.environ.get("PROMPTFLOW_DEBUG"):
            raise
        say(f"error: {error}", error=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        if os.environ.get("PROMPTFLOW_DEBUG"):
            raise
        say("interrupted", error=True)
        raise typer.Exit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer says it: which arguments were wrong
            error.message = visible(error.message)  # type: ignore[attr-defined]
        raise


def show_all_visibly() -> None:
    """Have warnings, log lines and tracebacks shown as all else: visibly."""
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda *told, **more: visible(formatted(*told, **more))
    handler = logging.StreamHandler()
    handler.format = lambda record: visible(logging.Formatter().format(record))  # type: ignore[method-assign]
    logging.getLogger("promptflow").addHandler(handler)


def say_traceback(error: BaseException) -> None:
    """Write the traceback of an error that no command expects."""
    say("".join(traceback.format_exception(error)), end="", error=True)


def commands(**settings: Any) -> typer.Typer:
    """Return a group of commands."""
    return typer.Typer(
        cls=_Commands,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich would take longer to load than --help may take
        pretty_exceptions_enable=False,
        **settings,
    )


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    say(visible_json(json.dumps(value, ensure_ascii=False, indent=2)))


def print_json_line(value: Any) -> None:
    """Print a value as JSON on a line of its own."""
    say(visible_json(json.dumps(value, ensure_ascii=False)))


def tokens_of(usage: Usage) -> dict[str, int]:
    """Return what was computed, as plain data."""
    return {n: getattr(usage, n) for n in ("prefilled", "reused", "generated", "forced")}


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; tab-separated lines where stdout is no terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            say("\t".join(visible(cell, in_line=True) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(visible(cell, in_line=True)) for cell in row))
    Console().print(table)
