"""Documents to a committed index: read, cut, embed, write segments, commit.

A commit writes only what changed: new segments, and the places that it takes out of old ones.
``build_index`` brings an index up to date with its folder, ``update_index`` and its neighbours a
part of it; ``compact_index`` leaves what one build of all documents would have written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from promptflow.errors import EmptyCorpus, ModelError, StoreError, names_options
from promptflow.progress import Show, bars
from promptflow.retrieval.changes import Changes, Hashes, Paths, Scope, compare, scope_of
from promptflow.retrieval.chunk import chunk_text
from promptflow.retrieval.compaction import crowded, entries_of
from promptflow.retrieval.dense import Built, built_dense
from promptflow.retrieval.documents import Rejected, find, left_out, load_all
from promptflow.retrieval.embed import TextEmbedder, identity, open_embedder
from promptflow.retrieval.index import Index
from promptflow.retrieval.recipe import Recipe, find_recipe
from promptflow.retrieval.segment import (
    HEADING_TOKENS,
    Array,
    Entry,
    Place,
    Sealed,
    drafting,
    keyed,
)
from promptflow.retrieval.store import (
    BuildReport,
    Manifest,
    Store,
    commit,
    counted,
    discard,
    next_segment,
    read_manifest,
    remove_leftovers,
)
from promptflow.retrieval.vectors import KeptVectors, Vectors
from promptflow.storage import lock

EXACT = ("Flat", "SQ8")
"""Factories whose vectors may lie in several segments and are found as if in one."""
APPROXIMATE_FROM = 10_000
"""Chunks below which the vectors of an added segment are searched one by one."""


@names_options
def build_index(
    name: str | Path,
    documents: str | Path | None = None,
    *,
    embedder: TextEmbedder | None = None,
    progress: bool = True,
    force: bool = False,
) -> Index:
    """Bring the index of a recipe, or a new one over ``documents``, up to date, and open it.

    Only files that are new or changed are read; ``force``, other settings and damage make it
    write everything again, with the vectors that are kept. The old generation stays usable until
    the new one is committed, whatever ends the build. Raises EmptyCorpus, StoreBusy, DiskFull,
    ModelNotFound.
    """
    recipe = find_recipe(name, None if documents is None else Path(documents))
    names = find(recipe.folder, recipe.globs)
    if embedder is None:
        embedder = open_embedder(recipe.embedder, recipe.prefixes)
    elif not recipe.path.exists():
        recipe = replace(recipe, embedder=embedder.name)
    if recipe.chunk_size > (most := embedder.max_tokens - HEADING_TOKENS):
        raise StoreError(
            f"{recipe.path}: chunk_size is {recipe.chunk_size}, expected at most {most}: "
            f"{embedder.name} reads {embedder.max_tokens} tokens and would not see the rest"
        )
    with _writer(recipe, embedder, progress) as writer:
        if force or not writer.has_intact():
            writer.write_all(names)
        else:
            writer.bring_in(names, None)
    outside = tuple(left_out(recipe.folder, recipe.globs))
    writer.done = replace(writer.done, left_out=outside)
    return writer.opened()


@names_options
def update_index(
    name: str | Path,
    paths: Paths | None = None,
    *,
    embedder: TextEmbedder | None = None,
    progress: bool = True,
) -> Index:
    """Bring an index up to date with its folder, or with ``paths`` in it, and open it.

    What is new or changed is read, what is gone is taken out. A path is a document, or a folder of
    them, counted from the current folder or from the documents'. Raises StoreError for a path that
    is no document of the index and for settings that changed since the build; StoreNotFound,
    EmptyCorpus, StoreBusy, DiskFull.
    """
    if paths is None:
        return build_index(name, embedder=embedder, progress=progress)
    with _writer(find_recipe(name), embedder, progress) as writer:
        names, scope = writer.named(paths)
        writer.bring_in(names, scope)
    return writer.opened()


@names_options
def add_documents(
    name: str | Path,
    paths: Paths,
    *,
    embedder: TextEmbedder | None = None,
    progress: bool = True,
) -> Index:
    """Take documents, or folders of them, into an index, and open it; nothing is taken out.

    Those that are in it and have changed are read again. Raises as ``update_index``.
    """
    with _writer(find_recipe(name), embedder, progress) as writer:
        names, scope = writer.named(paths)
        if missing := [at for at in scope.ids if not any(_path(n) in Scope((at,)) for n in names)]:
            raise StoreError(
                f"{missing[0]}: not there any more. To take it out of the index: "
                f"promptflow index remove {name} {missing[0]}"
            )
        writer.bring_in(names, Scope(()))
    return writer.opened()


@names_options
def remove_documents(
    name: str | Path,
    paths: Paths,
    *,
    embedder: TextEmbedder | None = None,
    progress: bool = True,
) -> Index:
    """Take documents, or folders of them, out of an index, and open it.

    A file that stays in the folder comes back with the next build or update: narrow ``globs`` to
    leave it out for good. Raises StoreError for a path that is not in the index, EmptyCorpus if
    nothing would be left.
    """
    with _writer(find_recipe(name), embedder, progress) as writer:
        writer.take_out(paths)
    return writer.opened()


@names_options
def compact_index(
    name: str | Path, *, embedder: TextEmbedder | None = None, progress: bool = True
) -> Index:
    """Write an index as one build of its documents would have written it, and open it.

    Searches find the same and cost less; the disk space of what was taken out is freed as soon as
    no reader has it open.
    """
    with _writer(find_recipe(name), embedder, progress) as writer:
        writer.compact()
    return writer.opened()


def _path(name: str | Rejected) -> str:
    return name.path if isinstance(name, Rejected) else name


@contextmanager
def _writer(recipe: Recipe, embedder: TextEmbedder | None, progress: bool) -> Iterator[_Writer]:
    started = time.monotonic()
    with bars(progress) as show:
        writer = _Writer(recipe, embedder, show)
        try:
            yield writer
        except BaseException:
            writer.close()
            raise
    writer.done = replace(writer.done, seconds=time.monotonic() - started)


class _Writer:
    """The one writer of an index: each method ends in one commit, or in nothing."""

    def __init__(self, recipe: Recipe, embedder: TextEmbedder | None, show: Show) -> None:
        self.recipe = recipe
        self.done = BuildReport(0, 0, 0, (), 0, 0, 0.0, unchanged=True)
        self._embedder = embedder
        self._show = show
        self._anew = False
        self._built = recipe.built
        self._open: Store | None = None

    def opened(self) -> Index:
        """Return the index as it is now, with the report of what was done."""
        store = self._latest()
        self._open = None
        counts = store.manifest.counts
        report = replace(
            self.done,
            generation=store.manifest.generation,
            documents=counts["documents"],
            chunks=counts["chunks"],
            rejected=tuple(store.rejected()),
        )
        if self._anew:
            report = replace(report, added=len(store.places()) - len(report.rejected))
        return Index(self.recipe, store, embedder=self._embedder, report=report)

    def _latest(self) -> Store:
        """Return the last committed generation, opened again only where there is a newer one."""
        if self._open is not None:
            manifest = read_manifest(self._built, self.recipe.rebuild)
            if manifest == self._open.manifest:
                return self._open
            self.close()
        self._open = Store.open(self._built, self.recipe.rebuild)
        return self._open

    def close(self) -> None:
        """Close what is open for the writer's own reading."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def embedder(self) -> TextEmbedder:
        """Return the embedder, opened on first use."""
        if self._embedder is None:
            self._embedder = open_embedder(self.recipe.embedder, self.recipe.prefixes)
        return self._embedder

    def has_intact(self) -> bool:
        """Return whether there is an index of these settings and every file of it is whole."""
        try:
            store = self._latest()
            store.check()
            return self._same_settings(store.manifest)
        except StoreError:
            self.close()
            return False

    def _same_settings(self, manifest: Manifest) -> bool:
        facts = (manifest.settings, manifest.embedder, manifest.documents)
        return facts == (self.recipe.settings(), identity(self.embedder()), str(self.recipe.folder))

    def _check_settings(self, manifest: Manifest) -> None:
        if not self._same_settings(manifest):
            raise StoreError(
                f"{self.recipe.path}: the settings, the embedder or the folder are not those of "
                f"the last build. Build all of it again: {self.recipe.rebuild}"
            )

    def named(self, paths: Paths) -> tuple[list[str | Rejected], Scope]:
        """Return the documents on disk that ``paths`` name, and their ids. Raises StoreError."""
        store = self._latest()
        self._check_settings(store.manifest)
        known = store.places()
        scope = scope_of(self.recipe.folder, paths, known)
        names = [n for n in find(self.recipe.folder, self.recipe.globs) if _path(n) in scope]
        here = {*map(_path, names), *known}
        for at in scope.ids:
            if not any(path in Scope((at,)) for path in here):
                raise StoreError(
                    f"{at}: none of the `globs` of {self.recipe.path} names it, or it is hidden: "
                    f"{', '.join(self.recipe.globs)}"
                )
        return names, scope

    def bring_in(self, names: Sequence[str | Rejected], within: Scope | None) -> None:
        """Commit what makes the index that of ``names``, which lie ``within`` a scope."""
        hashes = self._hashes(names)
        if compare(self._latest().places(), names, hashes.of, within):
            with self._writing() as vectors:
                store = self._latest()
                if changes := compare(store.places(), names, hashes.of, within):
                    self._commit(store, changes, vectors)
                    self._merge(vectors)
        hashes.save()

    def take_out(self, paths: Paths) -> None:
        """Commit the removal of what ``paths`` name. Raises StoreError, EmptyCorpus."""
        with self._writing() as vectors:
            store = self._latest()
            places = store.places()
            scope = scope_of(Path(store.manifest.documents), paths, places)
            for at in scope.ids:
                if not any(path in Scope((at,)) for path in places):
                    raise StoreError(
                        f"{at}: not in the index. What is: promptflow index info {self.recipe.name}"
                    )
            out = tuple(path for path in places if path in scope)
            self._commit(store, Changes(out=out, gone=len(out)), vectors)
            self._merge(vectors)

    def _hashes(self, names: Sequence[str | Rejected]) -> Hashes:
        files = (name for name in names if not isinstance(name, Rejected))
        return Hashes(self.recipe.folder, self._built / "embeddings" / "files.json", files)

    @contextmanager
    def _writing(self) -> Iterator[Vectors]:
        """Hold the lock, and leave nothing that is not committed; give the vectors of texts."""
        with lock(self._built / "lock"):
            kept = KeptVectors(self._built / "embeddings" / "vectors.sqlite")
            vectors = Vectors(kept, self.embedder)
            try:
                yield vectors
            except BaseException:
                discard(self._built)
                raise
            finally:
                kept.close()
            self.done = replace(self.done, embedded=vectors.embedded, reused=vectors.reused)

    def write_all(self, names: Sequence[str | Rejected]) -> None:
        """Commit an index of ``names`` alone, written anew. Raises EmptyCorpus."""
        hashes = self._hashes(names)
        entries = self._entries(names, set(), hashes.learn)
        # Nothing is written before there is something to write.
        before: list[Entry] = []
        for entry in entries:
            before.append(entry)
            if entry.document is not None:
                break
        else:
            raise EmptyCorpus(self._empty(before))
        with self._writing() as vectors:
            number = self._next_generation()
            segments = self._write(itertools.chain(before, entries), vectors, self._dense)
            vectors.keep_only_used()
            if not self.recipe.path.exists():
                self.recipe.save()
            manifest = Manifest(
                self.recipe.name,
                number,
                str(self.recipe.folder),
                identity(self.embedder()),
                self.recipe.settings(),
                {},
                (),
                vectors.measured(),
            )
            self._commit_as(manifest, segments)
            self._anew = True
            self.done = replace(self.done, unchanged=False)
        hashes.save()

    def _commit(self, store: Store, changes: Changes, vectors: Vectors) -> None:
        known = {content.key for segment in store.segments for content in segment.contents}
        written = self._write(self._entries(changes.read, known), vectors, self._dense_of_few)
        removed = [set(stated.removed) for stated in store.manifest.segments]
        for path in changes.out:
            segment, at = store.live.places[path]
            removed[segment].add(at)
        kept = [
            replace(stated, removed=tuple(sorted(gone)))
            for stated, gone in zip(store.manifest.segments, removed, strict=True)
        ]
        manifest = replace(store.manifest, generation=store.manifest.generation + 1)
        self._commit_as(manifest, [*kept, *written], store)
        self.done = replace(
            self.done,
            unchanged=False,
            added=changes.added,
            changed=changes.changed,
            removed=changes.gone,
        )

    def _commit_as(
        self, manifest: Manifest, segments: Sequence[Sealed], store: Store | None = None
    ) -> None:
        """Commit segments, of which ``store`` has some open already. Raises EmptyCorpus."""
        counts = counted(self._built, segments, self.recipe.rebuild, store)
        if not counts["documents"]:
            raise EmptyCorpus(
                f"{self._built}: no document would be left in the index {self.recipe.name!r}, and "
                "it stays as it is. To be rid of the index, remove that folder."
            )
        commit(self._built, replace(manifest, counts=counts, segments=tuple(segments)))

    def compact(self) -> None:
        """Commit all segments written again as one build would, unless they are that."""
        with self._writing() as vectors:
            store = self._latest()
            segments = store.manifest.segments
            if len(segments) == 1 and not segments[0].removed:
                remove_leftovers(self._built, segments)
                return
            self._check_settings(store.manifest)
            self._rewrite(store, set(range(len(segments))), vectors, self._dense)
            vectors.keep_only_used()

    def _merge(self, vectors: Vectors) -> None:
        store = self._latest()
        if (chosen := crowded(store)) and self._can_embed(store.manifest):
            self._rewrite(store, chosen, vectors, self._dense_of_few)

    def _can_embed(self, manifest: Manifest) -> bool:
        """Return whether the embedder of the index is here: taking out needs none."""
        with suppress(ModelError):
            return self._same_settings(manifest)
        return False

    def _rewrite(
        self, store: Store, chosen: set[int], vectors: Vectors, dense: Callable[[Array], Built]
    ) -> None:
        written = self._write(entries_of(store, chosen), vectors, dense)
        kept = [s for at, s in enumerate(store.manifest.segments) if at not in chosen]
        manifest = replace(store.manifest, generation=store.manifest.generation + 1)
        self._commit_as(manifest, [*kept, *written], store)
        self.done = replace(self.done, unchanged=False)

    def _write(
        self, entries: Iterable[Entry], vectors: Vectors, dense: Callable[[Array], Built]
    ) -> list[Sealed]:
        """Write entries into as many segments as keep memory bounded."""
        written: list[Sealed] = []
        cut = self.recipe.factory in EXACT
        waiting = iter(entries)
        entry = next(waiting, None)
        while entry is not None:
            number = next_segment(self._built)
            with drafting(self._built, number, vectors.of, dense, cut=cut) as draft:
                while entry is not None and not draft.full:
                    draft.add(entry)
                    entry = next(waiting, None)
            written.append(draft.sealed)
        return written

    def _dense(self, vectors: Array) -> Built:
        return built_dense(vectors, self.recipe.factory)

    def _dense_of_few(self, vectors: Array) -> Built:
        few = len(vectors) < APPROXIMATE_FROM
        return built_dense(vectors, "Flat" if few else self.recipe.factory)

    def _next_generation(self) -> int:
        try:
            return read_manifest(self._built, self.recipe.rebuild).generation + 1
        except StoreError:
            # Above any that a reader of the damaged index may hold.
            return next_segment(self._built)

    def _entries(
        self,
        names: Sequence[str | Rejected],
        known: set[str],
        learn: Callable[[str, str], object] = lambda name, sha256: None,
    ) -> Iterator[Entry]:
        """Read files, telling their hashes; one whose key is ``known`` comes as a place of it."""
        recipe, embedder = self.recipe, None
        for done, item in enumerate(load_all(recipe.folder, names), 1):
            self._show("reading", done, len(names))
            if item.sha256:
                learn(item.path, item.sha256)
            if isinstance(item, Rejected):
                yield Entry(Place(item.path, item.sha256, reason=item.reason))
                continue
            metadata = item.metadata | recipe.values_for(item.path)
            key, document = keyed(replace(item, metadata=metadata))
            if key in known:
                yield Entry(Place(item.path, item.sha256, key))
                continue
            embedder = embedder or self.embedder()
            chunks = chunk_text(
                item.text,
                recipe.chunk_size,
                embedder.count,
                overlap=recipe.chunk_overlap,
                markdown=item.headings,
            )
            if chunks:
                known.add(key)
                yield Entry(Place(item.path, item.sha256, key), key, document, chunks)
            else:
                yield Entry(Place(item.path, item.sha256, reason="no text in it"))

    def _empty(self, entries: Sequence[Entry]) -> str:
        recipe = self.recipe
        rejected = [entry.place for entry in entries if entry.place is not None]
        reasons = "".join(f"\n  {place.path}: {place.reason}" for place in rejected[:10])
        looked = f"{recipe.folder}: no readable document among {', '.join(recipe.globs)}."
        if rejected:
            return f"{looked} Rejected:{reasons}"
        outside = left_out(recipe.folder, recipe.globs)
        others = "".join(
            f"\n  {e.count} {e.suffix or 'without a suffix'}, as {e.example}: {e.how}"
            for e in outside[:10]
        )
        return looked + (f" Left out:{others}" if others else " Put some there, or change `globs`.")
