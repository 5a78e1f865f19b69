"""What grounded answers need of what finds their passages: any object with two methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from promptflow.retrieval.passages import Passage


class Texts(Protocol):
    """What has documents' texts: an index, or a store."""

    def text(self, document: str) -> str:
        """Return the text of a document. Raises StoreNotFound."""


@runtime_checkable
class Retriever(Texts, Protocol):
    """What finds passages: an index, or a class of the user's own."""

    def search(self, query: str, k: int = 5) -> Sequence[Passage]:
        """Return at most ``k`` passages, best first, each a span of the text of its document."""
