"""Excel workbooks: each visible sheet under its name, a line a row, values as they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from xml.etree.ElementTree import Element

from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.kinds.blocks import Blocks
from promptflow.retrieval.kinds.package import Package

_CELLS = 2_000_000
_WIDTH = 2_000
_DATES = {*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)}
_TIMES = {18, 19, 20, 21, 45, 46, 47}
_PERCENT = {9: 0, 10: 2}


def read(data: bytes, name: str) -> Parsed:
    """Return the sheets of a workbook. Hidden sheets, rows and columns are left out."""
    package = Package(data)
    main = package.part("officeDocument") or "xl/workbook.xml"
    related = package.related(main)
    book = package.tree(main)
    strings = _strings(package, package.part("sharedStrings", main))
    formats = _formats(package, package.part("styles", main))
    since = _value(next(book.iter("x:workbookPr"), None), "date1904") in ("1", "true")
    sheets = [s for s in book.iter("x:sheet") if s.get("state", "visible") == "visible"]
    blocks = Blocks()
    hidden = sum(1 for _ in book.iter("x:sheet")) - len(sheets)
    for sheet in sheets:
        kind, path = related.get(sheet.get("r:id", ""), ("", ""))
        if kind == "worksheet" and path in package.names:
            root = package.tree(path)
            found = _tables(_Values(strings, formats, since).rows(root))
            tables = [table for table in found if table]
            if tables and (len(sheets) > 1 or sheet.get("name", "")[:5].lower() != "sheet"):
                blocks.heading(2, sheet.get("name", ""))
            for table in tables:
                blocks.rows(table, named=len(table) > 1)
    if hidden:
        blocks.warnings.append(f"{hidden} hidden sheets are left out")
    return blocks.parsed(package.title())


class _Values:
    """Turns cells into what a sheet shows."""

    def __init__(self, strings: list[str], formats: list[str], since_1904: bool) -> None:
        self._strings, self._formats, self._read = strings, formats, 0
        self._epoch = datetime(1904, 1, 1) if since_1904 else datetime(1899, 12, 30)

    def rows(self, root: Element) -> Iterator[tuple[int, dict[int, str]]]:
        """Give the rows that hold anything, by number, with their cells by column."""
        hidden = _hidden_columns(root)
        merged = _merged(root)
        corners = {corner for places in merged.values() for corner in places.values()}
        shown: dict[tuple[int, int], str] = {}
        number = 0
        for row in root.iter("x:row"):
            number = int(row.get("r") or number + 1)
            found = self._cells(row)
            shown |= {(number, at): found[at] for at in found if (number, at) in corners}
            if row.get("hidden") in ("1", "true"):
                continue
            for place, corner in merged.get(number, {}).items():
                if place not in found and corner in shown:
                    found[place] = shown[corner]
            visible = {at: found[at] for at in sorted(found) if not _within(at, hidden)}
            if visible:
                yield number, visible

    def _cells(self, row: Element) -> dict[int, str]:
        found: dict[int, str] = {}
        column = 0
        for cell in row.iter("x:c"):
            column = _place(cell.get("r", ""))[1] or column + 1
            self._read += 1
            if self._read > _CELLS:
                raise Unreadable(f"more than {_CELLS} cells in a sheet: save it as .csv")
            if text := " ".join(self.text(cell).split()):
                found[column] = text
        return found

    def text(self, cell: Element) -> str:
        """Return a cell's value as text."""
        kind = cell.get("t", "n")
        if kind == "inlineStr":
            return _rich(cell)
        value = next((child.text or "" for child in cell if child.tag == "x:v"), "")
        if kind == "s":
            at = int(value) if value.isdigit() else -1
            return self._strings[at] if 0 <= at < len(self._strings) else ""
        if kind == "b":
            return "TRUE" if value == "1" else "FALSE"
        if kind in ("str", "e", "d"):
            return value
        style = cell.get("s", "0")
        at = int(style) if style.isdigit() else 0
        return self._number(value, self._formats[at] if at < len(self._formats) else "")

    def _number(self, value: str, style: str) -> str:
        try:
            number = float(value)
        except ValueError:
            return value
        if style in ("date", "time", "datetime"):
            return self._date(number, style) or value
        if style.startswith("%"):
            return f"{number * 100:.{style[1:]}f}%"
        if not number.is_integer() or abs(number) >= 1e15:
            short = f"{number:.15g}"  # what a sheet shows: 0.1 + 0.2 is 0.3
            return value if "e" in short and "e" not in value.lower() else short
        return str(int(number))

    def _date(self, number: float, style: str) -> str:
        try:
            moment = self._epoch + timedelta(seconds=round(number * 86400))
        except (OverflowError, ValueError):
            return ""
        if style == "time" and 0 <= number < 1:
            return f"{moment:%H:%M:%S}".removesuffix(":00")
        if moment.hour or moment.minute or moment.second:
            return f"{moment:%Y-%m-%d %H:%M:%S}".removesuffix(":00")
        return f"{moment:%Y-%m-%d}"


def _tables(rows: Iterator[tuple[int, dict[int, str]]]) -> Iterator[list[list[str]]]:
    """Give the rows in blocks that an empty row parts, each as wide as its cells are."""
    block: list[dict[int, str]] = []
    last = 0
    for number, cells in rows:
        if block and number > last + 1:
            yield _grid(block)
            block = []
        block.append(cells)
        last = number
    if block:
        yield _grid(block)


def _grid(block: list[dict[int, str]]) -> list[list[str]]:
    columns = sorted(set().union(*block))
    if len(columns) > _WIDTH:
        raise Unreadable(f"{len(columns)} columns in a sheet, more than the {_WIDTH} allowed")
    return [[cells.get(column, "") for column in columns] for cells in block]


def _strings(package: Package, path: str) -> list[str]:
    if path not in package.names:
        return []
    return [_rich(entry) for entry in package.tree(path).iter("x:si")]


def _rich(entry: Element) -> str:
    """Return a text that may be in several hands, without the readings above its signs."""
    text = ""
    for child in entry:
        if child.tag == "x:t":
            text += child.text or ""
        elif child.tag in ("x:r", "x:is"):
            text += _rich(child)
    return text


def _formats(package: Package, path: str) -> list[str]:
    """Return for each style of cells what its numbers are: a date, a time, "%2" or nothing."""
    if path not in package.names:
        return []
    root = package.tree(path)
    codes = {e.get("numFmtId", ""): e.get("formatCode", "") for e in root.iter("x:numFmt")}
    entries = next(root.iter("x:cellXfs"), None)
    return [_format(e.get("numFmtId", "0"), codes) for e in ([] if entries is None else entries)]


def _format(identity: str, codes: dict[str, str]) -> str:
    number = int(identity) if identity.isdigit() else 0
    code = re.sub(r'"[^"]*"|\\.|\[[^hms\]][^\]]*\]|_.|\*.', "", codes.get(identity, "")).lower()
    code = code.split(";")[0]
    if number in _PERCENT and not code:
        return f"%{_PERCENT[number]}"
    if code.endswith("%"):
        return f"%{len(code.partition('.')[2].rstrip('%'))}"
    dated = bool(re.search(r"[yd]|mmm|[年月日]", code)) or (number in _DATES - _TIMES and not code)
    timed = bool(re.search(r"[hs]", code)) or (number in _TIMES and not code)
    return "datetime" if dated and timed else "date" if dated else "time" if timed else ""


def _hidden_columns(root: Element) -> list[tuple[int, int]]:
    return [
        (int(column.get("min", "1")), int(column.get("max", "1")))
        for column in root.iter("x:col")
        if column.get("hidden") in ("1", "true")
    ]


def _within(column: int, ranges: list[tuple[int, int]]) -> bool:
    return any(first <= column <= last for first, last in ranges)


def _merged(root: Element) -> dict[int, dict[int, tuple[int, int]]]:
    """Return by row and column what a merged cell covers: the corner that holds its value."""
    covered: dict[int, dict[int, tuple[int, int]]] = {}
    size = 0
    for entry in root.iter("x:mergeCell"):
        first, _, last = entry.get("ref", "").partition(":")
        (top, left), (bottom, right) = _place(first), _place(last)
        size += (bottom - top + 1) * (right - left + 1)
        if size > 200_000:
            break  # what is merged further on is said once
        for row in range(top, bottom + 1):
            covered.setdefault(row, {}).update(dict.fromkeys(range(left, right + 1), (top, left)))
    return covered


def _place(reference: str) -> tuple[int, int]:
    """Return the row and the column of a reference such as B12, from 1; 0 for none."""
    found = re.fullmatch(r"\$?([A-Z]{1,3})\$?(\d{1,7})", reference)
    if found is None:
        return 0, 0
    column = 0
    for letter in found[1]:
        column = column * 26 + ord(letter) - 64
    return int(found[2]), column


def _value(element: Element | None, name: str) -> str:
    return element.get(name, "") if element is not None else ""
