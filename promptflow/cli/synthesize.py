"""The command that writes synthetic data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptflow.cli.console import Json, print_json
from promptflow.cli.options import DEFAULT_MODEL, ChatTemplate, Chosen, Model
from promptflow.cli.programs import Seed
from promptflow.errors import DataError
from promptflow.terminal import say

if TYPE_CHECKING:
    from promptflow.optimization import Synthesis

TEXTS = ("passage", "text", "context", "document")


def synthesize(
    source: Annotated[
        str,
        typer.Argument(
            help="An index, or a file of passages; with --like a file of seed examples."
        ),
    ],
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many are wanted.")] = 20,
    like: Annotated[
        str | None,
        typer.Option(help="Write more examples of this signature: a document, or 'text -> label'."),
    ] = None,
    novelty: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The ROUGE-L with another that is too much.")
    ] = 0.7,
    quality: Annotated[
        float, typer.Option(min=0.0, max=5.0, help="The least score of the judge; 0 for no judge.")
    ] = 3.0,
    answerable: Annotated[
        bool, typer.Option(help="Whether a question must need its passage, and be answered by it.")
    ] = True,
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    seed: Seed = 0,
    out: Annotated[
        Path, typer.Option(help="The .jsonl file that is written, with a journal beside it.")
    ] = Path("synthetic.jsonl"),
    as_json: Json = False,
) -> None:
    """Write synthetic examples from passages or seeds.

    Questions are asked of passages, with answers that are spans of them; --like writes more
    examples like some that a person wrote. What is like another, cannot be answered, or is scored
    low by the judge is left out, and counted. A run that was killed continues.
    """
    from promptflow.optimization import Filters, synthesize as asked, synthesize_like
    from promptflow.storage import write_text

    filters = Filters(novelty, answerable, quality or None)
    given = _seeds(source) if like else _passages(source)  # before a model is read
    lm = Chosen(model, chat_template, None, None).configured()
    how: dict[str, Any] = {"filters": filters, "lm": lm, "seed": seed}
    how["journal"] = out.with_suffix(".journal.sqlite")
    result = synthesize_like(like, given, count, **how) if like else asked(given, count, **how)
    write_text(out, _lines(result))
    summary = {"examples": len(result), "asked": result.asked, "rejected": result.rejected}
    if as_json:
        print_json({**summary, "out": str(out)})
        return
    say(f"{len(result)} of {result.asked} written to {out}")
    for reason, number in result.rejected.items():
        say(f"{number} left out: {reason}")
    if len(result) < count:
        say(f"{count - len(result)} fewer than wanted: give more passages or seeds", error=True)


def _lines(result: Synthesis) -> str:
    from promptflow.evaluation.data import plain

    rows = [
        {**plain(dict(one)), **({} if score is None else {"quality": round(score, 3)})}
        for one, score in zip(result.examples, result.quality, strict=True)
    ]
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    from promptflow.evaluation.data import load_rows

    return load_rows(path, columns=None, encoding=None, key=None)


def _seeds(source: str) -> list[Any]:
    """Return the rows of a file; in Self-Instruct's form each has its first instance's fields."""
    rows = []
    for row in _rows(Path(source)):
        first = row.get("instances")
        nested = first[0] if isinstance(first, list) and first else {}
        rows.append({**row, **(nested if isinstance(nested, dict) else {})})
    return rows


def _passages(source: str) -> list[Any]:
    """Return the chunks of an index, or the texts of a file."""
    from promptflow.retrieval import Index

    path = Path(source)
    if not path.is_file():
        return list(Index.open(source).store.chunks())
    rows = _rows(path)
    name = next((name for name in TEXTS if name in rows[0]), None)
    if name is None:
        raise DataError(
            f"{path}: no column {', '.join(TEXTS)} of passages; there are {', '.join(rows[0])}. "
            "For seed examples add --like SIGNATURE"
        )
    return list(dict.fromkeys(str(row[name]) for row in rows))
