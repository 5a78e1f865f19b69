from __future__ import annotations

import pytest

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.jsonlines import read


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"city": "Seoul", "people": 9.40, "big": true, "none": null}',
         "city: Seoul; people: 9.40; big: true\n"),
        ('[{"a": 1}, {"a": 12345678901234567890, "b": [1, 2]}]',
         "a: 1\na: 12345678901234567890; b: 1, 2\n"),
        ('{"a": 1}\n\n{"a": 1e400}\n', "a: 1\na: 1e400\n"),
        ('{"name": "Kim", "address": {"city": "Seoul"}}', "name: Kim; address.city: Seoul\n"),
        ('{"rows": [{"a": 1}, {"a": 2}]}', "a: 1\na: 2\n"),
        ('{"name": "Acme", "offices": [{"city": "Seoul"}, {"city": "Busan"}]}',
         "name: Acme\nname: Acme; offices.city: Seoul\nname: Acme; offices.city: Busan\n"),
        ('{"id": 7, "text": "one\\ntwo"}', "id: 7\n\ntext: one\ntwo\n"),
        ('{"a": 1, "a": 2}', "a: 1, 2\n"),
        ('["x", "y"]', "x, y\n"),
        ('"alone"', "alone\n"),
        ("[[1, 2], [3]]", "1, 2\n3\n"),
        ("{}", "\n"),
    ],
)  # fmt: skip
def test_each_object_is_a_line_of_names_and_values(data: str, said: str) -> None:
    assert read(data.encode(), "a.json").text.strip() == said.strip()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"a": 1}\n{"a": \n', "not JSON from line 2 on"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 150 + "1" + "}" * 150, "nests more than 100 deep"),
        ("[" * 150 + "]" * 150, "nests more than 100 deep"),
    ],
)
def test_what_is_no_json_is_refused_by_its_line(data: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(data.encode(), "a.json")
