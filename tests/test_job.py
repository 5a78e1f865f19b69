from __future__ import annotations

import numpy as np
import pytest

from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Choice, Dependent, Regex, Request, Slot, Text, Usage
from promptflow.engine.slot.job import SEAM, FillJob, Meter, ScoreJob, Tools
from promptflow.errors import ConstraintError, ContextOverflow, NumericError

TOOLS = Tools(FakeModel(words=("ab", "x. y")))
END = 256


def job(*parts: Text | Slot) -> FillJob:
    request = Request(parts)
    slots = [part for part in parts if isinstance(part, Slot)]
    return FillJob(slots, TOOLS.prompts.before_slots(request.parts), request.seed, TOOLS)


def wish(token: int | str) -> np.ndarray:
    row = np.linspace(-20, -21, 259).astype(np.float32)
    if isinstance(token, str):
        [token] = TOOLS.prompts.continuation(token)
    row[token] = 20
    return row


def test_the_meter_tells_computed_from_reused():
    meter = Meter()
    meter.add_prompt(0, 10)
    meter.take_over(4)
    meter.compute(4, 9)
    meter.compute(9, 12)  # the last two were generated
    meter.add_prompt(12, 3)
    meter.compute(12, 15)
    assert (meter.prompt, meter.reused, meter.prefilled) == (13, 4, 9)


def test_the_meter_counts_what_is_computed_again():
    meter = Meter()
    meter.add_prompt(0, 10)
    meter.compute(0, 12)
    meter.take_over(6)  # after a preemption
    meter.compute(6, 13)
    assert (meter.reused, meter.prefilled) == (0, 16)


def test_the_meter_takes_over_more_after_a_preemption():
    meter = Meter()
    meter.add_prompt(0, 20)
    meter.take_over(5)
    meter.compute(5, 8)
    meter.take_over(15)
    meter.compute(15, 20)
    assert (meter.reused, meter.prefilled) == (5 + 7, 3 + 5)


def test_the_meter_forgets_what_was_cut():
    meter = Meter()
    meter.add_prompt(0, 5)
    meter.compute(0, 9)
    meter.cut(7)
    meter.compute(7, 9)
    assert meter.prefilled == 5


def test_texts_and_slots_follow_each_other_in_one_sequence():
    one = job(Text("q"), Slot("a"), Text("-"), Slot("b"), Text("ignored"))
    one.open()
    assert bytes(one.sequence.tokens) == b"q"
    assert one.take(wish("1")) == 1
    assert bytes(one.sequence.tokens) == b"q1"
    assert one.take(wish(END)) == 2
    assert bytes(one.sequence.tokens) == b"q1-"
    one.take(wish("2"))
    assert not one.is_done
    one.take(wish(END))
    assert one.is_done
    assert {name: fill.text for name, fill in one.fills.items()} == {"a": "1", "b": "2"}
    assert one.usage() == Usage(prompt=2, generated=2)


def test_what_a_stop_cuts_is_taken_back():
    one = job(Text("q"), Slot("a", stop=(".",)), Text("-"), Slot("b"))
    one.open()
    one.take(wish("1"))
    assert one.take(wish("x. y")) == 2, "the token before the cut one stands"
    assert bytes(one.sequence.tokens) == b"q1x-"


def test_forced_tokens_in_place_of_cut_ones_are_not_computed_again():
    one = job(Text("q"), Slot("a", stop=("2.",)), Slot("b", Regex("xy[0-9]")))
    one.open()
    one.take(wish("1"))
    one.take(wish("2"))
    one.meter.compute(0, 3)
    assert one.take(wish(".")) == 2
    assert bytes(one.sequence.tokens) == b"q1xy"
    one.meter.compute(2, 4)
    assert one.usage() == Usage(prompt=1, prefilled=1, generated=3, forced=2)


def test_room_shrinks_as_slots_end():
    one = job(Text("q"), Slot("a", max_tokens=10, stop=(".",)), Text("--"), Slot("b", max_tokens=5))
    assert one.room() == 10 + SEAM + 2 + 5
    one.open()
    assert one.sequence.length_limit == 1 + one.room()
    one.take(wish("1"))
    one.take(wish(END))
    assert one.room() == 5
    assert one.sequence.length_limit == len("q1--") + 5


def test_a_slot_that_stops_have_left_too_little_is_refused_with_the_numbers():
    """A stop that cut a token may add tokens for what is left of it, more than was foreseen."""
    tools = Tools(FakeModel(context=4 + SEAM, words=("x" * 20 + ".",)))
    one = FillJob(
        [Slot("a", max_tokens=1, stop=(".",)), Slot("b", max_tokens=3, fits=True)],
        [[113], []],
        0,
        tools,
    )
    one.open()
    row = np.full(258, -20.0, dtype=np.float32)
    row[257] = 20
    with pytest.raises(
        ContextOverflow, match=r"slot 'b' needs at least 1 tokens, and 0 are left .* 12 after 21"
    ):
        one.take(row)


def test_slots_that_are_all_forced_need_no_model():
    only = Choice(("yes",))
    one = job(Text("q "), Slot("a", only), Text(" - "), Slot("b", only, lead=" "))
    one.open()
    assert one.is_done
    assert {name: fill.text for name, fill in one.fills.items()} == {"a": "yes", "b": "yes"}
    assert one.usage() == Usage(prompt=5, forced=7)


def test_a_forced_slot_in_between_is_passed():
    one = job(Text("q"), Slot("a", Choice(("yes",))), Text("-"), Slot("b"))
    one.open()
    assert bytes(one.sequence.tokens) == b"qyes-"
    one.take(wish(END))
    assert one.is_done


def test_usage_counts_an_unfinished_slot():
    one = job(Text("q"), Slot("a", Regex("x[0-9]+")))
    one.open()
    one.take(wish("1"))
    assert one.usage() == Usage(prompt=1, generated=1, forced=1)
    assert one.fills == {}


def test_a_constraint_that_cannot_be_compiled_is_met_where_its_slot_opens():
    one = job(Text("q"), Slot("a"), Slot("b", Regex("(")))
    one.open()
    with pytest.raises(ConstraintError):
        one.take(wish(END))


def test_scores_come_one_row_at_a_time():
    one = ScoreJob([1, 2, 3], [ord("a"), 257], TOOLS)
    assert one.sequence.tokens == [1, 2, 3, ord("a")]
    assert (one.sequence.scored_from, one.sequence.share_limit) == (2, 2)
    one.take(wish("a"))
    assert not one.is_done
    one.take(wish("x"))
    assert one.is_done
    assert [score.token for score in one.scores] == ["a", "ab"]
    assert one.scores[0].logprob == pytest.approx(0, abs=1e-9)
    assert one.scores[1].logprob < -30
    with pytest.raises(NumericError):
        ScoreJob([1], [2], TOOLS).take(np.full(259, np.nan, dtype=np.float32))


def test_a_constraint_follows_what_an_earlier_slot_holds():
    options = (("a", Regex("[0-9]{2}")), ("b", Choice(("x",))))
    for name, written, text in (("a", "17", "17"), ("b", "", "x")):
        made = job(Slot("name", Choice(("a", "b"))), Slot("more", Dependent("name", options)))
        made.open()
        for char in name + written:
            made.take(wish(char))
        assert made.is_done
        assert made.fills["more"].text == text
    assert made.fills["more"].forced == 1


def test_a_text_that_chooses_no_constraint_says_which_do():
    made = job(Slot("name", max_tokens=1), Slot("more", Dependent("name", (("a", Regex("x")),))))
    made.open()
    with pytest.raises(ConstraintError, match="holds 'b', which chooses no constraint"):
        made.take(wish("b"))
