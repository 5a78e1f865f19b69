"""Adding, removing, updating and compacting end in what one build of the same files gives."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptflow.errors import EmptyCorpus, StoreBusy, StoreCorrupt, StoreError, StoreNotFound
from promptflow.retrieval import (
    Index,
    add_documents,
    build,
    build_index,
    compact_index,
    compaction,
    remove_documents,
    segment,
    update_index,
    verify_index,
)
from promptflow.retrieval.store import read_manifest
from promptflow.storage import lock

RECIPE = """\
documents = "docs"
chunk_size = 12
embedder = "hashing-64"
[[metadata]]
glob = "b/**"
team = "b"
"""
WORDS = [
    "osmium",
    "gold",
    "beam",
    "vote",
    "tree",
    "thought",
    "sample",
    "metal",
    "pen",
    "quill",
    "ink",
    "river",
]
QUERIES = ("osmium", "vote tree thought ink", "absent")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the current one, with an index k of three small documents."""
    monkeypatch.chdir(tmp_path)
    made(
        tmp_path / "k", {"a.txt": b"osmium gold", "b/c.txt": b"beam vote", "d.md": b"# Tree\n\nink"}
    )
    monkeypatch.chdir(tmp_path / "k")
    build_index("k", progress=False).close()
    return tmp_path / "k"


def made(root: Path, files: dict[str, bytes]) -> Path:
    """Write a project with a recipe k over ``files``."""
    (root / "indexes" / "k").mkdir(parents=True)
    (root / "indexes" / "k" / "index.toml").write_text(RECIPE)
    for name, data in files.items():
        path = root / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def said(index: Index) -> dict[str, Any]:
    """Everything that an index says, searches included."""
    store = index.store
    documents = store.documents()
    paths = [path for entry in documents for path in (entry["path"], *entry["also"])]
    where: list[Any] = [None, {"document": "b/*"}, {"kind": "text"}]
    return {
        "counts": index.manifest.counts,
        "documents": documents,
        "rejected": store.rejected(),
        "texts": {path: store.text(path) for path in paths},
        "chunks": list(store.chunks()),
        "searches": [
            index.search(query, k, allowed, mode=mode)
            for query in QUERIES
            for mode in ("dense", "sparse", "hybrid")
            for k in (1, 4)
            for allowed in where
            if allowed is None or index.manifest.counts["documents"] > 1
            if allowed != {"kind": "text"} or any(d["kind"] == "text" for d in documents)
        ],
    }


def whole(root: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """What a full build of ``files`` alone says: slow and obvious."""
    shutil.rmtree(root, ignore_errors=True)
    made(root, files)
    with build_index(root / "indexes" / "k", progress=False, force=True) as index:
        assert len(index.manifest.segments) == 1
        return said(index)


class Walk:
    """A folder, its index, and a model of what the index should hold: paths and bytes."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.root = root
        self.docs = root / "docs"
        self.model: dict[str, bytes] = {}

    def names(self) -> list[str]:
        found = [p.relative_to(self.docs).as_posix() for p in self.docs.rglob("*") if p.is_file()]
        return sorted(found)

    def content(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.08:
            return b"\xff\xfe\xff"
        if kind < 0.14:
            return b" \n"
        number = rng.choice((1, 2, 5, 30))
        text = " ".join(rng.choice(WORDS) for _ in range(number))
        return (f"# {rng.choice(WORDS)}\n\n{text}\n" if rng.random() < 0.4 else text).encode()

    def change(self) -> None:
        """Change a file or two on disk."""
        for _ in range(self.rng.randint(1, 3)):
            names = self.names()
            path = self.docs / self.rng.choice(
                ["a.txt", "b/a.txt", "b/b.md", "c.txt", "e/f/g.md", "h.txt", "i.md", "j.txt"]
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            do = self.rng.random()
            if do < 0.5 or not names:
                path.write_bytes(self.content())
            elif do < 0.75:
                shutil.copy(self.docs / self.rng.choice(names), path) if path.name not in [
                    Path(n).name for n in names
                ] else path.write_bytes((self.docs / self.rng.choice(names)).read_bytes())
            else:
                (self.docs / self.rng.choice(names)).unlink()

    def sync(self, within: Callable[[str], bool] = lambda path: True) -> None:
        kept = {path: data for path, data in self.model.items() if not within(path)}
        here = {path: (self.docs / path).read_bytes() for path in self.names() if within(path)}
        self.model = kept | here


def holds_text(files: dict[str, bytes]) -> bool:
    return any(data.strip() and data[:1] != b"\xff" for data in files.values())


def step(walk: Walk, name: Path) -> Index | None:
    """Do one thing to the index and to the model; None if it was refused."""
    rng, before = walk.rng, dict(walk.model)
    do = rng.choice(("update", "update some", "add", "remove", "compact", "build"))
    some = rng.sample(sorted({*walk.names(), *walk.model}), k=min(2, len(walk.names())))
    try:
        if do in ("update", "build"):
            walk.sync()
            return (update_index if do == "update" else build_index)(name, progress=False)
        if do == "compact":
            return compact_index(name, progress=False)
        if do == "update some" and some:
            walk.sync(lambda path: path in some)
            return update_index(name, some, progress=False)
        if do == "add" and (some := [path for path in some if path in walk.names()]):
            walk.sync(lambda path: path in some)
            return add_documents(name, some, progress=False)
        if do == "remove" and (some := [path for path in some if path in walk.model]):
            walk.model = {path: data for path, data in walk.model.items() if path not in some}
            return remove_documents(name, some, progress=False)
    except EmptyCorpus:
        assert not holds_text(walk.model)
        walk.model = before
    return None


@pytest.mark.parametrize("seed", range(4))
def test_any_walk_of_changes_ends_in_what_one_build_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(compaction, "MOST", 3)
    root = made(tmp_path / "walk", {"a.txt": b"osmium gold", "c.txt": b"beam"})
    monkeypatch.chdir(tmp_path)
    walk = Walk(root, seed)
    name = root / "indexes" / "k"
    build_index(name, progress=False).close()
    walk.sync()
    segments = 0
    for _ in range(12):
        walk.change()
        index = step(walk, name)
        if index is None:
            index = Index.open(name)
        with index:
            segments = max(segments, len(index.manifest.segments))
            assert said(index) == whole(tmp_path / "whole", walk.model)
        assert verify_index(name).ok
    assert segments > 1


def report(index: Index) -> tuple[int, int, int]:
    """What a commit did: files added, changed and removed. Closes the index."""
    with index:
        assert index.report is not None
        return index.report.added, index.report.changed, index.report.removed


def test_paths_count_from_here_or_from_the_documents(project: Path) -> None:
    docs = project / "docs"
    for name in ("n.txt", "b/n.txt", "b/x/n.txt"):
        (docs / name).parent.mkdir(exist_ok=True)
        (docs / name).write_text(f"new words of {name}")
    assert report(add_documents("k", "docs/n.txt", progress=False)) == (1, 0, 0)
    assert report(add_documents("k", ["b/n.txt", docs / "n.txt"], progress=False)) == (1, 0, 0)
    assert report(add_documents("k", Path("docs/b/../b"), progress=False)) == (1, 0, 0)
    assert report(add_documents("k", [docs], progress=False)) == (0, 0, 0)
    (docs / "b/c.txt").write_text("other")
    (docs / "a.txt").unlink()
    assert report(update_index("k", ["b", "a.txt"], progress=False)) == (0, 1, 1)
    assert report(remove_documents("k", ["b/x", "n.txt"], progress=False)) == (0, 0, 2)
    with Index.open("k") as index:
        assert [entry["path"] for entry in index.store.documents()] == [
            "b/c.txt",
            "b/n.txt",
            "d.md",
        ]
    assert report(update_index("k", progress=False)) == (2, 0, 0)
    with update_index("k", progress=False) as index:
        assert index.report is not None
        assert index.report.unchanged


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere.txt"], "neither a file or folder in"),
        (["../outside.txt"], "neither a file or folder in"),
        (["/etc/hostname"], "neither a file or folder in"),
        (["docs/.hidden.txt"], "none of the `globs`"),
        (["docs/photo.xyz"], "none of the `globs`"),
        ([""], None),
    ],
)
def test_paths_that_are_no_documents_are_refused_by_name(
    project: Path, paths: list[str], message: str | None
) -> None:
    (project / "outside.txt").write_text("outside")
    (project / "docs" / ".hidden.txt").write_text("hidden")
    (project / "docs" / "photo.xyz").write_bytes(b"\0")
    before = (project / "indexes/k/built/manifest.json").read_bytes()
    for change in (add_documents, update_index):
        if message is not None:
            with pytest.raises(StoreError, match=message):
                change("k", paths, progress=False)
        else:
            change("k", paths, progress=False).close()
    assert (project / "indexes/k/built/manifest.json").read_bytes() == before


def test_what_cannot_be_taken_out_is_refused(project: Path) -> None:
    (project / "docs" / "new.txt").write_text("new")
    with pytest.raises(StoreError, match=r"new\.txt: not in the index"):
        remove_documents("k", "docs/new.txt")
    with pytest.raises(EmptyCorpus, match="no document would be left"):
        remove_documents("k", "docs")
    (project / "docs" / "a.txt").unlink()
    with pytest.raises(StoreError, match=r"promptflow index remove k a\.txt"):
        add_documents("k", "a.txt")
    with pytest.raises(StoreNotFound):
        remove_documents("absent", "a.txt")
    with Index.open("k") as index:
        assert index.manifest.counts["documents"] == 3
    assert sorted(p.name for p in (project / "indexes/k/built").glob("segment-*")) == [
        "segment-000001"
    ]


def test_other_settings_want_a_whole_build(project: Path) -> None:
    recipe = project / "indexes" / "k" / "index.toml"
    recipe.write_text(recipe.read_text().replace("12", "14"))
    for change in (update_index, add_documents):
        with pytest.raises(StoreError, match=r"not those of the last build.*index build k"):
            change("k", "a.txt")
    remove_documents("k", "a.txt", progress=False).close()
    with pytest.raises(StoreError, match="not those of the last build"):
        compact_index("k", progress=False)
    with update_index("k", progress=False) as index:
        assert index.manifest.settings["chunking"]["size"] == 14


def test_one_writer_and_the_others_are_told(project: Path) -> None:
    (project / "docs" / "new.txt").write_text("new")
    with lock(project / "indexes/k/built/lock"):
        for change in (
            lambda: add_documents("k", "new.txt"),
            lambda: remove_documents("k", "a.txt"),
            lambda: update_index("k"),
            lambda: compact_index("k"),
        ):
            with pytest.raises(StoreBusy, match="held by process"):
                change()
        with Index.open("k") as index:
            assert index.search("osmium")


def test_a_damaged_index_is_not_built_upon(project: Path) -> None:
    (project / "docs" / "new.txt").write_text("new")
    [path] = (project / "indexes").rglob("texts.utf8")
    path.write_bytes(path.read_bytes()[:-1])
    for change in (
        lambda: add_documents("k", "new.txt"),
        lambda: remove_documents("k", "a.txt"),
        lambda: compact_index("k"),
    ):
        with pytest.raises(StoreCorrupt, match=r"texts\.utf8.*promptflow index build k"):
            change()
    assert report(update_index("k", progress=False)) == (4, 0, 0)
    assert verify_index("k").ok


def test_equal_files_are_kept_once_with_all_their_places(project: Path) -> None:
    docs = project / "docs"
    for name in ("z.txt", "b/z.txt", "b/y.txt", "z.md"):
        (docs / name).write_bytes((docs / "a.txt").read_bytes())
    with update_index("k", progress=False) as index:
        assert index.report is not None
        assert (index.report.added, index.report.documents) == (4, 5)
        [found] = [p for p in index.search("osmium gold", 5) if p.document == "a.txt"]
        assert (found.metadata["also"], found.metadata["title"]) == (["z.txt"], "a")
        [team] = index.search("osmium gold", 5, {"team": "b", "title": "y"})
        assert (team.document, team.metadata["also"]) == ("b/y.txt", ["b/z.txt"])
        # A copy of another kind is cut in another way, and is a document of its own.
        assert index.search("osmium gold", 5, {"kind": "markdown", "title": "z"})[0].metadata
        # Filters find a document by any of its places.
        assert {p.document for p in index.search("gold", 5, {"document": "z.*"})} == {
            "a.txt",
            "z.md",
        }
        assert index.text("z.txt") == index.text("a.txt") == "osmium gold"
        first = index.manifest.segments
    # The file that has the text in its segment goes, and nothing is read again.
    with remove_documents("k", "a.txt", progress=False) as index:
        assert index.report is not None
        assert (index.report.embedded, index.report.documents) == (0, 5)
        assert [s.name for s in index.manifest.segments] == [s.name for s in first]
        [found] = [p for p in index.search("osmium gold", 5) if p.document == "z.txt"]
        assert ("also" in found.metadata, found.metadata["title"]) == (False, "z")


def test_sources_that_changed_or_are_gone_are_told(project: Path) -> None:
    docs = project / "docs"
    (docs / "copy.txt").write_bytes((docs / "a.txt").read_bytes())
    with update_index("k", progress=False) as index:
        assert [index.stale(path) for path in ("a.txt", "b/c.txt", "copy.txt")] == ["", "", ""]
        (docs / "a.txt").write_text("osmium g0ld")
        (docs / "b" / "c.txt").unlink()
        (docs / "d.md").unlink()
        (docs / "d.md").mkdir()
        assert index.stale("a.txt") == "changed"
        assert index.stale("copy.txt") == ""
        assert index.stale("b/c.txt") == "gone"
        assert index.stale("d.md") == "changed"
        with pytest.raises(StoreNotFound):
            index.stale("absent.txt")
        shutil.rmtree(docs)
        assert index.stale("a.txt") == "gone"


def test_many_commits_leave_few_segments(project: Path) -> None:
    docs = project / "docs"
    (docs / "large.txt").write_text(" ".join(WORDS) * 200)
    update_index("k", progress=False).close()
    most, written = 0, 0
    for number in range(40):
        (docs / f"n{number}.txt").write_text(f"new words {number}")
        with add_documents("k", f"n{number}.txt", progress=False) as index:
            most = max(most, len(index.manifest.segments))
            last = int(index.manifest.segments[-1].name[-6:])
            written = max(written, last)
    assert most <= compaction.MOST
    # The large segment is not written again for the sake of small ones.
    assert index.manifest.segments[0].name in ("segment-000001", "segment-000002")
    assert written < 60


def test_a_compacted_index_is_what_one_build_writes_byte_for_byte(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = project / "docs"
    for step in range(6):
        (docs / f"n{step}.txt").write_text(f"words {step} " * step + "end")
        (docs / "b" / f"copy{step}.txt").write_text("the same")
        (docs / "a.txt").write_text(f"changed {step} times")
        (docs / f"bad{step}.txt").write_bytes(b"\xff\xff")
        update_index("k", progress=False).close()
        if step % 2:
            (docs / f"n{step}.txt").unlink()
            update_index("k", progress=False).close()
    with compact_index("k", progress=False) as index:
        [mine] = index.manifest.segments
        size = sum(p.stat().st_size for p in (project / "indexes/k/built").glob("segment-*/*"))
        assert size == mine.size
    files = {p.relative_to(docs).as_posix(): p.read_bytes() for p in docs.rglob("*") if p.is_file()}
    made(tmp_path / "once", files)
    with build_index(tmp_path / "once" / "indexes" / "k", progress=False) as index:
        [theirs] = index.manifest.segments
    assert mine.files == theirs.files
    with compact_index("k", progress=False) as index:
        assert index.report is not None
        assert index.report.unchanged


def test_a_build_is_cut_into_segments_and_says_the_same(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    for number in range(30):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(3, 80)))
        (project / "docs" / f"n{number}.txt").write_text(text)
    with build_index("k", progress=False, force=True) as index:
        once = said(index)
    monkeypatch.setattr(segment, "CUT", 1000)
    with build_index("k", progress=False, force=True) as index:
        assert len(index.manifest.segments) > 5
        assert said(index) == once
    assert verify_index("k").ok
    monkeypatch.setattr(segment, "CUT", 64 << 20)
    with compact_index("k", progress=False) as index:
        assert len(index.manifest.segments) == 1
        assert said(index) == once


def test_an_approximate_factory_is_used_for_many_and_not_for_few(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "APPROXIMATE_FROM", 20)
    recipe = project / "indexes" / "k" / "index.toml"
    recipe.write_text('factory = "IVF4,Flat"\n' + recipe.read_text())
    for number in range(8):
        (project / "docs" / f"n{number}.txt").write_text(" ".join(WORDS) * (3 + number))
    factories: list[tuple[str, int]] = []
    made_dense = build.built_dense

    def spied(vectors: Any, factory: str) -> Any:
        factories.append((factory, len(vectors)))
        return made_dense(vectors, factory)

    monkeypatch.setattr(build, "built_dense", spied)
    build_index("k", progress=False).close()
    (project / "docs" / "few.txt").write_text("few words")
    add_documents("k", "few.txt", progress=False).close()
    (project / "docs" / "many.txt").write_text("\n\n".join(" ".join(WORDS) for _ in range(40)))
    with add_documents("k", "many.txt", progress=False) as index:
        assert {p.document for p in index.search("few", 1)} == {"few.txt"}
    assert [factory for factory, _ in factories] == ["IVF4,Flat", "Flat", "IVF4,Flat"]


def test_files_that_are_of_no_kind_are_counted_and_named(project: Path) -> None:
    for name in ("p.xyz", "b/q.XYZ", "b/r.bin"):
        (project / "docs" / name).write_bytes(b"\0")
    for index in (build_index("k", progress=False), update_index("k", progress=False)):
        with index:
            assert index.report is not None
            assert [(e.suffix, e.count) for e in index.report.left_out] == [
                (".xyz", 2),
                (".bin", 1),
            ]
    shutil.rmtree(project / "indexes" / "k" / "built")
    for name in ("a.txt", "b/c.txt", "d.md"):
        (project / "docs" / name).unlink()
    with pytest.raises(EmptyCorpus, match=r"Left out:\n  2 \.xyz, as b/q\.XYZ"):
        build_index("k", progress=False)


def test_the_manifest_is_written_once_a_commit(project: Path) -> None:
    with Index.open("k") as index:
        before = index.manifest.generation
    (project / "docs" / "new.txt").write_text("new")
    add_documents("k", "new.txt", progress=False).close()
    built = project / "indexes" / "k" / "built"
    assert read_manifest(built, "").generation == before + 1
