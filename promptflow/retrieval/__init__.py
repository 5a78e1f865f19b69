"""Documents to passages with exact places: parse, chunk, embed, store, search, verify.

Nothing heavy is imported before it is used: neither faiss nor torch nor sentence_transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptflow.retrieval.build import (
        add_documents,
        build_index,
        compact_index,
        remove_documents,
        update_index,
    )
    from promptflow.retrieval.chunk import Chunk, chunk_text
    from promptflow.retrieval.documents import Document, Rejected
    from promptflow.retrieval.embed import Embedder, HashingEmbedder, TextEmbedder, open_embedder
    from promptflow.retrieval.index import Index
    from promptflow.retrieval.passages import Passage
    from promptflow.retrieval.quotes import (
        Citation,
        Piece,
        Reading,
        distinct,
        locate_quote,
        read_passage,
        verify_quote,
    )
    from promptflow.retrieval.recipe import Recipe
    from promptflow.retrieval.rerank import CrossEncoderReranker
    from promptflow.retrieval.retriever import Retriever, Together
    from promptflow.retrieval.store import BuildReport
    from promptflow.retrieval.verify import Verification, verify_index
    from promptflow.retrieval.watch import watch_index

_HOME = {
    "BuildReport": "store",
    "Chunk": "chunk",
    "Citation": "quotes",
    "CrossEncoderReranker": "rerank",
    "Document": "documents",
    "Embedder": "embed",
    "HashingEmbedder": "embed",
    "Index": "index",
    "Passage": "passages",
    "Recipe": "recipe",
    "Rejected": "documents",
    "Retriever": "retriever",
    "TextEmbedder": "embed",
    "Together": "retriever",
    "Verification": "verify",
    "add_documents": "build",
    "build_index": "build",
    "chunk_text": "chunk",
    "Piece": "quotes",
    "Reading": "quotes",
    "distinct": "quotes",
    "compact_index": "build",
    "locate_quote": "quotes",
    "read_passage": "quotes",
    "open_embedder": "embed",
    "remove_documents": "build",
    "update_index": "build",
    "verify_index": "verify",
    "verify_quote": "quotes",
    "watch_index": "watch",
}

__all__ = [
    "BuildReport",
    "Chunk",
    "Citation",
    "CrossEncoderReranker",
    "Document",
    "Embedder",
    "HashingEmbedder",
    "Index",
    "Passage",
    "Piece",
    "Reading",
    "Recipe",
    "Rejected",
    "Retriever",
    "TextEmbedder",
    "Together",
    "Verification",
    "add_documents",
    "build_index",
    "chunk_text",
    "compact_index",
    "distinct",
    "locate_quote",
    "open_embedder",
    "read_passage",
    "remove_documents",
    "update_index",
    "verify_index",
    "verify_quote",
    "watch_index",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its file on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'promptflow.retrieval' has no attribute {name!r}")
    value = getattr(import_module(f"promptflow.retrieval.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
