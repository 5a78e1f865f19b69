"""Where signature and index documents are found: a path, the project's folder, the bundled copy."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from promptflow.errors import SignatureNotFound, StoreNotFound

Kind = Literal["signatures", "indexes"]
PACKAGE = Path(__file__).resolve().parent.parent


def bundled_folder(kind: Kind) -> Path:
    """Return the folder of the documents that come with promptflow, in a wheel or in a clone."""
    library = PACKAGE / "_library" / kind
    return library if library.is_dir() else PACKAGE.parent / kind


def document_names(kind: Kind) -> dict[str, Path]:
    """Return every document of a kind by name; the project's own hide bundled ones."""
    return {
        name: path
        for folder in (bundled_folder(kind), Path(kind))
        for name, path in _documents(kind, folder).items()
    }


def find_document(kind: Kind, name: str | Path, *, bundled_only: bool = False) -> Path:
    """Return the document of that name: ``<name>.toml``, or ``<name>/index.toml`` for an index.

    A Path, and text with a slash or ending in ``.toml``, is a path; a path to a folder means its
    ``index.toml``. Raises SignatureNotFound or StoreNotFound with the folders that were searched
    and the closest names.
    """
    path = Path(name)
    missing = SignatureNotFound if kind == "signatures" else StoreNotFound
    if not bundled_only and (isinstance(name, Path) or "/" in name or name.endswith(".toml")):
        try:
            document = path / "index.toml" if kind == "indexes" and path.is_dir() else path
            if document.exists():
                return document
        except (OSError, ValueError) as error:  # a name that no file can have
            raise missing(f"{str(path)[:100]!r}: no such file ({error.args[-1]})") from error
        raise missing(f"{str(document)[:200]}: no such file")
    folders = [bundled_folder(kind)] if bundled_only else [Path(kind), bundled_folder(kind)]
    known: set[str] = set()
    for folder in folders:
        documents = _documents(kind, folder)
        if str(name) in documents:
            return documents[str(name)]
        known |= set(documents)
    # From the root of a clone both are one folder.
    searched = " and ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
    what = "signature" if kind == "signatures" else "index"
    close = difflib.get_close_matches(str(name), sorted(known), n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(known))}."
    raise missing(f"no {what} named {str(name)[:100]!r} in {searched}. {hint}")


def _documents(kind: Kind, folder: Path) -> dict[str, Path]:
    if kind == "signatures":
        return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {path.parent.name: path for path in sorted(folder.glob("*/index.toml"))}
