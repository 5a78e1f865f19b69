"""Commands over indexes: build, look into, search, check."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from promptflow.cli.console import Json, commands, print_json, print_rows
from promptflow.cli.filters import filters_of
from promptflow.cli.options import DEFAULT_MODEL, Model, Reranking, Where, reranker
from promptflow.errors import StoreError
from promptflow.terminal import say, visible

if TYPE_CHECKING:
    from promptflow.retrieval import Index, Passage
    from promptflow.retrieval.explain import Found
    from promptflow.retrieval.passages import Mode

index = commands(help="Indexes over folders of documents.")

Name = Annotated[str, typer.Argument(help="A name, or the path of a folder.")]
Paths = Annotated[list[str], typer.Argument(help="Documents, or folders of them.")]
Count = Annotated[int, typer.Option("--k", "-k", min=1, help="How many passages.")]


@index.command("list")
def index_list(as_json: Json = False) -> None:
    """List the indexes.

    The project's own and the bundled ones.
    """
    found = _listing()
    if as_json:
        print_json(found)
        return
    columns = ["name", "state", "documents", "chunks", "embedder", "recipe"]
    print_rows(columns, [[entry.get(column, "") for column in columns] for entry in found])


def _listing() -> list[dict[str, Any]]:
    """Return every index that can be named here, built or not, with its state in one word."""
    from promptflow.storage import document_names

    return [_listed(name, path) for name, path in sorted(document_names("indexes").items())]


def _listed(name: str, path: Path) -> dict[str, Any]:
    from promptflow.retrieval.recipe import read_recipe
    from promptflow.retrieval.store import read_manifest

    entry: dict[str, Any] = {"name": name, "recipe": str(path), "state": "not built"}
    try:
        recipe = read_recipe(path)
        entry |= {"documents": recipe.documents, "embedder": recipe.embedder}
        if (recipe.built / "manifest.json").is_file():
            manifest = read_manifest(recipe.built, recipe.rebuild)
            entry |= {"state": "built", "generation": manifest.generation, **manifest.counts}
    except StoreError as error:
        entry |= {"state": "damaged", "error": str(error)}
    return entry


@index.command("build")
def index_build(
    name: Name,
    documents: Annotated[
        Path | None, typer.Option(help="The documents' folder; else what index.toml names.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build it even if up to date.")] = False,
    as_json: Json = False,
) -> None:
    """Build an index, or bring it up to date.

    Only what has changed is read.
    """
    from promptflow.retrieval import build_index

    _print_built(build_index(name, documents, force=force), as_json)


@index.command("add")
def index_add(name: Name, paths: Paths, as_json: Json = False) -> None:
    """Take documents into an index.

    New ones are added, changed ones are read again.
    """
    from promptflow.retrieval import add_documents

    _print_built(add_documents(name, paths), as_json)


@index.command("remove")
def index_remove(name: Name, paths: Paths, as_json: Json = False) -> None:
    """Take documents out of an index.

    Those that stay in the folder come back with the next build or update.
    """
    from promptflow.retrieval import remove_documents

    _print_built(remove_documents(name, paths), as_json)


@index.command("update")
def index_update(
    name: Name,
    paths: Annotated[
        list[str] | None, typer.Argument(help="Documents, or folders of them; else all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring an index up to date with its folder.

    New and changed documents are read, those that are gone are taken out.
    """
    from promptflow.retrieval import update_index

    _print_built(update_index(name, paths or None), as_json)


@index.command("compact")
def index_compact(name: Name, as_json: Json = False) -> None:
    """Write an index anew without what was taken out."""
    from promptflow.retrieval import compact_index

    _print_built(compact_index(name), as_json)


@index.command("watch")
def index_watch(
    name: Annotated[str, typer.Argument(help="An index, or a folder of documents.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Follow a folder and commit what changes, until Ctrl-C.

    A folder without an index gets one of its name.
    """
    from promptflow.retrieval import watch_index

    def failed(error: Exception) -> None:
        say(f"tried again in {every:g} s: {error}", error=True)

    try:
        for built in watch_index(name, every=every, failed=failed):
            _print_built(built, as_json)
    except KeyboardInterrupt:
        say(f"{name}: stopped; the index is as it was committed last", error=True)


def _print_built(built: Index, as_json: bool) -> None:
    """Print what was done to an index, and close it."""
    done = _done(built)
    if as_json:
        print_json(done)
        return
    parts = [f"{done[what]} {what}" for what in ("added", "changed", "removed") if done[what]]
    how = "up to date" if done["unchanged"] else f"committed in {done['seconds']:.1f} s"
    counts = f"{done['documents']} documents, {done['chunks']} chunks"
    say(f"{done['name']}: {', '.join([how, *parts])}; {counts}")
    if done["embedded"] and (precision := _precision(done["measured"])):
        say(f"{done['name']}: passages are embedded in {precision}")
    _print_rejected(done["rejected"])
    _print_warnings(done["warnings"])
    for one in done["left_out"]:
        suffix = one["suffix"] or "without a suffix"
        what = visible(f"{one['count']} {suffix}, as {one['example']}", in_line=True)
        say(f"left out: {what}: {visible(one['how'], in_line=True)}", error=True)


def _done(built: Index) -> dict[str, Any]:
    """Return what was done to an index, with ``folder``, ``name`` and ``recipe``, and close it."""
    with built:
        done = dataclasses.asdict(built.report) if built.report is not None else {}
        info = built.info()
    done["rejected"], done["measured"] = info["rejected"], info["measured"]
    done["warnings"] = _warnings(info["documents"])
    return {"name": info["name"], **done, "folder": info["folder"], "recipe": info["recipe"]}


def _precision(measured: Mapping[str, Any]) -> str:
    """Return the precision of an index's vectors and what it was chosen by, where it was chosen."""
    if "speedup" not in measured:
        return ""
    return (
        f"{measured['precision']}: bfloat16 was measured {measured['speedup']} times as fast, its "
        f"vectors at a cosine of at least {measured['cosine']} to those in float32"
    )


def _warnings(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what readers of documents should not trust, as their kinds say."""
    return [
        {"path": entry["path"], "warning": warning}
        for entry in documents
        for warning in entry["metadata"].get("warnings", ())
    ]


def _print_warnings(warnings: Sequence[Mapping[str, str]]) -> None:
    for one in warnings:
        path, warning = (visible(one[key], in_line=True) for key in ("path", "warning"))
        say(f"read with care: {path}: {warning}", error=True)


def _print_rejected(rejected: Sequence[Mapping[str, str]]) -> None:
    for one in rejected:
        say(f"not read: {visible(one['path'], in_line=True)}: {one['reason']}", error=True)


@index.command("info")
def index_info(name: Name, as_json: Json = False) -> None:
    """Show what an index holds."""
    from promptflow.retrieval import Index

    with Index.open(name) as opened:
        info = opened.info()
    if as_json:
        print_json(info)
        return
    counts = [(name, number) for name, number in info["counts"].items()]
    shown = [(name, info[name]) for name in ("name", "recipe", "folder", "generation")]
    shown.append(("embedder", info["embedder"]["name"]))
    if precision := _precision(info["measured"]):
        shown.append(("precision", precision))
    if found := info["measured"].get("unrelated"):
        parts = ", ".join(f"{name} {found[name]:.2f}" for name in ("p50", "p95", "p99", "own"))
        shown.append(("cosines of unrelated texts", parts))
    print_rows(["", ""], [*shown, *counts])
    _print_rejected(info["rejected"])
    _print_warnings(_warnings(info["documents"]))


@index.command("search")
def index_search(
    name: Name,
    query: str,
    k: Count = 5,
    mode: Annotated[str, typer.Option(help="dense, sparse or hybrid.")] = "hybrid",
    where: Where = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Print the nearest passages."""
    from promptflow.retrieval import Index

    with Index.open(name) as opened:
        allowed = _allowed(opened, where)
        passages = opened.search(query, k, allowed, mode=cast("Mode", mode))
    if as_json:
        print_json([dataclasses.asdict(passage) for passage in passages])
        return
    for p in passages:
        say(f"{p.score:.3f}  {visible(p.document, in_line=True)}:{p.start}-{p.end}")
        say(f"       {' '.join(p.text.split())[:200]}")


def _allowed(opened: Index, where: Sequence[str]) -> dict[str, Any] | None:
    """Return what ``--where`` allows, None where it is not given."""
    [allowed] = filters_of(where, [opened.store.documents()]) if where else [None]
    return allowed


@index.command("explain")
def index_explain(
    name: Name,
    query: str,
    k: Count = 5,
    mode: Annotated[str, typer.Option(help="What it is ordered by.")] = "hybrid",
    where: Where = [],  # noqa: B006
    rerank: Reranking = None,
    model: Model = DEFAULT_MODEL,
    as_json: Json = False,
) -> None:
    """Show why passages are found.

    Each with its rank by meaning (dense), by words (sparse) and by both (fused), with --rerank the
    new one too, the scores, and the words of the query that it holds.
    """
    from promptflow.retrieval import Index

    with Index.open(name) as opened:
        allowed, way = _allowed(opened, where), cast("Mode", mode)
        again = reranker(rerank, model)
        explained = opened.explain(query, k, allowed, mode=way, rerank=again)
    if as_json:
        print_json(dataclasses.asdict(explained))
        return
    ways = ["dense", "sparse", "fused"]
    ways += ["reranked"] if any("reranked" in one.ranks for one in explained.found) else []
    rows = [
        [number, _where(one.passage), *(_rank(one, way) for way in ways), " ".join(one.words)]
        for number, one in enumerate(explained.found, 1)
    ]
    print_rows(["", "passage", *ways, "words"], rows)
    say(
        f"language: {explained.language or 'not known'}; words: {', '.join(explained.words) or '-'}"
    )
    if explained.missing:
        say(f"in no document: {', '.join(explained.missing)}")


def _where(passage: Passage) -> str:
    """Return where a passage stands, in a line."""
    page = passage.metadata.get("page")
    at = f", page {page}" if page is not None else ""
    heading = f", {' '.join(passage.heading.split())}" if passage.heading else ""
    return f"{passage.document}:{passage.start}-{passage.end}{at}{heading}"


SCORES = {"dense": "dense", "sparse": "sparse", "reranked": "rerank"}
"""What the score of a way of ranking is called in a passage; fused ones have none of their own."""


def _rank(one: Found, way: str) -> str:
    """Return a passage's rank in a way of searching with its score; a dash where it has none."""
    rank, score = one.ranks.get(way), one.passage.scores.get(SCORES.get(way, ""))
    shown = "-" if rank is None else str(rank)
    return shown if score is None else f"{shown} ({score:.3f})"


@index.command("verify")
def index_verify(name: Name, as_json: Json = False) -> None:
    """Check every file of an index.

    Hashes, chunks, vectors and words; exit code 2 if one is damaged.
    """
    from promptflow.retrieval import verify_index

    found = verify_index(name)
    if as_json:
        print_json({"ok": found.ok, **dataclasses.asdict(found)})
    else:
        state = "intact" if found.ok else "damaged"
        say(f"{found.name}: {state}, {found.documents} documents, {found.chunks} chunks")
        for note in found.notes:
            say(f"note: {note}", error=True)
        for problem in found.problems:
            say(f"error: {problem}", error=True)
    if not found.ok:
        raise typer.Exit(2)
