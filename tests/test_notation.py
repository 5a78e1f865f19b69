from __future__ import annotations

import datetime
import decimal
import random
import re
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import example, given, settings, strategies as st
from pydantic import AfterValidator, Field

from promptflow.errors import SignatureError
from promptflow.notation import DEPTH, Quote, field_name, read_signature, read_type, type_text

REFUSED = {
    "arity": """dict[int] dict[str,int,int] list[] list[int,str] set[] Optional[int,str] Optional[]
        Union[] None[int] int[str] tuple[] tuple[()] dict[()] dict[str:int] list[int][int]""",
    "bare": "Optional Union Literal Quote Annotated Annotated[int] Annotated[int,3]",
    "dots": "tuple[...] tuple[int,...,str] tuple[...,int] list[...] dict[...,int] ...",
    "literals": """Literal[] Literal[x] Literal[[1]] Literal[3j] Literal[...] Literal['a'b']
        Literal['a','a'] Literal[Literal['a']] Literal['a Literal["a] Literal['\\x'] Literal[f'x']
        Literal[--1] Literal[nan] Literal[(1,)]""",
    "limits": """int(ge='a') int(ge=1,ge=2) int(1) int(**x) int(*x) int() int(ge) int(ge=) int(=3)
        int(ge=10**16) int(ge=True) int(ge=None) int(ge=nan) int(ge=1)(le=3) int(greater=1)
        int(multiple_of=0) list[int](min_length=-1) list[int](min_length=1.5) bool(ge=1) str(ge=1)
        int(max_length=2) int(pattern='x') Any(ge=1) Literal['a'](ge=1) (int|str)(ge=1)
        str(pattern='(') str(pattern=3) str(pattern='\\b') str(pattern='(?=a)') int(ge=5,le=3)
        str(min_length=5,max_length=3) date(ge='x') date(ge=3) tuple[int,str](max_length=1)""",
    "keys": """set[list[int]] set[dict[str,int]] frozenset[set[int]] dict[list[int],str]
        set[tuple[list[int],int]] set[list[int]|int]""",
    "quotes": "Quote[] Quote[x,y] Quote[1] Quote[q](max_length=3) list[Quote[q]] Quote[q]|None",
    "python": """a.b.c f()() __import__('os') lambda:3 [x] f'x' (x:=3) *int "str" 'int' 3 -3 ~int
        int.real int@str int&str int;str int=3 (int int) list[ list['int'] list[1] #x \\ int| |int
        int||str await yield _ ` int\x00 int\u200b \ufeffint \x1b[31m""",
    "names": "INT String integer boolean text typing.List[int] dspy.Image",
}


@pytest.mark.parametrize("text", [text for line in REFUSED.values() for text in line.split()])
def test_what_is_no_type_is_refused_by_name(text: str):
    with pytest.raises(SignatureError, match="field 'x'"):
        read_type(text, {}, "field 'x'")
    with pytest.raises(SignatureError, match="the signature"):
        read_signature(f"q -> x: {text}", {})


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("Literal[-1, +2, 0x10, 1_000]", Literal[-1, 2, 16, 1000]),
        ("Literal['it\\'s: x', \"b]:\"]", Literal["it's: x", "b]:"]),
        ("Literal[b'x', None, True, 1.5]", Literal[b"x", None, True, 1.5]),  # type: ignore
        ("None | int", None | int),
        ("Union[int, str,]", Union[int, str]),  # noqa: UP007
        ("int | (str | None)", int | str | None),
        ("(((int)))", int),
        ("List[Dict[str, Tuple[int, ...]]]", list[dict[str, tuple[int, ...]]]),
        ("set[tuple[int, str]]", set[tuple[int, str]]),
        ("", str),
        ("int(ge=-3)", Annotated[int, Field(ge=-3)]),
        ("int(ge=10000000000000000,)", Annotated[int, Field(ge=10**16)]),
        ("float(ge=-inf)", Annotated[float, Field(ge=float("-inf"))]),
        ("str(pattern=r'\\b\\d+')", Annotated[str, Field(pattern=r"\b\d+")]),
        ("date(ge='2024-02-29')", Annotated[datetime.date, Field(ge=datetime.date(2024, 2, 29))]),
        ("Decimal(gt='0.1')", Annotated[decimal.Decimal, Field(gt=decimal.Decimal("0.1"))]),
        ("(int | None)(ge=1)", Annotated[int | None, Field(ge=1)]),
        ("Quote['q']", Annotated[str, Quote("q")]),
    ],
)
def test_what_is_a_type_means_what_python_means(text: str, annotation: object):
    found, description = read_type(f"{text}: a: 'b]", {}, "x")
    assert form(found) == form(annotation)
    assert description == "a: 'b]"


def form(annotation: Any) -> Any:
    """A type as something to compare: unions are equal however they are written."""
    origin, arms = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return form(arms[0]), str(arms[1:])
    if origin is Literal:
        return [(type(arm), arm) for arm in arms]
    held = [form(arm) for arm in arms]
    return ("|" if origin in (Union, types.UnionType) else origin or annotation, held)


DEEP = {
    "brackets": "[" * 10_000,
    "lists": "list[" * 500,
    "closed lists": "list[" * 5_000 + "int" + "]" * 5_000,
    "parentheses": "(" * 10_000,
    "unions": " | ".join(["int"] * 6_000),
    "distinct unions": "|".join(f"Literal[{n}]" for n in range(3_000)),
    "tuple": f"tuple[{','.join(['int'] * 10_000)}]",
    "dots": "a." * 10_000 + "b",
    "calls": "f(" * 10_000,
    "signs": "-" * 10_000,
    "limit signs": "int(ge=" + "-" * 10_000 + "1)",
    "digits": f"int(ge={'9' * 5_000})",
    "quotes": "'" * 10_001,
    "backslashes": "Literal['" + "\\" * 10_001,
    "characters": "Literal['" + "x" * 1_000_000 + "']",
    "patterns": f"str(pattern='{'(' * 1_000}{')' * 1_000}')",
    "large patterns": "str(pattern='((((a{100}){100}){100}){100}){100}')",
    "one too deep": "list[" * DEPTH + "int" + "]" * DEPTH,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_depth_and_length_are_refused(text: str):
    with pytest.raises(SignatureError):
        read_type(text, {}, "x")
    with pytest.raises(SignatureError):
        read_signature(f"q -> a, b: {text}", {})


def test_what_is_just_deep_enough_is_read():
    text = "list[" * (DEPTH - 1) + "int" + "]" * (DEPTH - 1)
    assert type_text(read_type(text, {}, "x")[0]) == text
    options = ", ".join(map(repr, range(5_000)))
    assert len(get_args(read_type(f"Literal[{options}]", {}, "x")[0])) == 5_000


SIDES = """-> | -> b|a ->|a -> b -> c|a b -> c|a: -> b|a,, b -> c|,a -> b|a # c\n -> b|a=3 -> b|
    a -> b=3|a: int=3 -> b|a, / -> b|a, *, c -> b|*args -> b|**kw -> b|a): pass\ndef g(b -> c|
    a -> b): import os #|a: str, a -> b|a -> b, b|_x -> b|__doc__ -> b|model_config -> b|
    fields -> b|signature -> b|instructions -> b|a --> b|a ->> b|1 -> b|a.b -> c|a-b -> c|
    'a' -> b|² -> b|ﬁeld, field -> b|a -> b: str: the answer|a\x00 -> b|a -> b\\"""


@pytest.mark.parametrize("text", SIDES.split("|"))
def test_what_is_no_signature_is_refused(text: str):
    with pytest.raises(SignatureError, match="the signature"):
        read_signature(text, {})


def test_names_are_read_as_python_reads_them():
    inputs, outputs = read_signature("ﬁeld, class,\n 질문 -> from: int, None,", {})
    assert list(inputs) == ["field", "class", "질문"]
    assert list(outputs) == ["from", "None"]
    assert field_name("\u1112\u1161\u11ab") == "한"


class Weight(float):
    pass


@pytest.mark.parametrize("named", [{"X": 3}, {"X": "int"}, {"X": lambda text: text}])
def test_what_is_passed_as_a_type_is_one(named: Mapping[str, Any]):
    with pytest.raises(SignatureError, match="no type"):
        read_type("list[X]", named, "x")


def test_types_of_ones_own_have_any_name():
    assert read_type("m.Weight | X", {"m.Weight": Weight, "X": None}, "x")[0] == Weight | None
    with pytest.raises(SignatureError, match="holds nothing"):
        read_type("X[int]", {"X": Weight}, "x")


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, AfterValidator(str.upper)],
        Annotated[decimal.Decimal, Field(max_digits=3)],
        Annotated[int, Field(strict=True)],
        Annotated[int, Field(ge=1), AfterValidator(abs)],
        list[Annotated[int, AfterValidator(abs)]],
        tuple[()],
        Weight,
    ],
)
def test_a_type_that_text_would_change_has_no_text(annotation: Any):
    with pytest.raises(SignatureError, match="in code"):
        type_text(annotation)


def limited(inner: Any, **limits: Any) -> Any:
    return Annotated[inner, Field(**limits)]


TEXTS = st.text(max_size=12).filter(lambda text: text.isascii() or text.isprintable())
OPTIONS = st.lists(
    TEXTS | st.integers(-99, 99), min_size=1, max_size=4, unique_by=lambda o: (str(type(o)), o)
)
LEAVES = (
    st.sampled_from([str, int, float, bool, datetime.date, decimal.Decimal, type(None), list, Any])
    | OPTIONS.map(lambda options: Literal[tuple(options)])
    | st.integers(-(10**20), 10**20).map(lambda low: limited(int, ge=low, lt=low + 9))
    | st.floats(allow_nan=False).map(lambda low: limited(float, gt=low))
    | st.dates().map(lambda day: limited(datetime.date, ge=day))
    | st.decimals(allow_nan=False, allow_infinity=False).map(
        lambda low: limited(decimal.Decimal, ge=low)
    )
    | st.timedeltas().map(lambda span: limited(datetime.timedelta, le=span))
    | TEXTS.map(lambda text: limited(str, pattern=re.escape(text)))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(lambda t: list[t])  # type: ignore[valid-type]
        | inner.map(lambda t: dict[str, t])  # type: ignore[valid-type]
        | inner.map(lambda t: tuple[t, ...])  # type: ignore[valid-type]
        | st.tuples(inner, inner).map(lambda two: tuple[two])
        | st.tuples(inner, inner).map(lambda two: Union[two])  # noqa: UP007
        | inner.map(lambda t: limited(list[t], max_length=3))  # type: ignore[valid-type]
        | inner.filter(lambda t: t is not Any).map(lambda t: t | None)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(TREES)
@example(limited(int | None, ge=1))
@example(limited(str, pattern=re.escape("a\x0c")))
def test_types_read_back_as_they_were_written(annotation: Any):
    try:
        text = type_text(annotation)
    except SignatureError:
        assert "pattern" in str(annotation)
        return
    found, _ = read_type(text, {}, "x")
    assert form(found) == form(annotation)
    assert type_text(found) == text


TOKENS = [
    "int",
    "str",
    "list",
    "dict",
    "Literal",
    "Optional",
    "Union",
    "Quote",
    "None",
    "tuple",
    "set",
    "a",
    "q",
    "x",
    "ge",
    "le",
    "pattern",
    "->",
    ".",
    "..\n",
    "",
    "",
    "",
    "...",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "|",
    "=",
    "-",
    "+",
    "*",
    "**",
    "'a'",
    '"b"',
    "'c",
    "r'd'",
    "1",
    "2.5",
    "1e9",
    "0x",
    "1_",
    "\\",
    "#",
    "\n",
    "\t",
    "@",
    ";",
    "~",
    "λ",
    "한",
    "\x00",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=25).map(" ".join) | st.text(max_size=40))
def test_junk_is_refused_or_read(text: str):
    for whole in (text, f"q -> a: {text}", f"q -> a: list[{text}]", f"q -> a: int({text})"):
        with suppress(SignatureError):
            read_signature(whole, {})
        with suppress(SignatureError):
            read_type(whole, {}, "x")


def test_one_changed_character_is_refused_or_read():
    random.seed(0)
    text = "q: list[str](max_length=3) -> a: Literal['x', \"y\"] | None, b: (int | None)(ge=-1)"
    for _ in range(2_000):
        where = random.randrange(len(text))
        changed = text[:where] + random.choice("[]()',:|=-> a1.\"\\\n") + text[where + 1 :]
        with suppress(SignatureError):
            read_signature(changed, {})
