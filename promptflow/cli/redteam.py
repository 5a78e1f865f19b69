"""The command that attacks a program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptflow.cli.console import Json, print_json, print_rows
from promptflow.cli.options import DEFAULT_MODEL, ChatTemplate, Chosen, Layout, Model, Thinking
from promptflow.cli.programs import Force, Imports, Inputs, Program, Seed, given_inputs, ready
from promptflow.terminal import say

if TYPE_CHECKING:
    from promptflow.evaluation.redteam import RedTeam
    from promptflow.evaluation.stats import Interval


def redteam(
    program: Program,
    *,
    attacks: Annotated[
        list[Path],
        typer.Option(
            "--attacks",
            help="A published set: a file of texts, with a label 0 where they do not attack. "
            "Again, for another one.",
        ),
    ] = [],  # noqa: B006
    data: Annotated[
        Path | None, typer.Option(help="Inputs to attack, a row each; else texts of our own.")
    ] = None,
    inputs: Inputs = [],  # noqa: B006
    field: Annotated[
        str | None, typer.Option(help="The input that is attacked; else the longest text.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result with every attack and answer.")
    ] = None,
    imports: Imports = [],  # noqa: B006
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Attack a program and count how often it leaves its task.

    Each attack is put behind an input, as a stranger's document could hold it. Benign texts are
    put there as well: the difference of both rates is what the attacks did.
    """
    from promptflow.evaluation import read_examples
    from promptflow.evaluation.redteam import own_attacks, read_attacks, redteam as attacked
    from promptflow.storage import write_json

    chosen = [*own_attacks(), *(one for path in attacks for one in read_attacks(path))]
    lm, resolved = ready(Chosen(model, chat_template, layout, thinking), program, imports, force)
    rows: list[dict[str, Any]] = []
    if data is not None:
        rows = [dict(one.inputs()) for one in read_examples(data, resolved)]
    elif inputs:
        rows = [given_inputs(inputs, resolved)]
    result = attacked(resolved, chosen, rows, field=field, lm=lm, seed=seed)
    if out is not None:
        write_json(out / "result.json", result.to_json(runs=True))
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: RedTeam) -> None:
    print_rows(
        ["attacks", "left the task", "from", "to", "n"],
        [
            *(_row(kind, found) for kind, found in result.kinds.items()),
            _row("all attacks", result.left),
            _row("benign texts", result.benign),
            _row("more than benign texts", result.excess),
            _row("wrote the attack's sign", result.followed),
        ],
    )
    say(f"attacked: {result.field}" + (f", {result.failed} runs failed" if result.failed else ""))


def _row(name: str, found: Interval) -> list[str]:
    return [name, *(f"{v:.3f}" for v in (found.mean, found.low, found.high)), str(found.n)]
