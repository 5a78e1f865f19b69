"""Quotations are exact spans of their documents, and a wrong one is told."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from promptflow.errors import StoreNotFound
from promptflow.retrieval import Passage, locate_quote, sentences, verify_quote

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


GUIDE = """## Figures

Zero-shot chain of thought raised the model on MultiArith from 17.7 % to 78.7 %. "It works,"
said Kojima. See Sec. 3 for more than that.

```python
run("This is code. It is not prose.")
```

The phrase matters more than one would think."""


def test_sentences_are_spans_of_the_document() -> None:
    document = "skipped " * 3 + GUIDE
    found = sentences(passage(GUIDE, start=24))
    assert [c.quote for c in found] == [
        "Zero-shot chain of thought raised the model on MultiArith from 17.7 % to 78.7 %.",
        '"It works,"\nsaid Kojima.',
        "See Sec. 3 for more than that.",
        "The phrase matters more than one would think.",
    ]
    for citation in found:
        assert document[citation.start : citation.end] == citation.quote
        assert (citation.document, citation.chunk) == ("guide.md", 7)


def test_headings_and_code_are_no_sentences() -> None:
    quotes = " ".join(c.quote for c in sentences(passage(GUIDE)))
    assert "Figures" not in quotes
    assert "code" not in quotes


@given(st.text(alphabet="ab .!?\n#`|A1", max_size=200), st.integers(0, 50))
def test_every_sentence_of_any_text_is_its_span(text: str, start: int) -> None:
    for citation in sentences(passage(text, start=start)):
        assert text[citation.start - start : citation.end - start] == citation.quote
        assert citation.quote == citation.quote.strip()


def test_a_decimal_point_ends_no_sentence() -> None:
    [citation] = sentences(passage("It rose from 17.7 % to 78.7 % in the end"))
    assert citation.quote.endswith("in the end")


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
