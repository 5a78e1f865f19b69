"""Every check of a built index that code can make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from promptflow.errors import ModelError, StoreError, StoreNotFound
from promptflow.retrieval.across import SparseAcross
from promptflow.retrieval.documents import Rejected, find, sha256_inside
from promptflow.retrieval.embed import TextEmbedder, open_embedder
from promptflow.retrieval.index import Index, check_embedder
from promptflow.retrieval.recipe import find_recipe
from promptflow.retrieval.store import Store


@dataclass(frozen=True, slots=True)
class Verification:
    """What ``verify_index`` found: ``problems`` make an index unusable, ``notes`` do not."""

    name: str
    generation: int
    documents: int
    chunks: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the index is intact."""
        return not self.problems


def verify_index(name: str | Path, *, embedder: TextEmbedder | None = None) -> Verification:
    """Check every file, chunk, id and hash of a built index, and say what is wrong.

    Raises StoreNotFound if there is no such index or it is not built; damage is a problem in the
    answer, not an error.
    """
    recipe = find_recipe(name)
    try:
        store = Store.open(recipe.built, recipe.rebuild)
    except StoreNotFound:
        raise
    except StoreError as error:
        return Verification(recipe.name, 0, 0, 0, (str(error),), ())
    counts = store.manifest.counts
    notes: list[str] = []
    try:
        store.check()
        problems = _content(store)
        SparseAcross(store)
        with Index(recipe, store) as index:
            notes = _embedder(index, embedder)
            notes += _sources(index)
    except StoreError as error:
        problems = [str(error)]
    finally:
        store.close()
    return Verification(
        recipe.name,
        store.manifest.generation,
        counts["documents"],
        counts["chunks"],
        tuple(problems),
        tuple(notes),
    )


def _content(store: Store) -> list[str]:
    """Compare every chunk with the span of its document that it claims to be."""
    problems: list[str] = []
    document, text = "", ""
    for row in store.chunks():
        if row.document != document:
            document, text = row.document, store.text(row.document)
        if text[row.start : row.end] != row.text:
            problems.append(
                f"{store.folder}: chunk {row.id} is not characters {row.start} to {row.end} of "
                f"{row.document}. Rebuild it: {store.rebuild}"
            )
    return problems


def _embedder(index: Index, embedder: TextEmbedder | None) -> list[str]:
    """Check the embedder against the manifest. Raises StoreError if it is another one."""
    stated = index.manifest.embedder
    try:
        embedder = embedder or open_embedder(stated["name"], stated.get("prefixes", ()))
    except ModelError as error:
        return [f"the embedder was not checked: {error}"]
    check_embedder(embedder, stated, index.recipe.rebuild)
    return []


def _sources(index: Index) -> list[str]:
    """Say which documents are not what was indexed."""
    folder = Path(index.manifest.documents)
    if not folder.is_dir():
        return [f"the documents were not compared: no folder {folder}"]
    places = index.store.places()
    stated = {path: place.sha256 for path, place in places.items() if place.content}
    known = places.keys() - stated.keys()
    here = {
        name: sha256_inside(folder, name)
        for name in find(folder, index.manifest.settings["globs"])
        if not isinstance(name, Rejected) and name not in known
    }
    changes = {
        "changed": sorted(n for n in stated.keys() & here.keys() if stated[n] != here[n]),
        "gone": sorted(stated.keys() - here.keys()),
        "new": sorted(here.keys() - stated.keys()),
    }
    return [
        f"{len(names)} {what} since the build: {', '.join(names[:5])}"
        + (" ..." if len(names) > 5 else "")
        + f". To take them in: {index.recipe.rebuild}"
        for what, names in changes.items()
        if names
    ]
