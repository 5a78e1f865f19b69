"""Quotations: the sentences of passages as exact spans of their documents, and their check."""

from __future__ import annotations

import re
from dataclasses import dataclass

from promptflow.errors import StoreNotFound
from promptflow.retrieval.passages import Passage
from promptflow.retrieval.retriever import Texts

SHORTEST = 20
"""Characters below which a sentence says too little to be quoted."""

_PARAGRAPH = re.compile(r"(?:(?!\n[ \t]*\n).)+", re.DOTALL)
_ABBREVIATIONS = ("al", "cf", "Dr", "e.g", "Eq", "Fig", "i.e", "Mr", "Ms", "No", "Sec", "St", "vs")
_SENTENCE_END = re.compile(
    "".join(rf"(?<!\b{re.escape(word)})" for word in _ABBREVIATIONS)
    + r"""[.!?]["')\]]*(?=\s+["'(\[`]*[^\W\d_a-z])"""
)
_NO_PROSE = ("#", "```", "~~~", "|", "    ")


@dataclass(frozen=True, slots=True)
class Citation:
    """A quotation: ``quote`` is characters [start, end) of ``document``, inside ``chunk``."""

    document: str
    chunk: int
    start: int
    end: int
    quote: str


def sentences(passage: Passage) -> list[Citation]:
    """Return the sentences of a passage as spans of its document, without headings and code."""
    found = []
    for paragraph in _PARAGRAPH.finditer(passage.text):
        if paragraph.group().lstrip("\n").startswith(_NO_PROSE):
            continue
        ends = [end.end() for end in _SENTENCE_END.finditer(paragraph.group())]
        start = paragraph.start()
        for end in (*(paragraph.start() + e for e in ends), paragraph.end()):
            text = passage.text[start:end]
            first = passage.start + start + len(text) - len(text.lstrip())
            quote = text.strip()
            if len(quote) >= SHORTEST:
                found.append(
                    Citation(passage.document, passage.chunk, first, first + len(quote), quote)
                )
            start = end
    return found


def locate_quote(passage: Passage, quote: str) -> tuple[int, int] | None:
    """Return the span of ``quote`` in the document, or None if it is not in the passage."""
    at = passage.text.find(quote)
    if at < 0 or not quote.strip():
        return None
    return passage.start + at, passage.start + at + len(quote)


def verify_quote(store: Texts, document: str, start: int, end: int, quote: str) -> bool:
    """Tell whether characters [start, end) of the document are ``quote``, which is not blank."""
    if not 0 <= start < end or not quote.strip():
        return False
    try:
        return store.text(document)[start:end] == quote
    except StoreNotFound:
        return False
