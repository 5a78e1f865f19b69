from __future__ import annotations

import pytest
from office_files import epub

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.epub import read

HEAD = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/>'


def test_chapters_in_their_order_each_as_a_page() -> None:
    chapters = (
        f"{HEAD}</head><body><h1>Zwei</h1><p>erste Zeile</p></body></html>",
        f'{HEAD}<script src="x"/></head><body><h1>One</h1><table><tr><th>a</th><th>b</th></tr>'
        "<tr><td>1</td><td>2</td></tr></table></body></html>",
    )
    parsed = read(epub(*chapters, title="Two &amp; one"), "a.epub")
    assert parsed.text == "# Zwei\n\nerste Zeile\n\n# One\n\na: 1; b: 2\n"
    assert parsed.title == "Two & one"


def test_a_locked_book_is_refused() -> None:
    locks = {"META-INF/encryption.xml": "<a/>", "META-INF/rights.xml": "<a/>"}
    with pytest.raises(Unreadable, match="digital rights"):
        read(epub("<p>x</p>", **locks), "a.epub")
    assert read(epub("<p>x</p>", **{"META-INF/encryption.xml": "<a/>"}), "a.epub").text == "x\n"
