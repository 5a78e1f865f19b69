"""Following a folder: each change ends in a commit, and Ctrl-C leaves what was committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from promptflow.errors import EmptyCorpus, PromptflowError, StoreBusy, StoreError, StoreNotFound
from promptflow.retrieval import HashingEmbedder, Index, watch_index
from promptflow.storage import lock

EMBEDDER = HashingEmbedder(64)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the current one, with documents and the recipe k."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("osmium")
    recipe = tmp_path / "indexes" / "k" / "index.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text('documents = "docs"\nembedder = "hashing-64"\n')
    return tmp_path


def follow(
    name: str | Path,
    events: Sequence[Callable[[], object]],
    failed: Callable[[PromptflowError], object] | None = None,
) -> list[dict[str, str]]:
    """What the index said at each commit, with one event before each look; Ctrl-C at the end."""
    waiting = iter(events)

    def wait(seconds: float) -> None:
        event = next(waiting, None)
        if event is None:
            raise KeyboardInterrupt
        event()

    said: list[dict[str, str]] = []
    commits: Iterator[Index] = watch_index(name, embedder=EMBEDDER, failed=failed, wait=wait)
    with pytest.raises(KeyboardInterrupt):
        said.extend(texts(index) for index in commits)
    return said


def texts(index: Index) -> dict[str, str]:
    return {entry["path"]: index.text(entry["path"]) for entry in index.store.documents()}


def nothing() -> None:
    pass


def test_each_change_is_committed_when_it_stands_still(project: Path) -> None:
    docs = project / "docs"
    said = follow(
        "k",
        [
            nothing,
            lambda: (docs / "b.txt").write_text("gold"),
            nothing,
            nothing,
            lambda: (docs / "a.txt").write_text("iridium"),
            lambda: (docs / "a.txt").write_text("iridium and more"),
            nothing,
            lambda: (docs / "b.txt").unlink(),
            nothing,
            lambda: (docs / "notes.unknown").write_text("no document"),
            nothing,
        ],
    )
    assert said == [
        {"a.txt": "osmium"},
        {"a.txt": "osmium", "b.txt": "gold"},
        {"a.txt": "iridium and more", "b.txt": "gold"},
        {"a.txt": "iridium and more"},
    ]
    with Index.open("k") as index:
        assert texts(index) == said[-1]


def test_what_changes_while_the_first_build_reads_is_seen(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptflow.retrieval import watch

    build = watch.build_index

    def meanwhile(*arguments: object, **options: object) -> Index:
        index = build(*arguments, **options)  # type: ignore[arg-type]
        (project / "docs" / "late.txt").write_text("late")
        return index

    monkeypatch.setattr(watch, "build_index", meanwhile)
    assert follow("k", [nothing, nothing, nothing])[-1] == {"a.txt": "osmium", "late.txt": "late"}


def test_what_fails_for_a_while_is_tried_again(project: Path) -> None:
    docs, errors = project / "docs", []
    held = lock(project / "indexes" / "k" / "built" / "lock")
    events = [
        lambda: (held.__enter__(), (docs / "b.txt").write_text("gold")),
        nothing,
        lambda: held.__exit__(None, None, None),
        lambda: [path.unlink() for path in docs.iterdir()],
        nothing,
        lambda: (docs / "c.txt").write_text("beam"),
        nothing,
    ]
    said = follow("k", events, errors.append)
    assert said == [{"a.txt": "osmium"}, {"a.txt": "osmium", "b.txt": "gold"}, {"c.txt": "beam"}]
    assert [type(error) for error in errors] == [StoreBusy, EmptyCorpus]
    gone = lambda seconds: (docs / "c.txt").unlink(missing_ok=True)  # noqa: E731
    with pytest.raises(EmptyCorpus):
        list(watch_index("k", embedder=EMBEDDER, wait=gone))


def test_settings_that_change_and_damage_build_it_again(project: Path) -> None:
    recipe, docs = project / "indexes" / "k" / "index.toml", project / "docs"

    def damage() -> None:
        for path in project.rglob("chunks.table"):
            path.write_bytes(b"")
        (docs / "c.txt").write_text("vote")

    said = follow(
        "k",
        [
            lambda: (
                recipe.write_text(recipe.read_text() + "chunk_size = 9\n"),
                (docs / "b.txt").write_text("gold " * 30),
            ),
            nothing,
            damage,
            nothing,
        ],
    )
    assert [sorted(one) for one in said] == [
        ["a.txt"],
        ["a.txt", "b.txt"],
        ["a.txt", "b.txt", "c.txt"],
    ]
    with Index.open("k") as index:
        assert index.manifest.counts["chunks"] > 3


def test_a_folder_gets_an_index_of_its_name(project: Path) -> None:
    notes = project / "my notes"
    notes.mkdir()
    (notes / "n.txt").write_text("a note")
    assert follow(notes, []) == [{"n.txt": "a note"}]
    with Index.open("my-notes") as index:
        assert texts(index) == {"n.txt": "a note"}
    # The second time it is known, and the folder of the index k is that index.
    assert follow("my notes", []) == [{"n.txt": "a note"}]
    assert follow("docs", []) == [{"a.txt": "osmium"}]
    assert sorted(path.name for path in (project / "indexes").iterdir()) == ["k", "my-notes"]


def test_what_cannot_be_followed_is_refused(project: Path) -> None:
    with pytest.raises(StoreNotFound):
        next(watch_index("nowhere"))
    with pytest.raises(ValueError, match="every=0"):
        next(watch_index("k", every=0))
    other = project / "other" / "k"
    other.mkdir(parents=True)
    with pytest.raises(StoreError, match="an index 'k' of another folder"):
        next(watch_index(other))
