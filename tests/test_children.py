"""The parent's side: what a child may do, at what cost, and in which order texts come."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile_files import hostile
from test_kinds import SAMPLES

from promptflow.child import environment
from promptflow.errors import DocumentRejected
from promptflow.retrieval import kinds
from promptflow.retrieval.children import WAITING, Child, Gate, in_children
from promptflow.retrieval.documents import Document, Limits, Rejected, find, load, load_all
from promptflow.retrieval.kinds import Kind

READERS = """
import os, signal, time
from promptflow.retrieval.kinds import Parsed

def read(data, name):
    word, _, rest = data.decode().partition(" ")
    if word == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "exit":
        os._exit(3)
    if word == "loop":
        while True:
            pass
    if word == "sleep":
        time.sleep(60)
    if word == "swell":
        return Parsed(str(len("x" * (1 << 34))))
    if word == "write":
        with open(rest, "w") as file:
            file.write("written")
    if word == "long":
        return Parsed("x" * int(rest))
    if word == "pages":
        return Parsed("x", pages=tuple(range(int(rest))))
    return Parsed(f"{data.decode()} by {os.getpid()}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents of a kind that does what its files say, and the kind registered."""
    (tmp_path / "readers_of_a_test.py").write_text(READERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(kinds.KINDS)
    kinds.register(Kind("orders", (".order",), "readers_of_a_test:read"))
    (tmp_path / "papers").mkdir()
    yield tmp_path / "papers"
    kinds.KINDS.clear()
    kinds.KINDS.update(before)


def put(folder: Path, *orders: str) -> None:
    for number, order in enumerate(orders):
        (folder / f"{number:03}.order").write_text(order)


def texts(folder: Path, **limits: int) -> list[str]:
    items = load_all(folder, find(folder), Limits(**limits))
    return [item.text if isinstance(item, Document) else item.reason for item in items]


def test_one_child_reads_many_files_and_only_the_guilty_is_rejected(folder: Path) -> None:
    put(folder, *["a"] * 8, "die", *["b"] * 8, "exit", *["c"] * 8)
    found = texts(folder)
    assert found[8] == "its parser died (SIGSEGV)"
    assert found[17] == "its parser died (status 3)"
    good = [text.split(" by ") for text in found if " by " in text]
    assert [word for word, _ in good] == [*"aaaaaaaabbbbbbbbcccccccc"]
    assert len({child for _, child in good}) <= 4 + 4  # a child a core at most, and their heirs


def test_a_child_that_loops_or_waits_is_stopped(folder: Path) -> None:
    put(folder, "a", "loop", "b")
    found = texts(folder, cpu=1)
    assert "took more than 1 s of processor time" in found[1]
    assert [found[0][0], found[2][0]] == ["a", "b"]
    put(folder, "a", "sleep", "b")
    found = texts(folder, wall=1)
    assert "not read in 1 s" in found[1]
    assert [found[0][0], found[2][0]] == ["a", "b"]
    hashes = [item.sha256 for item in load_all(folder, find(folder), Limits(wall=1))]
    assert list(map(bool, hashes)) == [True, False, True]  # what has no hash is read again


def test_a_child_that_swells_is_stopped_by_its_memory(folder: Path) -> None:
    put(folder, "a", "swell", "b")
    found = texts(folder)
    assert found[1] == "needs more than 1024 MiB to read"
    assert [found[0][0], found[2][0]] == ["a", "b"]


def test_a_child_writes_no_file(folder: Path, tmp_path: Path) -> None:
    put(folder, f"write {tmp_path / 'out'}")
    assert "rror" in texts(folder)[0]
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_text() == ""


def test_no_more_comes_back_than_is_allowed(folder: Path) -> None:
    put(folder, "long 3000000", "long 500001", "pages 300000", "long 500000")
    found = texts(folder, text=500_000)
    assert "more than the 500000 allowed" in found[0]
    assert "more than the 500000 allowed" in found[1]
    assert found[2] == "more pages than can be told"
    assert found[3] == "x" * 500_000


def test_a_kind_of_a_user_is_found_where_this_process_finds_it(folder: Path) -> None:
    put(folder, "hello")
    document = load(folder, "000.order")
    assert (document.kind, document.text[:8]) == ("orders", "hello by")
    assert document.sha256
    (folder / "gone.order").write_text("die")
    with pytest.raises(DocumentRejected, match="died"):
        load(folder, "gone.order")
    [item] = load_all(folder, ["gone.order"])
    assert isinstance(item, Rejected)
    assert len(item.sha256) == 64


def test_texts_come_in_order_however_long_each_takes() -> None:
    chance = random.Random(0)
    numbers = list(range(300))
    weight = {number: chance.randrange(2000) for number in numbers}

    def make(number: int, child: Child, gate: Gate) -> int:
        sum(range(weight[number]))
        gate(weight[number] * 100)
        return number

    assert list(in_children(iter(numbers), make, 3)) == numbers


def test_only_so_much_waits_for_its_turn() -> None:
    """The first is slow; the others are large, and one after the other waits outside."""
    lock = threading.Lock()
    inside: set[int] = set()
    largest = 0
    others_are_stuck = threading.Event()

    def make(number: int, child: Child, gate: Gate) -> int:
        nonlocal largest
        if number == 0:
            others_are_stuck.wait(10)
        elif number == 5:
            others_are_stuck.set()
        gate(WAITING // 4)
        with lock:
            inside.add(number)
            largest = max(largest, len(inside))
        return number

    seen = []
    for number in in_children(range(40), make, 5):
        seen.append(number)
        with lock:
            inside.discard(number)
    assert seen == list(range(40))
    assert largest <= 4 + 5 + 1


def test_giving_up_half_way_ends_the_children(folder: Path) -> None:
    put(folder, *["a"] * 40)
    items = load_all(folder, find(folder))
    first = next(items)
    assert isinstance(first, Document)
    pid = int(first.text.split(" by ")[1])
    items.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


MEASURED = """
import resource, sys
from pathlib import Path
from promptflow.retrieval.chunk import chunk_text
from promptflow.retrieval.documents import Document, find, load_all
root = Path(sys.argv[1])
names = find(root)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for item in load_all(root, names):
    if isinstance(item, Document):
        chunk_text(item.text, 200, len, markdown=item.headings)
    print(item.path, getattr(item, "reason", "read"), sep="\\t")
print((peak() - before) // 1024)
"""


def test_hostile_files_cost_little_and_good_ones_among_them_are_read(tmp_path: Path) -> None:
    for name, data in hostile(120, share=0.02):
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "large.txt").write_bytes(b"some words " * (3 << 20))
    good = ["a.txt", "g.html", "m.pdf", "s.docx", "z.csv"]
    for name in good:
        kind = kinds.kind_of(name)
        assert kind is not None
        (tmp_path / name).write_bytes(SAMPLES[kind.name])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    *lines, grown = done.stdout.splitlines()
    said = dict(line.split("\t") for line in lines)
    assert set(said) == {path.name for path in tmp_path.iterdir()}
    assert [said[name] for name in good] == ["read"] * 5
    assert "not text" in said["nul.txt"]
    assert "zip bomb" in said["bomb.docx"] or "read" not in said["bomb.docx"]
    assert int(grown) < 50
