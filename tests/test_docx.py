from __future__ import annotations

import pytest
from office_files import docx, package, paragraph, table

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.docx import read

STYLES = (
    '<w:style w:styleId="1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="2"><w:name w:val="Mine"/><w:basedOn w:val="1"/>'
    '<w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>'
    '<w:style w:styleId="T"><w:name w:val="Title"/></w:style>'
    '<w:style w:styleId="L"><w:name w:val="List"/><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr>'
    "</w:pPr></w:style>"
)


def level(at: int, style: str, text: str, start: int = 1) -> str:
    return (
        f'<w:lvl w:ilvl="{at}"><w:start w:val="{start}"/><w:numFmt w:val="{style}"/>'
        f'<w:lvlText w:val="{text}"/></w:lvl>'
    )


NUMBERING = (
    f'<w:abstractNum w:abstractNumId="5">{level(0, "decimal", "%1.", 3)}'
    f"{level(1, 'decimal', '%1.%2')}{level(2, 'lowerLetter', '(%3)')}</w:abstractNum>"
    f'<w:abstractNum w:abstractNumId="6">{level(0, "bullet", "*")}</w:abstractNum>'
    f'<w:abstractNum w:abstractNumId="7">{level(0, "ganada", "%1.")}</w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="5"/></w:num>'
    '<w:num w:numId="2"><w:abstractNumId w:val="6"/></w:num>'
    '<w:num w:numId="3"><w:abstractNumId w:val="5"/><w:lvlOverride w:ilvl="0">'
    '<w:startOverride w:val="1"/></w:lvlOverride></w:num>'
    '<w:num w:numId="4"><w:abstractNumId w:val="7"/></w:num>'
)


def text(body: str, **parts: str) -> str:
    return read(docx(body, **parts), "a.docx").text


def styled(words: str, style: str) -> str:
    return paragraph(words, f'<w:pStyle w:val="{style}"/>')


def listed(words: str, number: int, at: int = 0) -> str:
    return paragraph(words, f'<w:numPr><w:ilvl w:val="{at}"/><w:numId w:val="{number}"/></w:numPr>')


def run(words: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{words}</w:t></w:r>'


NOT_HIDDEN = '<w:vanish w:val="0"/>'


def test_headings_by_their_styles() -> None:
    body = styled("The book", "T") + styled("One", "1") + styled("Deeper", "2") + paragraph("text")
    parsed = read(docx(body, styles=STYLES), "a.docx")
    assert parsed.text == "# The book\n\n# One\n\n## Deeper\n\ntext\n"
    assert parsed.title == "The book"


def test_the_numbers_that_word_counts_are_written_out() -> None:
    body = "".join(
        [
            *(listed("a", 1), listed("b", 1), listed("c", 1, 1), listed("d", 1, 1)),
            *(listed("e", 1, 2), listed("f", 1), listed("g", 1, 1), paragraph("between")),
            *(listed("again", 3), listed("dot", 2), listed("가", 4), listed("나", 4)),
            styled("by style", "L"),
        ]
    )
    lines = text(body, styles=STYLES, numbering=NUMBERING).split("\n")
    assert [line.strip() for line in lines if line] == [
        *("3. a", "4. b", "4.1 c", "4.2 d", "(a) e", "5. f", "5.1 g", "between"),
        *("1. again", "- dot", "가. 가", "나. 나", "2. by style"),
    ]


def test_what_was_deleted_or_hidden_is_not_read_and_what_was_inserted_is() -> None:
    body = (
        f"<w:p>{run('Pay ')}<w:del><w:r><w:delText>100</w:delText></w:r></w:del>"
        f"<w:ins>{run('80')}</w:ins>{run(' secret', '<w:vanish/>')}"
        f"{run(' seen', NOT_HIDDEN)}"
        f"{run(' old', '<w:strike/>')}</w:p>"
    )
    assert text(body) == "Pay 80 seen~~ old~~\n"


def test_what_stands_high_or_low_is_kept_apart() -> None:
    high, low = '<w:vertAlign w:val="superscript"/>', '<w:vertAlign w:val="subscript"/>'
    body = (
        f"<w:p>{run('10')}{run('6', high)}{run(' and 1')}{run('st', high)}{run(' H')}"
        f"{run('2', low)}{run('O')}<m:oMath><m:sSup><m:e><m:r><m:t> x</m:t></m:r></m:e>"
        "<m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath></w:p>"
    )
    assert text(body) == "10^6 and 1st H2O x^2\n"


def test_a_table_is_read_by_rows_with_its_header() -> None:
    assert text(table("City|People", "Seoul|9.4 million", "Busan|3.3 million")) == (
        "City: Seoul; People: 9.4 million\nCity: Busan; People: 3.3 million\n"
    )
    assert text(table("Name|Kim", "Born|May 1990", "City|Seoul")) == (
        "Name: Kim\nBorn: May 1990\nCity: Seoul\n"
    )
    assert text(table("a frame round text")) == "a frame round text\n"


def test_merged_cells_of_a_table() -> None:
    def cell(words: str, properties: str = "") -> str:
        return f"<w:tc><w:tcPr>{properties}</w:tcPr>{paragraph(words)}</w:tc>"

    down = cell("Seoul", '<w:vMerge w:val="restart"/>')
    wide = cell("Sales", '<w:gridSpan w:val="2"/>')
    body = (
        "<w:tbl><w:tr><w:trPr><w:tblHeader/></w:trPr>"
        f"{cell('City')}{wide}</w:tr>"
        f"<w:tr>{down}{cell('10')}{cell('20')}</w:tr>"
        f"<w:tr>{cell('', '<w:vMerge/>')}{cell('30')}{cell('40')}</w:tr></w:tbl>"
    )
    assert text(body) == "City: Seoul; Sales: 10; Sales: 20\nCity: Seoul; Sales: 30; Sales: 40\n"


def test_footnotes_stand_at_the_end_by_their_numbers() -> None:
    body = f'<w:p>{run("Word")}<w:r><w:footnoteReference w:id="7"/></w:r>{run(" goes on.")}</w:p>'
    notes = f'<w:footnote w:id="7">{paragraph("See the annex.")}</w:footnote>'
    assert text(body, footnotes=notes) == "Word[1] goes on.\n\n[1] See the annex.\n"


def test_a_text_box_is_read_once() -> None:
    box = f"<w:txbxContent>{paragraph('in a box')}</w:txbxContent>"
    space = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    body = (
        f"<w:p>{run('before')}<w:r><mc:AlternateContent {space}><mc:Choice><w:drawing>{box}"
        f"</w:drawing></mc:Choice><mc:Fallback><w:pict>{box}</w:pict></mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>"
    )
    assert text(body) == "before\n\nin a box\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no zip", "not a zip archive"),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 600, "encrypted, or in the old format"),
        (package({"a": "b"}), "word/document.xml is missing"),
        (package({"word/document.xml": "<a"}), "no XML"),
        (package({"word/document.xml": "<a/>"}), "no body"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(data, "a.docx")
