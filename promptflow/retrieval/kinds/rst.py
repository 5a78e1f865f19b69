"""reStructuredText, parsed by docutils: headings, lists, tables by rows, code.

No directive reads another file or passes raw markup on. Directives and roles that docutils does not
know, such as Sphinx's, give their content and their text.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles
from docutils.parsers.rst.languages import en
from docutils.utils import new_document

from promptflow.encodings import decoded
from promptflow.retrieval.kinds import Parsed
from promptflow.retrieval.kinds.blocks import Blocks, counted, flat, lowered, raised
from promptflow.retrieval.kinds.rows import Spanning

_DIRECTIVE = re.compile(r"^[ \t]*\.\.[ ]+(?:\|[^|\n]+\|[ ]+)?([A-Za-z][\w:.+-]*)::", re.MULTILINE)
_ROLE = re.compile(r":([A-Za-z][\w:.+-]*):`|`:([A-Za-z][\w:.+-]*):")
_TARGET = re.compile(r"\s*<[^<>]*>$", re.DOTALL)
_SILENT = {"toctree", "index", "highlight", "currentmodule", "module", "only", "ifconfig"}
_SETTINGS = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "report_level": 3,
    "warning_stream": False,
    "halt_level": 5,
    "syntax_highlight": "none",
    "line_length_limit": 10_000_000,
    "doctitle_xform": False,
    "smart_quotes": False,
    "_disable_config": True,
}


def read(data: bytes, name: str) -> Parsed:
    """Return the text of a document, its directives and roles resolved."""
    text = decoded(data)
    _learn(text)
    tree = publish_doctree(text, settings_overrides=_SETTINGS)
    blocks = Blocks()
    _Reader(blocks).read(tree, 0)
    return blocks.parsed()


class _Options(dict[str, Any]):
    """Options of any name, with any value."""

    def __missing__(self, name: str) -> Any:
        return directives.unchanged

    def __bool__(self) -> bool:
        return True


class _Unknown(Directive):
    """A directive that docutils does not know: its arguments and what stands in it."""

    optional_arguments = 100
    final_argument_whitespace = True
    has_content = True
    option_spec = _Options()

    def run(self) -> list[nodes.Node]:
        if self.name in _SILENT and self.name not in ("only", "ifconfig"):
            return []
        found: list[nodes.Node] = []
        if self.arguments and self.name not in ("only", "ifconfig"):
            said = " ".join(self.arguments)
            found.append(nodes.paragraph(said, said))
        box = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, box, match_titles=True)
        return [*found, *box.children]


def _role(
    name: str,
    raw: str,
    text: str,
    line: int,
    inliner: Any,
    options: Any = None,
    content: Any = (),
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """Return the text of a role that docutils does not know, without where it leads."""
    shown = _TARGET.sub("", text).lstrip("!~") or text
    return [nodes.inline(raw, shown)], []


def _learn(text: str) -> None:
    """Let docutils take the directives, options and roles of a text that it does not know."""
    empty = new_document("")
    for name in {found.lower() for found in _DIRECTIVE.findall(text)}:
        directive, _ = directives.directive(name, en, empty)
        if directive is None:
            directives.register_directive(name, _Unknown)
        elif not isinstance(directive.option_spec, _Options):
            spec = {"option_spec": _Options(directive.option_spec or {})}
            directives.register_directive(name, type(name, (directive,), spec))
    for name in {(one or other).lower() for one, other in _ROLE.findall(text)}:
        if name not in en.roles and name not in roles._role_registry:
            roles.register_local_role(name, _role)


class _Reader:
    """Writes the nodes of a document into blocks."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def read(self, node: nodes.Node, level: int) -> None:
        """Read the children of a node that stands under ``level`` headings."""
        for child in node.children:
            self._block(child, level)

    def _block(self, node: nodes.Node, level: int) -> None:
        """Read one node; what has no text of its own is read through."""
        if isinstance(node, nodes.section):
            self.read(node, level + 1)
        elif isinstance(node, nodes.title) and isinstance(node.parent, nodes.section):
            self._blocks.heading(level, _line(node))
        elif isinstance(node, nodes.bullet_list | nodes.enumerated_list):
            self._list(node, level, 0)
        elif isinstance(node, nodes.definition_list | nodes.field_list | nodes.option_list):
            self._pairs(node, level)
        elif isinstance(node, nodes.table):
            self._table(node)
        elif isinstance(node, nodes.literal_block | nodes.doctest_block | nodes.math_block):
            self._blocks.verbatim(node.astext())
        elif isinstance(node, nodes.system_message):
            self._refused(node)
        elif isinstance(node, _SAID):
            self._blocks.paragraph(_said(node))
        elif not isinstance(node, _UNSEEN):
            self.read(node, level)

    def _refused(self, message: nodes.Node) -> None:
        """Keep the source of what docutils could not make sense of."""
        said = " ".join(part.astext() for part in message.findall(nodes.paragraph))
        for source in message.findall(nodes.literal_block):
            if message["level"] >= 3 and "disabled" not in said:
                self._blocks.verbatim(source.astext())

    def _list(self, node: nodes.Node, level: int, depth: int) -> None:
        number = int(node.get("start", 1))
        style = _STYLES.get(node.get("enumtype", ""), "1")
        for item in node.children:
            mark = "-"
            if isinstance(node, nodes.enumerated_list):
                mark = f"{node.get('prefix', '')}{counted(number, style)}{node.get('suffix', '.')}"
            number += 1
            first, *rest = item.children or [nodes.paragraph()]
            if isinstance(first, nodes.TextElement):
                self._blocks.item(_line(first), mark, depth)
            else:
                rest = [first, *rest]
            for child in rest:
                if isinstance(child, nodes.bullet_list | nodes.enumerated_list):
                    self._list(child, level, depth + 1)
                else:
                    self._block(child, level)

    def _pairs(self, node: nodes.Node, level: int) -> None:
        """Read terms and fields, each in a line with the first thing said about it."""
        for item in node.children:
            names = [_line(child) for child in item.children if not _is_body(child)]
            term = ": ".join(filter(None, names))
            for body in filter(_is_body, item.children):
                first, *rest = body.children or [nodes.paragraph()]
                if isinstance(first, nodes.TextElement):
                    self._blocks.paragraph(f"{term}: {_line(first)}")
                else:
                    self._blocks.paragraph(term)
                    rest = [first, *rest] if body.children else []
                for child in rest:
                    self._block(child, level)

    def _table(self, table: nodes.Node) -> None:
        grid: list[list[str]] = []
        heads = 0
        spanning = Spanning()
        for title in table.findall(nodes.title):
            self._blocks.paragraph(_line(title))
        for row in table.findall(nodes.row):
            heads += isinstance(row.parent, nodes.thead)
            grid.append(spanning.row(map(_cell, row.children)))
        self._blocks.rows(grid, heads or None, named=True)


_STYLES = {"loweralpha": "a", "upperalpha": "A", "lowerroman": "i", "upperroman": "I"}
_SAID = nodes.TextElement | nodes.line_block | nodes.footnote | nodes.citation
_UNSEEN = (nodes.comment, nodes.system_message, nodes.substitution_definition, nodes.target,
           nodes.image, nodes.raw, nodes.pending, nodes.meta)  # fmt: skip


def _is_body(node: nodes.Node) -> bool:
    return isinstance(node, nodes.definition | nodes.field_body | nodes.description)


def _cell(entry: nodes.Node) -> tuple[str, int, int]:
    """Return the text of a cell, its columns, and the rows that it reaches further down."""
    text = flat(" ".join(_line(child) for child in entry.children))
    return text, 1 + int(entry.get("morecols", 0)), int(entry.get("morerows", 0))


def _said(node: nodes.Node) -> str:
    """Return what a paragraph, a note or a block of lines says."""
    if isinstance(node, nodes.line_block):
        return "\n".join(_lines(node))
    if isinstance(node, nodes.footnote | nodes.citation):
        label, *rest = node.children or [nodes.label()]
        return f"[{label.astext()}] {' '.join(map(_line, rest))}"
    return "" if isinstance(node, _UNSEEN) else _line(node)


def _lines(node: nodes.Node) -> list[str]:
    found: list[str] = []
    for child in node.children:
        found.extend(_lines(child) if isinstance(child, nodes.line_block) else [_line(child)])
    return found


def _line(node: nodes.Node) -> str:
    """Return a node's text in one line, with what stands high or low kept apart."""
    if isinstance(node, nodes.Text):
        return str(node.astext())
    if isinstance(node, nodes.system_message | nodes.comment | nodes.image):
        return ""
    if isinstance(node, nodes.problematic):
        return str(node.astext())
    if isinstance(node, nodes.footnote_reference | nodes.citation_reference):
        return f"[{node.astext()}]"
    text = ""
    for at, child in enumerate(node.children):
        if isinstance(child, nodes.superscript):
            text += raised(_line(child), text)
        elif isinstance(child, nodes.subscript):
            after = node.children[at + 1].astext() if at + 1 < len(node.children) else ""
            text += lowered(_line(child), text, after)
        else:
            text += _line(child)
    return text if isinstance(node, nodes.inline | nodes.TextElement) else f"{text} "
