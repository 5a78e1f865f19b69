"""The child's side: what a kind's function may do wrong, and what is kept from it."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from promptflow.retrieval.kinds import Parsed, Unreadable
from promptflow.retrieval.parser import Limits, Request, text_of


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("kind_of_a_test")
    monkeypatch.setitem(sys.modules, "kind_of_a_test", module)
    return module


def reading(data: bytes = b"x", **limits: int) -> Parsed:
    return text_of(Request("a.x", "kind_of_a_test:read", Limits(**limits)), data)


def test_text_is_fit_for_utf_8_and_for_sqlite(kind: ModuleType) -> None:
    kind.read = lambda data, name: Parsed(f"\ud800a\0b{name}", " a \n title ", (0, 3), ("\udfff",))
    assert reading() == Parsed("?a ba.x", "a title", (0, 3), ("?",))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Unreadable("ask the sender"), "^ask the sender$"),
        (KeyError("page"), "^KeyError: 'page'$"),
        (RecursionError("too deep"), "nested too deeply"),
        (MemoryError(), "needs more than 1024 MiB"),
    ],
)
def test_every_fault_is_a_reason(kind: ModuleType, fault: Exception, reason: str) -> None:
    def read(data: bytes, name: str) -> Parsed:
        raise fault

    kind.read = read
    with pytest.raises(Unreadable, match=reason):
        reading()


def test_an_encoding_in_doubt_comes_with_what_to_type(kind: ModuleType) -> None:
    from promptflow.retrieval.kinds.plaintext import read

    kind.read = read
    with pytest.raises(Unreadable, match=r"line 1: not UTF-8.*iconv -f cp1252 -t UTF-8"):
        reading("um café".encode("cp1252"))


def test_a_text_much_longer_than_its_file_is_refused(kind: ModuleType) -> None:
    kind.read = lambda data, name: Parsed("xxx " * (1 << 18) + "x" * data.count(b"x"))
    assert len(reading(b"", expansion=2).text) == 1 << 20
    with pytest.raises(Unreadable, match="1048577 characters, more than the 1048576 allowed"):
        reading(b"x", expansion=2)
    with pytest.raises(Unreadable, match="more than the 100 allowed"):
        reading(b"", text=100)


def test_a_child_counts_its_own_memory_and_not_its_parents() -> None:
    """Linux starts the greatest memory of a child at its parent's: each file would get a child."""
    script = (
        "import subprocess, sys; held = b'x' * (400 << 20); print(int(subprocess.check_output("
        "[sys.executable, '-c', 'from promptflow.retrieval.parser import _peak; print(_peak())'])))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert 0 < int(done.stdout) < 200 << 20, done.stderr
