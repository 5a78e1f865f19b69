"""Word documents: paragraphs with the numbers that Word counts, tables by rows, notes at the end.

Deleted and hidden text is left out, inserted text is kept; headers, footers and comments are not
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.kinds.blocks import Blocks, counted, flat, lowered, raised
from promptflow.retrieval.kinds.package import Package, chosen
from promptflow.retrieval.kinds.rows import Merged

_WRAPPERS = {
    "w:hyperlink", "w:ins", "w:moveTo", "w:smartTag", "w:fldSimple", "w:customXml", "w:dir",
    "w:bdo", "w:sdt", "w:sdtContent",
}  # fmt: skip
_FORMATS = {
    "lowerLetter": "a", "upperLetter": "A", "lowerRoman": "i", "upperRoman": "I",
    "decimalZero": "01", "ganada": "가", "chosung": "ㄱ", "decimalEnclosedCircle": "①",
    "decimalEnclosedCircleChinese": "①",
}  # fmt: skip


def read(data: bytes, name: str) -> Parsed:
    """Return the text of a Word document."""
    package = Package(data)
    main = package.part("officeDocument") or "word/document.xml"
    blocks = Blocks()
    reader = _Reader(package, main, blocks)
    body = package.tree(main).find("w:body")
    if body is None:
        raise Unreadable("damaged: it has no body")
    reader.body(body)
    for mark, note in reader.notes():
        blocks.paragraph(f"[{mark}] {note}")
    return blocks.parsed(package.title() or reader.title)


class _Style:
    """What a paragraph's style says: its level as a heading (0 none), its list."""

    def __init__(self, level: int, number: tuple[str, int] | None, title: bool) -> None:
        self.level, self.number, self.title = level, number, title


class _Reader:
    def __init__(self, package: Package, main: str, blocks: Blocks) -> None:
        self._package, self._main, self._blocks = package, main, blocks
        self._styles = _styles(self._part("styles"))
        self._numbers = _Numbers(self._part("numbering"))
        self._boxes: list[Element] = []
        self._noted: list[tuple[str, str]] = []
        self.title = ""

    def _part(self, kind: str) -> Element | None:
        path = self._package.part(kind, self._main)
        return self._package.tree(path) if path in self._package.names else None

    def body(self, parent: Element) -> None:
        """Read the paragraphs and tables of an element."""
        for child in chosen(parent):
            if child.tag == "w:p":
                self._paragraph(child)
            elif child.tag == "w:tbl":
                self._table(child)
            elif child.tag in _WRAPPERS:
                self.body(child)

    def _paragraph(self, paragraph: Element) -> None:
        text = self._inline(paragraph)
        boxes, self._boxes = self._boxes, []
        properties = paragraph.find("w:pPr")
        style = self._styles.get(_value(properties, "w:pStyle"), _Style(0, None, False))
        level = style.level
        if (outline := _value(properties, "w:outlineLvl")).isdigit():
            level = int(outline) + 1 if int(outline) < 9 else 0
        number = _number(properties) or style.number
        mark, depth = "", 0
        if number and number[0] != "0" and flat(text):
            mark, depth = self._numbers.next(*number), number[1]
        if level:
            if style.title and not self.title:
                self.title = text
            self._blocks.heading(level, f"{mark} {text}" if mark not in ("", "-") else text)
        elif mark:
            self._blocks.item(text, mark, depth)
        else:
            self._blocks.paragraph(text)
        for box in boxes:
            self.body(box)

    def _inline(self, parent: Element) -> str:
        pieces: list[tuple[str, str]] = []
        self._runs(parent, pieces)
        text = ""
        for at, (kind, piece) in enumerate(pieces):
            if kind == "superscript":
                text += raised(piece, text)
            elif kind == "subscript":
                text += lowered(piece, text, pieces[at + 1][1] if at + 1 < len(pieces) else "")
            else:
                text += piece
        return text

    def _runs(self, parent: Element, pieces: list[tuple[str, str]]) -> None:
        """Gather runs as (how they stand, text), those that stand alike joined."""
        for child in chosen(parent):
            if child.tag == "w:r":
                properties = child.find("w:rPr")
                if _on(properties, "w:vanish"):
                    continue
                how = _value(properties, "w:vertAlign")
                text = self._run(child)
                if _on(properties, "w:strike") and text.strip():
                    text = f"~~{text}~~"
                if pieces and pieces[-1][0] == how:
                    pieces[-1] = (how, pieces[-1][1] + text)
                elif text:
                    pieces.append((how, text))
            elif child.tag in _WRAPPERS:
                self._runs(child, pieces)
            elif child.tag in ("m:oMath", "m:oMathPara"):
                pieces.append(("", _formula(child)))

    def _run(self, run: Element) -> str:
        text = ""
        for child in chosen(run):
            if child.tag == "w:t":
                text += child.text or ""
            elif child.tag in ("w:br", "w:cr"):
                text += "\n"
            elif child.tag in ("w:tab", "w:ptab"):
                text += "\t"
            elif child.tag == "w:noBreakHyphen":
                text += "-"
            elif child.tag in ("w:footnoteReference", "w:endnoteReference"):
                self._noted.append((child.tag[2:-9], child.get("id", "")))
                text += f"[{len(self._noted)}]"
            elif child.tag == "w:ruby":
                base, over = child.find("w:rubyBase"), child.find("w:rt")
                text += self._inline(base) if base is not None else ""
                text += f"({self._inline(over)})" if over is not None else ""
            elif child.tag in ("w:drawing", "w:pict", "w:object"):
                self._boxes.extend(_outermost(child, "w:txbxContent"))
        return text

    def _table(self, table: Element) -> None:
        grid: list[list[str]] = []
        heads = 0
        above: list[str] = []
        rows = list(_below(table, "w:tr"))
        cells = [list(_below(row, "w:tc")) for row in rows]
        if all(len(row) == 1 for row in cells):  # a frame round text, and no table
            for [only] in cells:
                self.body(only)
            return
        for row, row_cells in zip(rows, cells, strict=True):
            properties = row.find("w:trPr")
            if _on(properties, "w:del"):
                continue
            if _on(properties, "w:tblHeader") and heads == len(grid):
                heads += 1
            line: list[str] = [""] * _whole(_value(properties, "w:gridBefore"))
            for cell in row_cells:
                said = cell.find("w:tcPr")
                width = max(1, min(_whole(_value(said, "w:gridSpan")), 1000))
                merged = said.find("w:vMerge") if said is not None else None
                if merged is not None and merged.get("val", "continue") != "restart":
                    text = above[len(line)] if len(line) < len(above) else ""
                else:
                    text = self._cell(cell)
                line.append(text)
                line.extend([Merged(text)] * (width - 1))
            grid.append(line)
            above = line
        self._blocks.rows(grid, heads or None)

    def _cell(self, cell: Element) -> str:
        inner = Blocks(plain=True)
        outer, self._blocks = self._blocks, inner
        self.body(cell)
        self._blocks = outer
        return inner.line()

    def notes(self) -> Iterator[tuple[int, str]]:
        """Give the footnotes and endnotes that the text refers to, by the numbers it has."""
        parts = {kind: self._part(f"{kind}s") for kind in {kind for kind, _ in self._noted}}
        for mark, (kind, identity) in enumerate(list(self._noted), 1):
            part = parts[kind]
            for note in [] if part is None else part:
                if note.get("id") == identity:
                    yield mark, self._cell(note)


class _Numbers:
    """The numbers that Word counts for lists and headings."""

    def __init__(self, numbering: Element | None) -> None:
        self._levels: dict[str, dict[int, Element]] = {}
        self._list: dict[str, str] = {}
        self._restart: dict[tuple[str, int], int] = {}
        self._counts: dict[str, dict[int, int]] = {}
        for entry in [] if numbering is None else numbering:
            if entry.tag == "w:abstractNum":
                self._levels[entry.get("abstractNumId", "")] = {
                    _whole(level.get("ilvl", "0")): level for level in entry.iter("w:lvl")
                }
            elif entry.tag == "w:num":
                number = entry.get("numId", "")
                self._list[number] = _value(entry, "w:abstractNumId")
                for override in entry.iter("w:lvlOverride"):
                    if (start := _value(override, "w:startOverride")).isdigit():
                        self._restart[number, _whole(override.get("ilvl", "0"))] = int(start)

    def next(self, number: str, level: int) -> str:
        """Return the mark of the next paragraph of a list: "-", "3.", "1.2", "(a)"."""
        key = self._list.get(number, "")
        levels = self._levels.get(key, {})
        counts = self._counts.setdefault(key, {})
        if (start := self._restart.pop((number, level), None)) is not None:
            counts[level] = start - 1
        first = _start(levels.get(level))
        counts[level] = counts.get(level, first - 1) + 1
        for deeper in [other for other in counts if other > level]:
            del counts[deeper]
        here = levels.get(level)
        if here is None or _value(here, "w:numFmt") in ("bullet", "none", ""):
            return "-"
        plain = _on(here, "w:isLgl")

        def count(found: re.Match[str]) -> str:
            at = int(found[1]) - 1
            style = _FORMATS.get(_value(levels.get(at), "w:numFmt"), "1")
            return counted(
                counts.get(at, _start(levels.get(at))), "1" if plain and at < level else style
            )

        return re.sub(r"%([1-9])", count, _value(here, "w:lvlText")).strip() or "-"


def _styles(part: Element | None) -> dict[str, _Style]:
    """Return the styles of paragraphs by their identity; what one lacks is its parent's."""
    entries = {
        style.get("styleId", ""): style
        for style in ([] if part is None else part)
        if style.tag == "w:style"
    }
    return {identity: _style(identity, entries) for identity in entries}


def _style(identity: str, entries: dict[str, Element]) -> _Style:
    level: int | None = None
    number: tuple[str, int] | None = None
    title = False
    seen: set[str] = set()
    while identity in entries and identity not in seen:
        seen.add(identity)
        style = entries[identity]
        properties = style.find("w:pPr")
        called = _value(style, "w:name").lower()
        heading = re.fullmatch(r"heading ([1-9])", called)
        if level is None and (outline := _value(properties, "w:outlineLvl")).isdigit():
            level = int(outline) + 1 if int(outline) < 9 else 0
        if level is None and heading:
            level = int(heading[1])
        if level is None and called == "title":
            level, title = 1, True
        number = number or _number(properties)
        identity = _value(style, "w:basedOn")
    return _Style(level or 0, number, title)


def _number(properties: Element | None) -> tuple[str, int] | None:
    found = properties.find("w:numPr") if properties is not None else None
    if found is None or not (number := _value(found, "w:numId")):
        return None
    return number, min(_whole(_value(found, "w:ilvl")), 8)


def _start(level: Element | None) -> int:
    start = _value(level, "w:start")
    return int(start) if start.isdigit() else 1


def _value(parent: Element | None, tag: str) -> str:
    found = parent.find(tag) if parent is not None else None
    return found.get("val", "") if found is not None else ""


def _on(parent: Element | None, tag: str) -> bool:
    found = parent.find(tag) if parent is not None else None
    return found is not None and found.get("val", "1") not in ("0", "false", "off")


def _whole(text: str) -> int:
    return min(int(text), 1000) if text.isdigit() else 0


def _below(parent: Element, tag: str) -> Iterator[Element]:
    """Give the rows of a table, or the cells of a row, those in content controls too."""
    for child in chosen(parent):
        if child.tag == tag:
            yield child
        elif child.tag in _WRAPPERS:
            yield from _below(child, tag)


def _outermost(parent: Element, tag: str) -> Iterator[Element]:
    for child in chosen(parent):
        if child.tag == tag:
            yield child
        else:
            yield from _outermost(child, tag)


def _formula(element: Element) -> str:
    """Return a formula in a line: x^2, a_i, (a)/(b)."""
    parts = {child.tag: child for child in element}

    def said(tag: str) -> str:
        return _formula(parts[tag]) if tag in parts else ""

    if element.tag == "m:t":
        return element.text or ""
    if element.tag in ("m:sSup", "m:sSub", "m:sSubSup"):
        low, high = said("m:sub"), said("m:sup")
        return said("m:e") + (f"_{low}" if low else "") + (f"^{high}" if high else "")
    if element.tag == "m:f":
        return f"({said('m:num')})/({said('m:den')})"
    if element.tag == "m:rad":
        return f"√({said('m:e')})"
    return "".join(map(_formula, element))
