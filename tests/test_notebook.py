from __future__ import annotations

import json
from typing import Any

import pytest

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.notebook import read


def text(*cells: dict[str, Any], **metadata: Any) -> str:
    return read(json.dumps({"cells": list(cells), "metadata": metadata}).encode(), "a.ipynb").text


def code(source: Any, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_cells_in_their_order_with_code_in_fences() -> None:
    said = text(
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Some *words*."]},
        code(["# comment\n", "x = 1"]),
        language_info={"name": "python"},
    )
    assert said == "# Title\n\nSome *words*.\n\n```python\n# comment\nx = 1\n```\n"


def test_what_was_printed_is_read_and_tables_by_rows() -> None:
    frame = "<table><thead><tr><th></th><th>city</th></tr></thead><tr><th>0</th><td>Seoul</td></tr>"
    said = text(
        code("x", {"output_type": "stream", "text": ["accuracy 0.93\n"]}),
        code("y", {"data": {"text/html": frame, "text/plain": "   city\n0  Seoul"}}),
        code("z", {"data": {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}}),
        code("w", {"output_type": "error", "ename": "ValueError", "evalue": "\x1b[31mbad\x1b[0m"}),
    )
    blocks = said.strip().split("\n\n")
    assert blocks[1::2] == ["accuracy 0.93", "0; city: Seoul", "<Figure>", "ValueError: bad"]


def test_tables_of_markdown_become_rows() -> None:
    source = "before\n\n| a | b |\n|---|:-:|\n| 1 | x\\|y |\n| 2 | z |\n\nafter"
    said = text({"cell_type": "markdown", "source": source})
    assert said == "before\n\na: 1; b: x|y\na: 2; b: z\n\nafter\n"


def test_the_old_form_is_read() -> None:
    old = {"worksheets": [{"cells": [{"cell_type": "heading", "level": 2, "source": "H"},
                                     {"cell_type": "code", "input": "x = 1"}]}]}  # fmt: skip
    assert read(json.dumps(old).encode(), "a.ipynb").text == "## H\n\n```\nx = 1\n```\n"


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"cells": 3}', b'{"worksheets": [1]}'])
def test_what_is_no_notebook_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable, match="not a notebook"):
        read(data, "a.ipynb")
