"""Quotations are exact spans of their documents, and a wrong one is told."""

from __future__ import annotations

import unicodedata
from functools import partial

import pytest
from hypothesis import given, strategies as st

from promptflow.errors import StoreNotFound
from promptflow.retrieval import (
    Citation,
    Passage,
    distinct,
    locate_quote,
    read_passage,
    verify_quote,
)

DOCUMENTS = {
    "metals/osmium.md": "# Osmium\n\nOsmium is the densest metal.\n",
    "metals/gold.md": "# Gold\n\nGold is a soft yellow metal.\n",
}
OSMIUM = Passage("metals/osmium.md", 0, 0, 37, DOCUMENTS["metals/osmium.md"][:37], 1.0, "Osmium")


class Texts:
    def text(self, document: str) -> str:
        if document not in DOCUMENTS:
            raise StoreNotFound(document)
        return DOCUMENTS[document]


TEXTS = Texts()


def passage(text: str, start: int = 0, score: float = 0.5, heading: str = "") -> Passage:
    return Passage("guide.md", 7, start, start + len(text), text, score, heading)


def quotes(text: str, start: int = 0, document: str = "") -> list[Citation]:
    return read_passage(passage(text, start=start), document).quotes()


GUIDE = """## Figures

Zero-shot chain of thought raised the model on MultiArith from 17.7 % to 78.7 %. "It works,"
said Kojima. See Sec. 3 for more than that.

```python
run("This is code. It is not prose.")
```

The phrase matters more than one would think."""


def test_sentences_are_spans_of_the_document() -> None:
    document = "skipped " * 3 + GUIDE
    found = quotes(GUIDE, start=24)
    assert [c.quote for c in found] == [
        "Figures",
        "Zero-shot chain of thought raised the model on MultiArith from 17.7 % to 78.7 %.",
        '"It works,"\nsaid Kojima.',
        "See Sec. 3 for more than that.",
        'run("This is code. It is not prose.")',
        "The phrase matters more than one would think.",
    ]
    for citation in found:
        assert document[citation.start : citation.end] == citation.quote
        assert (citation.document, citation.chunk) == ("guide.md", 7)


@given(st.text(alphabet="ab .!?\n#`|A1", max_size=200), st.integers(0, 50))
def test_every_sentence_of_any_text_is_its_span(text: str, start: int) -> None:
    for citation in quotes(text, start=start):
        assert text[citation.start - start : citation.end - start] == citation.quote
        assert citation.quote == citation.quote.strip()


def test_a_decimal_point_ends_no_sentence() -> None:
    [citation] = quotes("It rose from 17.7 % to 78.7 % in the end")
    assert citation.quote.endswith("in the end")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Manual\nUse 40 bar.", ["Manual", "Use 40 bar."]),
        ("# Manual #\r\nUse 40 bar.\r\n", ["Manual", "Use 40 bar."]),
        ("Manual\n======\nUse 40 bar.", ["Manual", "Use 40 bar."]),
        ("One.\n\n---\n\nTwo.", ["One.", "Two."]),
        (
            "- one pump\n- two\n  valves\n\n1. start\n2) stop",
            ["one pump", "two\n  valves", "start", "stop"],
        ),
        ("> He said so.\n> Twice.", ["He said so.", "Twice."]),
        ("본사는 서울에 있다. 직원은 12명이다.", ["본사는 서울에 있다.", "직원은 12명이다."]),
        ("東京は首都です。人口は多い。", ["東京は首都です。", "人口は多い。"]),
        ("北京是首都。人口很多。", ["北京是首都。", "人口很多。"]),
        ("| City | People |\n|---|--:|\n| Seoul | 9.4 |", ["| City | People |", "| Seoul | 9.4 |"]),
        (
            "City | People\n--- | ---\nSeoul | 9.4\n\nThen text.",
            ["City | People", "Seoul | 9.4", "Then text."],
        ),
        ("~~~\nx = 1\n\n~~~\nDone.", ["x = 1", "Done."]),
        (
            "□ (개요) 조성함\nㅇ 목표 5,000억원\n※ 2024년 기준\no (기타) 없음",
            ["(개요) 조성함", "목표 5,000억원", "2024년 기준", "(기타) 없음"],
        ),
        ("다음과 같다.\n가. 서류\n나. 심사", ["다음과 같다.", "서류", "심사"]),
        (
            "서류를 제출하여야 한\n다. 그 뒤에 심사한다.",
            ["서류를 제출하여야 한\n다.", "그 뒤에 심사한다."],
        ),
        ("개정은 2021.\n12. 8. 있었다.", ["개정은 2021.\n12. 8. 있었다."]),
        ("...\n\n***\n", []),
        ("", []),
    ],
)
def test_what_can_be_quoted_alone(text: str, expected: list[str]) -> None:
    for form in ("NFC", "NFD"):
        normal = partial(unicodedata.normalize, form)
        assert [c.quote for c in quotes(normal(text))] == [normal(quote) for quote in expected]


def test_a_row_is_shown_with_the_header_of_its_table() -> None:
    text = "| City | People | |\n|:--|--|--|\n| Seoul | 9.4 million | \\| |\n| Busan | | x |"
    reading = read_passage(passage(text, start=5))
    assert reading.text.splitlines()[1:] == [
        "City: Seoul; People: 9.4 million; \\|",
        "City: Busan; x",
    ]
    [place] = reading.places("9.4 million")
    assert [c.quote for c in reading.cited(*place)] == ["| Seoul | 9.4 million | \\| |"]
    [place] = reading.places("People: 9.4")
    assert [c.quote for c in reading.cited(*place)] == [
        "| City | People | |",
        "| Seoul | 9.4 million | \\| |",
    ]


def test_a_passage_within_a_table_has_the_header_from_above() -> None:
    document = "# T\n\n| City | People |\n|---|---|\n| Seoul | 9.4 |\n| Busan | 3.3 |\n"
    start = document.index("| Busan")
    part = document[start:-1]
    reading = read_passage(passage(part, start), document)
    assert reading.text == "City: Busan; People: 3.3"
    assert [c.quote for c in reading.quotes()] == ["| Busan | 3.3 |"]
    for piece in reading.pieces:
        c = piece.citation
        assert document[c.start : c.end] == c.quote


def test_quotes_know_their_page_and_heading() -> None:
    text = "Use 40 bar."
    found = Passage("m.pdf", 3, 0, 11, text, 1.0, "A > B", {"page": 7})
    assert [(c.page, c.heading) for c in read_passage(found).quotes()] == [(7, "A > B")]


def test_decomposed_text_is_shown_composed_and_quoted_as_it_is() -> None:
    text = unicodedata.normalize("NFD", "본사는 서울에 있다.")
    reading = read_passage(passage(text))
    assert reading.text == "본사는 서울에 있다."
    [place] = reading.places("서울")
    assert [c.quote for c in reading.cited(*place)] == [text]


def test_east_asian_lines_are_joined_without_a_space() -> None:
    assert read_passage(passage("人口は約1400万人\nです。")).text == "人口は約1400万人です。"
    assert read_passage(passage("본사는\n서울에 있다.")).text == "본사는 서울에 있다."


def test_places_are_whole_words_where_there_are_any() -> None:
    reading = read_passage(passage("Parts of the art are 1967 or 19."))
    assert [reading.text[slice(*p)] for p in reading.places("art")] == ["art"]
    assert reading.places("art") == [(13, 16)]
    assert reading.places("19") == [(29, 31)]
    assert reading.places("rts") == [(2, 5)]
    assert reading.places("none") == []


def test_what_has_no_full_stop_is_quoted_line_by_line() -> None:
    lines = [f"item number {n} of the long list without any stop" for n in range(20)]
    assert [c.quote for c in quotes("\n".join(lines))] == lines


def test_copies_are_read_once() -> None:
    copies = [passage("Use  40 bar."), passage("use 40\nbar."), passage("Use 35 bar.")]
    assert distinct(copies) == [copies[0], copies[2]]


def test_a_quote_is_located_in_its_document() -> None:
    passage = OSMIUM
    quote = "the densest metal"
    span = locate_quote(passage, quote)
    assert span is not None
    assert DOCUMENTS[passage.document][slice(*span)] == quote
    assert verify_quote(TEXTS, passage.document, *span, quote)


@pytest.mark.parametrize("quote", ["the Densest metal", "", " ", "densest  metal", "Gold"])
def test_what_is_not_in_the_passage_has_no_place(quote: str) -> None:
    passage = OSMIUM
    assert locate_quote(passage, quote) is None


@pytest.mark.parametrize(
    ("document", "start", "end", "quote"),
    [
        ("metals/osmium.md", 2, 8, "osmium"),
        ("metals/osmium.md", 3, 9, "Osmium"),
        ("metals/osmium.md", -6, 0, "Osmium"),
        ("metals/osmium.md", 2, 2, ""),
        ("metals/osmium.md", 8, 9, "\n"),
        ("metals/osmium.md", 2, 10**9, "Osmium"),
        ("metals/gold.md", 2, 8, "Osmium"),
        ("metals/lead.md", 2, 8, "Osmium"),
    ],
)
def test_a_wrong_citation_is_not_verified(document: str, start: int, end: int, quote: str) -> None:
    assert verify_quote(TEXTS, "metals/osmium.md", 2, 8, "Osmium")
    assert not verify_quote(TEXTS, document, start, end, quote)


@given(st.text(min_size=1), st.data())
def test_every_span_of_a_passage_is_located(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    quote = text[start:end]
    passage = Passage("d", 0, 100, 100 + len(text), text, 1.0)
    span = locate_quote(passage, quote)
    if quote.strip():
        assert span is not None
        assert text[span[0] - 100 : span[1] - 100] == quote
    else:
        assert span is None
