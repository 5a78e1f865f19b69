"""The command that says how a text stands with the local model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptflow.cli.console import Json, print_json, print_rows
from promptflow.cli.options import DEFAULT_MODEL, Model
from promptflow.errors import DataError, UnsupportedOption
from promptflow.terminal import say

if TYPE_CHECKING:
    from promptflow.evaluation.detection import Detection


def detect(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Text files; '-', or none in a pipe, reads standard input."),
    ] = None,
    *,
    model: Model = DEFAULT_MODEL,
    as_json: Json = False,
) -> None:
    """Say whether texts read as if a model had written them.

    By perplexity, ranks and curvature under the local model. Weak evidence: the error rates that
    were measured are printed, and no text should be judged by it alone.
    """
    from promptflow.evaluation.detection import detect as detected
    from promptflow.lm import configure

    names = files or ["-"]
    texts = [_text(name) for name in names]  # before a model is read
    engine = getattr(configure(model), "text_engine", None)
    if engine is None:
        raise UnsupportedOption(
            f"--model {model}: detect needs a local model, which says the probability of a given "
            "text"
        )
    found = detected(texts, engine)
    if as_json:
        print_json([{"file": n, **f.to_json()} for n, f in zip(names, found, strict=True)])
        return
    columns = ["file", "tokens", "perplexity", "log rank", "top 10", "curvature", "reads as"]
    print_rows(columns, [_row(name, one) for name, one in zip(names, found, strict=True)])
    if (rates := found[0].rates) is not None:
        say(
            f"measured on {rates.people} texts of people and {rates.models} of models "
            f"({rates.data}): {rates.false_alarms:.0%} of people's were called a model's, "
            f"{rates.missed:.0%} of a model's were not",
            error=True,
        )
    elif any(one.verdict == "not calibrated" for one in found):
        say(f"nothing was measured with {model}: compare numbers, or take another", error=True)


def _row(name: str, found: Detection) -> list[str]:
    numbers = (found.perplexity, found.log_rank, found.top_10, found.score)
    return [name, str(found.tokens), *(f"{number:.2f}" for number in numbers), found.verdict]


def _text(name: str) -> str:
    from promptflow.storage import read_text

    if name == "-":
        return sys.stdin.read()
    if not Path(name).is_file():
        raise DataError(f"{name}: no such file; give text files, or - for standard input")
    return read_text(name)
