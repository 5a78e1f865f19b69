from __future__ import annotations

import csv
import datetime
import enum
import gzip
import io
import json
import math
from dataclasses import dataclass
from decimal import Decimal

import dspy
import pydantic
import pytest
from hypothesis import given, strategies as st

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
        ("a.json", b"42", "expected a list of objects"),
        ("a.json", b"\xff\xfe\x00", "cannot be read as utf-16"),
        ("a.csv", b"a,b\n1,2,3\n", "row 1: expected 2 columns"),
        ("a.txt", b"hello", "expected a .json, .jsonl, .csv or .tsv file"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl", b'{"q": 1, "q": 2}', "the key 'q' stands twice"),
        ("a.jsonl", b'[{"q": 1}]x', "line 1: not JSON"),
        ("a.json", b'{"data": []}', "'data' is an empty list"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b'{"train": [{"q": 1}], "test": [{"q": 2}]}', r"train \(1\), test \(1\).*--key"),
        ("a.json", b'{"q": "x", "passages": [{"t": 1}]}', r"which list .* passages \(1\)"),
        ("a.json", b'{"q": [1, 2], "a": [1]}', "columns differ in length"),
        ("a.json", b'{"rows": [{"row": {"q": 1}, "truncated_cells": ["q"]}]}', "cut the cells q"),
        ("a.jsonl", b'{"dspy_x": 1, "q": 2}', "DSPy hides fields"),
        ("a.csv", b"q,a\n", r"no examples below its header \(q, a\)"),
        ("a.csv", b"q,a\n1,2\n\n3\n", "row 2: expected 2 columns"),
        ("a.csv", b"q,q\n1,2\n", "two columns are called 'q'"),
        ("a.csv", b"q,,a\n1,x,2\n", "column 2 has no name, and holds 'x'"),
        ("a.csv", b'q,a\n1,2\n"open,3\n4,5\n', "line 3: unexpected end of data"),
        ("a.csv", b'q,a\n"say \\"hi\\"",3\n', "line 2: .*doubled"),
        ("a.csv", b"q,a\n1,\0\n", "line 2: holds a zero character"),
        ("a.csv", b"q,a;b\n1,2;3\n", "2 columns between commas or 2 columns between semicolons"),
        ("a.csv", b'[{"q": 1}]', "holds JSON"),
        ("a.csv", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
        ("a.parquet", b"PAR1", "read_parquet"),
        ("a.csv", b"PK\x03\x04\x00\xff", "is a zip archive or a spreadsheet"),
        ("a.json", b"PAR1\x15\xff", "is a Parquet file"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user"}]}',
            r"which list .* messages \(1\).*in a list",
        ),
        ("a.jsonl", b'{"q": "\\ud800"}', "text of 'q' holds half a character"),
        ("a.xlsx", b"PK", "save it as CSV UTF-8"),
        ("a.csv", "q,a\nélève à Besançon,ça\n".encode("cp1252"), r"cp1252: 'élève à.*--encoding"),
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


TABLE = [
    {"question": "한국의 수도는?", "answer": "서울"},
    {"question": "a, b; c\td|e", "answer": 'He said "hi"'},
    {"question": "two\nlines", "answer": ""},
    {"question": " spaces ", "answer": "x" * 200_000},
    {"question": "é ü ß", "answer": "3.50"},
]


def table(rows, **dialect):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def without_blanks(rows, gold="answer"):
    return [{**row, gold: row[gold] or None} for row in rows]


def rows_of(path, **how):
    return [dict(example.items()) for example in load_data(path, **how)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tables_of_every_dialect_read_back(tmp_path, encoding, suffix, delimiter, quoting):
    path = tmp_path / f"data{suffix}"
    text = table(TABLE, delimiter=delimiter, quoting=quoting)
    path.write_bytes(text.encode(encoding))
    assert rows_of(path) == without_blanks(TABLE)
    path.write_bytes(text.replace("\r\n", "\n").encode(encoding))
    assert rows_of(path) == without_blanks(TABLE)
    assert csv.field_size_limit() == 131_072


CELLS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r\ufeff"))


@given(
    st.lists(st.fixed_dictionaries({"q": CELLS, "answer": CELLS, "n": CELLS}), min_size=1),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\r\n", "\n"]),
)
def test_what_the_csv_module_writes_reads_back(tmp_path_factory, rows, delimiter, end):
    rows = [row for row in rows if any(row.values())]
    if not rows:
        return
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    path.write_bytes(table(rows, delimiter=delimiter, lineterminator=end).encode())
    assert rows_of(path) == without_blanks(rows)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nq;a\r\n1,5;2\r\n",
        "q;a\r\n1,5;2\r\n;\r\n;;\r\n",
        "q;a;\r\n1,5;2;\r\n",
        "q;a\r\n1,5;2;\r\n",
        '"q";"a"\r\n"1,5";"2"',
        ";q;a\n0;1,5;2\n",
        "\n\nq;a\n\n1,5;2\n\n",
        "q; a\n1,5; 2\n",
    ],
)
def test_tables_as_spreadsheets_leave_them(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_text(text, newline="")
    assert rows_of(path) == [{"q": "1,5", "a": "2"}]


def test_quotes_of_a_tabbed_table_may_be_text(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text('q\ta\n"Hi" he said\t"x\n"whole"\ty\n')
    assert rows_of(path) == [{"q": '"Hi" he said', "a": '"x'}, {"q": '"whole"', "a": "y"}]
    path.write_text('q\ta\n"Hi ""you"""\t"x\ny"\n')
    assert rows_of(path) == [{"q": 'Hi "you"', "a": "x\ny"}]


PAIRS = [{"q": "1+1?", "a": 2}, {"q": "2+2?", "a": 4}]
FORMS = {
    "lines": "\n".join(map(json.dumps, PAIRS)),
    "one after the other": "".join(json.dumps(row, indent=1) for row in PAIRS),
    "sequence": "".join(f"\x1e{json.dumps(row)}\n" for row in PAIRS),
    "list": json.dumps(PAIRS, indent=2),
    "data": json.dumps({"version": 1, "data": PAIRS}),
    "rows": json.dumps({"rows": PAIRS, "total": 2}),
    "nested": json.dumps({"set": {"train": PAIRS, "size": 2}}),
    "one split": json.dumps({"train": PAIRS}),
    "columns": json.dumps({"q": ["1+1?", "2+2?"], "a": [2, 4]}),
    "split of columns": json.dumps({"test": {"q": ["1+1?", "2+2?"], "a": [2, 4]}}),
    "pandas": json.dumps({"q": {"0": "1+1?", "1": "2+2?"}, "a": {"0": 2, "1": 4}}),
    "pandas split": json.dumps(
        {"columns": ["q", "a"], "index": [0, 1], "data": [[*row.values()] for row in PAIRS]}
    ),
    "served": json.dumps(
        {
            "features": [{"name": "q"}],
            "rows": [{"row_idx": n, "row": r, "truncated_cells": []} for n, r in enumerate(PAIRS)],
            "num_rows_total": 2,
        }
    ),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
@pytest.mark.parametrize("form", FORMS)
def test_json_in_every_form_under_every_name(tmp_path, form, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_text(FORMS[form])
    assert rows_of(path) == PAIRS


def test_one_object_and_objects_by_id(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(PAIRS[0]))
    assert rows_of(path) == PAIRS[:1]
    path.write_text(json.dumps({"a1": PAIRS[0], "a2": PAIRS[1]}))
    assert rows_of(path) == [{"id": "a1", **PAIRS[0]}, {"id": "a2", **PAIRS[1]}]


def test_one_of_several_lists_is_named(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": PAIRS[:1], "test": PAIRS[1:]}))
    assert rows_of(path, key="test") == PAIRS[1:]
    with pytest.raises(DataError, match="no key 'dev'; there are train, test"):
        load_data(path, key="dev")
    path.write_text(json.dumps(PAIRS))
    with pytest.raises(DataError, match="no key 'dev'"):
        load_data(path, key="dev")


def test_numbers_keep_their_digits_and_nan_is_no_value(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"q": 11234567890123456789012345, "f": 0.1, "d": 0.12345678901234567890123, '
        '"nan": NaN, "inf": -Infinity, "e": 1e400}'
    )
    [row] = rows_of(path)
    assert row["q"] == 11234567890123456789012345
    assert (type(row["f"]), row["f"], row["nan"], row["inf"]) == (float, 0.1, None, -math.inf)
    assert row["d"] == Decimal("0.12345678901234567890123")
    assert row["e"] == Decimal("1e400")


NAMES = ["inputs", "labels", "keys", "items", "values", "get", "copy", "toDict", "with_inputs"]
NAMES += ["without", "_store", "base", "class", "self", "question text", "kwargs", "Ünï", "a.b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_any_name_are_read(tmp_path, name, suffix):
    path = tmp_path / f"data{suffix}"
    row = {name: "x", "answer": "y"}
    path.write_text(json.dumps(row) if suffix == ".jsonl" else table([row]))
    [example] = load_data(path, [name])
    assert dict(example.inputs()) == {name: "x"}
    assert dict(example.labels()) == {"answer": "y"}
    assert plain(example) == row
    [renamed] = load_data(path, columns={name: "question"})
    assert dict(renamed.inputs()) == {"question": "x"}


def test_columns_that_cannot_be_renamed_are_named(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("question text,answer,old\n1,2,3\n")
    [example] = load_data(path, columns={"question text": "old", "old": "older"})
    assert dict(example) == {"old": "1", "answer": "2", "older": "3"}
    with pytest.raises(DataError, match="no column 'text' to call 'question'; there are 'question"):
        load_data(path, columns={"text": "question"})
    with pytest.raises(DataError, match="two columns would be called 'answer'"):
        load_data(path, columns={"old": "answer"})


@pytest.mark.parametrize(
    "path",
    [
        "gsm8k/test.jsonl",
        "scifact/claims_test.csv",
        "scifact/corpus_train.csv.gz",
        "game24/24.csv",
        "korsts/sts-test.tsv",
        "korean_rag/qa.jsonl",
        "klue_nli/dev.json.gz",
        "multiarith/MultiArith.json",
        "pandalm/testset-v1.json",
        "prompt_injection/deepset_prompt_injections.json",
        "halueval/qa_one-turn_data.json",
        "hotpotqa/hotpot-qa-distractor-sample.jsonl",
        "self_instruct/seed_tasks.jsonl",
        "bbh/navigate.json",
        "squad/squaddev_v1.1.json.gz",
    ],
)
def test_published_files_are_read(data_dir, path):
    assert len(load_data(data_dir / path)) >= 100


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
