from __future__ import annotations

from pathlib import Path

import pytest

from promptflow.retrieval.kinds.rst import read


def text(source: str) -> str:
    return read(source.encode(), "a.rst").text


CASES = {
    "headings": ("Title\n=====\n\nwords\n\nSub\n---\n\nmore\n",
                 "# Title\n\nwords\n\n## Sub\n\nmore\n"),
    "lists": ("1. one\n2. two\n\n   - in\n\n(c) three\n(d) four\n",
              "1. one\n2. two\n  - in\n(c) three\n(d) four\n"),
    "terms": ("Pump\n   moves water\n\n:Author: Kim\n", "Pump: moves water\n\nAuthor: Kim\n"),
    "high and low": ("H\\ :sub:`2`\\ O and 10\\ :sup:`6`\n", "H2O and 10^6\n"),
    "roles of Sphinx": ("See :ref:`the pump <pump>` and :class:`~a.Pump`.\n",
                        "See the pump and a.Pump.\n"),
    "directives of Sphinx": (
        ".. versionadded:: 1.2\n   New.\n\n.. toctree::\n   :maxdepth: 2\n\n   a\n   b\n\n"
        ".. autoclass:: a.Pump\n   :members:\n\n   It pumps.\n",
        "1.2 New.\n\na.Pump\n\nIt pumps.\n",
    ),
    "code": ("So::\n\n   # no heading\n   x\n\n.. code-block:: python\n   :linenos:\n\n   y = 1\n",
             "So:\n\n```\n# no heading\nx\n```\n\ny = 1\n"),
    "simple table": ("====  =====\nCity  Men\n====  =====\nRome  1\nOslo  2\n====  =====\n",
                     "City: Rome; Men: 1\nCity: Oslo; Men: 2\n"),
    "grid table": ("+---+-------+\n| a | b     |\n+===+=======+\n| 1 | two   |\n|   | lines |\n"
                   "+---+-------+\n", "a: 1; b: two lines\n"),
    "list table": (".. list-table:: Cities\n   :header-rows: 1\n\n   * - City\n     - People\n"
                   "   * - Seoul\n     - 9.4\n", "Cities\n\nCity: Seoul; People: 9.4\n"),
    "csv table": ('.. csv-table::\n   :header: "a", "b"\n\n   "1", "2"\n', "a: 1; b: 2\n"),
    "notes": ("Word [1]_ here.\n\n.. [1] See it.\n", "Word [1] here.\n\n[1] See it.\n"),
    "comments": (".. a comment\n\nseen\n\n.. image:: x.png\n   :alt: no\n", "seen\n"),
    "substitutions": ("|v| is out.\n\n.. |v| replace:: Version 2\n", "Version 2 is out.\n"),
    "faults": ("Title long\n=====\n\n*open and `broken\n", "# Title long\n\n*open and `broken\n"),
    "broken table": ("+---+\n| a |\n+==\n| 1   2 3 4 5 |\n+---+\n", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_document_says(case: str) -> None:
    source, said = CASES[case]
    if said is None:
        assert "1   2 3 4 5" in text(source)
    else:
        assert text(source) == said


def test_no_directive_reads_another_file_or_passes_markup_on(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    for source in (
        f".. include:: {secret}\n",
        f".. csv-table::\n   :file: {secret}\n",
        f".. raw:: html\n   :file: {secret}\n",
        f".. code-block::\n   :include: {secret}\n\n   x\n",
        f".. literalinclude:: {secret}\n",
    ):
        assert "yours" not in text(f"{source}\nseen\n")
    assert "<b>" not in text(".. raw:: html\n\n   <b>bold</b>\n\nseen\n")
