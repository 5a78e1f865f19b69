"""Filters as people type them: values as the documents have them, and what no document has."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from promptflow.cli.filters import filters_of
from promptflow.errors import DataError


def document(path: str, kind: str = "text", **metadata: Any) -> dict[str, Any]:
    return {"path": path, "kind": kind, "metadata": {"title": path, **metadata}}


DOCUMENTS = [
    document("a.md", "markdown", year=2020, final=True, tags=["nlp", "rag"], score=1.5),
    document("2024/b.pdf", "pdf", year=2021, final=False, author="Kim, Min", pages=[0, 9]),
    document("2024/c.pdf", "pdf", year="2021", code="007"),
]


@pytest.mark.parametrize(
    ("pairs", "allowed"),
    [
        ([], {}),
        (["kind=pdf"], {"kind": ["pdf"]}),
        (["year=2020"], {"year": [2020]}),
        (["year=2021"], {"year": [2021, "2021"]}),
        (["year=2020.0"], {"year": [2020]}),
        (["year=2020", "year=2021"], {"year": [2020, 2021, "2021"]}),
        (["year=2020,2021"], {"year": [2020, 2021, "2021"]}),
        (["year=[2020, 2021]"], {"year": [2020, 2021, "2021"]}),
        (["final=true"], {"final": [True]}),
        (["final=False", "kind=pdf"], {"final": [False], "kind": ["pdf"]}),
        (["author=Kim, Min"], {"author": ["Kim, Min"]}),
        (['author=["Kim, Min"]'], {"author": ["Kim, Min"]}),
        (["tags=rag"], {"tags": ["rag"]}),
        (["code=007"], {"code": ["007"]}),
        (["score=1.5"], {"score": [1.5]}),
        (["document=2024/*"], {"document": ["2024/*"]}),
        (["document=*.md, 2024/c.pdf"], {"document": ["*.md", "2024/c.pdf"]}),
        ([" kind = pdf "], {"kind": ["pdf"]}),
        (["title=a.md"], {"title": ["a.md"]}),
    ],
)
def test_values_are_those_that_documents_have(pairs: list[str], allowed: dict[str, Any]):
    [found] = filters_of(pairs, [DOCUMENTS])
    assert found == allowed
    shown = json.dumps(found)
    assert shown == json.dumps(allowed)  # True is not 1 there


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("kind", "expected field=value"),
        ("=pdf", "expected field=value"),
        ("kind=", "expected field=value"),
        ("yaer=2020", "no document has 'yaer'. Did you mean 'year'?"),
        ("pages=0", "no document has 'pages'"),
        ("kind=PDF", "--where kind='PDF': no document has that; it is one of markdown, pdf"),
        ("year=2019", "it is one of 2020, 2021"),
        ("year=2020,2019", "--where year='2019'"),
        ("code=7", "it is one of 007"),
        ("final=1", "it is one of False, True"),
        ("document=*.docx", "--where document='*.docx'"),
        ("year=[", "--where year='['"),
    ],
)
def test_what_no_document_has_is_said(pair: str, message: str):
    with pytest.raises(DataError) as raised:
        filters_of([pair], [DOCUMENTS])
    assert message in str(raised.value)


def test_an_index_without_the_field_has_nothing_to_search():
    others = [document("x.txt", colour="red")]
    assert filters_of(["colour=red"], [DOCUMENTS, others]) == [None, {"colour": ["red"]}]
    assert filters_of(["kind=text"], [DOCUMENTS, others])[0] == {"kind": ["text"]}


def test_of_many_values_the_near_ones_are_named():
    many = [document(f"{n}.md", name=f"river {n}") for n in range(50)]
    with pytest.raises(DataError) as raised:
        filters_of(["name=rivr 7"], [many])
    assert "it has 50 values, near it are river 7" in str(raised.value)
    assert len(str(raised.value)) < 300


def test_any_value_that_a_document_has_can_be_typed():
    """Generated: what str() writes of a value finds that value, whatever its type."""
    chance = random.Random(5)
    made: list[Any] = [True, False, 0, 1, -3, 2.5, "x", "a,b", "[1]", "a=b", "0", "True", "한글"]
    for _ in range(200):
        values = chance.sample(made, 4)
        entries = [document(f"{n}.md", field=value) for n, value in enumerate(values)]
        for value in values:
            [found] = filters_of([f"field={value}"], [entries])
            assert found is not None
            assert any(type(one) is type(value) and one == value for one in found["field"])
