from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptflow.engine.decoder import Decoder
from promptflow.engine.fake import FakeModel
from promptflow.engine.lookup import FIRST, GRAMS, LONGEST, Lookup
from promptflow.engine.request import Request, Sampling, Slot, Text


def slow(tokens: Sequence[int], limit: int) -> list[int]:
    """What follows the last earlier occurrence of the longest n-gram at the end."""
    for size in GRAMS:
        for at in range(len(tokens) - 1, size - 1, -1):
            if list(tokens[at - size : at]) == list(tokens[-size:]):
                return list(tokens[at : at + min(FIRST, limit)])
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9))
def test_drafts_are_what_followed_before(tokens, limit):
    lookup = Lookup()
    for end in range(len(tokens) + 1):
        assert lookup.draft(tokens[:end], limit) == slow(tokens[:end], limit)


def test_text_that_was_taken_back_is_forgotten():
    lookup = Lookup()
    assert lookup.draft([1, 2, 3, 4, 1, 2], 9) == [3, 4, 1, 2]
    assert lookup.draft([1, 2], 9) == []


def test_drafts_grow_where_they_are_right_and_pause_where_they_are_not():
    tokens = [1, 2, *range(10, 40), 1, 2]
    lookup = Lookup()
    for length in (FIRST, 2 * FIRST, LONGEST, LONGEST):
        drafted = lookup.draft(tokens, 99)
        assert len(drafted) == length
        lookup.learn(len(tokens), length, length)
    lookup.learn(len(tokens), LONGEST, 1)
    assert len(lookup.draft(tokens, 99)) == LONGEST // 2
    lookup.learn(len(tokens), LONGEST // 2, 0)
    assert lookup.draft(tokens, 99) == []
    assert lookup.draft([*tokens, 10, 11], 99) != [], "the first pause is of two tokens"


class Repeating(FakeModel):
    """Says again what it has read, one token after the other."""

    def _logits(self, history):
        logits = super()._logits(history)
        before = [i for i, token in enumerate(history[:-1]) if token == history[-1]]
        if before:
            logits[history[before[-1] + 1]] += 30.0
        return logits


def texts(model: FakeModel, lookup: bool, temperature: float, **settings):
    decoder = Decoder(model, lookup=lookup)
    outcomes = {}
    for key in range(6):
        slot = Slot("s", max_tokens=40, sampling=Sampling(temperature), ignore_eos=True, **settings)
        parts = Text(f"a tale of two cities {key}; "), slot, Text(" and "), Slot("t", max_tokens=9)
        outcomes |= dict(decoder.submit(key, Request(parts, seed=key)))
    while decoder.busy:
        outcomes |= dict(decoder.step())
    return [outcomes[key].fills for key in range(6)], decoder.stats()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", [FakeModel, Repeating])
def test_text_is_the_same_with_and_without(kind, temperature):
    plain, _ = texts(kind(), False, temperature)
    drafted, stats = texts(kind(), True, temperature)
    assert drafted == plain
    assert stats.drafted >= stats.accepted


def test_a_text_that_repeats_takes_fewer_decode_calls():
    _, plain = texts(Repeating(), False, 0.0)
    _, drafted = texts(Repeating(), True, 0.0)
    assert drafted.decodes < 0.6 * plain.decodes
    assert drafted.accepted > 0.5 * drafted.drafted


def test_a_stop_string_inside_a_draft_ends_the_slot_there():
    plain, _ = texts(Repeating(), False, 0.0, stop=("; ",))
    drafted, _ = texts(Repeating(), True, 0.0, stop=("; ",))
    assert drafted == plain
    assert {fills["s"].finish for fills in plain} == {"stop"}
