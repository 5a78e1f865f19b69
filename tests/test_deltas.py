from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Beam, Choice, Regex, Request, Slot, Text
from promptflow.engine.slot.deltas import Deltas
from promptflow.engine.slot.job import FillJob, Tools

WORDS = ("ab", "the", " end", "é", "😀")
TOOLS = Tools(FakeModel(words=WORDS))
END = 256
PIECES = [b"a", b"b", b"t", b" ", b"\n", *(word.encode() for word in WORDS)]
PIECES += [bytes([byte]) for byte in (0x80, 0xA9, 0xC3, 0xC0, 0xE2, 0x82, 0xF0, 0x9F, 0xFF)]


def job(*parts: Text | Slot) -> tuple[FillJob, Deltas]:
    request = Request(parts)
    slots = [part for part in parts if isinstance(part, Slot)]
    made = FillJob(slots, TOOLS.prompts.before_slots(request.parts), request.seed, TOOLS)
    made.open()
    made.sequence.seq_id = 0  # it runs
    return made, Deltas(made)


def write(made: FillJob, piece: bytes | int) -> None:
    """Have the model write a token."""
    row = np.linspace(-20, -21, 257 + len(WORDS)).astype(np.float32)
    if isinstance(piece, bytes):
        piece = TOOLS.vocabulary.pieces.index(piece)
    row[piece] = 20
    made.take(row)


def standing(text: bytes, stops: list[str]) -> str:
    """What no continuation can take back, by trying every place where a stop or half may begin."""
    end = len(text)
    for at in range(len(text), -1, -1):
        tail = text[at:]
        if tail and any(stop.encode().startswith(tail) for stop in stops):
            end = at
    for at in range(max(0, end - 3), end):
        lead, rest = text[at], text[at + 1 : end]
        needed = 3 if lead >= 0xF0 else 2 if lead >= 0xE0 else 1
        going_on = all(0x80 <= byte < 0xC0 for byte in rest)
        if 0xC0 <= lead < 0xF8 and going_on and len(rest) < needed:
            return text[:at].decode("utf-8", "replace")
    return text[:end].decode("utf-8", "replace")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12),
    st.lists(st.sampled_from(["ab\n", "b", "the end", "é😀", "\n\n", "aab"]), max_size=3),
)
def test_all_that_stands_is_told_at_once_and_nothing_else(pieces, stops):
    made, deltas = job(Text("q"), Slot("a", stop=tuple(stops), max_tokens=50))
    told, text = "", b""
    for piece in pieces:
        write(made, piece)
        text += piece
        told += "".join(fresh for _, fresh in deltas.fresh())
        if made.is_done:
            break
        assert told == standing(text, stops)
    else:
        write(made, END)
    told += "".join(fresh for _, fresh in deltas.fresh())
    assert told == made.fills["a"].text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([b" ", b"a", b"ab", b"\n"]), min_size=1, max_size=5),
    st.sampled_from(["", " ", " a", "  ", "ab"]),
    st.sampled_from([(), (" b",), ("a",)]),
)
def test_the_lead_is_not_told_and_what_only_looks_like_it_is(pieces, lead, stops):
    made, deltas = job(Text("q"), Slot("a", lead=lead, stop=stops))
    told = ""
    for piece in [*pieces, END]:
        if not made.is_done:
            write(made, piece)
            told += "".join(fresh for _, fresh in deltas.fresh())
    assert told == made.fills["a"].text


def test_slots_are_told_in_order_with_what_is_forced():
    parts = Slot("a", Choice(("yes",)), lead=" "), Text("\nB:"), Slot("b", Regex("[ab]{2}x y"))
    made, deltas = job(Text("q"), *parts)
    assert deltas.fresh() == [("a", "yes")]
    write(made, b"a")
    assert deltas.fresh() == [("b", "a")]
    assert deltas.fresh() == []
    write(made, b"b")
    assert made.is_done
    assert deltas.fresh() == [("b", "bx y")]


@pytest.mark.parametrize(
    "slot",
    [Slot("a", beam=Beam(2), max_tokens=2), Slot("a", Choice(("ab", "at"), weighed=True))],
)
def test_what_is_searched_or_weighed_is_told_when_it_has_ended(slot):
    made, deltas = job(Text("q"), slot, Text(" "), Slot("b"))
    assert made.plain is None
    assert deltas.fresh() == []
    made.fills["a"] = made._filling.fill()
    assert deltas.fresh() == [("a", made.fills["a"].text)] * bool(made.fills["a"].text)


def test_a_job_that_waits_tells_nothing():
    """It may be given to another worker, which would tell it all again."""
    made, deltas = job(Text("q"), Slot("a", Choice(("yes",))), Text("."), Slot("b"))
    made.sequence.seq_id = -1
    assert deltas.fresh() == []
    made.sequence.seq_id = 3
    assert deltas.fresh() == [("a", "yes")]
