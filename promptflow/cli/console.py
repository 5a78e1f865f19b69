"""What all commands share: printing, and one clear line for an error or Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from promptflow.errors import PromptflowError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Commands(TyperGroup):
    """Turns the project's errors and Ctrl-C into a line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--trust`` wherever it stands: nearly all commands name models."""
        own = args[: args.index("--")] if "--" in args else args
        if ctx.parent is None and "--trust" in own:
            args = ["--trust", *(arg for arg in own if arg != "--trust"), *args[len(own) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except PromptflowError as error:
            if os.environ.get("PROMPTFLOW_DEBUG"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if os.environ.get("PROMPTFLOW_DEBUG"):
                raise
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


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
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; tab-separated lines where stdout is no terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            print(*row, sep="\t")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)
