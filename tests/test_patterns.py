from __future__ import annotations

import re
from typing import Annotated

import pytest
from pydantic import StringConstraints, TypeAdapter, ValidationError

from promptflow.engine.model.constraint import Walks
from promptflow.engine.request import Regex
from promptflow.patterns import PatternRefused, translated


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]+\$",
        r"(?i)yes",
        r"(?P<a>x)y",
        r"\AX\Z",
        r"C:\\bin",
        r"^a|b$",
        r"^(a|^bc)$",
        r"^$|x",
        r"\d{2,3}",
        r"\w+-\W",
        r"\S+\s\S",
        r"[^\W\d]+",
        r"[^\S\n]x",
        r"[\w.-]+@[\w-]+",
        r"a*?b+?",
        r"(?:a|b)c",
        r"(?s:.)(?-i:x)",
        r"(?x) a b  # a comment",
        r"(?m)^a$",
        r"(?i:stra\u00dfe)|k",
        r"[]a^-]+",
        r"a/b\n",
        r"[^a-z]",
        r"\x41\101\t",
        ".{0,4}",
    ],
)
def test_what_is_written_is_what_python_finds(pattern: str):
    walks = Walks(seed=3)
    for _ in range(60):
        text = walks.text(Regex(translated(pattern)), 30)
        assert re.search(pattern, text), text
        assert re.fullmatch(pattern, text) or pattern[0] in "^\\(", text


@pytest.mark.parametrize(
    "pattern", [r"^\w+$", r"^\d+ \D$", r"^[^\s]+$", r"^[\p{L}&&[^a-z]]+$", r"(?i)^[k-s]+$", r"^\W$"]
)
def test_what_is_written_is_what_rust_finds(pattern: str):
    read = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)]).validate_python
    walks = Walks(seed=4)
    for _ in range(200):
        text = walks.text(Regex(translated(pattern)), 20)
        try:
            read(text)
        except ValidationError:
            pytest.fail(f"{text!r} is not {pattern}")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(?=x)y", r"looks ahead with \(\?="),
        (r"x(?!y)", r"looks ahead with \(\?!"),
        (r"(?<=x)y", r"looks behind with \(\?<="),
        (r"(?<!x)y", r"looks behind with \(\?<!"),
        (r"(a)\1", "looks back to its group 1"),
        (r"(a)?(?(1)b|c)", "condition"),
        (r"\bx", r"\\b, an edge of a word"),
        (r"x\B", r"\\B, an edge of a word"),
        (r"a$b", r"\$ in the middle"),
        (r"a^b", r"\^ in the middle"),
        (r"(?>a)b", "atomic"),
        (r"a++b", "possessive"),
    ],
)
def test_what_cannot_be_held_is_refused_for_its_own_reason(pattern: str, says: str):
    with pytest.raises(PatternRefused, match=says):
        translated(pattern)


def test_flags_of_a_compiled_pattern_hold():
    found = translated(re.compile("a.b", re.DOTALL | re.IGNORECASE))
    assert re.fullmatch(found, "A\nB")
    assert re.fullmatch(translated(re.compile(r"\d", re.ASCII)), "7")
