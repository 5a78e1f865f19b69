"""Searching several segments, in other threads and processes, is searching one index."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from promptflow.retrieval import HashingEmbedder, Index, across, add_documents, build_index

EMBEDDER = HashingEmbedder(64)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An open index of three segments."""
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("metal", "beam", "vote"):
        (docs / f"{name}.txt").write_text(f"a {name} of many words\n" * 40)
        build = build_index if name == "metal" else None
        if build is not None:
            build("k", "docs", embedder=EMBEDDER, progress=False).close()
        else:
            add_documents("k", f"{name}.txt", embedder=EMBEDDER, progress=False).close()
    return Index.open("k", embedder=EMBEDDER)


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` returns in a forked child, which has 30 seconds for it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, work().encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], 30)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    answer = os.read(reading, 10_000).decode() if ready else "it hangs"
    os.close(reading)
    return answer


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_forked_child_finds_what_its_parent_finds(
    index: Index, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptflow.retrieval import dense

    # Threads of OpenMP are at work before the fork, however few vectors there are.
    monkeypatch.setattr(dense, "ALONE", 0)

    def found() -> str:
        passages = index.search("many beam words", 3, mode=mode)  # type: ignore[arg-type]
        return repr([(p.document, p.start, p.text, p.score) for p in passages])

    here = found()
    assert in_child(found) == here
    assert in_child(lambda: in_child(found)) == here
    assert in_child(lambda: str(len(index.text("beam.txt")))) == str(len(index.text("beam.txt")))
    assert found() == here


def test_a_child_does_not_wait_for_locks_of_threads_that_it_has_not(index: Index) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with index._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    answer = in_child(lambda: index.search("beam", 1, mode="hybrid")[0].document)
    done.set()
    thread.join()
    assert answer == "beam.txt"


def _documents(index: Index) -> list[str]:
    return [passage.document for passage in index.search("beam", 1)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_searches(index: Index, method: str) -> None:
    index.search("beam", 1)
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        answers = pool.map_async(_documents, [index] * 4).get(timeout=60)
    assert answers == [["beam.txt"]] * 4


def test_removed_chunks_are_passed_over_by_either_way(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptflow.retrieval import remove_documents

    documents = [str(entry["path"]) for entry in index.store.documents()]
    add_documents("k", documents, embedder=EMBEDDER, progress=False).close()
    remove_documents("k", "beam.txt", embedder=EMBEDDER, progress=False).close()
    with Index.open("k", embedder=EMBEDDER) as after:
        few = [after.search("many beam words", k, mode="dense") for k in (1, 2, 9)]
        monkeypatch.setattr(across, "SKIPPED", -1)
        assert [after.search("many beam words", k, mode="dense") for k in (1, 2, 9)] == few
        assert "beam.txt" not in {passage.document for found in few for passage in found}


def test_a_forked_child_embeds(minilm: Path) -> None:
    from promptflow.retrieval import Embedder

    embedder = Embedder(minilm)
    texts = ["a beam keeps the best", "osmium is dense"] * 20
    vectors, query = embedder.encode(texts), embedder.encode_query("beam")
    assert in_child(lambda: str(abs(embedder.encode(texts) - vectors).max() < 1e-5)) == "True"
    assert in_child(lambda: str((embedder.encode_query("beam") == query).all())) == "True"
