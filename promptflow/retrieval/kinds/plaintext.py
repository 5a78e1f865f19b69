"""Plain text, Markdown and source code: the text is exactly the file, decoded."""

from __future__ import annotations

from codecs import BOM_UTF8

from promptflow.encodings import decoded
from promptflow.retrieval.kinds import Parsed, Unreadable


def read(data: bytes, name: str) -> Parsed:
    """Return the file's own text."""
    # The byte order mark of UTF-8 is a character of the file, and counts in its offsets.
    text = "\ufeff" * data.startswith(BOM_UTF8) + decoded(data)
    if "\0" in text:
        raise Unreadable(f"not text: a zero character at {text.index(chr(0))}")
    return Parsed(text)
