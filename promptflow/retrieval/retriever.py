"""What finds passages, as grounded answers need it: any object with two methods, or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from promptflow.errors import StoreError, StoreNotFound
from promptflow.retrieval.passages import RANK_CONSTANT, Passage


class Texts(Protocol):
    """What has documents' texts: an index, or a store."""

    def text(self, document: str) -> str:
        """Return the text of a document. Raises StoreNotFound."""


@runtime_checkable
class Retriever(Texts, Protocol):
    """What finds passages: an index, or a class of the user's own."""

    def search(self, query: str, k: int = 5) -> Sequence[Passage]:
        """Return at most ``k`` passages, best first, each a span of the text of its document."""


class Together:
    """Several retrievers searched as one; a document is called ``NAME:DOCUMENT`` here.

    They are given by name, or called by their own: by ``name`` as an index has it, else by their
    number from 1. Passages come by reciprocal rank fusion, best first. Raises StoreError for names
    that repeat, and for none.
    """

    def __init__(self, retrievers: Mapping[str, Retriever] | Sequence[Retriever]) -> None:
        if not isinstance(retrievers, Mapping):
            named = [(_name(one, n), one) for n, one in enumerate(retrievers, 1)]
            retrievers = dict(named)
            if len(retrievers) < len(named):
                names = ", ".join(name for name, _ in named)
                raise StoreError(f"Together: the names {names} repeat; give {{name: retriever}}")
        if not retrievers or any(":" in name for name in retrievers):
            raise StoreError(
                f"Together: got {list(retrievers)}; give retrievers, by names without a colon"
            )
        self.retrievers = dict(retrievers)

    def search(self, query: str, k: int = 5) -> list[Passage]:
        """Return the ``k`` best passages of all."""
        found: list[Passage] = []
        for name, retriever in self.retrievers.items():
            for rank, passage in enumerate(retriever.search(query, k), 1):
                document, score = f"{name}:{passage.document}", 1.0 / (RANK_CONSTANT + rank)
                found.append(replace(passage, document=document, score=score))
        return sorted(found, key=lambda passage: -passage.score)[:k]

    def text(self, document: str) -> str:
        """Return the text of a document. Raises StoreNotFound."""
        name, own = self.owner(document)
        return self.retrievers[name].text(own)

    def owner(self, document: str) -> tuple[str, str]:
        """Return the name of a document's retriever, and its own name there. Raises StoreNotFound.

        >>> Together({"notes": None}).owner("notes:a.md")
        ('notes', 'a.md')
        """
        name, sign, own = document.partition(":")
        if not sign or name not in self.retrievers:
            known = ", ".join(self.retrievers)
            raise StoreNotFound(
                f"no document {document!r}: expected NAME:DOCUMENT with one of the names {known}"
            )
        return name, own


def _name(retriever: Retriever, number: int) -> str:
    return str(getattr(retriever, "name", "") or number)
