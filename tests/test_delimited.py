from __future__ import annotations

import csv
import io
import random

import pytest

from promptflow.retrieval.kinds.delimited import read


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        ("city,people\nSeoul,9.4 million\n", "a.csv", "city: Seoul; people: 9.4 million\n"),
        ("city;people\nSeoul;9,4\nBusan;3,3\n", "a.csv",
         "city: Seoul; people: 9,4\ncity: Busan; people: 3,3\n"),
        ("city\tsaid\nSeoul\tthe \"big\" one\nBusan\t\"\n", "a.tsv",
         'city: Seoul; said: the "big" one\ncity: Busan; said: "\n'),
        ("sep=;\r\na;b\r\n1,0;2\r\n", "a.csv", "a: 1,0; b: 2\n"),
        ('a,b\n"two\nlines, and ""more""",2\n', "a.csv", 'a: two lines, and "more"; b: 2\n'),
        ("a,b,c\n1,,3\n,,\n4,5\n", "a.csv", "a: 1; c: 3\na: 4; b: 5\n"),
        ("name\nKim\nPark\n", "a.csv", "name: Kim\nname: Park\n"),
        ("1,2,3\n4,5,6\n", "a.csv", "1 | 2 | 3\n4 | 5 | 6\n"),
        ("Report,,\nCity,People,Area\nSeoul,9.4,605\n", "a.csv",
         "Report\nCity: Seoul; People: 9.4; Area: 605\n"),
        ("\ufeff도시,인구\n서울,940만\n", "a.csv", "도시: 서울; 인구: 940만\n"),
        ("", "a.csv", ""),
    ],
)  # fmt: skip
def test_a_line_a_row_with_its_columns_names(data: str, name: str, said: str) -> None:
    assert read(data.encode(), name).text == said


def test_a_spreadsheet_s_korean_is_read() -> None:
    data = "도시,인구,설명\n서울,940만,한국의 수도이다\n부산,330만,바다가 있는 도시이다\n".encode(
        "cp949"
    )
    assert read(data, "a.csv").text.startswith("도시: 서울; 인구: 940만; 설명: 한국의 수도이다\n")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_delimiter_is_found(delimiter: str) -> None:
    chance = random.Random(delimiter)
    words = ["Seoul", "two words", "comma, in it", "semi; colon", "bar | in", 'a "quote"', "1.5"]
    for _ in range(50):
        width = chance.randrange(2, 6)
        rows = [[chance.choice(words) for _ in range(width)] for _ in range(6)]
        out = io.StringIO()
        names = [f"name {at}" for at in range(width)]
        csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL).writerows([names, *rows])
        expected = [
            "; ".join(f"{name}: {cell}" for name, cell in zip(names, row, strict=True))
            for row in rows
        ]
        assert read(out.getvalue().encode(), "a.csv").text.splitlines() == expected
