"""Words with boxes to lines in reading order, without any PDF."""

from __future__ import annotations

import random

import pytest

from promptflow.retrieval.kinds.page import (
    HYPHEN,
    Page,
    Word,
    joined,
    laid_out,
    needs_layout,
    with_exponents,
)


def words(text: str, x: float, y: float, size: float = 10) -> list[Word]:
    """Return a line's words as boxes, each character half as wide as high."""
    found = []
    for word in text.split():
        found.append(Word(word, x, y, x + len(word) * size / 2, y + size))
        x += (len(word) + 1) * size / 2
    return found


PROSE = [f"running text of the line number {at} of it" for at in range(12)]


def drawn(*columns: tuple[float, list[str]]) -> list[Word]:
    return [
        word for x, lines in columns for at, text in enumerate(lines)
        for word in words(text, x, 700 - 14 * at)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_columns_of_text_are_read_in_order_whatever_the_order_of_drawing(count, seed) -> None:
    columns = [[f"c{at} {line}" for line in PROSE] for at in range(count)]
    boxes = drawn(*((50 + 300 * at, lines) for at, lines in enumerate(columns)))
    lines_of_words = [boxes[at : at + 9] for at in range(0, len(boxes), 10)]
    rest = [boxes[at + 9 : at + 10] for at in range(0, len(boxes), 10)]
    pieces = [piece for pair in zip(lines_of_words, rest, strict=True) for piece in pair]
    random.Random(seed).shuffle(pieces)
    page = laid_out([word for piece in pieces for word in piece])
    assert [line for line in page.lines if line] == [line for of in columns for line in of]
    assert not page.unsafe


def test_what_crosses_the_columns_parts_them() -> None:
    above, below = PROSE[:4], PROSE[4:8]
    boxes = drawn((50, [*above, "", *below]), (350, [*above, "", *below]))
    boxes += words("a heading that goes across both of the columns that are on this page", 50, 644)
    lines = [line for line in laid_out(boxes).lines if line]
    assert lines == [*above, *above, lines[8], *below, *below]
    assert lines[8].startswith("a heading")


def test_only_wide_gaps_and_jumps_need_a_layout() -> None:
    assert not needs_layout(drawn((50, PROSE)))
    assert not needs_layout([])
    assert needs_layout(drawn((50, PROSE), (350, PROSE)))
    assert needs_layout([*words("a b", 50, 700), *words("c d", 50, 720)])
    assert needs_layout([*words("a", 50, 700), *words("b", 90, 700), *words("c", 190, 700)])


@pytest.mark.parametrize(
    ("text", "small", "said"),
    [
        ("106", {2: 4.0}, "10^6"),
        ("1012", {2: 4.0, 3: 4.0}, "10^12"),
        ("102", {2: -2.0}, "10_2"),
        ("10-6", {2: 4.0, 3: 4.0}, "10-6"),
        ("2024", {}, "2024"),
        ("x2", {1: 4.0}, "x2"),
    ],
)
def test_exponents(text: str, small: dict[int, float], said: str) -> None:
    boxes = [(at * 5.0, small.get(at, 0.0), at * 5.0 + 5, small.get(at, 4.0) + 6.0)
             for at in range(len(text))]  # fmt: skip
    assert with_exponents(text, boxes) == said


def text_of(*lines: str) -> str:
    return joined([Page(list(lines))])[0].strip()


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["it is an exam-", "ple of it"], "it is an example of it"),
        ([f"it is an exam{HYPHEN}", "ple of it"], "it is an example of it"),
        (["a well-", "known thing, well-known to all"], "a well-known thing, well-known to all"),
        (["the NATO-", "led force of"], "the NATO-led force of"),
        (["from A-", "Z it goes"], "from A-\nZ it goes"),
        (["a sentence ends.", "and so on it goes"], "a sentence ends.\nand so on it goes"),
        (["this line goes on", "and on in the next"], "this line goes on and on in the next"),
        (["City", "of the people who live in it"], "City\nof the people who live in it"),
        (["日本の首都は東京で", "あり、人口が多い。"], "日本の首都は東京であり、人口が多い。"),
        (["한국의 수도는 서울", "특별시이다 그렇다"], "한국의 수도는 서울 특별시이다 그렇다"),
        (["한국의 수도는 서 ", "울은 넓다 그리고 ", "큰 도시들 중의 하", "나이다 그렇다고"],
         "한국의 수도는 서 울은 넓다 그리고 큰 도시들 중의 하나이다 그렇다고"),
        (["one", "", "", "", "two"], "one\n\ntwo"),
        ([f"left{HYPHEN}"], "left-"),
    ],
)  # fmt: skip
def test_words_and_lines_that_go_on_are_joined(lines: list[str], text: str) -> None:
    assert text_of(*lines) == text


def test_pages_end_apart() -> None:
    assert joined([Page(["one"]), Page([]), Page(["two"])]) == ["one\n\n", "\n\n", "two\n\n"]
