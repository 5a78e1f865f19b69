from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Request, Sampling, Slot, Text
from promptflow.engine.slot.prompt_lookup import GRAMS, LONGEST, PRIOR, Lookup, Odds, least_chance


def slow(tokens: Sequence[int], limit: int) -> list[int]:
    """What follows the last earlier occurrence of the longest n-gram at the end."""
    for size in GRAMS:
        for at in range(len(tokens) - 1, size - 1, -1):
            if list(tokens[at - size : at]) == list(tokens[-size:]):
                return list(tokens[at : at + min(LONGEST, limit, len(tokens) - at)])
    return []


def lookup() -> Lookup:
    return Lookup(Odds())


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 9))
def test_drafts_are_what_followed_before(tokens, limit):
    """Where a row costs nothing."""
    found = lookup()
    for end in range(len(tokens) + 1):
        assert found.draft(tokens[:end], limit, 0.0) == slow(tokens[:end], limit)


def test_text_that_was_taken_back_is_forgotten():
    found = lookup()
    assert found.draft([1, 2, 3, 4, 1, 2], 9, 0.0) == [3, 4, 1, 2]
    assert found.draft([1, 2], 9, 0.0) == []


def test_a_draft_ends_where_its_next_token_is_too_uncertain():
    tokens = [1, 2, *range(10, 90), 1, 2]
    chances = [PRIOR[2], PRIOR[2] * PRIOR[2], PRIOR[2] * PRIOR[2] * PRIOR[3]]
    for least, length in [(0.6, 0), (chances[0], 1), (chances[1], 2), (chances[2], 3)]:
        assert len(lookup().draft(tokens, 99, 0.999 * least)) == length
    assert len(lookup().draft(tokens, 99, 0.0)) == LONGEST


def test_the_more_agrees_the_longer_the_draft():
    text = list(range(100, 200))
    lengths = [len(lookup().draft([*text, 0, *text[:n]], 99, 0.55)) for n in (2, 4, 8, 16, 32)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0 < lengths[1]


@pytest.mark.parametrize("least", [0.45, 1.0])
def test_odds_follow_the_text_whether_it_is_drafted_or_not(least):
    """A text that never goes on as before, and then one that always does."""
    odds, tokens = Odds(), [1, 2]
    found = Lookup(odds)
    for n in range(300):
        tokens += [1000 + n, 1, 2]
        found.draft(tokens, 9, least)
    assert odds.of(2) < 0.02
    assert found.draft(tokens, 9, 0.45) == []
    for n in range(100):
        again = [5000 + 10 * n + i for i in range(10)]
        tokens += [*again, -n - 1]
        for token in again:
            tokens.append(token)
            found.draft(tokens, 9, least)
    assert odds.of(2) > 0.9


def test_a_row_is_dearer_the_more_sequences_share_the_weights():
    """Against a table of what steps cost: a draft of one token, and the time a token takes."""
    for pass_rows in (0.5, 2.0, 40.0):
        for sequences in (1, 2, 8, 32):
            least = least_chance(pass_rows, sequences)
            for chance in (least * 0.99, min(1.0, least * 1.01)):
                plain = (pass_rows + sequences) / sequences
                drafted = (pass_rows + sequences + 1) / (sequences + chance)
                assert (drafted < plain) == (chance > least)


class Repeating(FakeModel):
    """Says again what it has read, one token after the other."""

    def _logits(self, history):
        logits = super()._logits(history)
        before = [i for i, token in enumerate(history[:-1]) if token == history[-1]]
        if before:
            logits[history[before[-1] + 1]] += 30.0
        return logits


def texts(model: FakeModel, pass_rows: float, temperature: float, **settings):
    decoder = Decoder(model, pass_rows=pass_rows)
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
    plain, _ = texts(kind(), 0.0, temperature)
    drafted, stats = texts(kind(), 1000.0, temperature)
    assert drafted == plain
    assert stats.drafted >= stats.accepted


def test_a_text_that_repeats_takes_fewer_decode_calls():
    _, plain = texts(Repeating(), 0.0, 0.0)
    _, drafted = texts(Repeating(), 1000.0, 0.0)
    assert drafted.decodes < 0.6 * plain.decodes
    assert drafted.accepted > 0.5 * drafted.drafted


def test_a_stop_string_inside_a_draft_ends_the_slot_there():
    plain, _ = texts(Repeating(), 0.0, 0.0, stop=("; ",))
    drafted, _ = texts(Repeating(), 1000.0, 0.0, stop=("; ",))
    assert drafted == plain
    assert {fills["s"].finish for fills in plain} == {"stop"}
