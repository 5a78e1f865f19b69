"""An index as a document: ``indexes/<name>/index.toml``, and where its built files go."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

from promptflow.errors import EmptyCorpus, StoreError, StoreNotFound
from promptflow.retrieval.documents import GLOBS, PARSER_VERSION, glob_pattern
from promptflow.storage import (
    bundled_folder,
    cache_dir,
    find_document,
    read_text,
    toml_dumps,
    toml_loads,
    write_text,
)

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
FACTORY = re.compile(r"auto|Flat|SQ8|HNSW\d+(,Flat|,SQ8)?|IVF\d+,(Flat|SQ8|PQ\d+)")
KEYS: dict[str, type] = {
    "documents": str,
    "globs": list,
    "chunk_size": int,
    "chunk_overlap": int,
    "embedder": str,
    "prefixes": list,
    "factory": str,
    "metadata": list,
}

KINDS = {str: "text", list: "a list", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to index and how: the content of an ``index.toml``.

    ``documents`` is relative to the project root (the folder that holds ``indexes/``), else to the
    folder of the file. ``chunk_size`` and ``chunk_overlap`` count the embedder's tokens.
    ``prefixes``, before a query and before a passage, stand in for the embedder's own. Each entry
    of ``metadata`` has a ``glob`` and the values that its documents get.
    """

    name: str
    path: Path
    documents: str = "docs"
    globs: tuple[str, ...] = GLOBS
    chunk_size: int = 200
    chunk_overlap: int = 0
    embedder: str = "all-minilm-l6-v2"
    prefixes: tuple[str, ...] = ()
    factory: str = "Flat"
    metadata: tuple[dict[str, Any], ...] = field(default=())

    @property
    def folder(self) -> Path:
        """The folder of the documents. Raises EmptyCorpus if it is not there."""
        home = self.path.absolute().parent
        root = home.parent.parent if home.parent.name == "indexes" else home
        folder = root / Path(self.documents).expanduser()
        if folder.is_dir():
            return folder
        if home.is_relative_to(bundled_folder("indexes")):
            raise EmptyCorpus(
                f"the index {self.name!r} comes with promptflow, its documents do not: no folder "
                f"{folder}. Clone the source repository and build there, or give a folder: "
                f"{self.rebuild} --documents FOLDER"
            )
        raise EmptyCorpus(
            f"the documents of the index {self.name!r} are not there: no folder {folder}. "
            f"Correct `documents` in {self.path}, or give a folder: "
            f"{self.rebuild} --documents FOLDER"
        )

    @property
    def built(self) -> Path:
        """The folder of the built files: beside the recipe, or in the user's cache.

        One that stands beside it is used though nothing can be written there.
        """
        home = self.path.absolute().parent
        installed = {"site-packages", "dist-packages", "_library"} & set(home.parts)
        beside = (home / "built" / "manifest.json").is_file()
        if beside or (not installed and (os.access(home, os.W_OK) or not home.exists())):
            return home / "built"
        place = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:8]
        return cache_dir() / "indexes" / f"{self.name}-{place}"

    @property
    def rebuild(self) -> str:
        """The command that builds this index."""
        home = self.path.absolute().parent
        named = home.parent in (Path("indexes").absolute(), bundled_folder("indexes").absolute())
        return f"promptflow index build {self.name if named else self.path}"

    def settings(self) -> dict[str, Any]:
        """Return what, beside the documents and the embedder, decides the content of the index."""
        return {
            "globs": list(self.globs),
            "chunking": {
                "method": "semchunk",
                "size": self.chunk_size,
                "overlap": self.chunk_overlap,
            },
            "factory": self.factory,
            "metadata": list(self.metadata),
            "parser": PARSER_VERSION,
        }

    def values_for(self, document: str) -> dict[str, Any]:
        """Return the metadata that the recipe gives to a document, by its relative path."""
        values: dict[str, Any] = {}
        for entry in self.metadata:
            if glob_pattern(entry["glob"]).fullmatch(document):
                values |= {key: value for key, value in entry.items() if key != "glob"}
        return values

    def save(self) -> None:
        """Write the recipe to its path."""
        settings = {
            key: list(value) if isinstance(value, tuple) else value
            for key in KEYS
            if (value := getattr(self, key))
        }
        write_text(self.path, toml_dumps(settings))


def read_recipe(path: Path) -> Recipe:
    """Read an ``index.toml``. Raises StoreError naming the key that is wrong."""
    try:
        table = toml_loads(read_text(path))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as TOML: {error}") from error
    for key, value in table.items():
        if key not in KEYS:
            raise StoreError(f"{path}: unknown key {key!r}. Known: {', '.join(KEYS)}.")
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise StoreError(f"{path}: {key} is {value!r}, expected {KINDS[KEYS[key]]}")
    recipe = Recipe(
        name=path.absolute().parent.name,
        path=path,
        **{key: _plain(value) for key, value in table.items()},
    )
    _check(recipe)
    return recipe


def _plain(value: Any) -> Any:
    """Return a TOML value with tuples for lists and text for dates, as JSON can hold it."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: list(v) if isinstance(v := _plain(item), tuple) else v
                for key, item in value.items()}  # fmt: skip
    return value.isoformat() if isinstance(value, date | time) else value


def _check(recipe: Recipe) -> None:
    at = f"{recipe.path}: "
    if recipe.chunk_size < 8:
        raise StoreError(f"{at}chunk_size is {recipe.chunk_size}, expected at least 8 tokens")
    if not 0 <= recipe.chunk_overlap < recipe.chunk_size:
        raise StoreError(
            f"{at}chunk_overlap is {recipe.chunk_overlap}, expected 0 to {recipe.chunk_size - 1}"
        )
    if not FACTORY.fullmatch(recipe.factory):
        raise StoreError(
            f"{at}factory is {recipe.factory!r}, expected auto, or a FAISS factory string "
            "such as Flat, SQ8, HNSW32 or IVF256,Flat"
        )
    if not recipe.globs or not all(isinstance(glob, str) for glob in recipe.globs):
        raise StoreError(f"{at}globs is {list(recipe.globs)!r}, expected patterns such as **/*.md")
    given = recipe.prefixes
    if given and (len(given) != 2 or not all(isinstance(prefix, str) for prefix in given)):
        raise StoreError(
            f"{at}prefixes is {list(given)!r}, expected two texts: what goes before a query and "
            'what goes before a passage, as in ["query: ", "passage: "]'
        )
    for entry in recipe.metadata:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("glob"), str):
            raise StoreError(f"{at}each [[metadata]] needs a glob, got {entry!r}")


def find_recipe(name: str | Path, documents: Path | None = None) -> Recipe:
    """Return the recipe of a name or path; with ``documents``, a new one where there is none.

    A new one is named for ``indexes/<name>/`` of the current project and is not written yet.
    Raises StoreNotFound for an unknown name without documents.
    """
    try:
        found = read_recipe(find_document("indexes", name))
    except StoreNotFound as error:
        if documents is None:
            raise StoreNotFound(
                f"{error} To make it: promptflow index build {name} --documents FOLDER"
            ) from error
        return _new_recipe(name, documents)
    if documents is None:
        return found
    return _with_documents(found, documents)


def _new_recipe(name: str | Path, documents: Path) -> Recipe:
    path = Path(name)
    if isinstance(name, Path) or len(path.parts) > 1 or path.suffix == ".toml":
        path = path if path.suffix == ".toml" else path / "index.toml"
    elif not NAME.fullmatch(str(name)):
        raise StoreError(
            f"an index cannot be called {str(name)!r}: use 1 to 64 letters, digits, dots, dashes "
            "and underscores"
        )
    else:
        path = Path("indexes") / name / "index.toml"
    return _with_documents(Recipe(path.absolute().parent.name, path), documents)


def _with_documents(recipe: Recipe, documents: Path) -> Recipe:
    """Return the recipe for another folder, written relative to the project if it lies in it."""
    folder = documents.expanduser().absolute()
    if not folder.is_dir():
        raise EmptyCorpus(f"{documents}: no such folder. Give the folder of your documents.")
    home = recipe.path.absolute().parent
    root = home.parent.parent if home.parent.name == "indexes" else home
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    kept = {key: getattr(recipe, key) for key in KEYS if key != "documents"}
    return Recipe(recipe.name, recipe.path, documents=place.as_posix(), **kept)
