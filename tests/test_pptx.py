from __future__ import annotations

from office_files import pptx, shape

from promptflow.retrieval.kinds.pptx import read


def para(text: str, properties: str = "", run: str = "") -> str:
    return f"<a:p><a:pPr{properties}</a:pPr><a:r><a:rPr{run}/><a:t>{text}</a:t></a:r></a:p>"


def test_a_page_a_slide_with_its_title_first_and_its_notes_last() -> None:
    parsed = read(
        pptx(
            shape("sldNum", "1") + shape("body", "one", "two") + shape("title", "Plan"),
            shape("", "free text"),
            notes=shape("body", "say it slowly") + shape("sldNum", "7"),
        ),
        "a.pptx",
    )
    assert parsed.text == "## Plan\n\n- one\n- two\n\nNotes: say it slowly\n\nfree text\n"
    assert [parsed.text[at : at + 4] for at in parsed.pages] == ["## P", "free"]


def test_lists_count_and_go_deeper() -> None:
    numbered = '><a:buAutoNum type="arabicPeriod" startAt="3"/>'
    body = shape(
        "body",
        para("a", numbered),
        para("b", numbered),
        para("in", ' lvl="1">'),
        para("c", numbered),
    )
    assert read(pptx(body), "a").text == "3. a\n4. b\n  - in\n5. c\n"


def test_tables_and_groups_and_what_stands_high() -> None:
    def cell(text: str, merged: str = "") -> str:
        return f"<a:tc {merged}><a:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></a:txBody></a:tc>"

    merged = cell("", 'hMerge="1"')
    rows = (
        f"<a:tr>{cell('City')}{cell('2023')}{cell('2024')}</a:tr>"
        f"<a:tr>{cell('Seoul')}{cell('9.4')}{merged}</a:tr>"
    )
    table = f"<p:graphicFrame><a:tbl>{rows}</a:tbl></p:graphicFrame>"
    high = para("6", ">", ' baseline="30000"').removeprefix("<a:p><a:pPr></a:pPr>")
    power = f"<a:p><a:r><a:t>10</a:t></a:r>{high}"
    slide = f"<p:grpSp>{shape('', power)}</p:grpSp>{table}"
    assert read(pptx(slide), "a").text == "10^6\n\nCity: Seoul; 2023: 9.4; 2024: 9.4\n"
