from __future__ import annotations

import pytest
from office_files import xlsx

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.xlsx import read

STYLES = (
    '<numFmts><numFmt numFmtId="164" formatCode="yyyy&quot;년&quot; m&quot;월&quot;"/>'
    '<numFmt numFmtId="165" formatCode="#,##0.0 &quot;days&quot;"/></numFmts><cellXfs>'
    + "".join(f'<xf numFmtId="{n}"/>' for n in (0, 14, 10, 22, 164, 165, 20))
    + "</cellXfs>"
)


def rows(*lines: list[str]) -> str:
    """Return a sheet of rows of cells, each as its element."""
    inner = "".join(f'<row r="{at}">{"".join(cells)}</row>' for at, cells in enumerate(lines, 1))
    return f"<sheetData>{inner}</sheetData>"


def said(text: str) -> str:
    return f'<c t="inlineStr"><is><t>{text}</t></is></c>'


def number(value: str, style: int = 0) -> str:
    return f'<c s="{style}"><v>{value}</v></c>'


def test_sheets_by_rows_with_their_header() -> None:
    sheet = rows([said("City"), said("People")], [said("Seoul"), number("9.4")])
    other = rows([said("a"), said("b"), said("c")], [number("1"), number("2"), number("3")])
    parsed = read(xlsx({"Cities": sheet, "Other": other, "Old": sheet}, Old="hidden"), "a.xlsx")
    assert parsed.text == "## Cities\n\nCity: Seoul; People: 9.4\n\n## Other\n\na: 1; b: 2; c: 3\n"
    assert parsed.warnings == ("1 hidden sheets are left out",)


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (number("45413", 1), "2024-05-01"),
        (number("0.125", 2), "12.50%"),
        (number("45413.604166666664", 3), "2024-05-01 14:30"),
        (number("45413", 4), "2024-05-01"),
        (number("3.5", 5), "3.5"),
        (number("0.604166666666667", 6), "14:30"),
        (number("0.30000000000000004"), "0.3"),
        (number("1234567"), "1234567"),
        (number("12345678901234567"), "12345678901234567"),
        (number("-2.5E-7"), "-2.5e-07"),
        ('<c t="b"><v>1</v></c>', "TRUE"),
        ('<c t="e"><v>#N/A</v></c>', "#N/A"),
        ('<c t="str"><f>A1</f><v>made</v></c>', "made"),
        ('<c t="s"><v>0</v></c>', "東京"),
        ('<c t="s"><v>9</v></c>', ""),
    ],
)
def test_values_as_the_sheet_shows_them(cell: str, shown: str) -> None:
    strings = "<si><r><t>東</t></r><r><t>京</t></r><rPh><t>とうきょう</t></rPh></si>"
    sheet = rows([said("head"), said("x"), said("y")], [cell, said("p"), said("q")])
    text = read(xlsx({"Sheet1": sheet}, strings, STYLES), "a.xlsx").text
    assert text == (f"head: {shown}; x: p; y: q\n" if shown else "x: p; y: q\n")


def test_hidden_rows_and_columns_merged_cells_and_titles() -> None:
    sheet = (
        '<cols><col min="3" max="3" hidden="1"/></cols><sheetData>'
        f'<row r="1">{said("Report of May")}</row>'
        '<row r="3"><c r="A3" t="str"><v>City</v></c><c r="B3" t="str"><v>People</v></c>'
        '<c r="C3" t="str"><v>secret</v></c><c r="D3" t="str"><v>Year</v></c></row>'
        '<row r="4"><c r="A4" t="str"><v>Seoul</v></c><c r="B4"><v>9.4</v></c>'
        '<c r="C4"><v>1</v></c><c r="D4"><v>2020</v></c></row>'
        '<row r="5"><c r="B5"><v>9.5</v></c><c r="D5"><v>2021</v></c></row>'
        '<row r="6" hidden="1"><c r="A6" t="str"><v>Busan</v></c></row></sheetData>'
        '<mergeCells><mergeCell ref="A4:A5"/></mergeCells>'
    )
    assert read(xlsx({"Sheet1": sheet}), "a.xlsx").text == (
        "Report of May\n\nCity: Seoul; People: 9.4; Year: 2020\n"
        "City: Seoul; People: 9.5; Year: 2021\n"
    )


def test_a_cell_far_away_costs_nothing_and_too_many_columns_are_refused() -> None:
    far = '<sheetData><row r="1048576"><c r="XFD1048576" t="str"><v>far</v></c></row></sheetData>'
    far += '<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'
    assert read(xlsx({"Sheet1": far}), "a.xlsx").text == "far\n"
    wide = rows([said("x")] * 2001)
    with pytest.raises(Unreadable, match="2001 columns"):
        read(xlsx({"Sheet1": wide}), "a.xlsx")
