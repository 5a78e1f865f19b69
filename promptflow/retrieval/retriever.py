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
    number from 1. Passages are ordered by what a reranker said, else by reciprocal ranks: that of
    their own search, and that of their cosine among all, where one embedder made all cosines.
    Raises StoreError for names that repeat, and for none.
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
        found = [
            replace(passage, document=f"{name}:{passage.document}", score=_share(rank))
            for name, retriever in self.retrievers.items()
            for rank, passage in enumerate(retriever.search(query, k), 1)
        ]
        if all("rerank" in passage.scores for passage in found):
            found = [replace(passage, score=passage.scores["rerank"]) for passage in found]
        elif self._is_alike() and all("dense" in passage.scores for passage in found):
            found.sort(key=lambda passage: -passage.scores["dense"])
            found = [replace(p, score=p.score + _share(n)) for n, p in enumerate(found, 1)]
        return sorted(found, key=lambda passage: -passage.score)[:k]

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


def _share(rank: int) -> float:
    return 1.0 / (RANK_CONSTANT + rank)


def _name(retriever: Retriever, number: int) -> str:
    return str(getattr(retriever, "name", "") or number)
