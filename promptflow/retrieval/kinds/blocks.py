"""The text of a document put together from its blocks: headings, paragraphs, items, rows, code.

Headings are written as Markdown's, so that passages know what they stand under.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from promptflow.retrieval.kinds import Parsed
from promptflow.retrieval.kinds.rows import row_lines

_HEADING = re.compile(r" {0,3}(#{1,6}[ \t]|```|~~~)", re.MULTILINE)
_TABLE = re.compile(
    r"^[ ]{0,3}[^\n]*\|[^\n]*\n[ ]{0,3}\|?[ ]*:?-+:?[ ]*(?:\|[ ]*:?-+:?[ ]*)*\|?[ ]*"
    r"(?:\n[^\n]*\|[^\n]*)*",
    re.MULTILINE,
)
_INVISIBLE = str.maketrans("", "", "\u00ad\u200b\u2060\ufeff")
_ORDINAL = {"st", "nd", "rd", "th", "er", "re", "e", "o", "a", "me", "eme", "ème", "tm", "sm"}


class Blocks:
    """A text that grows block by block; blocks are parted by blank lines, items by line ends.

    With ``plain`` it is one line, such as a cell's, and nothing is marked as what it is.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self._is_plain = plain
        self._parts: list[str] = []
        self._size = 0
        self._last = ""
        self.pages: list[int] = []
        self.warnings: list[str] = []

    def _add(self, text: str, kind: str) -> None:
        if self._parts:
            text = ("\n" if kind == self._last == "item" else "\n\n") + text
        self._parts.append(text)
        self._size += len(text)
        self._last = kind

    def heading(self, level: int, text: str) -> None:
        """Add a heading of a level from 1; deeper ones than 6 are 6."""
        if (text := flat(text)) and self._is_plain:
            self._add(text, "heading")
        elif text:
            self._add(f"{'#' * max(1, min(level, 6))} {text}", "heading")

    def paragraph(self, text: str) -> None:
        """Add a paragraph; its line ends are kept, other white space is one space."""
        if text := "\n".join(filter(None, map(flat, text.split("\n")))):
            self._add(text, "paragraph")

    def item(self, text: str, mark: str = "-", depth: int = 0) -> None:
        """Add an item of a list with the mark that stands before it."""
        if (text := flat(text)) and self._is_plain:
            self._add(text if mark == "-" else f"{mark} {text}", "item")
        elif text:
            self._add(f"{'  ' * depth}{mark} {text}" if mark else f"{'  ' * depth}{text}", "item")

    def apart(self) -> None:
        """Part the next item from the one before: another list begins."""
        self._last = ""

    def rows(self, grid: Sequence[Sequence[str]], heads: int | None = None, **how: bool) -> None:
        """Add a table, one line a row (see rows.py)."""
        if lines := [line for line in row_lines(grid, heads, **how) if line]:
            self._add("\n".join(lines), "rows")

    def verbatim(self, text: str) -> None:
        """Add lines as they are; in a fence if one of them could be taken for a heading."""
        text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        if not text.strip():
            return
        if _HEADING.search(text):
            self.fenced(text)
        else:
            self._add(text, "verbatim")

    def fenced(self, code: str, language: str = "") -> None:
        """Add code in a fence."""
        code = code.strip("\n")
        if code.strip():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
            self._add(f"{fence}{language}\n{code}\n{fence}", "verbatim")

    def markdown(self, text: str) -> None:
        """Add Markdown as it is, but for its tables, which become a line a row."""
        at = 0
        for table in _TABLE.finditer(text):
            self._plain(text[at : table.start()])
            head, _, *body = table[0].strip("\n").split("\n")
            self.rows([_cells(head), *map(_cells, body)], 1)
            at = table.end()
        self._plain(text[at:])

    def _plain(self, text: str) -> None:
        if text := text.strip("\n"):
            self._add(text, "markdown")

    def page(self) -> None:
        """Begin a page here."""
        self.pages.append(self._size + 2 if self._parts else 0)
        self._last = ""

    def line(self) -> str:
        """Return all of it in one line; items are parted by commas."""
        said = "".join(self._parts).replace("\n\n", " ")
        return flat(said.replace("\n", ", ") if self._is_plain else said)

    def parsed(self, title: str = "") -> Parsed:
        """Return the document."""
        text = "".join(self._parts) + "\n" if self._parts else ""
        pages = tuple(min(page, len(text)) for page in self.pages)
        return Parsed(text, flat(title), pages, tuple(self.warnings))


def flat(text: str) -> str:
    """Return a text in one line: white space is one space, what nobody sees is gone."""
    return " ".join(text.translate(_INVISIBLE).split())


def raised(text: str, before: str) -> str:
    """Return what stands high, after ``before``, so that it is not read as more of the same.

    10 and a high 6 are 10^6 and not 106; 1 and a high st are 1st.
    """
    inner = flat(text)
    if not inner or (inner.lower() in _ORDINAL and before[-1:].isalnum()):
        return inner
    if inner.startswith(("[", "(")) or inner in "*†‡§°®©™":
        return inner
    return f"^{inner}" if inner.isalnum() or inner[1:].isalnum() else f"^({inner})"


def lowered(text: str, before: str, after: str) -> str:
    """Return what stands low: H2O is as people write it, and x_12 is not x1 and a 2."""
    inner = flat(text)
    if inner and before[-1:].isalpha() and not after[:1].isdigit():
        return inner
    if not inner:
        return ""
    return f"_{inner}" + (" " if after[:1].isalnum() and inner[-1:].isalnum() else "")


def counted(number: int, style: str) -> str:
    """Return a number as lists count: 1, a, A, i, I, or 가, ㄱ, ①."""
    if style in ("a", "A") and number > 0:
        letters = ""
        while number:
            number, rest = divmod(number - 1, 26)
            letters = chr(97 + rest) + letters
        return letters if style == "a" else letters.upper()
    if style in ("i", "I") and 0 < number < 4000:
        roman = ""
        for value, sign in _ROMAN:
            roman += sign * (number // value)
            number %= value
        return roman if style == "i" else roman.upper()
    signs = _SIGNS.get(style, "")
    if 0 < number <= len(signs):
        return signs[number - 1]
    if style == "①" and 0 < number <= 20:
        return chr(0x2460 + number - 1)
    return f"{number:02d}" if style == "01" else str(number)


def _cells(line: str) -> list[str]:
    line = re.sub(r"^\s*\||(?<!\\)\|\s*$", "", line)
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)]


_SIGNS = {"가": "가나다라마바사아자차카타파하", "ㄱ": "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ"}
_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"),
    (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip
