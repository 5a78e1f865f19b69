"""The command line: every command parses its arguments, calls one function and prints the result.

Results go to stdout, progress and errors to stderr. An error is one message and exit code 2, Ctrl-C
exit code 130; ``PROMPTFLOW_DEBUG=1`` shows the traceback. Nothing heavy is imported before a
command runs.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer

from promptflow.cli import (
    abstention,
    answers,
    chat,
    detection,
    indexes,
    library,
    options,
    outputs,
    programs,
    redteam,
    synthesize,
)
from promptflow.cli.console import (
    Json,
    commands,
    print_json,
    print_rows,
    say_traceback,
    show_all_visibly,
)
from promptflow.terminal import say

app = commands(help="Prompt programs and grounded question answering on local models.")


def _version(asked: bool) -> None:
    if asked:
        from promptflow import __version__

        say(f"promptflow {__version__}")
        raise typer.Exit


def _trust(ctx: typer.Context, trusted: bool) -> None:
    if trusted:
        # Processes that this one starts read it too.
        before = os.environ.get("PROMPTFLOW_TRUST", "")
        os.environ["PROMPTFLOW_TRUST"] = "1"
        ctx.call_on_close(lambda: os.environ.update(PROMPTFLOW_TRUST=before))


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            callback=_trust,
            help="Let ./models.toml redefine the models of a known name.",
        ),
    ] = False,
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns at every fork


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option(help="The model to measure; else one of the catalogue's.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First find what is fastest here, and keep it.")
    ] = False,
    chat_template: options.ChatTemplate = None,
    as_json: Json = False,
) -> None:
    """Check this machine.

    llama.cpp and processor, threads and load, speed, FAISS, embedder, cache folders.
    """
    from promptflow.doctor import diagnose, first_here
    from promptflow.progress import status

    if tune:
        from promptflow.tune import tune as find_fastest

        with status() as show:
            find_fastest(model or first_here(), lambda what: show(f"measuring {what}"))
    report = diagnose(model, chat_template=chat_template)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_rows(["check", "result"], report.rows())
        for warning in report.warnings:
            say(f"warning: {warning}", error=True)


app.command()(answers.ask)
app.command()(chat.chat)
app.command()(programs.run)
app.command()(programs.show)
app.command("eval")(programs.evaluate)
app.command()(programs.optimize)
app.command()(outputs.arena)
app.command()(redteam.redteam)
app.command()(synthesize.synthesize)
app.command()(detection.detect)
app.command("tune-abstention")(abstention.tune_abstention)
app.add_typer(indexes.index, name="index")
app.add_typer(library.models, name="models")
app.add_typer(library.signatures, name="signatures")


def main() -> None:
    """Run the command line."""
    show_all_visibly()
    try:
        app(prog_name="promptflow")
    except Exception as error:
        say_traceback(error)
        raise SystemExit(1) from None
