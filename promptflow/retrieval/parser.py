"""The disposable child that turns the bytes of one HTML or PDF file into text.

Run by path, not imported: ``python -P parser.py KIND LIMITS < file``. Writes one JSON object,
``{"text", "title", "pages"}`` or ``{"error"}``. Its limits hold memory and time, so that a file
which makes a parser loop or swell costs one line in the report. No sandbox against native code.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from html.parser import HTMLParser
from typing import Any

HIDDEN = {"head", "script", "style", "template", "noscript", "svg", "math", "iframe", "object"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "nav",
    "ol", "p", "pre", "section", "summary", "table", "tr", "ul",
}  # fmt: skip
HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}


class _Text(HTMLParser):
    """Visible text: one paragraph a block, headings as Markdown headings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._lines: list[str] = []
        self._line: list[str] = []
        self._prefix = ""
        self._hidden: list[str] = []
        self._pre = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self.title:
            self._in_title = True
        if self._hidden or tag in HIDDEN or any(name == "hidden" for name, _ in attributes):
            if tag not in VOID:
                self._hidden.append(tag)
            return
        if tag == "br":
            self._end_line()
        elif tag in BLOCKS or tag in HEADINGS:
            self._end_block()
            self._pre += tag == "pre"
            if tag in HEADINGS:
                self._prefix = "#" * HEADINGS[tag] + " "
            elif tag == "li":
                self._prefix = "- "
        elif tag in ("td", "th") and self._line:
            self._line.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if self._hidden:
            if tag in self._hidden:
                while self._hidden.pop() != tag:
                    pass
            return
        if tag in BLOCKS or tag in HEADINGS:
            self._end_block()
            if tag == "pre" and self._pre:
                self._pre -= 1

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        if self._hidden:
            return
        if self._pre:
            *whole, last = data.split("\n")
            for line in whole:
                self._line.append(line)
                self._end_line()
            self._line.append(last)
        else:
            self._line.append(data)

    def _end_line(self) -> None:
        text = "".join(self._line)
        self._line = []
        text = text.rstrip() if self._pre else " ".join(text.split())
        if text.strip():
            self._lines.append(self._prefix + text)
            self._prefix = ""

    def _end_block(self) -> None:
        self._end_line()
        self._prefix = ""
        if self._lines and self._lines[-1] and not self._pre:
            self._lines.append("")

    def text(self) -> str:
        """Return the text of all that was fed."""
        self._end_block()
        return "\n".join(self._lines).strip() + "\n"


def html_text(data: bytes) -> dict[str, Any]:
    """Return the visible text and the title of an HTML page, decoded by its own declaration."""
    reader = _Text()
    reader.feed(_decode_html(data))
    reader.close()
    return {"text": reader.text(), "title": " ".join(reader.title.split()), "pages": []}


def _decode_html(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    start = data[:2048].lower()
    _, found, rest = start.partition(b"charset=")
    name = rest.lstrip(b"\"' ").split(b'"')[0].split(b"'")[0].split(b">")[0].split(b";")[0]
    for encoding in (
        "utf-8-sig",
        name.strip().decode("ascii", "replace") if found else "",
        "cp1252",
    ):
        try:
            return data.decode(encoding or "utf-8")
        except (LookupError, ValueError):
            continue
    return data.decode("utf-8", "replace")


def pdf_text(data: bytes) -> dict[str, Any]:
    """Return the text of a PDF, its title, and the offset at which each page starts."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        return {"error": "encrypted: save a copy without a password"}
    text, pages = "", []
    for page in reader.pages:
        pages.append(len(text))
        text += page.extract_text().rstrip() + "\n\n"
    if not text.strip():
        return {"error": "no text in it: a scanned PDF needs OCR first (for example ocrmypdf)"}
    title = (reader.metadata.title if reader.metadata else None) or ""
    return {"text": text, "title": str(title).strip(), "pages": pages}


def limit(memory: int, cpu: int) -> None:
    """Hold this process to ``memory`` bytes, ``cpu`` seconds, and no file written."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(kind: str, limits: str) -> None:
    """Read one file from standard input and write its text as JSON to standard output."""
    allowed = json.loads(limits)
    limit(allowed["memory"], allowed["cpu"])
    try:
        data = sys.stdin.buffer.read()
        answer = html_text(data) if kind == "html" else pdf_text(data)
        most = min(allowed["text"], max(1 << 20, allowed["expansion"] * len(data)))
        if len(answer.get("text", "")) > most:
            answer = {"error": f"its text is longer than {most} characters"}
    except MemoryError:
        answer = {"error": f"needs more than {allowed['memory'] >> 20} MiB to read"}
    except Exception as error:
        # Parsers raise what they like on a broken file; the reason is all that is wanted of it.
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.buffer.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
