"""Where a citation stands: the line in its file, and no file that is another one now."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptflow.errors import StoreNotFound
from promptflow.retrieval import HashingEmbedder, Index, build_index
from promptflow.retrieval.location import locate

FILES = {
    "plain.txt": b"one\ntwo\r\nthree\n\nfive",
    "wide.txt": "첫째\n둘째\n셋째".encode("utf-16"),
    "deep/notes.md": b"# Notes\n\nA line.\n\nAnother line.\n",
    "code.py": b"import os\n\nprint(os.name)\n",
    "table.csv": b"City,People\nSeoul,9.4\nBusan,3.3\n",
    "page.html": b"<p>One</p>\n<p>Two</p>",
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.chdir(tmp_path)
    for name, data in FILES.items():
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_bytes(data)
    with build_index("k", tmp_path / "docs", embedder=HashingEmbedder(), progress=False) as built:
        yield built


@pytest.mark.parametrize("name", ["plain.txt", "wide.txt", "deep/notes.md", "code.py"])
def test_a_line_is_that_of_the_file(index: Index, tmp_path: Path, name: str):
    """Against the file as an editor shows it, for every character."""
    text = index.text(name)
    data = FILES[name]
    lines = (data.decode("utf-16") if name == "wide.txt" else data.decode()).split("\n")
    for start, character in enumerate(text):
        place = locate(index, name, start)
        assert place.path == (tmp_path / "docs" / name).resolve()
        assert place.is_text
        assert place.line is not None
        assert character == "\n" or character in lines[place.line - 1] + "\n"
    assert locate(index, name, len(text) - 1).line == len(text.rstrip("\n").split("\n"))


def test_what_is_read_as_text_has_no_line_where_its_text_is_another(index: Index):
    assert (locate(index, "table.csv").line, locate(index, "table.csv").is_text) == (None, True)
    assert (locate(index, "page.html").line, locate(index, "page.html").is_text) == (
        None,
        False,
    )
    assert locate(index, "page.html", page=4).page == 4


def test_a_file_that_has_changed_or_is_gone_is_no_place(index: Index, tmp_path: Path):
    path = tmp_path / "docs" / "plain.txt"
    assert index.stale("plain.txt") == ""
    path.write_bytes(path.read_bytes() + b".")
    assert index.stale("plain.txt") == "changed"
    with pytest.raises(StoreNotFound, match=r"has changed since k was built.*promptflow index"):
        locate(index, "plain.txt")
    path.unlink()
    assert index.stale("plain.txt") == "gone"
    with pytest.raises(StoreNotFound, match=r"cannot be opened.*promptflow index"):
        locate(index, "plain.txt")


def test_a_link_out_of_the_folder_is_no_place(index: Index, tmp_path: Path):
    """Though it leads to the very bytes that were indexed."""
    path = tmp_path / "docs" / "plain.txt"
    outside = tmp_path / "outside.txt"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(StoreNotFound):
        locate(index, "plain.txt")


def test_only_documents_of_the_index_are_places(index: Index, tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    chance = random.Random(3)
    names = ["../secret", "/etc/passwd", "", ".", "plain.txt/", "deep", "plain.txt\0", "~", "-rf"]
    names += ["".join(chance.choices("./ab-\\\n", k=8)) for _ in range(200)]
    for name in names:
        with pytest.raises(StoreNotFound):
            locate(index, name)
