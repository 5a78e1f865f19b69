"""A built index, open for search: the only import of faiss."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from promptflow.errors import PromptflowError, StoreCorrupt, StoreError
from promptflow.retrieval.documents import Rejected
from promptflow.retrieval.embed import TextEmbedder, open_embedder
from promptflow.retrieval.recipe import Recipe, find_recipe
from promptflow.retrieval.search import (
    MODES,
    Mode,
    Passage,
    Ranking,
    Rerank,
    Where,
    fuse,
    matching,
    passage_of,
    reranked,
)
from promptflow.retrieval.store import DENSE, SPARSE, Manifest, Store, folder_of

if TYPE_CHECKING:
    from promptflow.retrieval.sparse import Sparse

Array = NDArray[np.float32]
INNER = (faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexIVF, faiss.IndexHNSW)


def build_dense(vectors: Array, factory: str) -> bytes:
    """Return a FAISS segment over unit ``vectors`` (n, dimension), whose rows are the ids.

    Raises StoreError for a factory that FAISS cannot build over so many vectors.
    """
    number, dimension = vectors.shape
    try:
        inner = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIDMap(inner)
        if not inner.is_trained:
            inner.train(vectors)
        index.add_with_ids(vectors, np.arange(number, dtype=np.int64))
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot build the factory {factory!r} over {number} vectors of length "
            f'{dimension} ({str(error).splitlines()[-1]}). Set factory = "Flat" in index.toml.'
        ) from error
    # Never faiss.write_index: it writes in place and says nothing when the disk is full.
    return bytes(faiss.serialize_index(index))


class Dense:
    """A FAISS segment in memory."""

    def __init__(self, data: bytes, number: int, dimension: int) -> None:
        """Read what ``build_dense`` wrote for so many vectors. Raises StoreCorrupt."""
        loops, size = (
            faiss.get_deserialization_loop_limit(),
            faiss.get_deserialization_vector_byte_limit(),
        )
        faiss.set_deserialization_loop_limit(10_000_000)
        faiss.set_deserialization_vector_byte_limit(max(len(data), 1 << 20))
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise StoreCorrupt(f"not a FAISS segment: {str(error).splitlines()[-1]}") from error
        finally:
            faiss.set_deserialization_loop_limit(loops)
            faiss.set_deserialization_vector_byte_limit(size)
        if not isinstance(index, faiss.IndexIDMap):
            raise StoreCorrupt(f"holds a {type(index).__name__}, expected an IndexIDMap")
        self._index = index
        self._inner = faiss.downcast_index(index.index)
        if not isinstance(self._inner, INNER):
            raise StoreCorrupt(
                f"holds a {type(self._inner).__name__}, which promptflow never writes"
            )
        if (index.ntotal, index.d) != (number, dimension):
            raise StoreCorrupt(
                f"holds {index.ntotal} vectors of length {index.d}, "
                f"the manifest says {number} of length {dimension}"
            )
        if not np.array_equal(faiss.vector_to_array(index.id_map), np.arange(number)):
            raise StoreCorrupt("its ids are not those of the chunks")

    def search(self, vector: Array, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, cosine), best first, of the ``allowed`` ids."""
        k = min(k, self._index.ntotal if allowed is None else len(allowed))
        if k < 1:
            return []
        selector = None if allowed is None else faiss.IDSelectorBatch(np.array(allowed, np.int64))
        scores, ids = self._index.search(vector[None, :], k, params=self._parameters(selector, k))
        return [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0]

    def _parameters(self, selector: Any, k: int) -> Any:
        """Return search parameters; a filtered search of an approximate index looks at more."""
        if isinstance(self._inner, faiss.IndexIVF):
            lists = self._inner.nlist
            parameters: Any = faiss.SearchParametersIVF()
            parameters.nprobe = lists if selector is not None else min(lists, max(8, lists // 8))
        elif isinstance(self._inner, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
            parameters.efSearch = self._index.ntotal if selector is not None else max(64, 2 * k)
        else:
            parameters = faiss.SearchParameters()
        if selector is not None:
            parameters.sel = selector
        return parameters


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. ``unchanged`` means that it found the index up to date and wrote nothing.

    ``embedded`` and ``reused`` count different texts: those that went through the embedder and
    those whose vectors an earlier build had kept.
    """

    generation: int
    documents: int
    chunks: int
    rejected: tuple[Rejected, ...]
    embedded: int
    reused: int
    seconds: float
    unchanged: bool = False


class Index:
    """An index that can be searched: ``Index.open("guide").search("what is a beam?", k=3)``."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        *,
        embedder: TextEmbedder | None = None,
        report: BuildReport | None = None,
    ) -> None:
        """Take an open store; ``Index.open`` and ``build_index`` make indexes."""
        self.recipe = recipe
        self.report = report
        self._store = store
        self._embedder = embedder
        self._embedder_checked = False
        self._lock = threading.Lock()
        manifest = store.manifest
        dimension = int(manifest.embedder["dimension"])
        self._dense: Dense = self._loaded(
            DENSE, lambda data: Dense(data, manifest.counts["chunks"], dimension)
        )
        self._sparse_data: bytes | None = store.take_segment(SPARSE)
        self._sparse: Sparse | None = None

    @classmethod
    def open(cls, name: str | Path, *, embedder: TextEmbedder | None = None) -> Index:
        """Open the last committed generation of an index.

        Raises StoreNotFound if it is not built, StoreCorrupt if a file is damaged; both say what to
        type. ``embedder`` stands in for the recipe's.
        """
        recipe = find_recipe(name)
        return cls(recipe, Store.open(recipe.built, recipe.rebuild), embedder=embedder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process by its folder: what was committed last is opened there."""
        return _opened, (self.recipe.path.parent.absolute(), self._embedder)

    def __deepcopy__(self, memo: dict[int, Any]) -> Index:
        """Return itself: copies of a program search the same index."""
        return self

    def _loaded(self, segment: str, load: Any) -> Any:
        data = self._store.take_segment(segment)
        try:
            return load(data)
        except StoreCorrupt as error:
            path = self._store.folder / folder_of(self.manifest.generation) / segment
            raise StoreCorrupt(f"{path}: {error}. Rebuild it: {self.recipe.rebuild}") from error

    @property
    def name(self) -> str:
        """The name of the index."""
        return self.recipe.name

    @property
    def manifest(self) -> Manifest:
        """What the index was built from."""
        return self._store.manifest

    @property
    def store(self) -> Store:
        """The open generation."""
        return self._store

    def search(
        self,
        query: str,
        k: int = 5,
        where: Where | None = None,
        *,
        mode: Mode = "dense",
        rerank: Rerank | None = None,
    ) -> list[Passage]:
        """Return the ``k`` best passages for ``query``, best first.

        ``where`` filters by metadata (see ``search.matching``). ``rerank`` is given the query and
        the best 4 k passages and returns a score for each.
        """
        if k < 1 or mode not in MODES or not query.strip():
            raise PromptflowError(
                f"search: query={query[:40]!r}, k={k}, mode={mode!r}: the query must not be blank, "
                f"k at least 1, and mode one of {', '.join(MODES)}"
            )
        allowed = None
        if where is not None:
            allowed = self._store.chunk_ids(matching(self._store.documents(), where))
            if not allowed:
                return []
        wanted = 4 * k if rerank is not None else k
        ranking = self._ranking(query, wanted, allowed, mode)
        passages = [passage_of(self._store.chunk(chunk), score) for chunk, score in ranking]
        if rerank is not None and passages:
            passages = reranked(query, passages, rerank)
        return passages[:k]

    def _ranking(self, query: str, k: int, allowed: Sequence[int] | None, mode: Mode) -> Ranking:
        if mode == "sparse":
            return self._words().search(query, k, allowed)
        vector = self._encoder().encode_query(query)
        if mode == "dense":
            return self._dense.search(vector, k, allowed)
        deep = max(50, 4 * k)
        both = [
            self._dense.search(vector, deep, allowed),
            self._words().search(query, deep, allowed),
        ]
        return fuse(both, k)

    def _words(self) -> Sparse:
        from promptflow.retrieval.sparse import Sparse

        with self._lock:
            if self._sparse is None:
                self._sparse = Sparse(self._sparse_data or b"")
                self._sparse_data = None
            return self._sparse

    def _encoder(self) -> TextEmbedder:
        with self._lock:
            stated = self.manifest.embedder
            if self._embedder is None:
                self._embedder = open_embedder(stated["name"])
            if not self._embedder_checked:
                check_embedder(self._embedder, stated, self.recipe.rebuild)
                self._embedder_checked = True
            return self._embedder

    def text(self, document: str) -> str:
        """Return the whole text of a document, which the offsets of passages count in."""
        return self._store.text(document)

    def info(self) -> dict[str, Any]:
        """Return what the index is, as plain data."""
        manifest = self.manifest
        return {
            "name": self.name,
            "recipe": str(self.recipe.path),
            "folder": str(self._store.folder),
            "generation": manifest.generation,
            "documents_folder": manifest.documents,
            "counts": dict(manifest.counts),
            "embedder": dict(manifest.embedder),
            "settings": dict(manifest.settings),
            "segments": dict(manifest.segments),
            "documents": self._store.documents(),
            "rejected": [
                {"path": entry.path, "reason": entry.reason} for entry in self._store.rejected()
            ],
        }

    def close(self) -> None:
        """Close the files."""
        self._store.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(folder: Path, embedder: TextEmbedder | None) -> Index:
    return Index.open(folder, embedder=embedder)


def check_embedder(embedder: TextEmbedder, stated: dict[str, Any], rebuild: str) -> None:
    """Raise StoreError unless ``embedder`` is the one that the manifest states."""
    found = (embedder.sha256, embedder.dimension)
    if found != (stated["sha256"], stated["dimension"]):
        raise StoreError(
            f"the embedder {embedder.name} has SHA-256 {found[0][:12]} and {found[1]} dimensions; "
            f"the index was built with {stated['name']}, {stated['sha256'][:12]} and "
            f"{stated['dimension']}. Their vectors cannot be compared. Rebuild it: {rebuild}"
        )
