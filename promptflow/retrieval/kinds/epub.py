"""EPUB books: their chapters in reading order, each read as the web page that it is."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.kinds.blocks import Blocks
from promptflow.retrieval.kinds.package import Package
from promptflow.retrieval.kinds.web import add_page


def read(data: bytes, name: str) -> Parsed:
    """Return the text of a book. Raises Unreadable for one that is locked."""
    package = Package(data)
    if "META-INF/encryption.xml" in package.names and "META-INF/rights.xml" in package.names:
        raise Unreadable("locked by digital rights management: it can only be read in its reader")
    container = package.tree("META-INF/container.xml")
    place = next((e.get("full-path", "") for e in container.iter() if e.tag == "rootfile"), "")
    book = package.tree(place)
    folder = posixpath.dirname(place)
    items = {
        item.get("id", ""): item
        for item in book.iter("opf:item")
        if "html" in item.get("media-type", "")
    }
    blocks = Blocks()
    for entry in book.iter("opf:itemref"):
        item = items.get(entry.get("idref", ""))
        if item is None or "nav" in item.get("properties", "").split():
            continue
        path = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        if path in package.names:
            add_page(package.read(path), blocks, strict=True)
    title = next((e.text or "" for e in book.iter("dc:title")), "")
    return blocks.parsed(title)
