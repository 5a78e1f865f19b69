"""The command that fits when grounded answers are withheld."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from promptflow.cli.console import Json, print_json, print_rows
from promptflow.cli.options import DEFAULT_MODEL, ChatTemplate, Chosen, Model, Passages
from promptflow.cli.programs import Column, Encoding, Key, Seed, reading
from promptflow.terminal import say

SHOWN = 12
"""Points of the curve that are shown to a person."""


def tune_abstention(
    index: Annotated[str, typer.Argument(help="The index to answer from.")],
    data: Annotated[
        Path, typer.Argument(help="A .jsonl, .json, .csv or .tsv file: question and answer.")
    ],
    *,
    risk: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How much of what is answered may be wrong.")
    ] = 0.2,
    false_answers: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How many unanswerable questions may be answered."),
    ] = 0.15,
    metric: Annotated[
        str | None, typer.Option(help="What says that an answer is right, by 0.5 or more.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    k: Passages = 5,
    column: Column = [],  # noqa: B006
    encoding: Encoding = None,
    key: Key = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a report and the journal of what was asked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit when to abstain on questions with answers.

    Each is asked of the documents, and of those that do not hold its answer. What is found is kept
    beside the index, for this model and its embedder. With --out, a run that was killed continues.
    """
    from promptflow.evaluation import find_metric, read_examples
    from promptflow.evaluation.abstention import Bounds, is_right, tune_abstention as tune
    from promptflow.modules import GroundedQA

    scored_by = is_right if metric is None else find_metric(metric)
    program = GroundedQA(index, k=k)
    examples = read_examples(data, program, **reading(column, encoding, key))
    lm = Chosen(model, chat_template, None, None).configured()
    tuned = tune(
        program,
        examples,
        scored_by,
        bounds=Bounds(risk, false_answers),
        lm=lm,
        seed=seed,
        journal=None if out is None else out / "journal.sqlite",
    )
    if out is not None:
        _write(out, tuned)
    if as_json:
        print_json(tuned.to_json())
    else:
        _print_curve(tuned)
    if tuned.chosen is None:
        say("no threshold is within the bounds: nothing was kept", error=True)
        raise typer.Exit(2)


def _write(out: Path, tuned: Any) -> None:
    from promptflow.report import write_abstention
    from promptflow.storage import write_json

    write_json(out / "result.json", tuned.to_json())
    write_abstention(out / "report.html", tuned)


def _print_curve(tuned: Any) -> None:
    step = max(1, len(tuned.curve) // SHOWN)
    print_rows(
        ["threshold", "answered", "of these wrong", "unanswerable answered"],
        [
            [f"{v:.2f}" for v in (p.threshold, p.coverage, p.risk, p.false_answers)]
            for p in tuned.curve[step - 1 :: step]
        ],
    )
    if (chosen := tuned.chosen) is not None:
        say(
            f"threshold {chosen.threshold:.2f}: answers {chosen.coverage:.2f} of the questions, "
            f"{chosen.risk:.2f} of these wrongly, and {chosen.false_answers:.2f} of those whose "
            f"documents are hidden; kept in {tuned.path or 'nothing: the retriever is no index'}"
        )
