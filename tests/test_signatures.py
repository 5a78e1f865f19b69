from __future__ import annotations

import datetime
import enum
import errno
import math
import os
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings, strategies as st

from promptflow.errors import SignatureError, SignatureNotFound, StoreError, UnsupportedType
from promptflow.notation import Quote, type_text
from promptflow.retrieval.passages import Passage
from promptflow.signatures import (
    Document,
    begins_with_default,
    description_of,
    document_of,
    dump_document,
    label_of,
    own_instructions,
    read_document,
    signature,
    write_document,
)
from promptflow.storage import document_names, toml_dumps


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
        ("a->b->c", "one '->'"),
        ("a -> ", "no field"),
        ("-> b", "no field"),
        ("a -> b: Wombat", "Wombat"),
        ("a -> a", "rename"),
        ("a b -> c", "found 'b' after"),
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

[extra]
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
    assert document.extra == {"anything": 3}
    assert document.demos == ({"passages": ["p"], "kind": "c", "quote": "p"},)
    assert len(document.sha256) == 64


HEAD = "inputs.a = 'str'\noutputs.b = 'int'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "broken.toml"),
        ("[inputs]\na='str'", "outputs"),
        ("[inputs]\na='str'\n[outputs]", "outputs"),
        ("inputs=3\n[outputs]\na='str'", "table \\[inputs"),
        ("[[inputs]]\na='str'\n[outputs]\na='str'", "table \\[inputs"),
        ("[inputs.a]\nb='str'\n[outputs]\nb='str'", "'str: what it is'"),
        ("[inputs]\na=3\n[outputs]\nb='str'", "'a'"),
        ("[inputs]\na='str'\n[outputs]\nb='list['", "expected a type"),
        ("[inputs]\na='the question'\n[outputs]\nb='str'", "a description follows a colon"),
        ("[inputs]\n'a b'='str'\n[outputs]\nb='str'", "a b"),
        ("[inputs]\n''='str'\n[outputs]\nb='str'", "field name"),
        ("[inputs]\n_x='str'\n[outputs]\nb='str'", "begins with '_'"),
        ("[inputs]\ninstructions='str'\n[outputs]\nb='str'", "DSPy's own"),
        ("[inputs]\na1='str'\na_1='str'\n[outputs]\nb='str'", "same label"),
        ("[inputs]\n'\u1112\u1161'='str'\n'하'='str'\n[outputs]\nb='str'", "twice"),
        ("[inputs]\na='Quote[a]'\n[outputs]\nb='str'", "an output"),
        ("[inputs]\na='str'\n[outputs]\nb='Quote[c]'", "'c' is no input"),
        (HEAD + "labels = 3", "table \\[labels"),
        (HEAD + "labels.c = 'x'", "labels"),
        (HEAD + "labels.a = 3", "label of 'a'"),
        (HEAD + "labels.a = ' '", "spaces around"),
        (HEAD + 'labels.a = "x\\ny"', "line ends"),
        (HEAD + "labels.a = 'B:'", "same label"),
        (HEAD + "demos = 3", "tables \\[\\[demos"),
        (HEAD + "demos = {}", "tables \\[\\[demos"),
        (HEAD + "demos = [1]", "tables \\[\\[demos"),
        (HEAD + "[[demos]]\nc='x'", "demo"),
        (HEAD + "[[demos]]\nb='x'", "number 1: b = 'x' is no .*int"),
        (HEAD + "[[demos]]\nb=3\n[[demos]]\nb={c=1}", "number 2"),
        (HEAD + "compiled = 3", "table \\[compiled"),
        (HEAD + "layout = 3", "layout = 'text'"),
        (HEAD + "instructions = ['x']", "instructions = 'text'"),
        (HEAD + "instruction = 'x'", "did you mean instructions"),
        (HEAD + "[[demo]]\na='x'", "did you mean demos"),
        (HEAD + "[mine]\na='x'", r"table \[extra\]"),
        ("[inputs]\na='str'\n[ouputs]\nb='str'", "did you mean outputs"),
        ("x=" + "[" * 9_000, "too deep"),
        ("x=" + "{a=" * 9_000, "too deep"),
        ("a" + ".a" * 200_000 + "=1", "more than 32 parts"),
        ("x=" + "1" * 5_000, "digits"),
        (HEAD + "#" + "x" * 10_000_000, "longer than"),
        ("[inputs]\n" + "\n".join(f"k{n}='str'" for n in range(9_000)), "at most 200"),
        ("\0", "broken.toml"),
        (HEAD.encode("utf-16"), "UTF-16"),
        ("instructions = 'é'".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_bad_document_names_the_file_and_the_fault(tmp_path: Path, text: str | bytes, says: str):
    path = tmp_path / "broken.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SignatureError, match=says) as caught:
        read_document(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1_500


@pytest.mark.parametrize("text", [HEAD.replace("\n", "\r\n"), "\ufeff" + HEAD])
def test_documents_of_other_editors_are_read(tmp_path: Path, text: str):
    (tmp_path / "x.toml").write_bytes(text.encode())
    assert read_document(tmp_path / "x.toml").signature.signature == "a -> b"


def test_names_that_python_keeps_are_fields(tmp_path: Path):
    names = ["class", "from", "None", "json", "copy", "model_fields", "dict", "schema", "items"]
    sides = "\n".join(f"{name} = 'str'" for name in names)
    (tmp_path / "x.toml").write_text(f"[inputs]\n{sides}\n[outputs]\nb = 'str'")
    with pytest.warns(UserWarning, match="shadows") as _:
        made = read_document(tmp_path / "x.toml").signature.with_instructions("Do.")
    assert list(made.input_fields) == names


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    for path in (tmp_path / "pipe.toml", tmp_path / "folder.toml", "/dev/zero"):
        with pytest.raises(SignatureError, match="no regular file"):
            read_document(path)
    for name in ("a" * 5_000, "a/" * 5_000, "x\0y", "x\0/y", "", Path("a" * 5_000)):
        with pytest.raises(SignatureNotFound):
            signature(name)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.toml").write_text(HEAD)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SignatureError, match=r"x\.toml: cannot be read: Permission denied"):
        read_document(tmp_path / "x.toml")


def refuse(*_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("broken", ["x = [", None])
def test_a_broken_document_does_not_hide_behind_a_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str | None
):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "signatures" / "classify.toml"
    own.parent.mkdir()
    if broken is None:
        own.symlink_to(tmp_path / "nothing")
    else:
        own.write_text(broken)
    with pytest.raises(SignatureError, match=r"signatures/classify\.toml"):
        signature("classify")


@pytest.mark.parametrize("spec", [3, None, b"a -> b", ["a"], {"a": "b"}, "a b c", "a => b", "a,b"])
def test_what_is_no_signature_says_what_one_is(spec: Any):
    with pytest.raises(SignatureError, match="'inputs -> outputs'"):
        signature(spec)
    with pytest.raises(SignatureError, match="text"):
        signature("a -> b", 3)  # type: ignore[arg-type]


def test_an_unknown_document_names_the_close_ones():
    with pytest.raises(SignatureNotFound, match="question_answer"):
        signature("question_anwser")


@pytest.mark.parametrize("name", sorted(document_names("signatures")))
def test_every_bundled_document_reads_and_writes_back(name: str):
    document = read_document(name, bundled_only=True)
    again = tomllib.loads(dump_document(document))
    assert list(again["inputs"]) == list(document.signature.input_fields)
    assert list(again["outputs"]) == list(document.signature.output_fields)


INTEGERS = st.integers()


class Colour(enum.Enum):
    RED = "red"


VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(exclude_categories=["Cs"])),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    list[str]: st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    dict[str, int]: st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), INTEGERS),
    datetime.date: st.dates(),
    tuple[int, ...]: st.lists(INTEGERS).map(tuple),
    list[int | None]: st.lists(st.none() | INTEGERS),
    set[int]: st.sets(INTEGERS),
    Literal[1, "one"]: st.sampled_from([1, "one"]),
    Quote["x"]: st.just("1"),
}
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
LABELS = st.none() | st.text(st.characters(categories=["L", "P"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4), LINES, LINES)
def test_documents_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    types: list[Any],
    description: str,
    instructions: str,
):
    fields: dict[str, Any] = {"x": (str, dspy.InputField())}
    for number, annotation in enumerate(types):
        fields[f"f{number}"] = (annotation, dspy.OutputField(desc=description.strip()))
        if label := data.draw(LABELS):
            fields[f"f{number}"][1].json_schema_extra["prefix"] = f"{label}{number}"
    made = dspy.Signature(fields, instructions.strip() or "Do.")
    values = {f"f{n}": data.draw(VALUES[annotation]) for n, annotation in enumerate(types)}
    document = Document(made, ({"x": "1", **values},), "chat", {"score": 0.5}, {"own": [1]})
    path = tmp_path_factory.getbasetemp() / "again.toml"
    write_document(path, document)
    again = read_document(path)
    assert again.signature.instructions == made.instructions
    assert list(again.signature.fields) == list(made.fields)
    for name, info in made.fields.items():
        assert again.signature.fields[name].annotation == info.annotation
        assert again.signature.fields[name].metadata == info.metadata
        assert label_of(again.signature.fields[name]) == label_of(info)
        assert description_of(name, again.signature.fields[name]) == description_of(name, info)
    assert again.demos == document.demos
    assert (again.layout, again.compiled, again.extra) == ("chat", {"score": 0.5}, {"own": [1]})


def test_demos_show_what_they_are_given_and_outputs_fit_their_types(tmp_path: Path):
    made = signature("passages: list[str], note -> b: int, c: Colour", types={"Colour": Colour})
    passage = Passage("d.md", 1, 0, 1, "p", 0.5)
    given = {"passages": [passage, "q"], "note": 3.5, "b": "3", "c": Colour.RED}
    text = dump_document(Document(signature("passages: list[str], note -> b: int"), (given,)))
    (tmp_path / "x.toml").write_text(text)
    [demo] = read_document(tmp_path / "x.toml").demos
    assert demo == {"passages": ["p", "q"], "note": 3.5, "b": "3"}
    for fault in ("three", math.inf, [3]):
        with pytest.raises(SignatureError, match="demos, number 2: b ="):
            dump_document(Document(made.delete("c"), ({"b": 1}, {"b": fault})))


def test_a_document_too_long_to_read_is_not_written():
    demos = tuple({"question": "x" * 1_000, "answer": "y"} for _ in range(1_000))
    with pytest.raises(SignatureError, match="fewer demos"):
        dump_document(Document(signature("question -> answer"), demos))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | LINES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LINES, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.fixed_dictionaries(
    {},
    optional={
        name: JSON
        | st.dictionaries(st.sampled_from(["a", "b", "class", "_x", "a b"]), JSON, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["str", "int", "x["]))
        | st.lists(st.dictionaries(st.sampled_from(["a", "b"]), JSON, max_size=2), max_size=2)
        for name in ("instructions", "inputs", "outputs", "labels", "demos", "layout", "extra", "q")
    },
)


@settings(max_examples=400, deadline=None)
@given(tables=TABLES)
def test_random_tables_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any]
):
    path = tmp_path_factory.getbasetemp() / "random.toml"
    with suppress(StoreError):
        path.write_text(toml_dumps({"inputs": {"a": "str"}, "outputs": {"b": "int"}} | tables))
        with suppress(SignatureError):
            dump_document(read_document(path))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_random_text_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
):
    path = tmp_path_factory.getbasetemp() / "junk.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SignatureError, match=r"junk\.toml"):
        read_document(path)
    for spec in (str(text), f"{text} -> a", f"a -> {text}"):
        with suppress(SignatureError):
            signature(spec)


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


def test_types_are_refused_when_the_signature_is_made():
    class Sets(dspy.Signature):
        q: str = dspy.InputField()
        found: set[int] = dspy.OutputField(min_length=2)

    for spec in (Sets, "q -> found: set[int](min_length=2)"):
        with pytest.raises(UnsupportedType, match="'found'"):
            signature(spec)


@pytest.mark.parametrize("name", ["module", "seed", "lm", "config", "demos"])
def test_inputs_of_any_name(name):
    assert list(signature(f"{name} -> answer").input_fields) == [name]
