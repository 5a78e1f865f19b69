"""PowerPoint presentations: a page a slide, with its title, its lists, its tables and its notes."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from promptflow.retrieval.kinds import Parsed
from promptflow.retrieval.kinds.blocks import Blocks, counted, flat, lowered, raised
from promptflow.retrieval.kinds.package import Package, chosen
from promptflow.retrieval.kinds.rows import Merged

_TITLES = ("title", "ctrTitle")
_FURNITURE = ("dt", "ftr", "hdr", "sldNum", "sldImg")
_NUMBERED = {"alphaLc": "a", "alphaUc": "A", "romanLc": "i", "romanUc": "I", "circle": "①"}


def read(data: bytes, name: str) -> Parsed:
    """Return the text of a presentation's slides, in the order in which they are shown."""
    package = Package(data)
    main = package.part("officeDocument") or "ppt/presentation.xml"
    related = package.related(main)
    blocks = Blocks()
    for entry in package.tree(main).iter("p:sldId"):
        kind, path = related.get(entry.get("r:id", ""), ("", ""))
        if kind == "slide" and path in package.names:
            blocks.page()
            _Slide(package, path, blocks).read()
    return blocks.parsed(package.title())


class _Slide:
    def __init__(self, package: Package, path: str, blocks: Blocks) -> None:
        self._package, self._path, self._blocks = package, path, blocks
        self._related = package.related(path)

    def read(self) -> None:
        root = self._package.tree(self._path)
        shapes = list(_shapes(root))
        for shape in shapes:
            if _place(shape) in _TITLES:
                self._blocks.heading(2, " ".join(map(_line, shape.iter("a:p"))))
        for shape in shapes:
            if shape.tag == "p:graphicFrame":
                self._frame(shape)
            elif _place(shape) not in (*_TITLES, *_FURNITURE):
                self._text(shape, listed=_place(shape) in ("body", "obj"))
        for kind, path in self._related.values():
            if kind == "notesSlide" and path in self._package.names:
                for shape in _shapes(self._package.tree(path)):
                    if _place(shape) == "body":
                        self._text(shape, listed=False, before="Notes: ")

    def _text(self, shape: Element, *, listed: bool, before: str = "") -> None:
        counts: dict[int, int] = {}
        lines = [p for body in shape.iter("p:txBody") for p in body.iter("a:p") if _line(p).strip()]
        for paragraph in lines:
            properties = paragraph.find("a:pPr")
            level = int(properties.get("lvl", "0")) if properties is not None else 0
            auto = properties.find("a:buAutoNum") if properties is not None else None
            plain = properties is not None and properties.find("a:buNone") is not None
            text = before + _line(paragraph)
            before = ""
            if auto is not None:
                counts = {at: n for at, n in counts.items() if at <= level}
                start = int(auto.get("startAt", "1"))
                counts[level] = counts.get(level, start - 1) + 1
                style = auto.get("type", "")
                sign = next((s for name, s in _NUMBERED.items() if style.startswith(name)), "1")
                number = counted(counts[level], sign)
                closed = f"({number})" if style.endswith("ParenBoth") else f"{number})"
                self._blocks.item(text, closed if "Paren" in style else f"{number}.", level)
            elif level or (listed and len(lines) > 1 and not plain):
                self._blocks.item(text, "-", level)
            else:
                self._blocks.paragraph(text)

    def _frame(self, frame: Element) -> None:
        """Read a table, or the texts of a diagram."""
        for table in frame.iter("a:tbl"):
            self._table(table)
        for diagram in frame.iter("dgm:relIds"):
            _, path = self._related.get(diagram.get("r:dm", ""), ("", ""))
            if path in self._package.names:
                for paragraph in self._package.tree(path).iter("a:p"):
                    self._blocks.item(_line(paragraph))

    def _table(self, table: Element) -> None:
        grid: list[list[str]] = []
        for row in table.iter("a:tr"):
            line: list[str] = []
            for cell in row.iter("a:tc"):
                if cell.get("vMerge") in ("1", "true"):
                    at = len(line)
                    line.append(grid[-1][at] if grid and at < len(grid[-1]) else "")
                elif cell.get("hMerge") in ("1", "true"):
                    line.append(Merged(line[-1] if line else ""))
                else:
                    line.append(flat(" ".join(map(_line, cell.iter("a:p")))))
            grid.append(line)
        self._blocks.rows(grid)


def _shapes(parent: Element) -> Iterator[Element]:
    """Give the shapes of a slide in the order in which they were drawn, those in groups too."""
    for child in chosen(parent):
        if child.tag in ("p:sp", "p:graphicFrame", "p:cxnSp"):
            yield child
        elif child.tag in ("p:cSld", "p:spTree", "p:grpSp"):
            yield from _shapes(child)


def _place(shape: Element) -> str:
    """Return which of the layout's places a shape fills, or nothing."""
    found = next(shape.iter("p:ph"), None)
    return found.get("type", "obj") if found is not None else ""


def _line(paragraph: Element) -> str:
    """Return a paragraph's text, with what stands high or low kept apart."""
    pieces: list[tuple[int, str]] = []
    for child in chosen(paragraph):
        if child.tag == "a:br":
            pieces.append((0, "\n"))
        elif child.tag in ("a:r", "a:fld"):
            properties = child.find("a:rPr")
            raise_by = properties.get("baseline", "0") if properties is not None else "0"
            sign = -1 if raise_by.startswith("-") else int(raise_by.strip("0%.") != "")
            pieces.append((sign, "".join(text.text or "" for text in child.iter("a:t"))))
        elif child.tag in ("m:oMath", "m:oMathPara", "a14:m"):
            pieces.append((0, "".join(text.text or "" for text in child.iter("m:t"))))
    line = ""
    for at, (sign, text) in enumerate(pieces):
        after = pieces[at + 1][1] if at + 1 < len(pieces) else ""
        line += raised(text, line) if sign > 0 else lowered(text, line, after) if sign else text
    return line
