"""Building and opening: what is searched is what was built, exactly, and nothing is done twice."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_dense import unit

from promptflow import storage
from promptflow.errors import EmptyCorpus, PromptflowError, StoreCorrupt, StoreError, StoreNotFound
from promptflow.retrieval import (
    HashingEmbedder,
    Index,
    Rejected,
    build,
    build_index,
    update_index,
    verify_index,
)
from promptflow.retrieval.dense import build_dense
from promptflow.retrieval.documents import Document, load_all
from promptflow.retrieval.segment import DENSE, SPARSE
from promptflow.retrieval.sparse import SparseWriter
from promptflow.retrieval.store import commit, read_manifest

EMBEDDER = HashingEmbedder(64)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the current one, with documents and no index."""
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "osmium.md").write_text("# Osmium\n\nThe densest metal.\n\n## Uses\n\nFountain pens.\n")
    (docs / "tree.txt").write_text("Thoughts form a tree. A beam keeps the best.\n")
    (docs / "page.html").write_text("<title>Votes</title><p>Samples vote on an answer.</p>")
    return tmp_path


def reseal(index: Index, name: str, data: bytes) -> None:
    """Put other bytes in a file of the segment and commit a manifest with their hash."""
    [sealed] = index.manifest.segments
    (index.store.folder / sealed.name / name).write_bytes(data)
    stated = {"bytes": len(data), "sha256": storage.sha256_bytes(data)}
    changed = replace(sealed, files={**sealed.files, name: stated})
    commit(index.store.folder, replace(index.manifest, segments=(changed,)))


def test_vectors_that_do_not_fit_the_chunks_are_refused(project: Path) -> None:
    with build_index("k", "docs", embedder=EMBEDDER) as index:
        number = index.manifest.counts["chunks"]
        for count, dimension in ((number - 1, 64), (number + 1, 64), (number, 32)):
            vectors = unit(np.random.default_rng(4), count, dimension)
            reseal(index, DENSE, build_dense(vectors, "Flat"))
            with pytest.raises(StoreCorrupt, match="the manifest says") as caught:
                Index.open("k")
            assert "dense.faiss" in str(caught.value)
            assert "promptflow index build k" in str(caught.value)


def test_vectors_with_other_ids_are_refused(project: Path) -> None:
    import faiss

    with build_index("k", "docs", embedder=EMBEDDER) as index:
        number = index.manifest.counts["chunks"]
        turned = faiss.IndexIDMap(faiss.IndexFlatIP(64))
        turned.add_with_ids(unit(np.random.default_rng(5), number, 64), np.arange(number)[::-1])
        reseal(index, DENSE, faiss.serialize_index(turned).tobytes())
        with pytest.raises(StoreCorrupt, match="its ids are not those of the chunks"):
            Index.open("k")
        plain = faiss.IndexFlatIP(64)
        plain.add(unit(np.random.default_rng(5), number, 64))
        reseal(index, DENSE, faiss.serialize_index(plain).tobytes())
        with pytest.raises(StoreCorrupt, match="IndexFlat"):
            Index.open("k")


def test_words_that_do_not_fit_the_chunks_are_a_problem(project: Path) -> None:
    with build_index("k", "docs", embedder=EMBEDDER) as index:
        words = SparseWriter()
        words.add("one text", ["one text"])
        reseal(index, SPARSE, words.finish())
    found = verify_index("k", embedder=EMBEDDER)
    assert not found.ok
    assert "sparse.bm25: holds 1 texts" in found.problems[0]


def test_another_embedder_is_refused(project: Path) -> None:
    build_index("k", "docs", embedder=EMBEDDER).close()
    with (
        Index.open("k", embedder=HashingEmbedder(65)) as index,
        pytest.raises(StoreError, match=r"built with hashing-64.*promptflow index build k"),
    ):
        index.search("osmium")
    with Index.open("k") as index:
        assert index.search("densest metal", 1)[0].document == "osmium.md"


def test_building_writes_the_recipe_of_a_new_index(project: Path) -> None:
    with build_index("k", "docs", embedder=EMBEDDER) as index:
        report = index.report
    assert report is not None
    assert (report.documents, report.chunks, report.embedded, report.reused) == (3, 4, 4, 0)
    assert not report.unchanged
    assert 'documents = "docs"' in (project / "indexes" / "k" / "index.toml").read_text()
    assert 'embedder = "hashing-64"' in (project / "indexes" / "k" / "index.toml").read_text()
    assert sorted(path.name for path in (project / "indexes" / "k").iterdir()) == [
        "built",
        "index.toml",
    ]


def test_an_index_that_is_up_to_date_is_left_alone(project: Path) -> None:
    build_index("k", "docs", embedder=EMBEDDER).close()
    manifest = project / "indexes" / "k" / "built" / "manifest.json"
    before = (manifest.read_bytes(), manifest.stat().st_mtime_ns, manifest.stat().st_ino)
    with build_index("k", embedder=EMBEDDER) as index:
        assert index.report is not None
        assert index.report.unchanged
        assert index.search("densest metal", 1)[0].document == "osmium.md"
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns, manifest.stat().st_ino) == before
    with build_index("k", embedder=EMBEDDER, force=True) as index:
        assert index.report is not None
        assert (index.report.unchanged, index.report.embedded, index.report.reused) == (False, 0, 4)


@pytest.mark.parametrize(
    ("change", "embedded", "documents"),
    [
        (lambda docs: (docs / "tree.txt").write_text("A tree of other words.\n"), 1, 3),
        (lambda docs: (docs / "new.txt").write_text("New words.\n"), 1, 4),
        (lambda docs: (docs / "copy.txt").write_text((docs / "tree.txt").read_text()), 0, 3),
        (lambda docs: (docs / "tree.txt").unlink(), 0, 2),
        (lambda docs: (docs / "tree.txt").rename(docs / "wood.txt"), 0, 3),
        (lambda docs: (docs / "bad.txt").write_bytes(b"\xff"), 0, 3),
    ],
    ids=["changed", "new", "copied", "removed", "renamed", "bad"],
)
def test_only_what_is_new_is_embedded(
    project: Path, change: object, embedded: int, documents: int
) -> None:
    build_index("k", "docs", embedder=EMBEDDER).close()
    assert callable(change)
    change(project / "docs")
    with build_index("k", embedder=EMBEDDER) as index:
        assert index.report is not None
        assert (index.report.embedded, index.report.documents) == (embedded, documents)
        assert not index.report.unchanged
    with build_index("k", embedder=EMBEDDER) as index:
        assert index.report is not None
        assert index.report.unchanged
    assert verify_index("k", embedder=EMBEDDER).ok


def test_a_recipe_that_changed_is_built_again(project: Path) -> None:
    build_index("k", "docs", embedder=EMBEDDER).close()
    recipe = project / "indexes" / "k" / "index.toml"
    whole = recipe.read_text()
    for change in ('factory = "SQ8"', "chunk_size = 150", "chunk_overlap = 2"):
        key = change.split(" ")[0]
        kept = [line for line in whole.splitlines() if not line.startswith(key)]
        recipe.write_text("\n".join([*kept, change]))
        with build_index("k", embedder=EMBEDDER) as index:
            assert index.report is not None
            assert not index.report.unchanged, change


def test_an_empty_folder_writes_nothing(project: Path) -> None:
    empty = project / "empty"
    empty.mkdir()
    with pytest.raises(EmptyCorpus, match="no readable document"):
        build_index("k", "empty", embedder=EMBEDDER)
    (empty / "bad.txt").write_bytes(b"\xff")
    (empty / "blank.md").write_text("\n")
    with pytest.raises(EmptyCorpus, match=r"bad\.txt: line 1: not UTF-8"):
        build_index("k", "empty", embedder=EMBEDDER)
    with pytest.raises(EmptyCorpus, match="no such folder"):
        build_index("k", "nowhere", embedder=EMBEDDER)
    assert sorted(path.name for path in project.iterdir()) == ["docs", "empty"]


def test_an_emptied_folder_leaves_the_old_index(project: Path) -> None:
    build_index("k", "docs", embedder=EMBEDDER).close()
    for path in (project / "docs").iterdir():
        path.unlink()
    with pytest.raises(EmptyCorpus):
        build_index("k", embedder=EMBEDDER)
    with Index.open("k") as index:
        assert index.search("densest metal", 1)[0].document == "osmium.md"


def test_bad_files_are_reported_and_the_rest_is_built(project: Path) -> None:
    (project / "docs" / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    (project / "docs" / "out.txt").symlink_to("/etc/hostname")
    with build_index("k", "docs", embedder=EMBEDDER) as index:
        assert index.report is not None
        assert [entry.path for entry in index.report.rejected] == ["bad.pdf", "out.txt"]
        assert all(isinstance(entry, Rejected) and entry.reason for entry in index.report.rejected)
        assert index.manifest.counts["documents"] == 3


def test_a_file_that_a_busy_machine_did_not_read_is_read_by_the_next_build(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(item: Document | Rejected) -> Document | Rejected:
        return Rejected(item.path, "not read in 9 s") if item.path == "tree.txt" else item

    with monkeypatch.context() as patch:
        patch.setattr(build, "load_all", lambda *given: map(busy, load_all(*given)))
        with build_index("k", "docs", embedder=EMBEDDER) as index:
            assert [one.path for one in index.store.rejected()] == ["tree.txt"]
    with update_index("k", embedder=EMBEDDER) as index:
        assert index.store.rejected() == []
        assert index.search("a beam keeps the best", 1)[0].document == "tree.txt"


def test_passages_longer_than_the_embedder_reads_are_refused(project: Path, minilm: Path) -> None:
    recipe = project / "indexes" / "k" / "index.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("chunk_size = 250\n")
    with pytest.raises(StoreError, match="chunk_size is 250, expected at most 204"):
        build_index("k")


def test_an_index_that_is_not_built_says_how(project: Path) -> None:
    with pytest.raises(StoreNotFound, match="promptflow index build k --documents FOLDER"):
        Index.open("k")
    recipe = project / "indexes" / "k" / "index.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text('documents = "docs"\n')
    with pytest.raises(StoreNotFound, match="Build it: promptflow index build k"):
        Index.open("k")


@pytest.mark.parametrize(
    ("query", "k", "mode"),
    [("", 5, "dense"), (" \n", 5, "dense"), ("a", 0, "dense"), ("a", 5, "x")],
)
def test_a_search_that_makes_no_sense_is_refused(
    project: Path, query: str, k: int, mode: str
) -> None:
    with (
        build_index("k", "docs", embedder=EMBEDDER) as index,
        pytest.raises(PromptflowError, match="search: query="),
    ):
        index.search(query, k, mode=mode)  # type: ignore[arg-type]


def test_verification_tells_documents_that_moved_on(project: Path) -> None:
    build_index("k", "docs", embedder=EMBEDDER).close()
    assert verify_index("k").notes == ()
    (project / "docs" / "tree.txt").write_text("changed")
    (project / "docs" / "new.txt").write_text("new")
    (project / "docs" / "page.html").unlink()
    found = verify_index("k")
    assert found.ok
    assert [note.split(" since")[0] for note in found.notes] == ["1 changed", "1 gone", "1 new"]
    assert not verify_index("k", embedder=HashingEmbedder(32)).ok


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, promptflow.retrieval as r; print(len(r.__all__))\n"
        "from promptflow.retrieval import Passage, locate_quote\n"
        "print(sorted({'faiss', 'torch', 'numpy', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


def test_every_public_name_is_there() -> None:
    import promptflow.retrieval as retrieval

    assert retrieval.__all__ == sorted(retrieval.__all__)
    for name in retrieval.__all__:
        assert getattr(retrieval, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = retrieval.nothing


def test_minilm_finds_by_meaning(project: Path, minilm: Path) -> None:
    with build_index("k", "docs", progress=False) as index:
        found = index.search("heaviest element", 2)
        assert found[0].document == "osmium.md"
        assert found[0].score > found[1].score
        for passage in found:
            assert index.text(passage.document)[passage.start : passage.end] == passage.text
    assert read_manifest(project / "indexes/k/built", "").embedder["name"] == "all-minilm-l6-v2"
    found_again = verify_index("k")
    assert found_again.ok
    assert found_again.notes == ()
