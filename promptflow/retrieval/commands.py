"""What ``promptflow index ...`` shows, as plain data: JSON can hold every answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from promptflow.errors import StoreError
from promptflow.retrieval.build import build_index
from promptflow.retrieval.index import Index
from promptflow.retrieval.recipe import read_recipe
from promptflow.retrieval.search import Mode, Where
from promptflow.retrieval.store import read_manifest
from promptflow.retrieval.verify import verify_index
from promptflow.storage import document_names


def index_build(
    name: str | Path,
    documents: str | Path | None = None,
    *,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Build an index and return what was done, with ``folder``, ``name`` and ``recipe``."""
    with build_index(name, documents, force=force, progress=progress) as index:
        done = asdict(index.report) if index.report is not None else {}
        info = index.info()
        done["rejected"] = info["rejected"]
        return {"name": index.name, **done, "folder": info["folder"], "recipe": info["recipe"]}


def index_info(name: str | Path) -> dict[str, Any]:
    """Return what an index is: counts, embedder, settings, documents, rejected files, hashes."""
    with Index.open(name) as index:
        return index.info()


def index_search(
    name: str | Path,
    query: str,
    k: int = 5,
    *,
    where: Where | None = None,
    mode: Mode = "dense",
) -> list[dict[str, Any]]:
    """Return the best passages for a query, best first."""
    with Index.open(name) as index:
        return [asdict(passage) for passage in index.search(query, k, where, mode=mode)]


def index_verify(name: str | Path) -> dict[str, Any]:
    """Return ``ok``, the problems and the notes of an index."""
    found = verify_index(name)
    return {"ok": found.ok, **asdict(found)}


def index_list() -> list[dict[str, Any]]:
    """Return every index that can be named here, built or not, with its state in one word."""
    return [_listed(name, path) for name, path in sorted(document_names("indexes").items())]


def _listed(name: str, path: Path) -> dict[str, Any]:
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
