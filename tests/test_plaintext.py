from __future__ import annotations

import pytest

from promptflow.encodings import Undecodable
from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.plaintext import read


def test_the_text_is_the_file_itself_and_its_mark_counts() -> None:
    exact = "windows\r\nlines\r\n\tand é中😀 \u2028 end\n"
    assert read(exact.encode(), "a").text == exact
    assert read(b"\xef\xbb\xbf" + exact.encode(), "a").text == "\ufeff" + exact
    assert read(exact.encode("utf-16"), "a").text == exact


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(Unreadable, match="a zero character at 2"):
        read(b"ab\0c\xc3\xa9 and more words", "a")
    with pytest.raises(Undecodable, match="in doubt"):
        read(b"caf\xe9", "a")
