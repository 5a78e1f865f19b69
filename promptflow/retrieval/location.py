"""Where a citation stands: the file that was indexed, and the line or the page in it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptflow.errors import DocumentRejected, StoreNotFound
from promptflow.retrieval.documents import read_bytes
from promptflow.retrieval.kinds import KINDS

if TYPE_CHECKING:
    from promptflow.retrieval.index import Index

AS_TEXT = frozenset({"csv", "json", "rst"})
"""Kinds whose files are text that a person reads, beside those that are exactly their text."""


@dataclass(frozen=True, slots=True)
class Location:
    """A file that is as it was indexed; ``line`` counts from 1 and is known of text, not of all."""

    path: Path
    document: str
    kind: str
    line: int | None = None
    page: int | None = None

    @property
    def is_text(self) -> bool:
        """Whether the file is one that a person reads as text."""
        return self.kind in AS_TEXT or _is_exact(self.kind)


def locate(index: Index, document: str, start: int = 0, page: int | None = None) -> Location:
    """Return the place of character ``start`` of a document, in its file.

    Only a file inside the index's folder that has the indexed SHA-256 is a place. Raises
    StoreNotFound for an unknown document, and for a file that has changed or is gone since.
    """
    kind, stated = index.store.kind(document), index.store.sha256(document)
    try:
        data = read_bytes(index.folder, document)
    except DocumentRejected as error:
        raise StoreNotFound(
            f"{index.folder / document}: {error}. It was there when {index.name} was built: "
            f"{index.recipe.rebuild}"
        ) from error
    if hashlib.sha256(data).hexdigest() != stated:
        raise StoreNotFound(
            f"{index.folder / document} has changed since {index.name} was built, so that the "
            f"place is another one now: {index.recipe.rebuild}"
        )
    path = Path(os.path.realpath(index.folder / document))
    line = _line(data, index.text(document), start) if _is_exact(kind) else None
    return Location(path, document, kind, line, page)


def _is_exact(kind: str) -> bool:
    """Say whether the text of a kind is that of its file."""
    known = KINDS.get(kind)
    return known is not None and known.exact


def _line(data: bytes, text: str, start: int) -> int | None:
    """Return the line of ``start`` where the lines of the text are those of its file."""
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    written: Any = data.decode("utf-16", "replace") if wide else data
    breaks = written.count("\n" if wide else b"\n")
    return text.count("\n", 0, start) + 1 if breaks == text.count("\n") else None
