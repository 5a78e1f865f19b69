"""PDF: the text of each page, read by PDFium, in the order in which a person reads.

PDFium gives characters in the order in which they were drawn. On a page with gaps inside of its
lines they are put in lines again: columns of running text are read one after the other, and what
stands in columns of short cells is a table, read by rows. Where it could be either, the document
says that the order is unsafe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.kinds.page import (
    HYPHEN,
    Page,
    Word,
    joined,
    laid_out,
    needs_layout,
    with_exponents,
)

_PAGES = 20_000
_CHARS = 100_000
"""Characters of a page up to which its layout is looked at."""
_NO_TITLES = ("untitled", "(anonymous)", "microsoft word - ")
_WORD = re.compile(rf"[^\s{HYPHEN}]+{HYPHEN}?")
_LINE_END = re.compile(r" +[\r\n]")
_DIGITS = re.compile(r"\d\d")
_ENDS = {0x0B: " ", 0x0C: " ", 0x85: " ", 0x2028: " ", 0x2029: " ", 0: " "}


def read(data: bytes, name: str) -> Parsed:
    """Return the text of a PDF, its title, and the offset at which each page starts."""
    if b"%PDF" not in data[:1024]:
        raise Unreadable("not a PDF: it does not begin like one")
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("encrypted: save a copy without a password") from error
        if "security" in str(error).lower():
            raise Unreadable("encrypted in a way that cannot be read") from error
        raise Unreadable("damaged: no PDF that can be read") from error
    if len(document) > _PAGES:
        raise Unreadable(f"{len(document)} pages, more than the {_PAGES} allowed")
    pages = [_page(document, number) for number in range(len(document))]
    texts = joined(pages)
    if not any(text.strip() for text in texts):
        raise Unreadable("no text in it: a scanned PDF needs OCR first (for example ocrmypdf)")
    starts, at = [], 0
    for text in texts:
        starts.append(at)
        at += len(text)
    unsafe = [str(number) for number, page in enumerate(pages, 1) if page.unsafe]
    warnings = [f"the order of the text is unsafe on page {', '.join(unsafe)}"] if unsafe else []
    return Parsed("".join(texts), _title(document), tuple(starts), tuple(warnings))


def _title(document: Any) -> str:
    title = document.get_metadata_value("Title") or ""
    return "" if title.lower().startswith(_NO_TITLES) else title


def _page(document: Any, number: int) -> Page:
    """Read a page; one that PDFium cannot open is empty and unsafe."""
    try:
        page = document[number]
        text = page.get_textpage()
    except pypdfium2.PdfiumError:
        return Page([], unsafe=True)
    try:
        count = pdfium.FPDFText_CountChars(text)
        drawn = _drawn(text, count)
        if count > _CHARS:
            return Page(drawn.splitlines(), unsafe=True)
        words = _words(text.raw, drawn)
        if needs_layout(words):
            return laid_out([Word(*word) for word in words])
        return Page(_in_words(drawn, words).splitlines())
    finally:
        text.close()
        page.close()


def _drawn(text: Any, count: int) -> str:
    """Return the characters of a page in the order of their numbers, one for each."""
    drawn = text.get_text_range(0, count) if count else ""
    if len(drawn) != count:
        drawn = "".join(chr(pdfium.FPDFText_GetUnicode(text, at)) for at in range(count))
    return drawn.replace("\ufffe", HYPHEN).translate(_ENDS)


def _words(text: Any, drawn: str) -> list[tuple[str, float, float, float, float]]:
    """Return the words of a page with their boxes; a high digit after a digit is an exponent."""
    box = pdfium.FS_RECTF()
    get_box = pdfium.FPDFText_GetLooseCharBox
    words = []
    for found in _WORD.finditer(drawn):
        said = found[0]
        first, last = found.span()
        last -= 1
        if said[-1] == HYPHEN and last > first:
            last -= 1  # its own box is often none
        if _DIGITS.search(said):
            said = with_exponents(said, [_box(text, at, box) for at in range(first, last + 1)])
        get_box(text, first, box)
        left, bottom, right, top = box.left, box.bottom, box.right, box.top
        if last > first:
            get_box(text, last, box)
            right = box.right
            if box.top - box.bottom > 0.8 * (top - bottom):
                bottom, top = min(bottom, box.bottom), max(top, box.top)
        if _LINE_END.match(drawn, found.end()):
            said += " "  # the line does not end within a word
        words.append((said, left, bottom, right, top))
    return words


def _box(text: Any, at: int, box: Any) -> tuple[float, float, float, float]:
    pdfium.FPDFText_GetLooseCharBox(text, at, box)
    return box.left, box.bottom, box.right, box.top


def _in_words(drawn: str, words: Sequence[tuple[str, float, float, float, float]]) -> str:
    """Return a page's text as it was drawn, with the exponents that its words have."""
    said = iter(words)
    return _WORD.sub(lambda found: next(said)[0].rstrip(), drawn)
