"""Documents to passages with exact places: parse, chunk, embed, store, search, verify.

Nothing heavy is imported before it is used: neither faiss nor torch nor sentence_transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptflow.retrieval.build import build_index
    from promptflow.retrieval.chunk import Chunk, chunk_text
    from promptflow.retrieval.commands import (
        index_build,
        index_info,
        index_list,
        index_search,
        index_verify,
    )
    from promptflow.retrieval.documents import Document, Rejected
    from promptflow.retrieval.embed import Embedder, HashingEmbedder, TextEmbedder, open_embedder
    from promptflow.retrieval.index import BuildReport, Index
    from promptflow.retrieval.recipe import Recipe
    from promptflow.retrieval.search import Passage, locate_quote, verify_quote
    from promptflow.retrieval.verify import Verification, verify_index

_HOME = {
    "BuildReport": "index",
    "Chunk": "chunk",
    "Document": "documents",
    "Embedder": "embed",
    "HashingEmbedder": "embed",
    "Index": "index",
    "Passage": "search",
    "Recipe": "recipe",
    "Rejected": "documents",
    "TextEmbedder": "embed",
    "Verification": "verify",
    "build_index": "build",
    "chunk_text": "chunk",
    "index_build": "commands",
    "index_info": "commands",
    "index_list": "commands",
    "index_search": "commands",
    "index_verify": "commands",
    "locate_quote": "search",
    "open_embedder": "embed",
    "verify_index": "verify",
    "verify_quote": "search",
}

__all__ = [
    "BuildReport",
    "Chunk",
    "Document",
    "Embedder",
    "HashingEmbedder",
    "Index",
    "Passage",
    "Recipe",
    "Rejected",
    "TextEmbedder",
    "Verification",
    "build_index",
    "chunk_text",
    "index_build",
    "index_info",
    "index_list",
    "index_search",
    "index_verify",
    "locate_quote",
    "open_embedder",
    "verify_index",
    "verify_quote",
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
