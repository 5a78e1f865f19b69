"""Files to texts: what is found, what is read, what is refused, and at what cost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from office_files import pdf

from promptflow.errors import DocumentRejected, EmptyCorpus
from promptflow.retrieval.documents import (
    Document,
    Limits,
    Rejected,
    find,
    glob_pattern,
    left_out,
    load,
    load_all,
    read_bytes,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "papers"
    (root / "sub" / ".hidden").mkdir(parents=True)
    (root / "a.txt").write_text("Plain text.\n")
    (root / "sub" / "b.md").write_text("# Title of b\n\nSome words.\n")
    (root / "sub" / "c.PDF").write_bytes(pdf("page"))
    (root / "sub" / "d.png").write_bytes(b"\x89PNG\0")
    (root / "sub" / ".hidden" / "e.txt").write_text("hidden")
    (root / ".f.txt").write_text("hidden")
    return root


def test_find_lists_matching_visible_files_in_order(folder: Path) -> None:
    assert find(folder) == ["a.txt", "sub/b.md", "sub/c.PDF"]
    assert find(folder, ["sub/*"]) == ["sub/b.md", "sub/c.PDF"]
    assert find(folder, ["*.TXT", "**/*.pdf"]) == ["a.txt", "sub/c.PDF"]
    assert find(folder, ["sub/*.png"]) == ["sub/d.png"]


def test_what_is_left_out_is_counted_and_named(folder: Path) -> None:
    (folder / "e.PNG").write_bytes(b"")
    (folder / "notes").write_text("no suffix")
    (folder / "letter.doc").write_bytes(b"")
    (folder / "data.xyz").write_text("text")
    entries = left_out(folder)
    assert [(entry.suffix, entry.count, entry.example) for entry in entries] == [
        (".png", 2, "e.PNG"),
        ("", 1, "notes"),
        (".doc", 1, "letter.doc"),
        (".xyz", 1, "data.xyz"),
    ]
    how = {entry.suffix: entry.how for entry in entries}
    assert "recognise its text" in how[".png"]
    assert "save it as .docx" in how[".doc"]
    assert 'add "**/*.xyz" to globs' in how[".xyz"]
    [only] = left_out(folder, ["**/*.txt", "**/*.xyz", "**/*.pdf", "**/*.png", "*.doc", "notes"])
    assert (only.suffix, only.count) == (".md", 1)
    assert 'add "**/*.md"' in only.how


@pytest.mark.parametrize("name", ["MANUAL.MD", "README.TXT", "Page.HTML", "Rows.Csv", "README"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<p>some words, more words")
    assert find(tmp_path) == [name]
    assert "some words" in load(tmp_path, name).text
    assert left_out(tmp_path) == []


def test_a_file_that_no_kind_knows_is_text_if_a_glob_spells_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "data.xyz").write_text("plain")
    assert find(tmp_path) == []
    assert find(tmp_path, ["**/*.XYZ"]) == ["data.xyz"]
    assert load(tmp_path, "data.xyz").kind == "text"


def test_a_missing_folder_is_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpus, match="no such folder"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("**/*.md", ["a.md", "x/a.md", "x/y/a.md"], ["a.mdx", "a.txt"]),
        ("*.md", ["a.md"], ["x/a.md"]),
        ("x/**", ["x/a", "x/y/z"], ["y/x/a"]),
        ("x?.t[1]", ["xa.t[1]"], ["x/.t[1]", "xa.t1"]),
    ],
)
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    pattern = glob_pattern(glob)
    assert [name for name in yes + no if pattern.fullmatch(name)] == yes


def test_links_inside_are_read_and_links_out_are_reported(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    (folder / "in.txt").symlink_to(folder / "a.txt")
    (folder / "out.txt").symlink_to(secret)
    (folder / "nothing.txt").symlink_to(folder / "gone.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    found = {item.path if isinstance(item, Rejected) else item: item for item in find(folder)}
    assert found["in.txt"] == "in.txt"
    assert load(folder, "in.txt").text == "Plain text.\n"
    for name, reason in {"out.txt": "out of the folder", "up/": "out of the folder"}.items():
        entry = found[name]
        assert isinstance(entry, Rejected)
        assert reason in entry.reason
    items = list(load_all(folder, find(folder)))
    assert {item.path for item in items if isinstance(item, Document)} == {
        "a.txt",
        "in.txt",
        "sub/b.md",
        "sub/c.PDF",
    }
    assert not [item for item in items if isinstance(item, Document) and "yours" in item.text]


NAMES = [
    "../secret.txt",
    "sub/../../secret.txt",
    "/etc/hostname",
    "sub/../../../../../../../etc/hostname",
    "a\0.txt",
    "..",
    ".",
    "",
    "sub",
    "nowhere.txt",
    "\u2025/secret.txt",
    "..\\secret.txt",
    "C:\\secret.txt",
    "x" * 5000,
]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret.txt").write_text("not yours")
    with pytest.raises(DocumentRejected):
        read_bytes(folder, name)


@given(st.lists(st.sampled_from(["..", ".", "sub", "a.txt", "b.md", "", "secret.txt", "up"])))
@settings(max_examples=200, deadline=None)
def test_no_path_of_any_parts_leads_out(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    base = tmp_path_factory.getbasetemp() / "parts"
    root = base / "papers"
    if not root.exists():
        (root / "sub").mkdir(parents=True)
        (base / "secret.txt").write_text("not yours")
        (root / "a.txt").write_text("inside")
        (root / "sub" / "b.md").write_text("inside")
        (root / "up").symlink_to(base, target_is_directory=True)
    try:
        data = read_bytes(root, "/".join(parts))
    except DocumentRejected:
        return
    assert data == b"inside"


def test_the_text_of_plain_files_is_the_file_itself(folder: Path) -> None:
    exact = "\ufeffwindows\r\nlines\r\n\tand \u00e9\u4e2d\U0001f600 \u2028 end"
    (folder / "exact.txt").write_bytes(exact.encode())
    assert load(folder, "exact.txt").text == exact
    (folder / "wide.txt").write_bytes(exact[1:].encode("utf-16"))
    assert load(folder, "wide.txt").text == exact[1:]


def test_markdown_takes_its_title_from_the_first_heading(folder: Path) -> None:
    document = load(folder, "sub/b.md")
    assert (document.kind, document.metadata) == ("markdown", {"title": "Title of b"})
    assert document.headings
    assert load(folder, "a.txt").metadata == {"title": "a"}


def test_pdf_gives_text_and_the_offset_of_each_page(folder: Path) -> None:
    (folder / "two.pdf").write_bytes(pdf("First page here", "Second page there"))
    document = load(folder, "two.pdf")
    first, second = document.metadata["pages"]
    assert document.text[first:second].strip() == "First page here"
    assert document.text[second:].strip() == "Second page there"


BAD: dict[str, tuple[bytes, str]] = {
    "empty.txt": (b"", "no text"),
    "blank.md": (b" \n\t\xc2\xa0\n", "no text"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "line 1: not UTF-8.*iconv -f"),
    "binary.txt": (b"ab\0cd", "not text"),
    "not.pdf": (b"hello", "not a PDF"),
    "cut.pdf": (pdf("page")[:20], "damaged"),
    "blank.pdf": (pdf(""), "no text"),
    "blank.html": (b"<html><script>x</script></html>", "no text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_rejected_with_its_reason(folder: Path, name: str) -> None:
    data, reason = BAD[name]
    (folder / name).write_bytes(data)
    with pytest.raises(DocumentRejected, match=reason):
        load(folder, name)


def test_one_bad_file_does_not_end_the_rest(folder: Path) -> None:
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.txt")
    items = list(load_all(folder, find(folder)))
    assert [item.path for item in items if isinstance(item, Document)] == [
        *("a.txt", "sub/b.md", "sub/c.PDF")
    ]
    rejected = {item.path: item for item in items if isinstance(item, Rejected)}
    assert set(rejected) == {*BAD, "pipe.txt"}
    assert rejected["pipe.txt"].reason == "not a regular file"
    assert all(entry.reason for entry in rejected.values())


def test_a_file_larger_than_allowed_is_not_read(folder: Path) -> None:
    with (folder / "sparse.txt").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DocumentRejected, match="1073741824 bytes, more than"):
        load(folder, "sparse.txt")
    (folder / "long.txt").write_text("x" * 101)
    with pytest.raises(DocumentRejected, match="101 characters, more than the 100"):
        load(folder, "long.txt", Limits(text=100))
