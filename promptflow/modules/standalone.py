"""Messages of a conversation as questions that stand alone, before passages are looked up for them.

A model rewrites them, and a small one rewrites badly: it repeats the message, or an older question.
What it wrote is taken where it is the message with words of the conversation put in. Else the
message keeps its own words and gets what it is about behind it. Which of the two readings is meant,
with the conversation or without, is told by the documents: they are nearer to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptflow.retrieval import Retriever
from promptflow.retrieval.text import content_words, language_of, words

LOOKED_AT = 5
"""Passages of which the nearest counts."""


def is_faithful(rewritten: str, message: str, said: Sequence[str]) -> bool:
    """Say whether ``rewritten`` is the message with words of what was ``said`` put in.

    It keeps half of the message's content words at least, half of what it adds was said, and it is
    none of the questions before.
    """
    language = language_of(message)
    written, asked = set(words(rewritten, language)), set(words(message, language))
    before = [set(words(one.partition("\n")[0], language)) for one in said]
    if written == asked or written in before:
        return False
    own, held = _content(message, language), _content("\n".join(said), language)
    added = _content(rewritten, language) - own
    kept = own & written
    return 2 * len(kept) >= len(own) and bool(added) and 2 * len(added & held) >= len(added)


def _content(text: str, language: str) -> set[str]:
    return set(content_words(text, language))


def in_context(message: str, about: Sequence[str]) -> str:
    """Return a message with the questions that it is about behind it."""
    return f"{message} ({' '.join(about)})"


def nearer(retriever: Retriever, message: str, other: str) -> str:
    """Return which of two readings passages are nearer to by cosine; ``other`` if none is known."""
    alone, beside = _nearness(retriever, message), _nearness(retriever, other)
    return other if alone is None or beside is None or beside > alone else message


def _nearness(retriever: Retriever, question: str) -> float | None:
    found = [passage.scores.get("dense") for passage in retriever.search(question, LOOKED_AT)]
    return max((score for score in found if score is not None), default=None)
