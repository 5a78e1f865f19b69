from __future__ import annotations

from promptflow.engine.loop.lengths import FIRST, KINDS, Lengths


def test_an_answer_is_taken_to_be_as_long_as_those_of_its_kind():
    lengths = Lengths()
    assert lengths.likely("a") == FIRST
    lengths.ended("a", 40)
    assert lengths.likely("a") == 40
    assert lengths.likely("b") == FIRST
    for _ in range(40):
        lengths.ended("a", 8)
    assert lengths.likely("a") == 8


def test_one_long_answer_moves_the_mean_by_an_eighth():
    lengths = Lengths()
    lengths.ended("a", 80)
    lengths.ended("a", 160)
    assert lengths.likely("a") == 90


def test_an_answer_that_was_sent_back_without_an_end_is_no_short_one():
    lengths = Lengths()
    lengths.ended("a", 10)
    lengths.outgrew("a", 4)
    assert lengths.likely("a") == 10
    lengths.outgrew("a", 70)
    assert lengths.likely("a") == 70
    lengths.outgrew("b", 5)
    assert lengths.likely("b") == FIRST


def test_only_the_kinds_that_ended_last_are_remembered():
    lengths = Lengths()
    for kind in range(KINDS + 1):
        lengths.ended(kind, 1)
        lengths.ended(1, 1)
    assert lengths.likely(0) == FIRST
    assert lengths.likely(1) == lengths.likely(KINDS) == 1
