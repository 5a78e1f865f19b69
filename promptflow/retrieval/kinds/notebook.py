"""Jupyter notebooks: the text cells as Markdown, the code in fences, what it printed after it."""

from __future__ import annotations

import json
import re
from typing import Any

from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.kinds.blocks import Blocks
from promptflow.retrieval.kinds.web import add_markup

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read(data: bytes, name: str) -> Parsed:
    """Return the cells of a notebook in their order. Pictures among the outputs are left out."""
    try:
        book = json.loads(data)
    except RecursionError as error:
        raise Unreadable("its JSON is nested too deeply to be read") from error
    except ValueError as error:
        raise Unreadable(f"not a notebook: {error}") from error
    book = book if isinstance(book, dict) else {}
    sheets = book.get("worksheets") or [{}]
    cells = book.get("cells") or (sheets[0].get("cells") if isinstance(sheets[0], dict) else None)
    if not isinstance(cells, list):
        raise Unreadable("not a notebook: it has no cells")
    spoken = _get(book, "metadata", "language_info", "name") or _get(
        book, "metadata", "kernelspec", "language"
    )
    blocks = Blocks()
    for cell in cells:
        if isinstance(cell, dict):
            _cell(cell, str(spoken or ""), blocks)
    return blocks.parsed(str(_get(book, "metadata", "title") or ""))


def _cell(cell: dict[str, Any], language: str, blocks: Blocks) -> None:
    source = _joined(cell.get("source", cell.get("input", "")))
    kind = cell.get("cell_type")
    if kind == "code":
        blocks.fenced(source, language)
        for output in cell.get("outputs") or []:
            if isinstance(output, dict):
                _output(output, blocks)
    elif kind == "heading":
        blocks.heading(int(cell.get("level") or 1), source)
    else:
        blocks.markdown(source)


def _output(output: dict[str, Any], blocks: Blocks) -> None:
    """Add what a cell printed or returned; a table of pandas by its rows."""
    data = output.get("data")
    data = data if isinstance(data, dict) else output
    page = _joined(data.get("text/html", data.get("html", "")))
    if "<table" in page:
        add_markup(page, blocks)
    elif text := _joined(data.get("text/markdown", "")):
        blocks.markdown(text)
    elif text := _joined(data.get("text/plain", data.get("text", ""))):
        blocks.verbatim(_COLOURS.sub("", text))
    elif output.get("output_type") in ("error", "pyerr"):
        blocks.verbatim(f"{output.get('ename', '')}: {_COLOURS.sub('', str(output.get('evalue')))}")


def _joined(text: Any) -> str:
    if isinstance(text, list):
        return "".join(line for line in text if isinstance(line, str))
    return text if isinstance(text, str) else ""


def _get(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
