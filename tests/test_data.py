from __future__ import annotations

import datetime
import enum
import gzip
import json
from dataclasses import dataclass

import dspy
import pydantic
import pytest

from promptflow.errors import DataError
from promptflow.evaluation.data import load_data, plain, split

ROWS = [{"question": "1+1?", "answer": "2", "id": 7}, {"question": "2+2?", "answer": "4", "id": 8}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("rows.json", json.dumps(ROWS)),
        ("wrapped.json", json.dumps({"version": 1, "data": ROWS})),
        ("rows.csv", "question,answer,id\n1+1?,2,7\n2+2?,4,8\n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_same_rows_from_every_format(tmp_path, name, text, zipped):
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    examples = load_data(path)
    assert [example.question for example in examples] == ["1+1?", "2+2?"]
    assert [str(example.answer) for example in examples] == ["2", "4"]
    assert dict(examples[0].inputs()) == {"question": "1+1?"}


def test_inputs_may_be_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    assert set(load_data(path, inputs=["question", "id"])[0].inputs().keys()) == {"question", "id"}
    with pytest.raises(DataError, match="example 1: no field 'context'"):
        load_data(path, inputs=["context"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": 1}\n{"q": \n', "line 2: not JSON"),
        ("a.jsonl", b"", "holds no examples"),
        ("a.jsonl", b"[1, 2]", "example 1: expected an object"),
        ("a.jsonl", b'{"answer": "2"}', "no input field"),
        ("a.json", b'{"x": 1}', "expected a list of objects"),
        ("a.json", b"\xff\xfe\x00", "cannot be read"),
        ("a.csv", b"a,b\n1,2,3\n", "row 1: expected 2 columns"),
        ("a.txt", b"hello", "expected a .jsonl, .json or .csv file"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_data(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        load_data(tmp_path / "missing.csv")


def test_gsm8k_is_read(data_dir):
    examples = load_data(data_dir / "gsm8k" / "train.jsonl.gz")
    assert len(examples) == 7473
    assert list(examples[0].inputs().keys()) == ["question"]


def test_a_split_is_seeded_disjoint_and_complete():
    parts = split(list(range(100)), [0.3, 0.4, 0.3], seed=1)
    assert [len(part) for part in parts] == [30, 40, 30]
    assert sorted(item for part in parts for item in part) == list(range(100))
    assert parts == split(list(range(100)), [0.3, 0.4, 0.3], seed=1)
    assert parts != split(list(range(100)), [0.3, 0.4, 0.3], seed=2)


def test_small_data_leaves_no_part_empty():
    assert sorted(map(len, split([1, 2, 3], [0.8, 0.1, 0.1]))) == [1, 1, 1]
    with pytest.raises(DataError, match="2 examples cannot be split into 3"):
        split([1, 2], [0.3, 0.3, 0.3])
    with pytest.raises(ValueError, match="shares"):
        split([1, 2], [0.9, 0.9])


class Colour(enum.Enum):
    RED = "red"


class Model(pydantic.BaseModel):
    when: datetime.date


@dataclass
class Span:
    start: int


def test_values_become_json_data():
    values = {
        "model": Model(when=datetime.date(2026, 1, 2)),
        "span": Span(3),
        "colour": Colour.RED,
        "set": {"b", "a"},
        "example": dspy.Example(x=1),
        "pair": (1, None),
        "other": datetime.date(2026, 1, 2),
    }
    expected = {
        "model": {"when": "2026-01-02"},
        "span": {"start": 3},
        "colour": "red",
        "set": ["a", "b"],
        "example": {"x": 1},
        "pair": [1, None],
        "other": "2026-01-02",
    }
    assert plain(values) == expected
    json.dumps(plain(values))


def test_squads_articles_become_rows(tmp_path):
    squad = {
        "version": "1.1",
        "data": [
            {
                "title": "Warsaw",
                "paragraphs": [
                    {
                        "context": "Warsaw is a city.",
                        "qas": [
                            {"question": "What is Warsaw?", "answers": [{"text": "a city"}]},
                            {"question": "Which city?", "answers": [{"text": "Warsaw"}]},
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad))
    rows = load_data(path, ["passage", "question"])
    assert [row.question for row in rows] == ["What is Warsaw?", "Which city?"]
    assert rows[0].answers == ["a city"]
    assert rows[1].passage == "Warsaw is a city."
    del squad["data"][0]["paragraphs"][0]["context"]
    path.write_text(json.dumps(squad))
    with pytest.raises(DataError, match="no 'context'"):
        load_data(path)
