"""A built index, open for search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptflow.child import ForkLock
from promptflow.errors import EmptyCorpus, PromptflowError, StoreError
from promptflow.retrieval.across import DenseAcross, SparseAcross
from promptflow.retrieval.closeness import Asked
from promptflow.retrieval.documents import sha256_inside
from promptflow.retrieval.embed import Array, TextEmbedder, open_embedder
from promptflow.retrieval.explain import Explanation, Found, held, ranks, written
from promptflow.retrieval.passages import (
    MODES,
    Hit,
    Mode,
    Passage,
    Rerank,
    Where,
    fuse,
    matching,
    passage_of,
    raised,
    reranked,
    single,
)
from promptflow.retrieval.recipe import Recipe, find_recipe
from promptflow.retrieval.sparse import ranked
from promptflow.retrieval.store import BuildReport, Manifest, Store
from promptflow.retrieval.text import language_of, normal, query_words

DEEPEST = 50
"""Passages at least that each way of searching gives to the fusion."""

DENSE_WEIGHT, LEAST_WEIGHT = 0.55, 0.1
"""The share of the cosines in a hybrid search; the least where the embedder does not know the
language of the query. Chosen with CLOSENESS on SciFact's train claims and SQuAD's other articles
(benchmarks/retrieval.py --tune), where shares of 0.5 to 0.6 differ by less than 0.01."""

KNOWN = 0.15, 0.8
"""Tokens a letter, within which an embedder reads words of a language: one that does not know it
cuts words to letters, or calls a whole one unknown."""

QUESTION_MARKS = ("?", "\uff1f", "\u061f", "\u037e")
CLOSEST = 20
"""Passages, of the best, whose sentences are looked at."""
CLOSENESS = {True: 1.2, False: 0.4}
"""What the best sentence weighs beside both scores, for a question and for any other query. Without
it, SQuAD's other articles lose 0.06 of their recall@1. Pairs of words count for questions alone:
the sentence that answers one repeats its wording, while SciFact's claims lose 0.003 by them."""


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
        self._lock = ForkLock()
        self._dense = DenseAcross(store)
        self._sparse: SparseAcross | None = None

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
        mode: Mode = "hybrid",
        rerank: Rerank | None = None,
    ) -> list[Passage]:
        """Return the ``k`` best passages for ``query``, best first.

        ``where`` filters by metadata (see ``passages.matching``). ``rerank`` is given the query and
        the best 4 k passages and returns a score for each.
        """
        _check(query, k, mode)
        allowed = self._allowed(where)
        if allowed == []:
            return []
        hits = self._hits(query, 4 * k if rerank is not None else k, allowed, mode)
        return self._passages(query, hits, rerank)[:k]

    def view(
        self, *, mode: Mode | None = None, where: Where | None = None, rerank: Rerank | None = None
    ) -> View:
        """Return a retriever that searches this index in one way; what is left out is the index's.

        Raises PromptflowError for a mode that there is not.
        """
        if mode is not None and mode not in MODES:
            raise PromptflowError(f"mode={mode!r}: it is one of {', '.join(MODES)}")
        return View(self, mode, where, rerank)

    def explain(
        self,
        query: str,
        k: int = 5,
        where: Where | None = None,
        *,
        mode: Mode = "hybrid",
        rerank: Rerank | None = None,
    ) -> Explanation:
        """Return what ``search`` finds, with each passage's ranks and the words that it shares.

        Ranks are told within the best 100 or 4 k of each way, whichever is more.
        """
        _check(query, k, mode)
        allowed = self._allowed(where)
        wanted = 4 * k if rerank is not None else k
        deep = max(100, wanted)
        vector = self._vector(query)
        by = {
            "dense": single("dense", self._dense.search(vector, deep, allowed)),
            "sparse": single("sparse", self._words().search(query, deep, allowed)),
            "fused": self._fused(query, vector, wanted, allowed),
        }
        orders = {name: [hit.chunk for hit in hits] for name, hits in by.items()}
        hits = by["fused" if mode == "hybrid" else mode][:wanted]
        passages = self._passages(query, hits, rerank)
        if rerank is not None:
            orders["reranked"] = [passage.chunk for passage in passages]
        places = ranks(orders)
        languages = self._words().languages
        asked = query_words(query, languages)
        found = tuple(
            Found(p, places[p.chunk], held(query, asked, f"{p.heading}\n{p.text}", languages))
            for p in passages[:k]
        )
        absent = [w for w in asked if not self._words().search(query[w.start : w.end], 1)]
        shown = written(query, asked), written(query, absent)
        return Explanation(query, mode, language_of(query), *shown, found)

    def _allowed(self, where: Where | None) -> list[int] | None:
        if where is None:
            return None
        return self._store.chunk_ids(matching(self._store.documents(), where))

    def _hits(self, query: str, k: int, allowed: Sequence[int] | None, mode: Mode) -> list[Hit]:
        if mode == "sparse":
            return single("sparse", self._words().search(query, k, allowed))
        vector = self._vector(query)
        if mode == "dense":
            return single("dense", self._dense.search(vector, k, allowed))
        return self._fused(query, vector, k, allowed)[:k]

    def _vector(self, query: str) -> Array:
        return self._encoder().encode_query(normal(query))

    def _passages(self, query: str, hits: Sequence[Hit], rerank: Rerank | None) -> list[Passage]:
        """Return hits as passages, in the order of a reranker where there is one."""
        passages = [passage_of(self._store.chunk(hit.chunk), hit) for hit in hits]
        if rerank is None or not passages:
            return passages
        return reranked(query, passages, rerank)

    def _fused(self, query: str, vector: Array, k: int, allowed: Sequence[int] | None) -> list[Hit]:
        """Return what both ways found, k passages at least if there are so many."""
        known = self._words()
        deep = max(DEEPEST, k)
        near = dict(self._dense.search(vector, deep, allowed))
        scores = known.scores(query)
        shared = dict(ranked(scores, deep, allowed))
        # What one way found, the other is asked about: both scores of every candidate are known.
        missing = sorted(shared.keys() - near.keys())
        shared |= {chunk: float(scores[chunk]) for chunk in near if scores[chunk] > 0}
        near |= dict(self._dense.search(vector, len(missing), missing))
        hits = fuse(near, shared, dense_weight(self._encoder(), query))
        asks = query.rstrip().endswith(QUESTION_MARKS)
        said = query_words(query, known.languages, grammar=asks)
        asked = Asked(said, known.rarity(said), pairs=asks)
        rows = [self._store.chunk(hit.chunk) for hit in hits[:CLOSEST]]
        shares = [asked.closeness(row.heading, row.text, known.language(row.id)) for row in rows]
        return raised(hits, shares, CLOSENESS[asks])

    def _words(self) -> SparseAcross:
        with self._lock:
            if self._sparse is None:
                self._sparse = SparseAcross(self._store)
            return self._sparse

    def _encoder(self) -> TextEmbedder:
        with self._lock:
            stated = self.manifest.embedder
            if self._embedder is None:
                self._embedder = open_embedder(stated["name"], stated.get("prefixes", ()))
            if not self._embedder_checked:
                check_embedder(self._embedder, stated, self.recipe.rebuild)
                self._embedder_checked = True
            return self._embedder

    def text(self, document: str) -> str:
        """Return the whole text of a document, which the offsets of passages count in."""
        return self._store.text(document)

    @property
    def folder(self) -> Path:
        """The folder of the documents, wherever the project lies now."""
        try:
            return self.recipe.folder
        except EmptyCorpus:
            return Path(self.manifest.documents)

    def stale(self, document: str) -> str:
        """Return "" if the file of a document is as it was indexed, else "changed" or "gone".

        Raises StoreNotFound for an unknown document.
        """
        stated = self._store.sha256(document)
        if not os.path.lexists(self.folder / document):
            return "gone"
        return "" if sha256_inside(self.folder, document) == stated else "changed"

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
            "measured": dict(manifest.measured),
            "segments": [asdict(segment) for segment in manifest.segments],
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


@dataclass(frozen=True, slots=True)
class View:
    """An index, searched in one way: a retriever. ``Index.view`` makes them."""

    index: Index
    mode: Mode | None = None
    where: Where | None = None
    rerank: Rerank | None = None

    @property
    def name(self) -> str:
        """The name of the index."""
        return self.index.name

    def search(self, query: str, k: int = 5) -> list[Passage]:
        """Return the ``k`` best passages, best first."""
        chosen: dict[str, Any] = {} if self.mode is None else {"mode": self.mode}
        return self.index.search(query, k, self.where, rerank=self.rerank, **chosen)

    def text(self, document: str) -> str:
        """Return the whole text of a document. Raises StoreNotFound."""
        return self.index.text(document)


def dense_weight(embedder: TextEmbedder, query: str) -> float:
    """Return the share of the cosines in a hybrid search for ``query``."""
    letters = sum(letter.isalnum() for letter in query)
    least, most = KNOWN
    reads = letters == 0 or least < embedder.count(query) / letters < most
    return DENSE_WEIGHT if reads else LEAST_WEIGHT


def _check(query: str, k: int, mode: Mode) -> None:
    if k < 1 or mode not in MODES or not query.strip():
        raise PromptflowError(
            f"search: query={query[:40]!r}, k={k}, mode={mode!r}: the query must not be blank, "
            f"k at least 1, and mode one of {', '.join(MODES)}"
        )


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
