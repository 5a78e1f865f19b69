from __future__ import annotations

import pytest

from promptflow.retrieval.kinds.blocks import Blocks, counted, flat, lowered, raised


def test_blocks_are_parted_and_items_stand_together() -> None:
    blocks = Blocks()
    blocks.page()
    blocks.heading(9, " deep \n one ")
    blocks.paragraph("a\n  b")
    blocks.item("x")
    blocks.item("y", "2.", 1)
    blocks.page()
    blocks.item("z")
    blocks.rows([["a", "b", "c"], ["1", "2", "3"]], 1)
    blocks.verbatim("\n  kept  \n  as is\n")
    blocks.paragraph(" ")
    parsed = blocks.parsed(" The \n title")
    assert parsed.text == (
        "###### deep one\n\na\nb\n\n- x\n  2. y\n\n- z\n\na: 1; b: 2; c: 3\n\n  kept\n  as is\n"
    )
    assert parsed.title == "The title"
    assert [parsed.text[page:][:3] for page in parsed.pages] == ["###", "- z"]


def test_code_that_looks_like_headings_stands_in_a_fence_that_it_cannot_close() -> None:
    blocks = Blocks()
    blocks.verbatim("# no heading\n```\nx")
    assert blocks.parsed().text == "````\n# no heading\n```\nx\n````\n"


def test_a_plain_one_is_a_line() -> None:
    blocks = Blocks(plain=True)
    blocks.heading(1, "a")
    blocks.item("b")
    blocks.item("c")
    blocks.item("d", "3.")
    blocks.paragraph("e\nf")
    assert blocks.line() == "a b, c, 3. d e, f"


@pytest.mark.parametrize(
    ("before", "text", "said"),
    [
        ("10", "6", "^6"), ("1", "st", "st"), ("21", "e", "e"), ("e", "x", "^x"), ("a", " ", ""),
        ("10", "-6", "^-6"), ("word", "[3]", "[3]"), ("word", "*", "*"), ("M", "me", "me"),
        ("x", "n+1", "^(n+1)"),
    ],
)  # fmt: skip
def test_what_stands_high(before: str, text: str, said: str) -> None:
    assert raised(text, before) == said


@pytest.mark.parametrize(
    ("before", "text", "after", "said"),
    [("H", "2", "O", "2"), ("x", "1", "2", "_1 "), ("10", "2", ")", "_2"), ("x", "", "y", "")],
)
def test_what_stands_low(before: str, text: str, after: str, said: str) -> None:
    assert lowered(text, before, after) == said


def test_how_lists_count() -> None:
    assert [counted(n, "a") for n in (1, 26, 27, 702, 703)] == ["a", "z", "aa", "zz", "aaa"]
    assert [counted(n, "I") for n in (1, 4, 9, 14, 1994, 4000)] == [
        *("I", "IV", "IX", "XIV", "MCMXCIV", "4000")
    ]
    assert [counted(n, "가") for n in (1, 14, 15)] == ["가", "하", "15"]
    assert [counted(0, "a"), counted(-1, "i"), counted(3, "01"), counted(2, "①")] == [
        *("0", "-1", "03", "②")
    ]


def test_what_nobody_sees_is_gone() -> None:
    assert flat("\ufeffa\u00adb\u200b \n\t c\u00a0d") == "ab c d"
