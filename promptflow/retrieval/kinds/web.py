"""Web pages: the text that a browser would show, with headings, lists and tables by rows.

Parsed as HTML 5 says, and decoded as browsers decode: by a mark, by what the page declares in one
of the labels of the Encoding Standard, as UTF-8, or by its look where that is beyond doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from promptflow.encodings import decoded_page
from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.kinds.blocks import Blocks, counted, flat, lowered, raised
from promptflow.retrieval.kinds.rows import Spanning

UNSEEN = {
    "head", "script", "style", "template", "noscript", "svg", "iframe", "object", "audio", "video",
    "canvas", "map", "datalist", "annotation", "annotation-xml", "rp",
}  # fmt: skip
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog",
    "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header",
    "hgroup", "hr", "html", "legend", "li", "main", "menu", "nav", "ol", "p",
    "pre", "search", "section", "summary", "table", "caption", "thead", "tbody", "tfoot", "tr",
    "td", "th", "ul", "listing", "xmp", "plaintext", "textarea",
}  # fmt: skip
LISTS = {"ul", "ol", "menu", "dir"}
_VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
    "wbr",
}  # fmt: skip
KEPT = {"pre", "listing", "xmp", "plaintext", "textarea"}
HEADINGS = {f"h{level}": level for level in range(1, 7)}
_GONE = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse))", re.I)
_BREAKS = re.compile(r"[ \t\n\f\r]+")
_AROUND = {
    "rt": ("(", ")"), "q": ("\u201c", "\u201d"), "del": ("~~", "~~"), "s": ("~~", "~~"),
    "strike": ("~~", "~~"), "option": (" ", " "), "button": (" ", " "),
}  # fmt: skip
_CELLS = 1_000_000

Node = Any  # selectolax.lexbor.LexborNode, which carries no types worth having


def read(data: bytes, name: str) -> Parsed:
    """Return the visible text and the title of a page."""
    blocks = Blocks()
    title = add_page(data, blocks, strict=name.lower().endswith((".xhtml", ".xht")))
    return blocks.parsed(title)


def add_page(data: bytes, blocks: Blocks, *, strict: bool = False) -> str:
    """Add a page to ``blocks`` and return its title; ``strict`` pages are XML."""
    markup = decoded_page(data)
    if strict:
        markup = _spelled_out(markup)
    return add_markup(markup, blocks)


def add_markup(markup: str, blocks: Blocks) -> str:
    """Add the text of markup to ``blocks`` and return its title."""
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(markup.replace("\0", "\ufffd"))
    title = page.css_first("head > title")
    _Reader(blocks, {table.mem_id for table in _layouts(page)}).read(page.root)
    return title.text() if title is not None else ""


def _spelled_out(markup: str) -> str:
    """Return XML as HTML writes it: every element has an end tag, and CDATA is text."""
    markup = re.sub(
        r"<!\[CDATA\[(.*?)(?:\]\]>|\Z)",
        lambda found: found[1].replace("&", "&amp;").replace("<", "&lt;"),
        markup,
        flags=re.DOTALL,
    )

    def with_end(found: re.Match[str]) -> str:
        name, rest = found[1], found[2]
        if not rest.endswith("/") or name.lower() in _VOID:
            return found[0]
        return f"<{name}{rest[:-1]}></{name}>"

    return re.sub(r"<([A-Za-z][\w:.-]*+)([^<>]*+)>", with_end, markup)


def _layouts(page: Node) -> Iterator[Node]:
    """Give the tables that only lay a page out: those around tables, or that say so."""
    for table in page.css("table"):
        if (table.attributes.get("role") or "") in ("presentation", "none"):
            yield table
        outer = table.parent
        while outer is not None and outer.tag != "table":
            outer = outer.parent
        if outer is not None:
            yield outer


class _Reader:
    """Walks a tree without recursion and writes its text into blocks."""

    def __init__(self, blocks: Blocks, layouts: set[int]) -> None:
        self._blocks, self._layouts = blocks, layouts
        self._line: list[str | tuple[str, str]] = []
        self._mark: tuple[str, int] | None = None
        self._level = 0
        self._kept = 0
        self._lists: list[_List] = []
        self._terms: list[str] = []
        self._term = ""

    def read(self, root: Node) -> None:
        """Read all that is in an element."""
        opened = [root]
        node = root.child
        while opened:
            if node is None:
                node = opened.pop()
                if opened:
                    self._leave(node.tag)
                node = node.next if opened else None
            elif node.tag == "-text":
                text = node.text_content or ""
                self._line.append(text if self._kept else _BREAKS.sub(" ", text))
                node = node.next
            elif self._enter(node):
                opened.append(node)
                node = node.child
            else:
                node = node.next
        self._flush()

    def _enter(self, node: Node) -> bool:
        """Begin an element; say whether what is in it is still to be read."""
        tag = node.tag
        if tag in UNSEEN or not tag[0].isalpha() or _hidden(tag, node.attributes):
            return False
        if tag in BLOCKS or tag in HEADINGS:
            self._flush()
            self._begin(tag, node)
            if tag == "table" and node.mem_id not in self._layouts:
                self._table(node)
                return False
            return True
        if tag in ("sup", "sub"):
            self._line.append((tag, self._apart(node)))
        elif tag == "math":
            self._line.append(_formula(node, 0))
        elif tag == "br":
            self._line.append("\n")
        elif tag == "input" and node.attributes.get("type") == "checkbox":
            self._line.append("[x] " if "checked" in node.attributes else "[ ] ")
        else:
            self._line.append(_AROUND.get(tag, ("", ""))[0])
            return True
        return False

    def _begin(self, tag: str, node: Node) -> None:
        if tag in HEADINGS:
            self._level = HEADINGS[tag]
        elif tag in LISTS:
            if not self._lists:
                self._blocks.apart()
            self._lists.append(_List(node))
        elif tag == "li":
            depth = max(0, len(self._lists) - 1)
            self._mark = (self._lists[-1].mark(node) if self._lists else "-", depth)
        elif tag in KEPT:
            self._kept += 1
        elif tag == "dt":
            self._terms = [] if self._term == "said" else self._terms
            self._term = "open"
        elif tag == "dd":
            self._term = "due" if self._terms else ""

    def _leave(self, tag: str) -> None:
        if tag not in BLOCKS and tag not in HEADINGS:
            self._line.append(_AROUND.get(tag, ("", ""))[1])
            return
        self._flush()
        if tag in HEADINGS:
            self._level = 0
        elif tag in LISTS:
            self._lists.pop()
        elif tag == "li":
            self._mark = None
        elif tag in KEPT:
            self._kept -= 1
        elif tag == "dt":
            self._term = "due"
        elif tag == "dd":
            self._term = "said"
        elif tag == "dl":
            if self._term == "due":
                self._blocks.paragraph(", ".join(self._terms))
            self._terms, self._term = [], ""

    def _flush(self) -> None:
        """Write the line that was gathered as what it is part of."""
        text = self._gathered()
        if not text.strip():
            return
        if self._term == "open":
            self._terms.append(flat(text).rstrip(":"))
            return
        if self._term == "due":
            terms = ", ".join(self._terms)
            text = f"{terms}{'' if terms.endswith('?') else ':'} {text}"
            self._term = "said"
        if self._kept:
            self._blocks.verbatim(text)
        elif self._level:
            self._blocks.heading(self._level, text)
        elif self._mark:
            self._blocks.item(text, *self._mark)
            self._mark = None
        else:
            self._blocks.paragraph(text)

    def _gathered(self) -> str:
        pieces, self._line = self._line, []
        text = ""
        if all(isinstance(piece, str) for piece in pieces):
            return "".join(map(str, pieces))
        for at, piece in enumerate(pieces):
            if isinstance(piece, str):
                text += piece
            elif piece[0] == "sup":
                text += raised(piece[1], text)
            else:
                after = next((p for p in pieces[at + 1 :] if isinstance(p, str) and p), "")
                text += lowered(piece[1], text, after)
        return text

    def _apart(self, node: Node) -> str:
        """Return the text of an element in one line; a link that stands high is a note's."""
        inner = Blocks(plain=True)
        _Reader(inner, self._layouts).read(node)
        text = inner.line()
        return f"[{text}]" if text.isalnum() and node.css_first("a") is not None else text

    def _table(self, table: Node) -> None:
        rows = _rows(table)
        for caption in _children(table, "caption"):
            self._blocks.paragraph(self._apart(caption))
        grid: list[list[str]] = []
        leading, any_head = 0, False
        spanning = Spanning()
        cells = 0
        for in_head, row in rows:
            line_cells: list[tuple[str, int, int]] = []
            heads = others = 0
            for cell in _children(row, "td", "th"):
                if _hidden(cell.tag, cell.attributes):
                    continue
                text = self._apart(cell)
                line_cells.append((text, _span(cell, "colspan"), _span(cell, "rowspan") - 1))
                heads += cell.tag == "th" and bool(text)
                others += cell.tag == "td" and bool(text)
                any_head = any_head or cell.tag == "th"
            line = spanning.row(line_cells)
            cells += len(line)
            if cells > _CELLS:
                raise Unreadable(f"a table of more than {_CELLS} cells")
            if leading == len(grid) and (in_head or (heads and not others)):
                leading += 1
            grid.append(line)
        known = any_head or leading
        self._blocks.rows(grid, (1 if leading == len(grid) > 1 else leading) if known else None)


class _List:
    """A list that counts its items."""

    def __init__(self, node: Node) -> None:
        attributes = node.attributes
        self._ordered = node.tag == "ol"
        self._style = attributes.get("type") or "1"
        self._step = -1 if "reversed" in attributes else 1
        start = _whole(attributes.get("start"))
        if start is None:
            start = sum(1 for _ in _children(node, "li")) if self._step < 0 else 1
        self._next = start

    def mark(self, item: Node) -> str:
        """Return the mark of the next item."""
        if not self._ordered:
            return "-"
        value = _whole(item.attributes.get("value"))
        number = self._next if value is None else value
        self._next = number + self._step
        return f"{counted(number, self._style)}."


def _hidden(tag: str, attributes: dict[str, str | None]) -> bool:
    if not attributes:
        return tag == "dialog"
    if "hidden" in attributes and (attributes["hidden"] or "").lower() != "until-found":
        return True
    if tag == "dialog" and "open" not in attributes:
        return True
    return _GONE.search(attributes.get("style") or "") is not None


def _children(node: Node, *tags: str) -> Iterator[Node]:
    child = node.child
    while child is not None:
        if child.tag in tags:
            yield child
        child = child.next


def _rows(table: Node) -> Iterator[tuple[bool, Node]]:
    """Give the rows of a table in the order in which they are shown, and which are its head."""
    parts = [part for part in _children(table, "thead", "tbody", "tfoot", "tr")]
    parts = [part for part in parts if not _hidden(part.tag, part.attributes)]
    for wanted in (("thead",), ("tbody", "tr"), ("tfoot",)):
        for part in parts:
            if part.tag in wanted:
                rows = [part] if part.tag == "tr" else _children(part, "tr")
                for row in rows:
                    if not _hidden("tr", row.attributes):
                        yield part.tag == "thead", row


def _span(cell: Node, name: str) -> int:
    value = _whole(cell.attributes.get(name))
    if name == "rowspan" and value == 0:
        return 65534
    return min(value, 1000 if name == "colspan" else 65534) if value and value > 0 else 1


def _whole(text: str | None) -> int | None:
    found = re.match(r"\s*([+-]?\d{1,9})", text or "")
    return int(found[1]) if found else None


def _formula(node: Node, depth: int) -> str:
    """Return a formula in a line: x^2, a_i, (a)/(b)."""
    if node.tag == "-text":
        return (node.text_content or "").strip()
    if node.tag in UNSEEN or depth > 50:
        return ""
    parts: list[str] = []
    child = node.child
    while child is not None:
        if child.tag != "-text" or (child.text_content or "").strip():
            parts.append(_formula(child, depth + 1))
        child = child.next
    if len(parts) >= 2 and node.tag in _SCRIPTS:
        return parts[0] + "".join(map("".join, zip(_SCRIPTS[node.tag], parts[1:], strict=False)))
    if len(parts) == 2 and node.tag == "mfrac":
        return f"({parts[0]})/({parts[1]})"
    return f"√({''.join(parts)})" if node.tag == "msqrt" else "".join(parts)


_SCRIPTS = {"msup": "^", "msub": "_", "msubsup": "_^", "munder": "_", "mover": "^",
            "munderover": "_^"}  # fmt: skip
