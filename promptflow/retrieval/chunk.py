"""A text to passages, each an exact span of it.

``text[chunk.start:chunk.end]`` is the chunk, always. Markdown is cut at its headings first, so that
no passage crosses one, and each passage knows the headings that it stands under.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from semchunk.semchunk import chunk

from promptflow.retrieval.text import language_of, sentence_spans

BLANK = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
"""What no passage begins or ends with: white space and the byte order mark."""


_PIECE = 100_000
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
UNSPACED = ("ja", "zh")
"""Languages whose sentences no space tells apart, which semchunk goes by."""

Counter = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The span [start, end) of a document in characters, under ``heading`` ("A > B")."""

    start: int
    end: int
    heading: str = ""


def chunk_text(
    text: str,
    size: int,
    count: Counter,
    *,
    overlap: int = 0,
    markdown: bool = False,
) -> list[Chunk]:
    """Cut ``text`` into spans of at most ``size`` by ``count``, at the largest break that fits.

    Every character that is not blank lies in a chunk; ``overlap`` of ``size`` is said twice. With
    ``markdown``, chunks end at headings.
    """
    sections = _sections(text) if markdown else iter([(0, len(text), "")])
    chunks: list[Chunk] = []
    for first, last, heading in _pieces(text, sections):
        body = text[first:last]
        if not body.strip(BLANK):
            continue
        cut = _packed if language_of(body) in UNSPACED else _cut
        for start, end in cut(body, size, count, overlap):
            start, end = _trimmed(body, start, end)
            if start < end:
                chunks.append(Chunk(first + start, first + end, heading))
    return chunks


def _pieces(text: str, sections: Iterator[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Give the sections, long ones in pieces: what cutting needs grows with what it cuts."""
    for start, end, heading in sections:
        while end - start > _PIECE:
            least, most = start + _PIECE // 2, start + _PIECE
            breaks = (
                text.rfind(mark, least, most) + len(mark) for mark in ("\n\n", "\n", "。", " ")
            )
            cut = next((at for at in breaks if at > least), most)
            yield start, cut, heading
            start = cut
        yield start, end, heading


def _cut(text: str, size: int, count: Counter, overlap: int) -> list[tuple[int, int]]:
    cut = chunk(text, size, count, memoize=False, offsets=True, overlap=overlap or None)
    _, spans = cast(tuple[list[str], list[tuple[int, int]]], cut)
    return spans


def _packed(text: str, size: int, count: Counter, overlap: int) -> list[tuple[int, int]]:
    """Return spans of as many whole sentences as fit; a sentence that does not fit is cut."""
    pieces: list[tuple[int, int]] = []
    for start, end in sentence_spans(text):
        if count(text[start:end]) <= size:
            pieces.append((start, end))
        else:
            cut = _cut(text[start:end], size, count, 0)
            pieces += [(start + first, start + last) for first, last in cut]
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(pieces):
        start, stop = pieces[at][0], at + 1
        while stop < len(pieces) and count(text[start : pieces[stop][1]]) <= size:
            stop += 1
        spans.append((start, pieces[stop - 1][1]))
        back = stop
        while back - 1 > at and count(text[pieces[back - 1][0] : spans[-1][1]]) <= overlap:
            back -= 1
        at = back if stop < len(pieces) else stop
    return spans


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip(BLANK)), end - len(piece) + len(
        piece.rstrip(BLANK)
    )


def _sections(text: str) -> Iterator[tuple[int, int, str]]:
    """Give (start, end, path of headings) of each section, its heading lines included.

    Headings with nothing between them open one section: a heading alone would say nothing.
    """
    start, blank, path, above = 0, True, "", [""] * 7
    at, fence = 0, ""
    for found in _LINE.finditer(text):
        line = found[0]
        fence, fenced = _fence(line, fence)
        level = 0 if fenced else _level(line)
        if level:
            if not blank:
                yield start, at, path
                start, blank = at, True
            above[level:] = [line.strip(" \t\r\n").strip("#").strip(), *[""] * (6 - level)]
            path = " > ".join(filter(None, above))
        elif line.strip(BLANK):
            blank = False
        at += len(line)
    yield start, at, path


def _level(line: str) -> int:
    """Return the level of a Markdown heading, 1 to 6, or 0 for any other line."""
    stripped = line.lstrip(" ")
    marks = len(stripped) - len(stripped.lstrip("#"))
    if len(line) - len(stripped) > 3 or not 1 <= marks <= 6:
        return 0
    return marks if stripped[marks : marks + 1] in (" ", "\t") and stripped[marks:].strip() else 0


def _fence(line: str, fence: str) -> tuple[str, bool]:
    """Return the code fence open after this line, and whether the line belongs to a block."""
    stripped = line.strip(" \t\r\n")
    mark = stripped[:1]
    if mark not in ("`", "~") or not stripped.startswith(mark * 3):
        return fence, bool(fence)
    marks = mark * (len(stripped) - len(stripped.lstrip(mark)))
    if not fence:
        return marks, True
    closes = mark == fence[0] and len(marks) >= len(fence) and stripped == marks
    return ("" if closes else fence), True
