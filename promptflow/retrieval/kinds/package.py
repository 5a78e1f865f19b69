"""Files that are zip archives of XML (docx, pptx, xlsx, epub), read within bounds.

What is unpacked is counted, a document type with its entities is refused, and elements nest only so
deep; nothing is ever written to the disk.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from promptflow.retrieval.kinds import Unreadable

MOST = 400 << 20
EXPANSION = 200
MEMBERS = 20_000
DEPTH = 200
PREFIXES = {
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "w",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "w",
    "http://schemas.openxmlformats.org/drawingml/2006/main": "a",
    "http://purl.oclc.org/ooxml/drawingml/main": "a",
    "http://schemas.openxmlformats.org/presentationml/2006/main": "p",
    "http://purl.oclc.org/ooxml/presentationml/main": "p",
    "http://schemas.openxmlformats.org/spreadsheetml/2006/main": "x",
    "http://purl.oclc.org/ooxml/spreadsheetml/main": "x",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m",
    "http://schemas.openxmlformats.org/officeDocument/2006/relationships": "r",
    "http://purl.oclc.org/ooxml/officeDocument/relationships": "r",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc",
    "http://schemas.openxmlformats.org/drawingml/2006/diagram": "dgm",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://www.idpf.org/2007/opf": "opf",
}


class Package:
    """The members of a zip archive by their paths."""

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            if data.startswith(b"\xd0\xcf\x11\xe0"):
                raise Unreadable(
                    "encrypted, or in the old format of Office: save a copy without a password"
                ) from error
            raise Unreadable(f"not a zip archive, which it should be: {error}") from error
        names = self._zip.namelist()
        if len(names) > MEMBERS:
            raise Unreadable(f"{len(names)} files inside, more than the {MEMBERS} allowed")
        self.names = dict.fromkeys(names)
        self._left = min(MOST, max(64 << 20, EXPANSION * len(data)))

    def read(self, name: str) -> bytes:
        """Return the bytes of a member. Raises Unreadable if it is missing, too large or broken."""
        if name not in self.names:
            raise Unreadable(f"damaged: {name} is missing inside")
        try:
            with self._zip.open(name) as file:
                data = file.read(self._left + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise Unreadable(f"damaged: {name} inside cannot be unpacked: {error}") from error
        except RuntimeError as error:  # what zipfile raises for a password
            raise Unreadable("encrypted: save a copy without a password") from error
        self._left -= len(data)
        if self._left < 0:
            raise Unreadable("unpacks to far more than its size: a zip bomb, or nearly one")
        return data

    def tree(self, name: str) -> Element:
        """Return the root of an XML member."""
        return tree(self.read(name), name)

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """Return what a part of an Office file refers to: by id, its type's last word and path."""
        folder, base = posixpath.split(name)
        place = posixpath.join(folder, "_rels", base + ".rels")
        if place not in self.names:
            return {}
        found = {}
        for entry in self.tree(place):
            if entry.get("TargetMode") == "External":
                continue
            target = entry.get("Target", "")
            path = posixpath.normpath(posixpath.join("/" + folder, target)).lstrip("/")
            path = path if path in self.names else unquote(path)
            found[entry.get("Id", "")] = (entry.get("Type", "").rpartition("/")[2], path)
        return found

    def part(self, wanted: str, of: str = "") -> str:
        """Return the path of the part of a type, such as officeDocument; nothing if none."""
        return next((path for kind, path in self.related(of).values() if kind == wanted), "")

    def title(self) -> str:
        """Return the title that an Office file states."""
        core = self.part("core-properties")
        if core not in self.names:
            return ""
        return next((child.text or "" for child in self.tree(core) if child.tag == "dc:title"), "")


def tree(data: bytes, name: str) -> Element:
    """Parse XML to elements called like w:p; attributes lose their prefix, but r:id keeps it.

    Raises Unreadable for a document type, for elements nested too deeply, and for broken XML.
    """
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise Unreadable(f"{name} inside nests more than {DEPTH} deep")
        builder.start(_short(tag), {_attribute(key): v for key, v in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_short(tag))

    def refused(*_: object) -> None:
        raise Unreadable(f"{name} inside declares a document type, which is not read")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refused
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Unreadable(f"damaged: {name} inside is no XML: {error}") from error
    return builder.close()


def _short(tag: str) -> str:
    space, _, local = tag.rpartition(" ")
    prefix = PREFIXES.get(space, "")
    return f"{prefix}:{local}" if prefix else local


def _attribute(name: str) -> str:
    short = _short(name)
    return short if short.startswith("r:") else short.rpartition(":")[2]


def chosen(element: Element) -> Iterator[Element]:
    """Give an element's children; of alternatives of one content only one."""
    for child in element:
        if child.tag == "mc:AlternateContent":
            options = [option for option in child if option.tag in ("mc:Choice", "mc:Fallback")]
            if options:
                yield from chosen(options[0])
        else:
            yield child
