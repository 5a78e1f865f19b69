"""Follow a folder of documents: look at it again and again, and commit what has changed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from promptflow.errors import (
    DiskFull,
    EmptyCorpus,
    PromptflowError,
    StoreBusy,
    StoreError,
    StoreNotFound,
    names_options,
)
from promptflow.retrieval.build import build_index, update_index
from promptflow.retrieval.documents import Rejected, find
from promptflow.retrieval.embed import TextEmbedder
from promptflow.retrieval.index import Index
from promptflow.retrieval.recipe import Recipe, find_recipe
from promptflow.storage import document_names

Look = dict[str, tuple[int, ...]]


@names_options
def watch_index(
    name: str | Path,
    *,
    every: float = 2.0,
    embedder: TextEmbedder | None = None,
    failed: Callable[[PromptflowError], object] | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Index]:
    """Give the index each time a change of its folder was committed, and first as it is now.

    ``name`` is an index, or a folder of documents: an index of the folder's name is made where none
    has that folder. The folder is looked at ``every`` seconds, and a file is read when it has stood
    still from one look to the next. ``failed`` is told what goes wrong (another writer, a full
    disk, an emptied folder), which is tried again at the next look; without it the error is raised.
    Ends by an exception, such as KeyboardInterrupt: the index is as it was committed last. Each
    index is closed when the next is asked for.
    """
    if not every > 0:
        raise ValueError(f"watch_index: every={every} must be more than 0 seconds")
    named, documents = _target(name)
    recipe = find_recipe(named, documents)
    # Before the build: what changes while it reads is seen by the next look.
    committed = seen = _look(recipe)
    with build_index(named, documents, embedder=embedder) as index:
        yield index
    while True:
        wait(every)
        before, seen = seen, _look(recipe)
        if seen == committed or seen != before:
            continue
        try:
            index = _updated(recipe, committed, seen, embedder)
        except (EmptyCorpus, StoreError) as error:
            if failed is None:
                raise
            failed(error)
            continue
        committed = seen
        with index:
            if index.report is not None and not index.report.unchanged:
                yield index


def _updated(recipe: Recipe, old: Look, new: Look, embedder: TextEmbedder | None) -> Index:
    """Commit what differs between two looks, or everything where that cannot be."""
    paths = sorted(p for p in old.keys() | new.keys() if old.get(p) != new.get(p))
    try:
        return update_index(recipe.path, paths, embedder=embedder, progress=False)
    except (StoreBusy, DiskFull):
        raise
    except StoreError:
        # Settings that changed, damage, or a file that came and went since the look.
        return build_index(recipe.path, embedder=embedder, progress=False)


def _look(recipe: Recipe) -> Look:
    """Return what tells a file that was changed from one that was not, by its path."""
    try:
        folder = recipe.folder
        names = find(folder, recipe.globs)
    except EmptyCorpus:
        return {}
    return {n.path if isinstance(n, Rejected) else n: _state(folder, n) for n in names}


def _state(folder: Path, name: str | Rejected) -> tuple[int, ...]:
    if isinstance(name, Rejected):
        return ()
    try:
        status = os.stat(folder / name)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _target(name: str | Path) -> tuple[str | Path, Path | None]:
    """Return the name of an index, and its folder where it has still to be made."""
    try:
        find_recipe(name)
    except StoreNotFound:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise
    else:
        return name, None
    for path in document_names("indexes").values():
        with suppress(StoreError, EmptyCorpus):
            if os.path.samefile(find_recipe(path).folder, folder):
                return path, None
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "documents"
    with suppress(StoreNotFound):
        find_recipe(made)
        raise StoreError(
            f"{folder}: there is an index {made!r} of another folder. Name a new one: "
            f"promptflow index build NAME --documents {folder}, then promptflow index watch NAME"
        )
    return made[:64], folder
