from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Choice, Json, Regex, Sampling, Slot, Substring
from promptflow.engine.slot import sampling
from promptflow.engine.slot.filling import Filling, Vocabulary
from promptflow.errors import ConstraintDeadEnd, ConstraintError, NumericError

WORDS = ("ab", "the end", "x. y", "\nlabel", "é", "  ")
FAKE = FakeModel(words=WORDS)
VOCABULARY = Vocabulary(FAKE)
CONSTRAINTS = FAKE.constraints()
END = 256


def opened(slot: Slot, before: tuple[int, ...] = ()) -> Filling:
    filling = Filling(slot, VOCABULARY, CONSTRAINTS, sampling.generator(0, 0), before)
    filling.open()
    return filling


def wish(*tokens: int | str) -> np.ndarray:
    """Logits of a model that wants these tokens, the first most."""
    row = np.linspace(-20, -21, FAKE.vocabulary).astype(np.float32)
    for rank, token in enumerate(tokens):
        if isinstance(token, str):
            [token] = FAKE.tokenize(token, special=True)
        row[token] = 20 - rank
    return row


def write(slot: Slot, *tokens: int | str) -> Filling:
    """Fill a slot by a model that wants ``tokens`` one after the other, until it ends."""
    filling = opened(slot)
    for token in tokens:
        if filling.finish is not None:
            break
        filling.take(wish(token))
    return filling


def result(filling: Filling) -> tuple[str, str]:
    fill = filling.fill()
    return fill.text, fill.finish


def test_free_text_ends_at_an_end_token():
    filling = write(Slot("s"), "a", "b", END)
    assert result(filling) == ("ab", "stop")
    assert filling.fill().generated == 2, "the end token is no text"
    assert filling.tokens == [ord("a"), ord("b")]


def test_it_ends_after_max_tokens():
    assert result(write(Slot("s", max_tokens=2), "a", "b", "c")) == ("ab", "length")
    assert result(write(Slot("s", max_tokens=1), "the end")) == ("the end", "length")


def test_ignore_eos_takes_the_next_best_token():
    filling = opened(Slot("s", max_tokens=2, ignore_eos=True))
    row = wish(END, "a")
    filling.take(row)
    filling.take(row)
    assert result(filling) == ("aa", "length")
    assert row[END] == 20, "the model's row must not change"


@pytest.mark.parametrize(
    ("tokens", "text", "kept", "rest"),
    [
        (["a", "b", "."], "ab", 2, b""),
        (["a", "x. y"], "ax", 1, b"x"),
        (["a", "x", ".", " "], "ax", 2, b""),
        (["."], "", 0, b""),
        (["\nlabel"], "", 0, b""),
        (["a", "\nlabel"], "a", 1, b""),
    ],
)
def test_a_stop_string_is_cut_off(tokens, text, kept, rest):
    filling = write(Slot("s", stop=(".", "\n")), *tokens)
    assert result(filling) == (text, "stop")
    assert (filling.kept, filling.rest) == (kept, rest)
    assert filling.fill().generated == len(tokens[: tokens.index(" ")] if " " in tokens else tokens)


def test_a_stop_string_may_span_tokens_and_the_first_one_counts():
    assert result(write(Slot("s", stop=("b the", "d c")), *"ab", " ", "the end")) == ("a", "stop")
    assert result(write(Slot("s", stop=("end", "the", "e e")), "a", "the end")) == ("a", "stop")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*WORDS, "a", "b", "c", "\n", " "]), max_size=10),
    st.lists(st.text("abceé \n.xy", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stops_are_found_as_in_the_whole_text(pieces, stops):
    filling = write(Slot("s", stop=tuple(stops), max_tokens=100), *pieces, END)
    text, at = "", -1
    for piece in pieces:
        text += piece
        if found := [text.index(stop) for stop in stops if stop in text]:
            at = min(found)
            break
    expected = text[:at] if at >= 0 else text
    assert result(filling) == (expected, "stop")
    kept = b"".join(VOCABULARY.pieces[token] for token in filling.tokens[: filling.kept])
    assert (kept + filling.rest).decode() == expected


def test_a_slot_that_needs_text_does_not_end_before_it_has_some():
    slot = Slot("s", stop=("\n", "x"), needs_text=True)
    assert result(write(slot, "\n", " ", "\nlabel", "\n", "a")) == ("\n \nlabel", "stop")
    assert result(write(slot, "x. y", "x")) == ("x. y", "stop")
    assert result(write(Slot("s", stop=("\n",)), "\n", "a")) == ("", "stop")


def test_a_stop_token_is_no_text():
    assert result(write(Slot("s", stop_tokens=(ord("b"),)), "a", "b")) == ("a", "stop")


def test_half_a_character_at_the_end_is_left_out():
    euro = "€".encode()
    assert result(write(Slot("s", max_tokens=2), *euro)) == ("", "length")
    assert result(write(Slot("s", max_tokens=3), *euro)) == ("€", "length")
    filling = write(Slot("s", max_tokens=4), "a", *"😀".encode())
    assert result(filling) == ("a", "length")
    assert filling.kept == 1
    assert result(write(Slot("s"), "a", euro[0], END)) == ("a", "stop")
    assert result(write(Slot("s", stop=(".",)), euro[0], ".")) == ("", "stop")


def test_bytes_that_are_no_characters_are_replaced():
    assert result(write(Slot("s"), 0x80, "a", 0xFF, END)) == ("\ufffda\ufffd", "stop")
    assert result(write(Slot("s"), "é", 0x80, END)) == ("é\ufffd", "stop")


@pytest.mark.parametrize(
    ("text", "value"),
    [(" a", "a"), ("a", "a"), ("  a", " a"), ("\n a", "\n a"), (" ", ""), ("", "")],
)
def test_a_lead_is_removed_once_where_it_was_written(text, value):
    assert result(write(Slot("s", lead=" "), *text, END)) == (value, "stop")


def test_a_lead_is_forced_under_a_constraint():
    filling = opened(Slot("s", Choice(("ab", "cd")), lead=" "))
    assert filling.text == b" "
    filling.take(wish("c"))
    assert result(filling) == ("cd", "constraint")
    assert filling.fill().forced == 2
    assert filling.fill().generated == 1


def test_a_constraint_with_one_answer_is_never_sampled():
    filling = opened(Slot("s", Choice(("the end",)), lead=" "))
    assert result(filling) == ("the end", "constraint")
    assert filling.tokens == [ord(" "), 258]
    assert filling.fill().generated == 0


def test_only_what_the_constraint_allows_is_taken():
    filling = opened(Slot("s", Regex("[0-9]+")))
    filling.take(wish("a", "b", "7", "8"))
    assert filling.text == b"7"


def test_a_constraint_is_not_ended_before_it_is_complete():
    filling = opened(Slot("s", Regex("[0-9]{2,4}")))
    filling.take(wish(END, "\n", "7"))
    assert filling.text == b"7"
    filling.take(wish(END, "\n", "8"))
    assert filling.finish is None
    filling.take(wish(END, "9"))
    assert result(filling) == ("78", "constraint")


@pytest.mark.parametrize("terminator", [END, "\n", "\nlabel"])
def test_a_complete_constraint_ends_at_an_end_token_or_a_line_break(terminator):
    filling = write(Slot("s", Regex("[0-9]+")), "7", terminator)
    assert result(filling) == ("7", "constraint")
    assert filling.tokens == [ord("7")]
    assert filling.fill().generated == 1


def test_a_line_break_that_may_follow_is_content():
    slot = Slot("s", Regex("(?s:.+)"), max_tokens=3)
    assert result(write(slot, "a", "\n", "b")) == ("a\nb", "length")
    assert result(write(slot, "a", END)) == ("a", "constraint")


def test_options_that_begin_others_can_be_chosen():
    slot = Slot("s", Choice(("a", "abc")))
    assert result(write(slot, "a", END)) == ("a", "constraint")
    assert result(write(slot, "a", "b")) == ("abc", "constraint")


def test_ignore_eos_goes_on_while_the_constraint_can():
    slot = Slot("s", Regex("[0-9]{1,3}"), ignore_eos=True)
    filling = opened(slot)
    for _ in range(3):
        assert filling.finish is None
        filling.take(wish(END, "\n", "7"))
    assert result(filling) == ("777", "constraint")


def test_stops_are_not_looked_for_under_a_constraint():
    slot = Slot("s", Regex("c.d"), stop=(".",), stop_tokens=(ord("."),))
    assert result(write(slot, ".")) == ("c.d", "constraint")


def test_a_constraint_cut_by_max_tokens_says_so():
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    filling = write(Slot("s", Json(schema), max_tokens=7), "1", "2", "3")
    assert result(filling) == ('{"n": 1', "length")
    assert result(opened(Slot("s", Json(schema), max_tokens=3))) == ('{"n', "length")
    assert result(write(Slot("s", Regex("[0-9]{1,9}"), max_tokens=2), "1", "2")) == ("12", "length")
    exact = write(Slot("s", Regex("[0-9]{2}"), max_tokens=2), "1", "2")
    assert result(exact) == ("12", "constraint")


def test_a_quotation_is_not_empty():
    filling = write(Slot("s", Substring(("abc",)), lead=" "), END, END)
    assert filling.fill().text in ("a", "b", "c", "ab")
    assert filling.finish == "constraint"


def test_a_dead_end_is_an_error():
    filling = opened(Slot("s", Json('{"$ref": "#"}')))
    with pytest.raises(ConstraintDeadEnd):
        filling.take(wish("a"))


def test_what_cannot_be_compiled_is_an_error_at_once():
    with pytest.raises(ConstraintError):
        opened(Slot("s", Regex("(")))


def test_logits_that_are_no_numbers_are_an_error():
    filling = opened(Slot("s"))
    with pytest.raises(NumericError):
        filling.take(np.full(FAKE.vocabulary, np.nan, dtype=np.float32))


def test_logprobs_are_those_of_the_model_before_any_reduction():
    slot = Slot("s", Choice(("ab", "cd")), logprobs=2, sampling=Sampling(logit_bias=((99, 90.0),)))
    filling = opened(slot)
    row = wish("x", "a", "c")
    filling.take(row)
    fill = filling.fill()
    [chosen] = fill.logprobs
    assert (chosen.token, chosen.token_id) == ("c", ord("c"))
    assert chosen.logprob == fill.logprob == pytest.approx(sampling.logprob(row, ord("c")))
    assert [token for token, _ in chosen.top] == ["x", "a"]
    assert opened(Slot("s")).fill().logprobs == ()


def test_penalties_count_what_was_sampled_and_repetition_the_prompt_too():
    row = wish("a", "b")
    slot = Slot("s", sampling=Sampling(presence_penalty=5.0))
    filling = opened(slot, before=(ord("a"),))
    filling.take(row)
    filling.take(row)
    assert filling.text == b"ab"
    repetition = Slot("s", sampling=Sampling(repetition_penalty=2.0))
    filling = opened(repetition, before=(ord("a"),))
    filling.take(row)
    assert filling.text == b"b"


def test_equal_generators_draw_equal_text():
    slot = Slot("s", max_tokens=20, sampling=Sampling(1.0), ignore_eos=True)
    rows = np.random.default_rng(0).normal(0, 2, (20, FAKE.vocabulary)).astype(np.float32)

    def text(seed: int, number: int) -> str:
        rng = sampling.generator(seed, number)
        filling = Filling(slot, VOCABULARY, CONSTRAINTS, rng)
        for row in rows:
            filling.take(row)
        return filling.fill().text

    assert text(1, 0) == text(1, 0)
    assert len({text(1, 0), text(2, 0), text(1, 1)}) == 3
