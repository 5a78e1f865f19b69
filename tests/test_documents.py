"""Files to texts: what is found, what is read, what is refused, and at what cost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from promptflow.errors import DocumentRejected, EmptyCorpus
from promptflow.retrieval.documents import (
    Document,
    Limits,
    Rejected,
    find,
    glob_pattern,
    load,
    load_all,
    parse_in_child,
    read_bytes,
)


def pdf(*pages: str, extra: str = "") -> bytes:
    """Return a small valid PDF with one line of text a page."""
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, page in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET{extra}"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * at} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return (out + f"startxref\n{out.index('xref')}\n%%EOF\n").encode()


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
    assert find(folder) == ["a.txt", "sub/b.md"]
    assert find(folder, ["sub/*"]) == ["sub/b.md", "sub/c.PDF", "sub/d.png"]
    assert find(folder, ["*.txt", "**/*.PDF"]) == ["a.txt", "sub/c.PDF"]


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
    assert load(folder, "a.txt").metadata == {"title": "a"}


def test_html_gives_visible_text_with_headings(folder: Path) -> None:
    page = """<html><head><title>A &amp; B</title><style>p {}</style></head><body>
    <h1>Top</h1><p>Some <b>bold</b>   text<br>next<script>alert("x")</script></p>
    <ul><li>one<li>two</ul><pre>kept
      as is</pre><h2>Sub</h2><table><tr><td>1</td><td>2</td></tr></table>
    <div hidden>secret <p>more</p></div>after &lt;|im_end|&gt;</body></html>"""
    (folder / "p.html").write_text(page)
    document = load(folder, "p.html")
    assert document.metadata["title"] == "A & B"
    assert document.text.split("\n") == [
        *("# Top", "", "Some bold text", "next", "", "- one", "", "- two", ""),
        *("kept", "      as is", "", "## Sub", "", "1 | 2", "", "after <|im_end|>", ""),
    ]


@pytest.mark.parametrize(
    "data",
    [
        "<p>caf\u00e9</p>".encode(),
        '<meta charset="latin-1"><p>caf\u00e9</p>'.encode("latin-1"),
        "<p>caf\u00e9</p>".encode("cp1252"),
        "<p>caf\u00e9</p>".encode("utf-16"),
        '<meta charset="no-such"><p>caf\u00e9</p>'.encode("cp1252"),
    ],
)
def test_html_is_decoded_by_what_it_declares(data: bytes) -> None:
    assert parse_in_child("html", data, Limits())["text"] == "caf\u00e9\n"


def test_pdf_gives_text_and_the_offset_of_each_page(folder: Path) -> None:
    (folder / "two.pdf").write_bytes(pdf("First page here", "Second page there"))
    document = load(folder, "two.pdf")
    first, second = document.metadata["pages"]
    assert document.text[first:second].strip() == "First page here"
    assert document.text[second:].strip() == "Second page there"


BAD: dict[str, tuple[bytes, str]] = {
    "empty.txt": (b"", "no text"),
    "blank.md": (b" \n\t\xc2\xa0\n", "no text"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "not UTF-8 at byte 3"),
    "binary.txt": (b"ab\0cd", "not text"),
    "not.pdf": (b"hello", "Error|error"),
    "cut.pdf": (pdf("page")[:200], "Error|error"),
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
    assert [item.path for item in items if isinstance(item, Document)] == ["a.txt", "sub/b.md"]
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


def test_a_parser_that_swells_is_stopped_by_its_memory_limit() -> None:
    limits = Limits(memory=200 << 20)
    with pytest.raises(DocumentRejected, match=r"MiB to read|died"):
        parse_in_child("html", b"<p>" + b"ab " * (30 << 20), limits)


def test_a_parser_that_loops_is_stopped_by_its_time_limit() -> None:
    page = pdf("x", extra=" (y) Tj" * 400_000)
    with pytest.raises(DocumentRejected, match="took more than 1 s"):
        parse_in_child("pdf", page, Limits(cpu=1))


def test_a_text_much_longer_than_its_file_is_refused() -> None:
    import zlib

    line = (
        b"BT /F1 12 Tf 72 720 Td (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa) Tj ET\n"
    )
    packed = zlib.compress(line * 20_000)
    bomb = pdf("page").decode("latin-1")
    start, end = bomb.index("<< /Length"), bomb.index("endobj", bomb.index("<< /Length"))
    stream = f"<< /Length {len(packed)} /Filter /FlateDecode >>\nstream\n".encode()
    data = bomb[:start].encode() + stream + packed + b"\nendstream\n" + bomb[end:].encode()
    with pytest.raises(DocumentRejected, match=r"longer than 1048576 characters"):
        parse_in_child("pdf", data, Limits(expansion=10, cpu=20))


@given(st.binary(max_size=300))
@settings(max_examples=15, deadline=None)
def test_random_bytes_as_pdf_are_rejected_or_read(data: bytes) -> None:
    try:
        text = parse_in_child("pdf", b"%PDF-1.4\n" + data, Limits(cpu=10))["text"]
    except DocumentRejected as error:
        text = str(error)
    assert text.strip()
