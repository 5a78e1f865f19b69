"""The indexes that a command answers from, and where a citation of theirs stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from promptflow.cli.filters import filters_of
from promptflow.errors import StoreError

if TYPE_CHECKING:
    from promptflow.retrieval import Index, Retriever
    from promptflow.retrieval.location import Location
    from promptflow.retrieval.passages import Mode, Rerank


@dataclass(frozen=True, slots=True)
class Sources:
    """Open indexes by name, and what searches all of them."""

    indexes: Mapping[str, Index]
    retriever: Retriever

    @property
    def several(self) -> bool:
        """Whether a document's name does not tell its index."""
        return len(self.indexes) > 1

    def of(self, document: str) -> tuple[Index, str]:
        """Return the index of a citation's document, and the document's own name in it."""
        from promptflow.retrieval.retriever import Together

        if isinstance(self.retriever, Together):
            name, own = self.retriever.owner(document)
            return self.indexes[name], own
        [index] = self.indexes.values()
        return index, document

    def locate(self, citation: Any) -> Location:
        """Return where a citation stands. Raises StoreNotFound where its file is another now."""
        from promptflow.retrieval.location import locate

        index, document = self.of(citation.document)
        return locate(index, document, citation.start, citation.page)

    def record(self, citation: Any) -> dict[str, Any]:
        """Return a citation as plain data; ``stale`` says what became of its file."""
        index, document = self.of(citation.document)
        own = ("page", "heading", "chunk", "start", "end", "quote")
        return {
            "index": index.name,
            "document": document,
            **{name: getattr(citation, name) for name in own},
            "stale": index.stale(document),
        }


def open_sources(
    names: Sequence[str],
    *,
    mode: str | None = None,
    where: Sequence[str] = (),
    rerank: Rerank | None = None,
) -> Sources:
    """Open indexes for a search of all of them, in a mode and with the filters of a person.

    Raises StoreError for an index that is named twice, and what ``Index.open`` raises.
    """
    from promptflow.retrieval import Index
    from promptflow.retrieval.retriever import Together

    indexes: dict[str, Index] = {}
    for name in names:
        index = Index.open(name)
        if index.name in indexes:
            raise StoreError(f"--index {name}: an index called {index.name} is named twice")
        indexes[index.name] = index
    filters: list[dict[str, list[Any]] | None] = [{} for _ in indexes]
    if where:
        filters = filters_of(where, [index.store.documents() for index in indexes.values()])
    chosen = cast("Mode | None", mode)
    views: dict[str, Retriever] = {}
    for (name, index), allowed in zip(indexes.items(), filters, strict=True):
        if allowed is not None:
            plain = not (mode or allowed or rerank)
            views[name] = (
                index if plain else index.view(mode=chosen, where=allowed or None, rerank=rerank)
            )
    if len(indexes) == 1:
        [retriever] = views.values()
        return Sources(indexes, retriever)
    return Sources(indexes, Together(views))
