"""Adding, removing, updating and compacting end in what one build of the same files gives."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptflow.errors import EmptyCorpus
from promptflow.retrieval import (
    HashingEmbedder,
    Index,
    add_documents,
    build_index,
    compact_index,
    compaction,
    remove_documents,
    update_index,
    verify_index,
)

EMBEDDER = HashingEmbedder(64)
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
