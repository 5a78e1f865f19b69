"""Small files of Office, EPUB and PDF for tests, written out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

OFFICE = "http://schemas.openxmlformats.org"
W = f'xmlns:w="{OFFICE}/wordprocessingml/2006/main" xmlns:m="{OFFICE}/officeDocument/2006/math"'
A = (
    f'xmlns:a="{OFFICE}/drawingml/2006/main" xmlns:p="{OFFICE}/presentationml/2006/main" '
    f'xmlns:r="{OFFICE}/officeDocument/2006/relationships"'
)
X = f'xmlns="{OFFICE}/spreadsheetml/2006/main" xmlns:r="{OFFICE}/officeDocument/2006/relationships"'


def package(members: Mapping[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def rels(*entries: tuple[str, str]) -> str:
    """Return the relations rId1, rId2, ... of (type, target)."""
    inner = "".join(
        f'<Relationship Id="rId{at}" Type="{OFFICE}/officeDocument/2006/relationships/{kind}" '
        f'Target="{target}"/>'
        for at, (kind, target) in enumerate(entries, 1)
    )
    space = f"{OFFICE}/package/2006/relationships"
    return f'<?xml version="1.0"?><Relationships xmlns="{space}">{inner}</Relationships>'


def office(main: str, parts: Mapping[str, str], **related: str) -> bytes:
    """Return an Office file whose main part is ``main``; ``related`` are types and targets."""
    folder, _, base = main.rpartition("/")
    return package(
        {
            "_rels/.rels": rels(("officeDocument", main)),
            f"{folder}/_rels/{base}.rels": rels(*related.items()),
            **parts,
        }
    )


def docx(body: str, **parts: str) -> bytes:
    """Return a Word file; ``parts`` are its styles, numbering, footnotes."""
    members = {
        f"word/{name}.xml": f"<w:{name} {W}>{content}</w:{name}>" for name, content in parts.items()
    }
    members["word/document.xml"] = f"<w:document {W}><w:body>{body}</w:body></w:document>"
    return office("word/document.xml", members, **{name: f"{name}.xml" for name in parts})


def paragraph(text: str, properties: str = "") -> str:
    run = f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'
    return f"<w:p><w:pPr>{properties}</w:pPr>{run}</w:p>"


def table(*rows: str) -> str:
    """Return a Word table of rows whose cells are parted by bars."""
    lines = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row.split("|")) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{line}</w:tr>' for line in lines)}</w:tbl>"


def pptx(*slides: str, notes: str = "") -> bytes:
    """Return a presentation of slides, each the content of its shape tree."""
    members = {f"ppt/slides/slide{at}.xml": _slide(slide) for at, slide in enumerate(slides, 1)}
    ids = "".join(f'<p:sldId id="{at}" r:id="rId{at}"/>' for at in range(1, len(slides) + 1))
    members["ppt/presentation.xml"] = (
        f"<p:presentation {A}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"
    )
    if notes:
        members["ppt/slides/_rels/slide1.xml.rels"] = rels(("notesSlide", "../notes/note.xml"))
        members["ppt/notes/note.xml"] = _slide(notes, "notes")
    related = [("slide", f"slides/slide{at}.xml") for at in range(1, len(slides) + 1)]
    return package(
        {
            "_rels/.rels": rels(("officeDocument", "ppt/presentation.xml")),
            "ppt/_rels/presentation.xml.rels": rels(*related),
            **members,
        }
    )


def _slide(content: str, kind: str = "sld") -> str:
    return f"<p:{kind} {A}><p:cSld><p:spTree>{content}</p:spTree></p:cSld></p:{kind}>"


def shape(place: str, *paragraphs: str) -> str:
    """Return a shape that fills a place of the layout, such as title or body."""
    lines = "".join(
        line if line.startswith("<a:p>") else f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>"
        for line in paragraphs
    )
    found = f'<p:ph type="{place}"/>' if place else ""
    return f"<p:sp><p:nvSpPr><p:nvPr>{found}</p:nvPr></p:nvSpPr><p:txBody>{lines}</p:txBody></p:sp>"


def xlsx(sheets: Mapping[str, str], strings: str = "", styles: str = "", **states: str) -> bytes:
    """Return a workbook of sheets, each the content of its worksheet."""
    names = list(sheets)
    entries = "".join(
        f'<sheet name="{name}" r:id="rId{at}" state="{states.get(name, "visible")}"/>'
        for at, name in enumerate(names, 1)
    )
    related = [("worksheet", f"s{at}.xml") for at in range(1, len(names) + 1)]
    return package(
        {
            "_rels/.rels": rels(("officeDocument", "xl/workbook.xml")),
            "xl/_rels/workbook.xml.rels": rels(
                *related, ("sharedStrings", "strings.xml"), ("styles", "styles.xml")
            ),
            "xl/workbook.xml": f"<workbook {X}><sheets>{entries}</sheets></workbook>",
            "xl/strings.xml": f"<sst {X}>{strings}</sst>",
            "xl/styles.xml": f"<styleSheet {X}>{styles}</styleSheet>",
            **{
                f"xl/s{at}.xml": f"<worksheet {X}>{content}</worksheet>"
                for at, content in enumerate(sheets.values(), 1)
            },
        }
    )


def epub(*chapters: str, title: str = "A book", **extra: str) -> bytes:
    items = "".join(
        f'<item id="c{at}" href="c%20{at}.xhtml" media-type="application/xhtml+xml"/>'
        for at in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{at}"/>' for at in range(len(chapters)))
    return package(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:'
            'container"><rootfiles><rootfile full-path="in/book.opf"/></rootfiles></container>',
            "in/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><metadata '
            f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
            **{f"in/c {at}.xhtml": chapter for at, chapter in enumerate(chapters)},
            **extra,
        }
    )


def pdf(*pages: str, extra: str = "") -> bytes:
    """Return a small PDF with one line of text a page."""
    return drawn_pdf(*(f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET{extra}" for page in pages))


def line(x: float, y: float, text: str, size: float = 10) -> str:
    """Return what draws a line of text from a point of a page."""
    return f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET\n"


def drawn_pdf(*pages: str | bytes, filtered: str = "") -> bytes:
    """Return a PDF whose pages are these streams, which are ``filtered`` already."""
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, page in enumerate(pages):
        stream = page if isinstance(page, bytes) else page.encode("latin-1")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * at)
        )
        head = f"<< /Length {len(stream)}{filtered} >>".encode()
        objects.append(head + b"\nstream\n" + stream + b"\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table_of = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table_of)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, start)
    return out
