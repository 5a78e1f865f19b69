"""What has changed: hashes that are remembered are those of the files, whatever is done to them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from promptflow.errors import StoreError
from promptflow.retrieval import changes
from promptflow.retrieval.changes import Changes, Hashes, Scope, compare, scope_of
from promptflow.retrieval.documents import Rejected
from promptflow.retrieval.segment import Place
from promptflow.storage import sha256_bytes


def hashes(folder: Path) -> Hashes:
    return Hashes(folder, folder.parent / "files.json", [path.name for path in folder.iterdir()])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five files, on a disk whose times are as fine as they say."""
    monkeypatch.setattr(changes, "GRAIN", 0)
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(5):
        (docs / f"{number}.txt").write_text(f"text {number}")
    return docs


def test_a_walk_of_changes_is_seen(folder: Path) -> None:
    rng = random.Random(1)
    for _ in range(60):
        path = folder / f"{rng.randrange(5)}.txt"
        status = path.stat() if path.exists() else None
        do = rng.randrange(5)
        if do == 0:
            path.write_text(f"text {rng.randrange(9)}")
        elif do == 1 and status is not None:
            # Of the same size, and with the old times set back.
            path.write_text(path.read_text()[::-1])
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif do == 2:
            (folder / "part").write_text("renamed over it")
            os.replace(folder / "part", path)
        elif do == 3:
            path.unlink(missing_ok=True)
        known = hashes(folder)
        for file in folder.iterdir():
            assert known.of(file.name) == sha256_bytes(file.read_bytes())
        known.save()


def test_what_is_remembered_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hashes(folder)
    before = {path.name: first.of(path.name) for path in folder.iterdir()}
    first.save()
    (folder / "3.txt").write_text("other")
    read: list[str] = []
    really = changes.sha256_inside
    monkeypatch.setattr(
        changes, "sha256_inside", lambda root, name: (read.append(name), really(root, name))[1]
    )
    second = hashes(folder)
    after = {path.name: second.of(path.name) for path in folder.iterdir()}
    assert read == ["3.txt"]
    assert {name for name in before if before[name] != after[name]} == {"3.txt"}


def test_what_was_just_changed_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "GRAIN", 3600 * 10**9)
    known = hashes(folder)
    known.of("1.txt")
    known.save()
    assert not (folder.parent / "files.json").exists()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"1.txt": 5}', b'{"1.txt": [1, 2]}', b"\xff"])
def test_a_damaged_memory_is_no_memory(folder: Path, data: bytes) -> None:
    (folder.parent / "files.json").write_bytes(data)
    known = hashes(folder)
    assert known.of("1.txt") == sha256_bytes(b"text 1")
    known.save()
    assert known.of("absent.txt") == ""


def test_changes_are_told_one_by_one() -> None:
    places = {
        "same": Place("same", "1", "key"),
        "other": Place("other", "2", "key"),
        "gone": Place("gone", "3", "key"),
        "b/gone": Place("b/gone", "4", "key"),
        "bad": Place("bad", "5", "", "not text"),
        "link": Place("link", "", "", "a link out"),
    }
    now = {"same": "1", "other": "9", "bad": "5", "new": "7"}
    names = ["bad", Rejected("link", "a link out"), "new", "other", "same"]
    found = compare(places, names, now.__getitem__)
    assert found == Changes(("new", "other"), ("other", "gone", "b/gone"), 1, 1, 2)
    assert compare(places, names, now.__getitem__, Scope(("b",))).out == ("other", "b/gone")
    assert not compare(places, list(places), {p: places[p].sha256 for p in places}.__getitem__)
    assert compare(places, [*names[:1], Rejected("link", "to nothing")], now.__getitem__).read


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("docs", ("",)),
        ("docs/1.txt", ("1.txt",)),
        ("1.txt", ("1.txt",)),
        ("docs/../docs/./1.txt", ("1.txt",)),
        ("sub/", ("sub",)),
        ("docs/sub", ("sub",)),
        ("indexed/before.txt", ("indexed/before.txt",)),
        ("indexed", ("indexed",)),
        ("docs/out/x.txt", None),
        ("nothing", None),
        ("..", None),
        ("docs/../outside.txt", None),
    ],
)
def test_paths_become_ids(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, ids: tuple[str, ...] | None
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "sub").mkdir()
    (folder.parent / "outside.txt").touch()
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "x.txt").touch()
    (folder / "out").symlink_to(folder.parent / "elsewhere")
    if ids is None:
        with pytest.raises(StoreError, match="no document of this index"):
            scope_of(folder, path, ["indexed/before.txt"])
    else:
        assert scope_of(folder, path, ["indexed/before.txt"]).ids == ids
