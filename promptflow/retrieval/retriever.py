"""What finds passages, as grounded answers need it: any object with two methods, or several."""

from __future__ import annotations

import math
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
    number from 1. Each search keeps its own order. Whose passage comes next is told by what a
    reranker said, else by cosines where one embedder made all of them, else by ranks. Raises
    StoreError for names that repeat, and for none.
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
        searches = [
            [replace(p, document=f"{name}:{p.document}") for p in retriever.search(query, k)]
            for name, retriever in self.retrievers.items()
        ]
        found = [passage for search in searches for passage in search]
        if all("rerank" in passage.scores for passage in found):
            kind = "rerank"
        elif self._is_alike() and all("dense" in passage.scores for passage in found):
            kind = "dense"
        else:
            kind = ""
        ordered = [passage for search in searches for passage in _scored(search, kind)]
        # A stable sort: each search's own order stays, whatever is told of its passages alone.
        return sorted(ordered, key=lambda passage: -passage.score)[:k]

    def _is_alike(self) -> bool:
        """Say whether all passages have cosines of one embedder, which can be compared."""
        indexes = [getattr(one, "index", one) for one in self.retrievers.values()]
        manifests = [getattr(index, "manifest", None) for index in indexes]
        known = {str(manifest.embedder["sha256"]) for manifest in manifests if manifest is not None}
        return None not in manifests and len(known) == 1

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


def _scored(search: Sequence[Passage], kind: str) -> list[Passage]:
    """Return passages with scores that fall as their order does: of a kind, else of the rank.

    A passage has the best score of those from it on, so that what its own search puts first is not
    put behind what follows it.
    """
    if not kind:
        return [replace(p, score=1.0 / (RANK_CONSTANT + n)) for n, p in enumerate(search, 1)]
    scored: list[Passage] = []
    best = -math.inf
    for passage in reversed(search):
        best = max(best, passage.scores[kind])
        scored.append(replace(passage, score=best))
    return scored[::-1]


def _name(retriever: Retriever, number: int) -> str:
    return str(getattr(retriever, "name", "") or number)
