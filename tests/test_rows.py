"""A table to lines: what is taken for its header, and what each row then says."""

from __future__ import annotations

import pytest

from promptflow.retrieval.kinds.rows import Merged, row_lines

CASES = {
    "city,people/Seoul,9.4 million/Busan,3.3 million": [
        "city: Seoul; people: 9.4 million",
        "city: Busan; people: 3.3 million",
    ],
    "Country,2019,2020/Korea,51.7,51.8/Japan,126,125": [
        "Country: Korea; 2019: 51.7; 2020: 51.8",
        "Country: Japan; 2019: 126; 2020: 125",
    ],
    "Seoul,9.4,1394/Busan,3.3,1876/Daegu,2.4,1601": [
        "Seoul | 9.4 | 1394",
        "Busan | 3.3 | 1876",
        "Daegu | 2.4 | 1601",
    ],
    "Name,Kim/Born,1990/City,Seoul": ["Name: Kim", "Born: 1990", "City: Seoul"],
    "Quarter,1Q,2Q/Sales,120,140/Cost,90,95": [
        "Quarter: Sales; 1Q: 120; 2Q: 140",
        "Quarter: Cost; 1Q: 90; 2Q: 95",
    ],
    "Name,Team,Role/Kim,Blue,Lead/Park,Red,Guest": [
        "Name: Kim; Team: Blue; Role: Lead",
        "Name: Park; Team: Red; Role: Guest",
    ],
    "Report of May,,/City,People,Area/Seoul,9.4,605/Busan,3.3,770": [
        "Report of May",
        "City: Seoul; People: 9.4; Area: 605",
        "City: Busan; People: 3.3; Area: 770",
    ],
    ",2024,2024,2025,2025/City,Men,Women,Men,Women/Seoul,1,2,3,4/Busan,5,6,7,8": [
        "City: Seoul; 2024 Men: 1; 2024 Women: 2; 2025 Men: 3; 2025 Women: 4",
        "City: Busan; 2024 Men: 5; 2024 Women: 6; 2025 Men: 7; 2025 Women: 8",
    ],
    "1,2/3,4": ["1 | 2", "3 | 4"],
    "alone": ["alone"],
    "": [],
}


@pytest.mark.parametrize("table", CASES)
def test_a_header_is_known_by_its_look(table: str) -> None:
    grid = [row.split(",") for row in table.split("/")] if table else []
    assert list(row_lines(grid)) == CASES[table]


def test_a_header_that_is_told_is_believed() -> None:
    grid = [["a", "b"], ["c", "d"], ["e", ""]]
    assert list(row_lines(grid, 1)) == ["a: c; b: d", "a: e"]
    assert list(row_lines(grid, 2)) == ["a c: e"]
    assert list(row_lines(grid[:1], 1)) == ["a | b"]
    assert list(row_lines([["x", "y", "z"], ["p", "q", "r"]], 0)) == ["x | y | z", "p | q | r"]


def test_merged_cells_say_their_text_under_each_name_and_once_without() -> None:
    grid = [["Day", "Mon", "Tue"], ["shop", "closed", Merged("closed")]]
    assert list(row_lines(grid, 1)) == ["Day: shop; Mon: closed; Tue: closed"]
    assert list(row_lines([["wide", Merged("wide")], ["a", "b"]], 0)) == ["wide", "a: b"]
    group = [["City", "People"], ["Europe", Merged("Europe")], ["Paris", "2.1"]]
    assert list(row_lines(group, 1)) == ["Europe", "City: Paris; People: 2.1"]


def test_cells_are_one_line_and_rows_of_any_length_fit() -> None:
    assert list(row_lines([["a", "b"], ["1\n 2", "3", "4"]], 1)) == ["a: 1 2; b: 3; 4"]
