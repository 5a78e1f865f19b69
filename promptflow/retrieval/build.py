"""Documents to a committed index: read, cut, embed, write a generation, commit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import EmptyCorpus, ModelInvalid, StoreError, names_options
from promptflow.progress import Show, bars
from promptflow.retrieval.chunk import Chunk, chunk_text
from promptflow.retrieval.dense import build_dense
from promptflow.retrieval.documents import Document, Rejected, find, load_all, sha256_inside
from promptflow.retrieval.embed import TextEmbedder, identity, open_embedder
from promptflow.retrieval.index import Index
from promptflow.retrieval.recipe import Recipe, find_recipe
from promptflow.retrieval.store import (
    DENSE,
    HEADING_TOKENS,
    SPARSE,
    BuildReport,
    Draft,
    Manifest,
    Store,
    commit,
    discard,
    drafting,
    next_generation,
)
from promptflow.retrieval.vectors import KeptVectors, key_of
from promptflow.storage import lock

BLOCK = 128
Cut = tuple[Document, list[Chunk]]


@names_options
def build_index(
    name: str | Path,
    documents: str | Path | None = None,
    *,
    embedder: TextEmbedder | None = None,
    progress: bool = True,
    force: bool = False,
) -> Index:
    """Build the index of a recipe, or a new one over ``documents``, and open it.

    Vectors of passages that did not change are reused, and an index that is up to date is left
    alone unless ``force``. The old generation stays usable until the new one is committed, whatever
    ends the build. Raises EmptyCorpus, StoreBusy, DiskFull, ModelNotFound.
    """
    started = time.monotonic()
    recipe = find_recipe(name, None if documents is None else Path(documents))
    folder = recipe.folder
    names = find(folder, recipe.globs)
    if embedder is None:
        embedder = open_embedder(recipe.embedder, recipe.prefixes)
    elif not recipe.path.exists():
        recipe = replace(recipe, embedder=embedder.name)
    if recipe.chunk_size > (most := embedder.max_tokens - HEADING_TOKENS):
        raise StoreError(
            f"{recipe.path}: chunk_size is {recipe.chunk_size}, expected at most {most}: "
            f"{embedder.name} reads {embedder.max_tokens} tokens and would not see the rest"
        )
    if not force and (store := _current(recipe, names, embedder)) is not None:
        counts = store.manifest.counts
        report = BuildReport(
            store.manifest.generation,
            counts["documents"],
            counts["chunks"],
            tuple(store.rejected()),
            0,
            0,
            time.monotonic() - started,
            unchanged=True,
        )
        return Index(recipe, store, embedder=embedder, report=report)
    with bars(progress) as show:
        report = _build(recipe, names, embedder, show)
    store = Store.open(recipe.built, recipe.rebuild)
    report = replace(report, seconds=time.monotonic() - started)
    return Index(recipe, store, embedder=embedder, report=report)


def _current(
    recipe: Recipe, names: Sequence[str | Rejected], embedder: TextEmbedder
) -> Store | None:
    """Return the open store if it is intact and says what a build would say."""
    try:
        store = Store.open(recipe.built, recipe.rebuild)
    except StoreError:
        return None
    stated = {entry["path"]: entry["sha256"] for entry in store.documents()}
    stated |= {entry.path: entry.sha256 for entry in store.rejected()}
    facts = (store.manifest.settings, store.manifest.embedder, store.manifest.documents)
    if facts == (recipe.settings(), identity(embedder), str(recipe.folder)):
        here = {
            name.path if isinstance(name, Rejected) else name: ""
            if isinstance(name, Rejected)
            else sha256_inside(recipe.folder, name)
            for name in names
        }
        if here == stated:
            return store
    store.close()
    return None


def _build(
    recipe: Recipe, names: Sequence[str | Rejected], embedder: TextEmbedder, show: Show
) -> BuildReport:
    items = _corpus(recipe, names, embedder, show)
    # Nothing is written before there is something to write.
    before: list[Cut | Rejected] = []
    for item in items:
        before.append(item)
        if not isinstance(item, Rejected):
            break
    else:
        raise EmptyCorpus(_empty(recipe, before))
    built = recipe.built
    with lock(built / "lock"):
        number = next_generation(built)
        try:
            with drafting(built, number) as draft:
                rejected = _add_all(draft, itertools.chain(before, items))
                embedded, reused = _write_segments(draft, recipe, embedder, show)
                segments = draft.seal()
            if not recipe.path.exists():
                recipe.save()
            commit(built, _manifest(recipe, embedder, number, draft.counts, segments))
        except BaseException:
            discard(built, number)
            raise
    counts = draft.counts
    return BuildReport(
        number, counts["documents"], counts["chunks"], rejected, embedded, reused, 0.0
    )


def _add_all(draft: Draft, items: Iterable[Cut | Rejected]) -> tuple[Rejected, ...]:
    rejected: list[Rejected] = []
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item)
            draft.reject(item)
        else:
            draft.add(*item)
    return tuple(rejected)


def _manifest(
    recipe: Recipe,
    embedder: TextEmbedder,
    generation: int,
    counts: dict[str, int],
    segments: dict[str, dict[str, Any]],
) -> Manifest:
    return Manifest(
        name=recipe.name,
        generation=generation,
        documents=str(recipe.folder),
        embedder=identity(embedder),
        settings=recipe.settings(),
        counts=counts,
        segments=segments,
    )


def _empty(recipe: Recipe, items: Sequence[Cut | Rejected]) -> str:
    rejected = [item for item in items if isinstance(item, Rejected)]
    reasons = "".join(f"\n  {entry.path}: {entry.reason}" for entry in rejected[:10])
    looked = f"{recipe.folder}: no readable document among {', '.join(recipe.globs)}."
    return looked + (f" Rejected:{reasons}" if rejected else " Put some there, or change `globs`.")


def _corpus(
    recipe: Recipe, names: Sequence[str | Rejected], embedder: TextEmbedder, show: Show
) -> Iterator[Cut | Rejected]:
    for done, item in enumerate(load_all(recipe.folder, names), 1):
        show("reading", done, len(names))
        if isinstance(item, Rejected):
            yield item
            continue
        chunks = chunk_text(
            item.text,
            recipe.chunk_size,
            embedder.count,
            overlap=recipe.chunk_overlap,
            markdown=item.headings,
        )
        if chunks:
            yield replace(item, metadata=item.metadata | recipe.values_for(item.path)), chunks
        else:
            yield Rejected(item.path, "no text in it", item.sha256)


def _write_segments(
    draft: Draft, recipe: Recipe, embedder: TextEmbedder, show: Show
) -> tuple[int, int]:
    vectors, embedded, reused = _embed(
        draft, recipe.built / "embeddings" / "vectors.sqlite", embedder, show
    )
    draft.write(DENSE, build_dense(vectors, recipe.factory))
    draft.write(SPARSE, draft.words.finish())
    return embedded, reused


def _embed(
    draft: Draft, path: Path, embedder: TextEmbedder, show: Show
) -> tuple[NDArray[np.float32], int, int]:
    """Return the vectors of all chunks, and how many texts were embedded and how many reused."""
    number = draft.counts["chunks"]
    vectors = np.empty((number, embedder.dimension), np.float32)
    used: set[bytes] = set()
    embedded = reused = done = 0

    def moved(texts: int) -> None:
        nonlocal done
        done += texts
        show("embedding", min(done, number), number)

    kept = KeptVectors(path)
    try:
        for first in range(0, number, BLOCK):
            texts = draft.embedded_texts(first, BLOCK)
            keys = [key_of(embedder.sha256, text) for text in texts]
            known = kept.get(keys, embedder.dimension)
            reused += len(known.keys() - used)
            missing = {k: text for k, text in zip(keys, texts, strict=True) if k not in known}
            if missing:
                new = embedder.encode(list(missing.values()), progress=moved)
                if not np.isfinite(new).all():
                    raise ModelInvalid(f"{embedder.name} gave vectors that are not numbers")
                kept.put(fresh := dict(zip(missing, new, strict=True)))
                known |= fresh
                embedded += len(missing)
            vectors[first : first + len(keys)] = [known[key] for key in keys]
            used.update(keys)
            moved(first + len(keys) - done)
        kept.keep_only(used)
    finally:
        kept.close()
    return vectors, embedded, reused
