"""Commands about texts that systems have written: who writes better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptflow.cli.console import Json, print_json, print_rows
from promptflow.cli.options import DEFAULT_MODEL, ChatTemplate, Chosen, Layout, Model, Thinking
from promptflow.cli.programs import Seed
from promptflow.terminal import say

if TYPE_CHECKING:
    from promptflow.evaluation.arena import Arena


def arena(
    folder: Annotated[
        Path, typer.Argument(help="A folder with a file of questions and answers a system.")
    ],
    *,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="How many pairs are judged at most, drawn by the seed."),
    ] = None,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="Have the judge say why before it decides.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and the journal of judged pairs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rate systems by their outputs.

    Every two systems are judged on the questions of both, in both orders. Ratings are
    Bradley-Terry's, with 95 % intervals; the consistency of the judge stands beside them. With
    --out, a run that was killed continues with the same command.
    """
    from promptflow.evaluation.arena import arena as rated, read_outputs
    from promptflow.modules import PairJudge
    from promptflow.storage import write_json

    outputs = read_outputs(folder)  # before a model is read
    chosen = Chosen(model, chat_template, layout, thinking)
    lm, judge = chosen.configured(), PairJudge(reasons=reasons)
    chosen.lay_out(judge, lm)
    journal = None if out is None else out / "journal.sqlite"
    result = rated(outputs, judge, pairs=pairs, lm=lm, seed=seed, journal=journal)
    if out is not None:
        write_json(out / "result.json", result.to_json())
    if as_json:
        print_json(result.to_json())
        return
    _print(result)


def _print(result: Arena) -> None:
    rows = []
    for rating in result.ratings:
        numbers = (f"{value:.0f}" for value in (rating.score, rating.low, rating.high))
        rows.append([rating.name, *numbers, f"{rating.won:.2f}", str(rating.games)])
    print_rows(["system", "rating", "from", "to", "won", "games"], rows)
    for (first, second), wins in result.wins.items():
        say(f"{first} over {second}: {wins}")
    say(f"judge: {result.reliability}")
    if result.unmatched:
        say(f"{result.unmatched} questions were answered by one system alone", error=True)
    if result.own:
        say(f"the judge wrote {', '.join(result.own)} itself, and may prefer it", error=True)
    if result.reliability.warning:
        say(f"warning: {result.reliability.warning}", error=True)
