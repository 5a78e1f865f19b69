"""What fails, and what is too large: each request gets its own text or a typed error, none hangs.

Decodes that fail, logits that are no numbers, pools that are too small and children that are
killed, on ``FakeModel``, whose texts are compared with the reference of test_oracle.py.
"""

from __future__ import annotations

import pytest
from test_oracle import REFERENCE, WORDS, WORDS_LIKELY, comparable, drain, run

from promptflow.engine.constraint import Constraints
from promptflow.engine.decoder import Decoder
from promptflow.engine.fake import FakeModel
from promptflow.engine.request import (
    Beam,
    Choice,
    Json,
    Request,
    Sampling,
    Slot,
    Text,
)
from promptflow.errors import CapacityError, EngineError, NumericError

CALLS = range(1, 51)
PERSON = Json('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')


class Faulty(FakeModel):
    """A fake that counts its rows of logits, and compiles constraints once for all tests."""

    def __init__(self, **settings) -> None:
        super().__init__(**{"batch": 8, "words": WORDS, **settings})
        self.rows: list[int] = []  # of each call

    def constraints(self) -> Constraints:
        return REFERENCE.tools.constraints

    def decode(self, tokens, positions, sequences, outputs) -> int:
        self.rows.append(sum(outputs))
        return super().decode(tokens, positions, sequences, outputs)


def hard_requests() -> list[Request]:
    """Shared prompts, stops that cut words, a grammar, a search, weighed options."""
    slot = Slot("s", max_tokens=8, stop=("b",), sampling=Sampling(1.0, logit_bias=WORDS_LIKELY))
    end = Slot("t", max_tokens=14, ignore_eos=True)
    firsts = [
        slot,
        slot,
        Slot("s", PERSON, max_tokens=12),
        slot,
        Slot("s", max_tokens=4, beam=Beam(2)),
        Slot("s", Choice(("a", "ab", "the end"), weighed=True)),
    ]
    return [
        Request((Text("aaab the end" * (2 - n % 2)), first, Text(" c "), end), n)
        for n, first in enumerate(firsts)
    ]


BATCH = hard_requests()
EXPECTED = [REFERENCE.fills(request) for request in BATCH]


def answers(decoder: Decoder) -> list:
    """What a decoder makes of the batch: fills, or the error in their place."""
    return [
        completion.error or comparable(completion, request)
        for completion, request in zip(run(decoder, BATCH), BATCH, strict=True)
    ]


def check_empty(decoder: Decoder) -> None:
    """Nothing is held but what may be evicted."""
    assert not decoder.scheduler.running
    assert not decoder.scheduler.waiting
    for move in decoder.scheduler.evict_all():
        decoder.model.drop(move.sequence, move.start)
    assert decoder.model.used_cells() == decoder.scheduler.cells.used == 0
    assert not list(decoder.scheduler.tree.nodes())


@pytest.mark.parametrize(
    ("code", "batch_invariant"),
    [*((code, False) for code in (1, 2, -1, -2, -3)), (1, True), (-2, True)],
)
def test_a_failed_decode_at_any_of_50_calls_is_survived(code, batch_invariant):
    """It costs a new start of what it hit, and no request, then or later: one decoder has all."""
    decoder = Decoder(Faulty(), max_running=2, batch_invariant=batch_invariant)
    for call in CALLS:
        at = decoder.model.decodes + call
        decoder.model.fail = {at: code}
        assert answers(decoder) == EXPECTED
        assert decoder.model.decodes > at, "the batch is too short for this call"
        check_empty(decoder)
    assert decoder.stats().preempted >= 10


@pytest.mark.parametrize(
    ("code", "error"), [(1, CapacityError), (2, EngineError), (-1, EngineError), (-2, EngineError)]
)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_decode_that_keeps_failing_is_a_typed_error(code, error, batch_invariant):
    decoder = Decoder(Faulty(), max_running=4, batch_invariant=batch_invariant)
    decoder.model.fail = dict.fromkeys(range(1, 1_000), code)
    failed = answers(decoder)
    assert {type(one) for one in failed} == {error}
    assert decoder.model.decodes <= 3 * len(BATCH), "no request is tried for ever"
    check_empty(decoder)
    decoder.model.fail = {}
    assert answers(decoder) == EXPECTED


@pytest.mark.parametrize("code", [1, 2, -1, -2])
def test_scores_survive_a_failed_decode_at_any_call(code):
    """Of several batches, so that a fault finds some scored and others not."""
    text = "the end aab" * 60

    def scores(decoder: Decoder) -> list:
        for key, before in enumerate(("aaab ", "aaab the", "x")):
            decoder.score(key, [Text(before)], text)
        outcomes = drain(decoder)
        return [outcomes[key] for key in range(3)]

    decoder = Decoder(Faulty(batch=64), max_running=2)
    expected = scores(decoder)
    calls = decoder.model.decodes
    assert calls > 6
    for call in range(1, calls + 1):
        decoder = Decoder(Faulty(batch=64, fail={call: code}), max_running=2)
        assert scores(decoder) == expected
        check_empty(decoder)


def test_a_row_that_is_no_number_fails_its_request_alone():
    """Any row of any of 50 calls. Where the row was computed for others too, they do without."""
    plain = Faulty()
    assert answers(Decoder(plain, max_running=2)) == EXPECTED
    hit = total = 0
    for call in CALLS:
        for row in range(plain.rows[call - 1]):
            decoder = Decoder(Faulty(spoil={call: row}), max_running=2)
            found = answers(decoder)
            wrong = [n for n, one in enumerate(found) if one != EXPECTED[n]]
            assert len(wrong) <= 1, (call, row)
            assert all(type(found[n]) is NumericError for n in wrong)
            check_empty(decoder)
            hit, total = hit + len(wrong), total + 1
    assert hit > 0.9 * total > 50


def test_a_sequence_whose_rows_are_no_numbers_fails_alone():
    batch = [Request((Text("aaab the \x01 end"), Slot("s"))), *BATCH]
    decoder = Decoder(Faulty(poison=1))
    first, *others = run(decoder, batch)
    assert type(first.error) is NumericError
    assert [comparable(c, r) for c, r in zip(others, BATCH, strict=True)] == EXPECTED
