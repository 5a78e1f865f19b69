"""What one sentence of a passage says of a query."""

from __future__ import annotations

import pytest

from promptflow.retrieval.closeness import closeness
from promptflow.retrieval.text import query_words

TEXT = "Osmium is dense. Gold is a soft metal. 본사는 서울에 있다."


@pytest.mark.parametrize(
    ("query", "heading", "share"),
    [
        ("soft metals", "", 1.0),
        ("dense metal", "", 0.5),
        ("dense osmium metal", "", 2 / 3),
        ("dense metal", "On metals", 1.0),
        ("silver", "", 0.0),
        ("the", "", 0.0),
        ("gold gold dense", "", 0.5),
    ],
)
def test_the_best_sentence_counts(query: str, heading: str, share: float) -> None:
    asked = query_words(query, ["en"])
    assert closeness(asked, [1.0] * len(asked), heading, TEXT) == pytest.approx(share)


def test_words_count_by_their_rarity() -> None:
    asked = query_words("dense metal", ["en"])
    assert closeness(asked, [3.0, 1.0], "", TEXT) == 0.75
    assert closeness(asked, [0.0, 0.0], "", TEXT) == 0.0
    assert closeness([], [], "", TEXT) == 0.0


def test_pairs_of_characters_are_words_too() -> None:
    text = "본사는 서울에 있다. 공장은 부산에 있다."
    asked = query_words("부산 공장", ["ko"])
    assert closeness(asked, [1.0] * len(asked), "", text) == 1.0
    asked = query_words("서울 공장", ["ko"])
    assert closeness(asked, [1.0] * len(asked), "", text) == 0.5
