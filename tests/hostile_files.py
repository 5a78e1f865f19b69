"""Files made to hurt a reader: bombs, loops, depths, mutants. Few are large on the disk."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

from office_files import (
    docx,
    drawn_pdf,
    epub,
    line,
    package,
    paragraph,
    pdf,
    pptx,
    shape,
    xlsx,
)

ENTITIES = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + at)} "{f"&{chr(97 + at)};" * 10}">' for at in range(9))
    + "]>"
)
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'


def zip_bombs(share: float) -> Iterator[tuple[str, bytes]]:
    zeros = b"<a>" + b" " * int((300 << 20) * share) + b"</a>"
    bombs = {
        "bomb.docx": {"word/document.xml": zeros},
        "bomb.pptx": {"ppt/presentation.xml": zeros},
        "bomb.xlsx": {"xl/workbook.xml": zeros},
        "bomb.epub": {"META-INF/container.xml": zeros},
        "nested.docx": {"word/document.xml": package({"a": zeros})},
        "many.docx": {f"word/{at}.xml": "<a/>" for at in range(int(30_000 * share))},
    }
    for name, members in bombs.items():
        yield name, package(members)


def xml_bombs(share: float) -> Iterator[tuple[str, bytes]]:
    inner = f"<w:document xmlns:w='x'>{'&j;'}</w:document>"
    for name, head in (("laughs", ENTITIES), ("outside", OUTSIDE)):
        yield f"{name}.docx", package({"word/document.xml": head + inner})
        yield f"{name}.epub", package({"META-INF/container.xml": head + inner})
        yield f"{name}.html", (head + "<p>&j; &a;" * 10).encode()
    deep = "<w:p>" * int(100_000 * share)
    yield "deep.docx", docx(deep)
    yield "deep-closed.docx", docx(deep + "</w:p>" * int(100_000 * share))
    yield "deep.pptx", pptx("<p:grpSp>" * int(50_000 * share) + "</p:grpSp>" * int(50_000 * share))
    cell = "<w:tc><w:tcPr><w:gridSpan w:val='999999999'/></w:tcPr></w:tc>"
    yield "wide.docx", docx(f"<w:tbl><w:tr>{cell * int(20_000 * share)}</w:tr></w:tbl>")
    yield "utf16.docx", package({"word/document.xml": (ENTITIES + inner).encode("utf-16")})
    rows = "".join(
        f'<row r="{at}"><c r="XFD{at}"><v>1</v></c></row>' for at in range(1000, 1_000_000, 1000)
    )
    merged = "".join(f'<mergeCell ref="A{at}:XFD1048576"/>' for at in range(1, 1000))
    yield "far.xlsx", xlsx({"a": f"<sheetData>{rows}</sheetData><mergeCells>{merged}</mergeCells>"})


def json_bombs(share: float) -> Iterator[tuple[str, bytes]]:
    yield "deep.json", b"[" * int(1_000_000 * share)
    yield "deep-closed.json", b"[" * int(100_000 * share) + b"]" * int(100_000 * share)
    yield "deep-objects.json", b'{"a":' * int(100_000 * share) + b"1" + b"}" * int(100_000 * share)
    yield "quite-deep.jsonl", (b'{"a":' * 900 + b"1" + b"}" * 900 + b"\n") * 20
    yield "digits.json", b'{"a": ' + b"9" * int(2_000_000 * share) + b"}"
    yield "deep.ipynb", b'{"cells": ' + b"[" * int(200_000 * share)
    yield (
        "keys.json",
        b"{" + b",".join(b'"k%d":%d' % (n, n) for n in range(int(400_000 * share))) + b"}",
    )


def long_lines(share: float) -> Iterator[tuple[str, bytes]]:
    yield "line.txt", b"x" * int((30 << 20) * share)
    yield "words.txt", b"ab " * int((8 << 20) * share)
    yield "line.md", b"#" * int((12 << 20) * share)
    yield "line.csv", b"a," * int((6 << 20) * share)
    yield "quotes.csv", b'a,b\n"' + b"x\n" * int((4 << 20) * share)
    yield "line.html", b"<p>" + b"a" * int((12 << 20) * share)
    yield "line.rst", b"*" * int((2 << 20) * share)
    yield "titles.rst", b"a\n=\n" * int(200_000 * share)
    yield "roles.rst", b":a:`" * int(200_000 * share)
    yield "nul.txt", b"\0" * int((4 << 20) * share)
    yield "noise.txt", random.Random(0).randbytes(int((4 << 20) * share))
    yield "korean.txt", ("가나다 라마 " * int((1 << 20) * share)).encode("cp949") + b"\xff"


def pages(share: float) -> Iterator[tuple[str, bytes]]:
    yield "deep.html", b"<div>" * int(1_000_000 * share)
    yield "tables.html", b"<table><tr><td>" * int(100_000 * share)
    yield "lists.html", b"<ul><li>" * int(200_000 * share)
    yield "sups.html", b"<sup>" * int(200_000 * share) + b"x"
    yield "formats.html", b"<b><i><u><font><a href=x>" * int(100_000 * share) + b"x"
    yield "spans.html", b"<table>" + (b"<tr>" + b"<td colspan=1000 rowspan=65534>" * 200) * 200
    yield (
        "attributes.html",
        b"<p " + b" ".join(b"a%d=1" % n for n in range(int(300_000 * share))) + b">x",
    )
    yield "comment.html", b"<!--" * int(1_000_000 * share)
    yield "metas.html", b"<meta " * int(300_000 * share)
    yield "quotes.html", b"<meta a='" * int(100_000 * share)
    yield "entities.html", b"&amp;lt;" * int(1_000_000 * share)
    yield "cdata.xhtml", b"<?xml version='1.0'?>" + b"<![CDATA[" * int(300_000 * share)
    yield "closed.xhtml", b"<?xml version='1.0'?>" + b"<a " * int(300_000 * share)
    yield "deep.epub", epub("<div>" * int(300_000 * share))


def pdfs(share: float) -> Iterator[tuple[str, bytes]]:
    once, twice = " /Filter /FlateDecode", " /Filter [/FlateDecode /FlateDecode]"
    bomb = zlib.compress(zlib.compress(b"0" * int((1 << 30) * share), 9), 9)
    yield "flate.pdf", drawn_pdf(bomb, filtered=twice)
    text = line(72, 720, "a" * 50) * int(200_000 * share)
    yield "text.pdf", drawn_pdf(zlib.compress(text.encode()), filtered=once)
    yield "arrays.pdf", drawn_pdf("[" * int(500_000 * share))
    yield "states.pdf", drawn_pdf("q " * int(500_000 * share) + line(72, 720, "deep"))
    yield "ops.pdf", pdf("x", extra=" (y) Tj" * int(400_000 * share))
    spots = ((at % 600, at // 7 % 790) for at in range(int(40_000 * share)))
    yield "letters.pdf", drawn_pdf("".join(line(*spot, "ab") for spot in spots))
    yield "many.pdf", pdf(*["x"] * int(25_000 * share))
    form = drawn_pdf("/X Do " * 100)
    yield "forms.pdf", form.replace(b"<< /Font", b"<< /XObject << /X 5 0 R >> /Font")
    good = pdf("one", "two").decode("latin-1")
    head = good[: good.rindex("trailer")]
    start = head.rindex("xref")
    loop = f"trailer\n<< /Size 8 /Root 1 0 R /Prev {start} >>\nstartxref\n{start}\n%%EOF\n"
    changed = {
        "self": good.replace("/Kids [4 0 R 6 0 R]", "/Kids [2 0 R 2 0 R]"),
        "count": good.replace("/Count 2", "/Count 999999999"),
        "loop": head + loop,
        "root": good.replace("/Type /Catalog /Pages 2 0 R", "/Type /Catalog /Pages 1 0 R"),
        "length": good.replace("/Length", "/Length 4 0 R /X"),
        "box": good.replace("[0 0 612 792]", "[0 0 1e30 1e30]"),
    }
    for name, data in changed.items():
        yield f"{name}.pdf", data.encode("latin-1")


def mutants(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Give good files with bytes changed, cut out, doubled or moved."""
    chance = random.Random(seed)
    samples = {
        "pdf": pdf("one page of text", "and another"),
        "docx": docx(paragraph("a paragraph") * 20),
        "pptx": pptx(shape("title", "a slide"), shape("body", "x", "y")),
        "xlsx": xlsx({"a": "<sheetData><row><c><v>1</v></c></row></sheetData>"}),
        "epub": epub("<p>chapter</p>" * 10),
        "html": b"<table><tr><th>a<th>b<tr><td>1<td>2</table><p>text" * 10,
    }
    for number in range(count):
        suffix = ["pdf", "pdf", "pdf", *samples][number % 9]
        data = bytearray(samples[suffix])
        for _ in range(chance.choice((1, 5, 40))):
            at, size = chance.randrange(len(data)), chance.randrange(1, 40)
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1 if len(data) > 100:
                    del data[at : at + size]
                case 2:
                    data[at:at] = data[at : at + size]
                case _:
                    data[at:at] = chance.choice(
                        (b"<<", b"[", b"9999999999", b"\xff" * 8, b"(", b"R")
                    )
        yield f"mutant-{number:03}.{suffix}", bytes(data)


def hostile(count: int, share: float = 1.0) -> Iterator[tuple[str, bytes]]:
    """Give ``count`` files: each of the bombs, at a share of their size, and mutants."""
    made = 0
    for family in (zip_bombs, xml_bombs, json_bombs, long_lines, pages, pdfs):
        for name, data in family(share):
            yield name, data
            made += 1
    yield from mutants(count - made)
