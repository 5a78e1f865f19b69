"""Quotations: what of a passage can be quoted alone, as exact spans of its document, and the check.

A sentence, a list item, a row of a table, a line of code or a heading, however short and in
whatever language. ``read_passage`` gives them with the text that a prompt shows of them: in NFC, a
paragraph on one line, a row of a table with its header.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from promptflow.errors import StoreNotFound
from promptflow.retrieval.passages import Passage
from promptflow.retrieval.retriever import Texts
from promptflow.retrieval.text import normal, sentence_spans

Kind = Literal["prose", "row", "header", "code", "heading"]
Column = tuple[str, "Citation"]
"""The name of a column as a prompt shows it, and the row that it stands in."""

LONGEST = 400
"""Characters from which a sentence is quoted line by line: what has no full stop is no sentence."""

_FENCE = re.compile(r" {0,3}(?P<mark>```+|~~~+)")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(?P<text>.*?)[ \t]*#*")
_UNDERLINE = re.compile(r" {0,3}(?:==+|--+)")
_SIGN = "[-*+·\u2013•‧∙ㆍㅇ‣※\u2043■□▢▣▪▫▶▷▸▹►◆◇◈◉○◎●◦☞✓✔❖➔➢⦁\uf0a7]"
"""What stands before a list item, in Korean public documents too."""
_LETTERS = "가나다라마바사아자차카타파하"
_APART = unicodedata.normalize("NFD", "|".join(_LETTERS))
_LETTER = rf"\(?(?P<letter>[{_LETTERS}]|{_APART})[.)]"
_KOREAN = "가-힣\u1100-\u1112"
_ROUND = rf"o(?=\s+[({_KOREAN}])|[O0](?=\s+\([{_KOREAN}])"
"""A circle before an item, typed or read as a letter."""
_ORDINAL = rf"\(?\d{{1,3}}[.)]|[①-⑳]|{_LETTER}|{_ROUND}"
_MARK = rf"\s*(?:>\s*)*(?:(?:{_SIGN}|{_ORDINAL})\s+|[□○※■●](?=\S))"
_MARKER = re.compile(rf"(?:{_MARK}|\s*(?:>\s*)*)(?=\S)")
_ITEM = re.compile(rf"{_MARK}\S")
_CLOSED = ".:;?!)」』〉》】。"
_DATED = re.compile(r"\d{4}\.(?:\s?\d{1,2}\.)?")
_RULE = re.compile(r"(?=.*-)(?=.*[|])[-:| \t]+")
_EAST = "\u3001-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_BREAK = re.compile(rf"(?<=[{_EAST}])\s*\n\s*(?=[{_EAST}])")


@dataclass(frozen=True, slots=True)
class Citation:
    """A quotation: ``quote`` is characters [start, end) of ``document``, inside ``chunk``.

    ``page`` counts from 1 where the document has pages; ``heading`` is the path of headings that it
    stands under, as in "A > B".
    """

    document: str
    chunk: int
    start: int
    end: int
    quote: str
    page: int | None = None
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters [start, end) of what a prompt shows, and the quote that they are of.

    The names of columns, which stand before the cells of a row, are of the table's header.
    """

    start: int
    end: int
    citation: Citation
    kind: Kind


@dataclass(frozen=True, slots=True)
class Reading:
    """A passage as a prompt shows it; ``pieces`` are its quotes in order."""

    passage: Passage
    text: str
    pieces: tuple[Piece, ...]

    def quotes(self) -> list[Citation]:
        """Return what can be quoted, each once, in order."""
        return list(dict.fromkeys(p.citation for p in self.pieces if p.kind != "header"))

    def places(self, words: str) -> list[tuple[int, int]]:
        """Return where ``words`` stand in the text: as whole words if they do anywhere."""
        found = [(m.start(), m.end()) for m in re.finditer(re.escape(words), self.text)]
        return [place for place in found if self._is_whole(*place)] or found

    def _is_whole(self, start: int, end: int) -> bool:
        joined = (self.text[max(0, start - 1) : start + 1], self.text[end - 1 : end + 1])
        return not any(len(pair) == 2 and pair.isalnum() for pair in joined)

    def cited(self, start: int, end: int) -> list[Citation]:
        """Return the quotes that characters [start, end) of the text are of, in order."""
        met = (p.citation for p in self.pieces if p.start < end and start < p.end)
        return list(dict.fromkeys(met))


def read_passage(passage: Passage, document: str = "") -> Reading:
    """Return what a prompt shows of a passage, and its quotes.

    ``document`` is the whole text: a passage that begins within a table has the header there.
    """
    maker = _Maker(passage)
    lines = list(_lines(passage.text))
    if document and lines:
        maker.header = _header_above(passage, document)
    maker.read(lines)
    return Reading(passage, "".join(maker.texts), tuple(maker.pieces))


def shown(quote: str) -> str:
    """Return a quote as a prompt shows it: in NFC, on one line."""
    return " ".join(_BREAK.sub("", normal(quote)).split())


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Return the passages without those that say the same as one before them."""
    met: dict[str, Passage] = {}
    for passage in passages:
        met.setdefault(shown(passage.text).casefold(), passage)
    return list(met.values())


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


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a passage from character ``start``, without what ends it."""

    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def _lines(text: str) -> Iterator[_Line]:
    at = 0
    for whole in text.splitlines(keepends=True):
        yield _Line(at, whole.rstrip())
        at += len(whole)


@dataclass(slots=True)
class _Maker:
    """Puts together what a prompt shows of a passage.

    ``header`` is that of the table it is in, ``letters`` how many items have Korean letters.
    """

    passage: Passage
    texts: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    header: Sequence[Column] = ()
    prose: list[_Line] = field(default_factory=list)
    letters: int = 0

    def read(self, lines: Sequence[_Line]) -> None:
        """Take the lines, each for what it is."""
        fence = ""
        for number, line in enumerate(lines):
            after = lines[number + 1].text if number + 1 < len(lines) else ""
            opened = _FENCE.match(line.text)
            if fence and not (opened and opened["mark"].startswith(fence)):
                self.alone(line.start, line.end, "code")
            elif opened:
                self.close()
                fence = "" if fence else opened["mark"]
            elif self.header and _RULE.fullmatch(line.text):
                continue
            elif cells := _cells(line, after, bool(self.header)):
                self.close()
                self.row(line, cells, _RULE.fullmatch(after) is not None)
            else:
                self.header = ()
                self.plain(line)
        self.close()

    def plain(self, line: _Line) -> None:
        """Take a line of prose, a heading or a blank one."""
        if heading := _HEADING.fullmatch(line.text):
            self.close()
            start, end = heading.span("text")
            self.alone(line.start + start, line.start + end, "heading")
        elif _UNDERLINE.fullmatch(line.text):
            if len(self.prose) == 1:  # what stands above is a heading
                [above] = self.prose
                self.prose = []
                self.alone(above.start, above.end, "heading")
            self.close()
        elif not line.text.strip():
            self.close()
        else:
            if self.opens_item(line.text):
                self.close()
            self.prose.append(line)

    def opens_item(self, line: str) -> bool:
        """Tell whether a line begins a list item, and no day of a date or end of a Korean verb."""
        found = _ITEM.match(line)
        if found is None:
            return False
        last = self.prose[-1].text[-12:] if self.prose else ""
        if any(match.end() == len(last) for match in _DATED.finditer(last)):
            return False
        if found["letter"]:
            place = _LETTERS.index(normal(found["letter"]))
            if last and last[-1] not in _CLOSED and place != self.letters:
                return False
            self.letters = place + 1
        return True

    def close(self) -> None:
        """End the paragraph or list item: its sentences stand on one line."""
        if not self.prose:
            return
        opening = _MARKER.match(self.prose[0].text)
        first = self.prose[0].start + (opening.end() if opening else 0)
        last, self.prose = self.prose[-1].end, []
        text = self.passage.text[first:last]
        between = "\n"
        for start, end in _sentences(text):
            start += len(text[start:end]) - len(text[start:end].lstrip("> "))
            if self.alone(first + start, first + end, "prose", between):
                between = " "

    def alone(self, start: int, end: int, kind: Kind, before: str = "\n") -> bool:
        """Show characters [start, end) of the passage as a quote; False where they say nothing."""
        citation = self.citation(start, end)
        if not any(map(str.isalnum, citation.quote)):
            return False
        self.show(before, shown(citation.quote), citation, kind)
        return True

    def row(self, line: _Line, cells: Sequence[tuple[int, int]], is_header: bool) -> None:
        """Show a row of a table, each cell after the name of its column."""
        whole = self.citation(line.start, line.end)
        if is_header:
            self.header = [(shown(line.text[a:b]), whole) for a, b in cells]
        between = "\n"
        for number, (start, end) in enumerate(cells):
            text = shown(line.text[start:end])
            if not text:
                continue
            name, header = self.header[number] if number < len(self.header) else ("", whole)
            if name and not is_header:
                self.show(between, name, header, "header")
                between = ": "
            self.show(between, text, whole, "row")
            between = "; "

    def show(self, before: str, text: str, citation: Citation, kind: Kind) -> None:
        """Add ``text`` as of a quote, after what parts it from the text before it."""
        for part in ((before,) if self.texts else ()) + (text,):
            self.texts.append(part)
            self.size += len(part)
        self.pieces.append(Piece(self.size - len(text), self.size, citation, kind))

    def citation(self, start: int, end: int) -> Citation:
        """Return characters [start, end) of the passage, without blanks around, as a quote."""
        passage = self.passage
        text = passage.text[start:end]
        first = passage.start + start + len(text) - len(text.lstrip())
        quote = text.strip()
        page = passage.metadata.get("page")
        return Citation(
            passage.document,
            passage.chunk,
            first,
            first + len(quote),
            quote,
            page if isinstance(page, int) else None,
            passage.heading,
        )


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Give the spans of the sentences of a paragraph; of what is too long to be one, its lines."""
    for start, end in sentence_spans(text):
        if len(normal(text[start:end])) <= LONGEST:
            yield start, end
            continue
        for line in _lines(text[start:end]):
            yield start + line.start, start + line.end


def _cells(line: _Line, after: str, in_table: bool) -> list[tuple[int, int]]:
    """Return the spans of the cells of a row within its line; none where it is no row."""
    text = line.text
    bars = text.count("|")
    if "\t" in text.strip() and not bars:
        mark = "\t"
    elif bars and (in_table or _RULE.fullmatch(after) or text.lstrip().startswith("|")):
        mark = "|"
    else:
        return []
    first = len(text) - len(text.lstrip()) if mark == "|" else 0
    first += text[first : first + 1] == "|"
    last = len(text) - (mark == "|" and text.endswith("|") and not text.endswith("\\|"))
    ends = [m.start() for m in re.finditer(rf"(?<!\\){re.escape(mark)}", text[:last])]
    ends = [end for end in ends if end >= first]
    return list(zip([first, *(end + 1 for end in ends)], [*ends, last], strict=True))


def _header_above(passage: Passage, document: str) -> list[Column]:
    """Return the columns of the table that a passage begins within, from the rows above it."""
    above: list[_Line] = []
    for line in reversed(list(_lines(document[: passage.start]))):
        if "|" not in line.text:
            break
        above.append(line)
        if len(above) > 1 and _RULE.fullmatch(above[-2].text):
            whole = _Maker(replace(passage, start=0, text=document)).citation(line.start, line.end)
            cells = _cells(line, above[-2].text, False)
            return [(shown(line.text[a:b]), whole) for a, b in cells]
    return []
