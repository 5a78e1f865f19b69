"""Where a module's passages come from: an index, its name, or a retriever of the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptflow.errors import StoreNotFound
from promptflow.modules.settings import code_name
from promptflow.retrieval import Index, Retriever
from promptflow.retrieval.retriever import Together
from promptflow.storage import find_document


def opened(module: str, index: Any) -> Retriever:
    """Return the retriever that a module was given; a name or path is opened, several together.

    Raises TypeError for what has no ``search`` and no ``text``.
    """
    if isinstance(index, str | Path):
        return Index.open(index)
    if isinstance(index, list | tuple) and index:
        return Together([opened(module, one) for one in index])
    if isinstance(index, type) or not isinstance(index, Retriever):
        raise TypeError(
            f"{module}: {index!r} is no retriever: pass an index, the name of one, a list of them, "
            "or an object with the methods search(query, k) and text(document)"
        )
    return index


def index_name(index: Retriever) -> Any:
    """Return the name that finds the index's recipe again, else its path; of others the class.

    Of indexes together, by their own names, a list.
    """
    if isinstance(index, Together):
        parts = index.retrievers
        if all(isinstance(one, Index) and one.name == name for name, one in parts.items()):
            return [index_name(one) for one in parts.values()]
    recipe = getattr(index, "recipe", None)
    if recipe is None:
        return code_name(type(index))
    try:
        found = find_document("indexes", recipe.name)
    except StoreNotFound:
        return str(recipe.path)
    return str(recipe.name if found.resolve() == Path(recipe.path).resolve() else recipe.path)


def stale_in(index: Any, documents: Iterable[str]) -> dict[str, str]:
    """Return the documents whose files are ``gone`` or ``changed`` since the build.

    Of a retriever of one's own nothing is known.
    """
    found = {}
    for document in dict.fromkeys(documents):
        holder, name = index, document
        if isinstance(index, Together):
            key, name = index.owner(document)
            holder = index.retrievers[key]
        holder = getattr(holder, "index", holder)  # a view's
        if isinstance(holder, Index) and (what := holder.stale(name)):
            found[document] = what
    return found
