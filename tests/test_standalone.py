"""What is taken of a model's rewriting, and how a message is read where none is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from promptflow.modules.standalone import in_context, is_faithful, nearer
from promptflow.retrieval import Passage

SHELLEY = ["Who wrote Frankenstein?\nMary Shelley wrote it in 1818."]
KING = ["한글은 누가 만들었나요?\n세종대왕이 만들었습니다."]


@pytest.mark.parametrize(
    ("rewritten", "message", "said", "faithful"),
    [
        ("Where was Mary Shelley born?", "Where was she born?", SHELLEY, True),
        ("When was Frankenstein written?", "When was it written?", SHELLEY, True),
        ("Who wrote Dracula?", "And Dracula?", SHELLEY, True),
        ("When did Mary Shelley write it?", "When?", SHELLEY, True),
        # The message itself, an older question, words of nowhere, another question.
        ("Where was she born?", "Where was she born?", SHELLEY, False),
        ("where was SHE born", "Where was she born?", SHELLEY, False),
        ("Who wrote Frankenstein?", "Where was she born?", SHELLEY, False),
        ("Who wrote Frankenstein?", "Who?", SHELLEY, False),
        ("Where was Napoleon born?", "Where was she born?", SHELLEY, False),
        ("Mary Shelley was born in London.", "What did she read?", SHELLEY, False),
        ("", "Where was she born?", SHELLEY, False),
        ("세종대왕은 언제 태어났나요?", "그는 언제 태어났나요?", KING, True),
        ("한글은 누가 만들었나요?", "김치는 어떻게 만드나요?", KING, False),
        ("그는 언제 태어났나요?", "그는 언제 태어났나요?", KING, False),
    ],
)
def test_a_rewriting_is_the_message_with_words_that_were_said(
    rewritten: str, message: str, said: list[str], faithful: bool
):
    assert is_faithful(rewritten, message, said) is faithful


@dataclass
class Near:
    """A retriever whose passages have these cosines, by the question."""

    cosines: Mapping[str, list[float | None]]

    def search(self, query: str, k: int = 5) -> list[Passage]:
        return [
            Passage("a", 0, 0, 1, "x", 0.0, scores={} if c is None else {"dense": c})
            for c in self.cosines[query]
        ]

    def text(self, document: str) -> str:
        return "x"


@pytest.mark.parametrize(
    ("alone", "beside", "is_alone"),
    [
        ([0.2], [0.5], False),
        ([0.6], [0.5], True),
        ([0.1, 0.6], [0.5, 0.2], True),
        ([None], [None], False),
        ([], [], False),
    ],
)
def test_the_documents_tell_which_reading_is_meant(
    alone: list[float | None], beside: list[float | None], is_alone: bool
):
    both = Near({"And K2?": alone, "How tall is K2?": beside})
    assert (nearer(both, "And K2?", "How tall is K2?") == "And K2?") is is_alone


def test_what_a_message_is_about_stands_behind_it():
    assert in_context("When?", ["Who wrote it?", "Who?"]) == "When? (Who wrote it? Who?)"
