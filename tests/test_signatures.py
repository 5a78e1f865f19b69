from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Literal, Optional

import dspy
import pytest
from hypothesis import given, settings, strategies as st

from promptflow.errors import SignatureError, SignatureNotFound
from promptflow.signatures import (
    Document,
    Quote,
    begins_with_default,
    description_of,
    document_of,
    dump_document,
    label_of,
    own_instructions,
    read_document,
    signature,
    type_text,
    write_document,
)
from promptflow.storage import document_names


def test_a_string_gives_types_limits_and_order():
    made = signature("passage, year: int(ge=1900, le=2000) -> b: list[str], a: Literal['x', 'y']")
    assert list(made.input_fields) == ["passage", "year"]
    assert list(made.output_fields) == ["b", "a"]
    assert made.model_fields["b"].annotation == list[str]
    assert made.model_fields["a"].annotation == Literal["x", "y"]
    limits = {type(m).__name__: m for m in made.model_fields["year"].metadata}
    assert (limits["Ge"].ge, limits["Le"].le) == (1900, 2000)


def test_limits_survive_dspys_copies():
    made = signature("a -> b: int(ge=3)").with_instructions("Do it.")
    assert made.model_fields["b"].metadata
    assert Quote("a") in signature("a -> q: Quote[a]").with_instructions("x").fields["q"].metadata


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("a->b->c", "more than one"),
        ("a -> ", "no field"),
        ("-> b", "no field"),
        ("a -> b: Wombat", "Wombat"),
        ("a -> a", "rename"),
        ("a b -> c", "cannot read"),
        ("a -> b: int(above=3)", "above"),
        ("a -> b: __import__('os')", "unknown type"),
    ],
)
def test_a_bad_string_says_what_is_wrong(spec: str, says: str):
    with pytest.raises(SignatureError, match=says):
        signature(spec)


def test_custom_types_are_passed_by_name():
    class Wombat(dspy.Signature):
        a: str = dspy.InputField()
        b: str = dspy.OutputField()

    made = signature("a -> b: Weight", types={"Weight": float})
    assert made.model_fields["b"].annotation is float
    assert signature(Wombat) is Wombat
    with pytest.raises(SignatureError, match=r"dspy\.Signature"):
        signature(int)


@pytest.mark.parametrize(
    "made",
    [
        signature("a, b -> c, d"),
        signature("a -> c").prepend("reasoning", dspy.OutputField(), str),
        signature("a -> c").with_instructions(""),
    ],
)
def test_nobodys_instructions_are_told_from_written_ones(made):
    assert own_instructions(made) == ""
    assert begins_with_default(made)


@pytest.mark.parametrize(
    "text",
    [
        "Answer.",
        "Given the fields `a`, produce the fields `c`",
        "Given the fields `a`, produce the fields `c`.py.",
        "Use what is given.\n\nGiven the fields `a`, produce the fields `c`.",
    ],
)
def test_written_instructions_are_the_authors_alone(text: str):
    made = signature("a -> c", text)
    assert own_instructions(made) == text
    assert not begins_with_default(made)


@pytest.mark.parametrize("between", ["\n\n", "\n", " "])
@pytest.mark.parametrize("more", ["Always answer in French.", "See `a`.", "1. Think\n2. Write."])
def test_what_follows_the_default_sentence_is_an_instruction(
    between: str, more: str, tmp_path: Path
):
    plain = signature("a -> c")
    made = plain.with_instructions(plain.instructions + between + more)
    assert own_instructions(made) == more
    assert begins_with_default(made)
    write_document(tmp_path / "saved.toml", Document(made))
    assert read_document(tmp_path / "saved.toml").signature.instructions == made.instructions


def test_a_document_keeps_descriptions_labels_and_demos(tmp_path: Path):
    path = tmp_path / "reader.toml"
    path.write_text(
        """
instructions = "Read."
layout = "completion"

[inputs]
passages = "list[str]: best first: the rest later"

[outputs]
kind = "Literal['a:b', 'c']: one of two"
quote = "Quote[passages]"

[labels]
kind = "Kind is"

[mine]
anything = 3

[[demos]]
passages = ["p"]
kind = "c"
quote = "p"
"""
    )
    document = read_document(path)
    made = document.signature
    assert made.__name__ == "Reader"
    assert description_of("passages", made.fields["passages"]) == "best first: the rest later"
    assert made.fields["kind"].annotation == Literal["a:b", "c"]
    assert label_of(made.fields["kind"]) == "Kind is"
    assert label_of(made.fields["quote"]) == "Quote:"
    assert document.layout == "completion"
    assert document.extra == {"mine": {"anything": 3}}
    assert document.demos == ({"passages": ["p"], "kind": "c", "quote": "p"},)
    assert len(document.sha256) == 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "broken.toml"),
        ("[inputs]\na='str'", "outputs"),
        ("[inputs]\na=3\n[outputs]\nb='str'", "'a'"),
        ("[inputs]\na='str'\n[outputs]\nb='list['", "cannot read the type"),
        ("[inputs]\na='str'\n[outputs]\nb='str'\n[labels]\nc='x'", "labels"),
        ("[inputs]\na='str'\n[outputs]\nb='str'\n[[demos]]\nc='x'", "demo"),
        ("[inputs]\n'a b'='str'\n[outputs]\nb='str'", "a b"),
    ],
)
def test_a_bad_document_names_the_file_and_the_fault(tmp_path: Path, text: str, says: str):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(SignatureError, match=says):
        read_document(path)


def test_an_unknown_document_names_the_close_ones():
    with pytest.raises(SignatureNotFound, match="question_answer"):
        signature("question_anwser")


@pytest.mark.parametrize("name", sorted(document_names("signatures")))
def test_every_bundled_document_reads_and_writes_back(name: str):
    document = read_document(name, bundled_only=True)
    again = tomllib.loads(dump_document(document))
    assert list(again["inputs"]) == list(document.signature.input_fields)
    assert list(again["outputs"]) == list(document.signature.output_fields)


ANNOTATIONS = [
    str,
    int,
    bool,
    float,
    list[str],
    dict[str, int],
    Literal["a", 'it"s', "d:e"],
    Optional[int],  # noqa: UP045
    datetime.date,
    list[tuple[int, str]],
    tuple[int, ...],
    Quote["x"],
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(ANNOTATIONS), min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_documents_round_trip(types: list[object], description: str, instructions: str):
    fields: dict[str, object] = {"x": (str, dspy.InputField())}
    for number, annotation in enumerate(types):
        fields[f"f{number}"] = (annotation, dspy.OutputField(desc=description.strip()))
    made = dspy.Signature(fields, instructions.strip() or "Do.")
    path_free = Document(made, ({"x": "1"},), compiled={"model": "m", "score": 0.5})
    read = tomllib.loads(dump_document(path_free))
    assert read["compiled"] == {"model": "m", "score": 0.5}
    from promptflow.signatures import _document

    again = _document(read, {}).signature
    for name, info in made.fields.items():
        assert again.fields[name].annotation == info.annotation, name
        assert again.fields[name].metadata == info.metadata
        assert description_of(name, again.fields[name]) == description_of(name, info)


def test_writing_is_atomic_and_reads_back(tmp_path: Path):
    document = document_of("question -> answer: int(ge=0, le=9)")
    write_document(tmp_path / "x.toml", document)
    again = read_document(tmp_path / "x.toml")
    assert type_text(again.signature.fields["answer"].annotation) == "int"
    assert again.signature.fields["answer"].metadata == document.signature.fields["answer"].metadata


def test_a_type_without_a_name_is_refused():
    class Person(dspy.Signature):
        a: str = dspy.InputField()
        b: complex = dspy.OutputField()

    with pytest.raises(SignatureError, match="complex"):
        dump_document(Document(Person))
