"""The built folder: commits survive every death, damage is named, one writer, many readers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from promptflow import storage
from promptflow.errors import StoreBusy, StoreCorrupt, StoreError, StoreNotFound
from promptflow.retrieval import (
    HashingEmbedder,
    Index,
    build_index,
    compact_index,
    remove_documents,
    store as store_module,
    update_index,
    verify_index,
)
from promptflow.retrieval.segment import FILES
from promptflow.retrieval.store import Manifest, Store, commit, read_manifest

EMBEDDER = HashingEmbedder(64)
REBUILD = "promptflow index build k"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the current one, with three documents and the index k."""
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("alpha beta gamma\n" * 30)
    (docs / "b.md").write_text("# Title\n\ndelta epsilon\n\n## Part\n\nzeta\n")
    (docs / "c.txt").write_bytes(b"\xff\xff")
    build_index("k", "docs", embedder=EMBEDDER).close()
    return tmp_path


def built(project: Path) -> Path:
    return project / "indexes" / "k" / "built"


def leftovers(project: Path) -> set[str]:
    """What is in the built folder beside what the manifest names."""
    names = {path.name for path in built(project).iterdir()}
    named = {stated.name for stated in read_manifest(built(project), REBUILD).segments}
    assert named <= names
    return names - named - {"manifest.json", "lock", "embeddings"}


def file_of(project: Path, name: str) -> Path:
    """The one file of that name in the built folder."""
    [path] = built(project).rglob(name)
    return path


def test_the_store_gives_back_what_was_put_in(project: Path) -> None:
    with Index.open("k") as index:
        store = index.store
        rows = list(store.chunks())
        assert [row.id for row in rows] == list(range(index.manifest.counts["chunks"]))
        for row in rows:
            source = (project / "docs" / row.document).read_text()
            assert store.text(row.document) == source
            assert source[row.start : row.end] == row.text
        assert [row.heading for row in rows if row.document == "b.md"] == ["Title", "Title > Part"]
        assert [entry["path"] for entry in store.documents()] == ["a.txt", "b.md"]
        assert [entry.path for entry in store.rejected()] == ["c.txt"]
        assert store.chunk(rows[-1].id) == rows[-1]
        with pytest.raises(StoreNotFound, match="no chunk 999"):
            store.chunk(999)
        with pytest.raises(StoreNotFound, match="no document 'z'"):
            store.text("z")


def test_the_manifest_says_what_was_built(project: Path) -> None:
    manifest = read_manifest(built(project), REBUILD)
    assert (manifest.name, manifest.generation, manifest.schema) == ("k", 1, 3)
    assert manifest.embedder["sha256"] == EMBEDDER.sha256
    assert manifest.settings["factory"] == "Flat"
    assert manifest.counts["documents"] == 2
    assert manifest.counts["rejected"] == 1
    [segment] = manifest.segments
    assert (segment.name, segment.removed, set(segment.files)) == ("segment-000001", (), set(FILES))
    for name, stated in segment.files.items():
        data = (built(project) / segment.name / name).read_bytes()
        assert stated == {"bytes": len(data), "sha256": storage.sha256_bytes(data)}


Damage = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


DAMAGE: dict[str, Damage] = {
    "flipped": flipped,
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "extended": lambda data, rng: data + bytes([rng.randrange(256)]),
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
}


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_every_damage_is_named_with_the_command_that_rebuilds(project: Path, name: str) -> None:
    path = file_of(project, name)
    whole = path.read_bytes()
    rng = random.Random(name)
    for kind, times in {
        "flipped": 60,
        "truncated": 20,
        "extended": 2,
        "emptied": 1,
        "zeroed": 1,
    }.items():
        for _ in range(times):
            damaged = DAMAGE[kind](whole, rng)
            if name == "manifest.json" and damaged.strip() == whole.strip():
                continue
            path.write_bytes(damaged)
            with pytest.raises(StoreCorrupt) as caught:
                Index.open("k")
            assert str(path) in str(caught.value), kind
            assert REBUILD in str(caught.value), kind
    path.write_bytes(whole)
    Index.open("k").close()


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(project: Path, name: str) -> None:
    path = file_of(project, name)
    path.unlink()
    with pytest.raises(StoreError, match=REBUILD) as caught:
        Index.open("k")
    assert str(path) in str(caught.value)


def test_files_of_another_index_or_generation_are_refused(project: Path) -> None:
    (project / "docs" / "a.txt").write_text("other words\n" * 30)
    build_index("other", "docs", embedder=EMBEDDER).close()
    other = project / "indexes" / "other" / "built"
    for name in FILES:
        path = file_of(project, name)
        whole = path.read_bytes()
        shutil.copy(other / "segment-000001" / name, path)
        with pytest.raises(StoreCorrupt, match=REBUILD) as caught:
            Index.open("k")
        assert str(path) in str(caught.value)
        path.write_bytes(whole)
    file_of(project, FILES[0]).write_bytes(file_of(project, FILES[1]).read_bytes())
    with pytest.raises(StoreCorrupt):
        Index.open("k")


def test_an_old_manifest_put_back_is_refused(project: Path) -> None:
    old = (built(project) / "manifest.json").read_bytes()
    build_index("k", embedder=EMBEDDER, force=True).close()
    (built(project) / "manifest.json").write_bytes(old)
    with pytest.raises(StoreCorrupt, match="segment-000001"):
        Index.open("k")


def test_counts_that_do_not_agree_are_refused(project: Path) -> None:
    manifest = read_manifest(built(project), REBUILD)
    wrong = {**manifest.counts, "chunks": manifest.counts["chunks"] + 1}
    facts = {key: getattr(manifest, key) for key in Manifest.__slots__} | {"counts": wrong}
    commit(built(project), Manifest(**facts))
    with pytest.raises(StoreCorrupt, match=r"holds \d+ chunks, the manifest says"):
        Store.open(built(project), REBUILD)


def test_another_schema_is_refused_in_words(project: Path) -> None:
    path = built(project) / "manifest.json"
    table = json.loads(path.read_text()) | {"schema": 2}
    del table["sha256"]
    table["sha256"] = storage.sha256_bytes(storage.canonical(table).encode())
    path.write_text(json.dumps(table))
    with pytest.raises(StoreError, match="written with schema 2, this version reads 3"):
        Index.open("k")


def test_a_build_repairs_any_damage_and_reuses_the_vectors(project: Path) -> None:
    for name in [*FILES, "manifest.json"]:
        [path] = built(project).rglob(name)
        path.write_bytes(b"damaged")
        with build_index("k", embedder=EMBEDDER) as index:
            assert index.report is not None
            assert index.report.embedded == 0
            assert index.report.reused > 0
        assert verify_index("k", embedder=EMBEDDER).ok
        assert not leftovers(project)


def test_kept_vectors_that_are_damaged_are_computed_again(project: Path) -> None:
    path = built(project) / "embeddings" / "vectors.sqlite"
    data = bytearray(path.read_bytes())
    with Index.open("k") as index:
        vector = EMBEDDER.encode([next(iter(index.store.chunks())).embedded()])[0].tobytes()
    at = data.index(vector)
    data[at] ^= 1
    for content in (bytes(data), b"not a database", data[: len(data) // 2]):
        path.write_bytes(content)
        with build_index("k", embedder=EMBEDDER, force=True) as index:
            assert index.report is not None
            assert index.report.embedded >= 1
        path.read_bytes()
        assert verify_index("k", embedder=EMBEDDER).ok


class Builder:
    """The program tests/index_builds.py, fed one build at a time."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "index_builds.py")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def act(
        self, action: str = "build", *, kill_at: int = 0, fail_at: str = "-", limit: int = 0
    ) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{action} {kill_at} {fail_at} {limit}\n")
        self.process.stdin.flush()
        status, operations = map(int, self.process.stdout.readline().split())
        self.operations = operations
        return status


@pytest.fixture
def builder(project: Path) -> Iterator[Builder]:
    made = Builder(project)
    yield made
    made.process.communicate(timeout=60)


def test_a_build_killed_at_any_operation_leaves_a_whole_index(
    project: Path, builder: Builder
) -> None:
    number, deaths, generations = 0, 0, set()
    while True:
        number += 1
        # Every build has something to do: a document that no build before has seen.
        (project / "docs" / "new.txt").write_text(f"new words {number}")
        status = builder.act(kill_at=number)
        with Index.open("k", embedder=EMBEDDER) as index:
            generations.add(index.manifest.generation)
            [found] = index.search("alpha beta", 1)
            assert found.document == "a.txt"
            new = index.search("new words", 1, {"document": "new.txt"}) if number > 1 else []
            assert all(passage.text.startswith("new words") for passage in new)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        deaths += 1
    assert deaths > 40
    assert len(generations) > 1
    assert verify_index("k", embedder=EMBEDDER).ok
    assert not leftovers(project)


STEP = 1 if os.environ.get("PROMPTFLOW_SOAK") else 6
"""Of the storage operations of an action, how many are passed over: `make soak` takes each."""
FILES_OF_ACTIONS = {
    "update": ("a.txt", "new.txt"),
    "add:docs/new.txt": ("new.txt",),
    "remove:docs/e.txt": (),
    "compact": (),
}


def stood(project: Path) -> dict[str, str]:
    """The texts of the index by path, read through a search and through the store."""
    with Index.open("k", embedder=EMBEDDER) as index:
        texts = {entry["path"]: index.text(entry["path"]) for entry in index.store.documents()}
        for row in index.store.chunks():
            assert texts[row.document][row.start : row.end] == row.text
            found = index.search(row.text, 3)
            assert row.text in [passage.text for passage in found]
    return texts


def reset(project: Path, action: str, kept: Path) -> dict[str, str]:
    """Put the index and the documents of before an action back; return what it should say after."""
    shutil.rmtree(project / "indexes")
    shutil.rmtree(project / "docs")
    shutil.copytree(kept / "indexes", project / "indexes")
    shutil.copytree(kept / "docs", project / "docs")
    for name in FILES_OF_ACTIONS[action]:
        (project / "docs" / name).write_text(f"other words of {name}\n")
    texts = stood(project)
    if action.startswith("remove"):
        del texts["e.txt"]
    for name in FILES_OF_ACTIONS[action]:
        texts[name] = f"other words of {name}\n"
    return texts


@pytest.fixture
def kept(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a project whose index has three segments and a document taken out."""
    for names in ("e", "fg"):
        for name in names:
            (project / "docs" / f"{name}.txt").write_text(f"words of {name}\n" * 5)
        update_index("k", embedder=EMBEDDER).close()
    remove_documents("k", "docs/f.txt", embedder=EMBEDDER).close()
    (project / "docs" / "f.txt").unlink()
    with Index.open("k", embedder=EMBEDDER) as index:
        assert len(index.manifest.segments) == 3
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(project / "indexes", folder / "indexes")
    shutil.copytree(project / "docs", folder / "docs")
    return folder


@pytest.mark.parametrize("action", FILES_OF_ACTIONS)
def test_an_action_killed_at_any_operation_is_done_or_not_done(
    project: Path, kept: Path, builder: Builder, action: str
) -> None:
    number, deaths, done = 1 - STEP, 0, 0
    while True:
        number += STEP
        after = reset(project, action, kept)
        before = stood(project)
        status = builder.act(action, kill_at=number)
        now = stood(project)
        assert now in (before, after)
        done += now == after
        if status == 0:
            break
        assert status == -signal.SIGKILL
        deaths += 1
    assert now == after
    assert deaths
    assert not leftovers(project)
    assert verify_index("k", embedder=EMBEDDER).ok


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "EINTR"])
@pytest.mark.parametrize("action", FILES_OF_ACTIONS)
def test_an_action_that_fails_at_any_operation_is_done_or_not_done(
    project: Path, kept: Path, builder: Builder, action: str, fault: str
) -> None:
    reset(project, action, kept)
    assert builder.act(action) == 0
    operations, failures = builder.operations, 0
    for number in range(1 + len(fault) % STEP, operations + 1, STEP):
        after = reset(project, action, kept)
        before = stood(project)
        once = "+" if number % 2 else ""
        status = builder.act(action, fail_at=f"{number}{once}:{fault}")
        assert status in (0, 5, 28), "an error that is not typed"
        assert stood(project) in (before, after)
        failures += status != 0
        if number % 3 == 0 and stood(project) == before:
            assert builder.act(action) == 0
            assert stood(project) == after
            assert not leftovers(project)
    assert failures


def test_the_first_build_killed_at_any_operation_is_finished_by_the_next(
    project: Path, builder: Builder
) -> None:
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        shutil.rmtree(project / "indexes", ignore_errors=True)
        status = builder.act(kill_at=number)
        if status == -signal.SIGKILL and number % 7 == 0:
            with build_index("k", "docs", embedder=EMBEDDER) as index:
                assert index.search("alpha", 1)
            assert not leftovers(project)
    assert status == 0
    assert number > 40


def test_a_full_disk_leaves_the_old_generation(project: Path, builder: Builder) -> None:
    size = max(path.stat().st_size for path in built(project).rglob("*") if path.is_file())
    (project / "docs" / "big.txt").write_text("one two three four\n" * 4000)
    statuses = {builder.act(limit=limit) for limit in (1, 2000, size // 2, size, 3 * size)}
    assert statuses == {28}
    with Index.open("k", embedder=EMBEDDER) as index:
        assert index.manifest.generation == 1
        assert index.search("alpha", 1)[0].document == "a.txt"
    assert not leftovers(project)


class Interrupting:
    """An embedder whose user presses Ctrl-C while it works."""

    name, sha256, dimension, max_tokens = "interrupting", "0" * 64, 64, 1000

    def count(self, text: str) -> int:
        return EMBEDDER.count(text)

    def encode(self, texts: Sequence[str], *, progress: object = None) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGINT)
        return EMBEDDER.encode(texts)

    def encode_query(self, text: str) -> np.ndarray:
        return EMBEDDER.encode_query(text)


def test_an_interrupted_build_leaves_the_old_generation(project: Path) -> None:
    before = (built(project) / "manifest.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build_index("k", embedder=Interrupting())
    assert (built(project) / "manifest.json").read_bytes() == before
    assert not leftovers(project)
    with Index.open("k", embedder=EMBEDDER) as index:
        assert index.search("alpha", 1)[0].document == "a.txt"
    build_index("k", embedder=EMBEDDER, force=True).close()


def test_a_second_writer_is_told_who_writes(project: Path) -> None:
    with storage.lock(built(project) / "lock"):
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            build_index("k", embedder=EMBEDDER, force=True)
        Index.open("k").close()
    build_index("k", embedder=EMBEDDER, force=True).close()


def test_readers_see_whole_generations_while_a_writer_commits(project: Path) -> None:
    done = threading.Event()
    seen: list[int] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                with Index.open("k", embedder=EMBEDDER) as index:
                    assert index.search("alpha", 1)[0].document == "a.txt"
                    seen.append(index.manifest.generation)
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        build_index("k", embedder=EMBEDDER, force=True).close()
    done.set()
    reader.join()
    assert not errors
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


def test_an_open_index_outlives_its_generation(project: Path) -> None:
    with Index.open("k", embedder=EMBEDDER) as index:
        build_index("k", embedder=EMBEDDER, force=True).close()
        assert not (built(project) / "segment-000001").exists()
        [found] = index.search("alpha", 1)
        assert index.text(found.document)[found.start : found.end] == found.text


READ_ONLY = """
import os
from promptflow.errors import StoreError
from promptflow.retrieval import HashingEmbedder, Index, build_index
with Index.open("k", embedder=HashingEmbedder(64)) as index:
    index.search("alpha beta")  # what is imported for it may be out of the other user's reach
os.setgid(65534)
os.setuid(65534)
with Index.open("k", embedder=HashingEmbedder(64)) as index:
    print(index.search("alpha beta", 1)[0].document, index.stale("a.txt"))
try:
    build_index("k", embedder=HashingEmbedder(64), force=True)
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user who may not write")
def test_an_index_that_may_not_be_written_opens(project: Path) -> None:
    for path in [project, *project.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in project.parents:
        if parent.owner() == "root" and parent != Path("/") and parent.name != "tmp":
            parent.chmod(parent.stat().st_mode | 0o011)
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("a.txt \n"), done.stderr
    assert "cannot be written: Permission denied" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before


def test_an_index_beside_its_recipe_is_used_though_nothing_can_be_written_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Index.open("k", embedder=EMBEDDER) as index:
        assert index.search("alpha", 1)[0].document == "a.txt"


def test_what_is_too_large_to_hash_whole_is_checked_as_it_is_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HASHED_WHOLE", 0)
    path = file_of(project, "texts.utf8")
    whole = path.read_bytes()
    at = whole.index(b"zeta")
    path.write_bytes(whole[:at] + b"Zeta" + whole[at + 4 :])
    with Index.open("k", embedder=EMBEDDER) as index:
        # What is whole is found, and what is damaged is never given out.
        assert index.search("alpha beta", 1, mode="sparse")[0].document == "a.txt"
        assert index.text("a.txt")
        for read in (
            lambda: index.search("zeta", 1, mode="sparse"),
            lambda: index.text("b.md"),
            lambda: list(index.store.chunks()),
            index.store.check,
        ):
            with pytest.raises(StoreCorrupt, match=rf"texts\.utf8.*{REBUILD}"):
                read()
    assert not verify_index("k", embedder=EMBEDDER).ok
    with build_index("k", embedder=EMBEDDER) as index:
        assert index.report is not None
        assert not index.report.unchanged
        assert index.search("zeta", 1, mode="sparse")[0].text == "## Part\n\nzeta"


def test_a_closed_index_says_so(project: Path) -> None:
    index = Index.open("k", embedder=EMBEDDER)
    index.close()
    with pytest.raises(StoreError, match="was closed"):
        index.text("a.txt")


def test_readers_of_an_old_generation_read_on_after_a_compaction(project: Path) -> None:
    with Index.open("k", embedder=EMBEDDER) as old:
        (project / "docs" / "a.txt").write_text("other words")
        update_index("k", embedder=EMBEDDER).close()
        compact_index("k", embedder=EMBEDDER).close()
        assert not leftovers(project)
        assert old.text("a.txt").startswith("alpha beta")
        assert old.search("alpha beta", 1, mode="hybrid")[0].text.startswith("alpha")
    with Index.open("k", embedder=EMBEDDER) as new:
        assert new.text("a.txt") == "other words"


WRITER = """
import sys
from promptflow.errors import StoreBusy
from promptflow.retrieval import HashingEmbedder, update_index
print("ready", flush=True)
sys.stdin.readline()
try:
    with update_index("k", embedder=HashingEmbedder(64)) as index:
        print("wrote" if not index.report.unchanged else "nothing to do")
except StoreBusy as error:
    print("busy", error)
"""
READER = """
import sys
from promptflow.retrieval import HashingEmbedder, Index
embedder, seen = HashingEmbedder(64), []
print("ready", flush=True)
while True:
    with Index.open("k", embedder=embedder) as index:
        seen.append(index.manifest.generation)
        for entry in index.store.documents():
            [found] = index.search("words", 1, {"document": entry["path"]})
            assert index.text(entry["path"])[found.start : found.end] == found.text
    if sys.argv[1] in {entry["path"] for entry in index.store.documents()}:
        break
assert seen == sorted(seen), seen
print("read", len(set(seen)))
"""


def started(project: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_several_writers_one_writes_and_the_others_are_told(project: Path) -> None:
    (project / "docs" / "new.txt").write_text("new words " * 3000)
    writers = [started(project, WRITER) for _ in range(4)]
    answers = sorted(writer.communicate("go\n", timeout=60)[0] for writer in writers)
    assert answers.count("wrote\n") == 1
    assert all(a.startswith(("wrote", "nothing", "busy")) for a in answers)
    assert verify_index("k", embedder=EMBEDDER).ok
    assert not leftovers(project)


def test_readers_in_other_processes_see_each_commit_whole(project: Path) -> None:
    readers = [started(project, READER, "last.txt") for _ in range(2)]
    for number in range(12):
        (project / "docs" / f"n{number % 5}.txt").write_text(f"words {number}\n" * (number + 1))
        update_index("k", embedder=EMBEDDER).close()
        if number % 5 == 4:
            compact_index("k", embedder=EMBEDDER).close()
            remove_documents("k", "n0.txt", embedder=EMBEDDER).close()
    (project / "docs" / "last.txt").write_text("last words")
    update_index("k", embedder=EMBEDDER).close()
    answers = [reader.communicate(timeout=60)[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert all(answer.startswith("read ") for answer in answers)
