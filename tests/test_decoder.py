"""The loop's own rules; that its text is right is the subject of test_oracle.py."""

from __future__ import annotations

import pytest

from promptflow.engine.decoder import Decoder
from promptflow.engine.fake import FakeModel
from promptflow.engine.request import Choice, Completion, Json, Request, Sampling, Slot, Text
from promptflow.errors import (
    Cancelled,
    ConstraintDeadEnd,
    ConstraintError,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
)


def drain(decoder: Decoder) -> dict[int, Completion]:
    outcomes = {}
    while decoder.busy:
        outcomes |= dict(decoder.step())
    return outcomes


def ask(text: str = "question", **settings) -> Request:
    return Request((Text(text), Slot("a", **{"max_tokens": 5, "ignore_eos": True, **settings})))


def test_a_request_that_can_never_fit_is_refused_with_the_numbers():
    decoder = Decoder(FakeModel(context=50))
    decoder.submit(0, ask("x" * 45))
    with pytest.raises(
        ContextOverflow, match=r"prompt has 46 tokens .* up to 5 more: 1 over .* 50"
    ):
        decoder.submit(1, ask("x" * 46))
    slots = Slot("a", max_tokens=5, stop=(".",)), Slot("b", max_tokens=20)
    long = Request((Text("x" * 20), slots[0], Text("y" * 10), slots[1]))
    with pytest.raises(ContextOverflow, match=r"prompt has 30 tokens .* up to 33 more: 13 over"):
        decoder.submit(1, long)
    with pytest.raises(ContextOverflow):
        decoder.score(1, [Text("x" * 45)], "y" * 6)
    assert [completion.error for completion in drain(decoder).values()] == [None]


@pytest.mark.parametrize(
    "settings",
    [{"stop_tokens": (257,)}, {"sampling": Sampling(logit_bias=((5, 1.0), (100_000, 1.0)))}],
)
def test_tokens_that_the_model_does_not_have_are_refused(settings):
    decoder = Decoder(FakeModel())
    with pytest.raises(EngineError, match=r"slot 'a' names token .* are 0 to 256"):
        decoder.submit(0, ask(**settings))
    assert not decoder.busy


def test_a_constraint_that_cannot_be_compiled_is_refused():
    decoder = Decoder(FakeModel())
    with pytest.raises(ConstraintError):
        decoder.submit(0, ask(constraint=Json("{")))
    assert not decoder.busy


def test_a_dead_end_fails_its_request_alone():
    decoder = Decoder(FakeModel())
    decoder.submit(0, ask(constraint=Json('{"$ref": "#"}')))
    decoder.submit(1, ask())
    outcomes = drain(decoder)
    assert isinstance(outcomes[0].error, ConstraintDeadEnd)
    assert outcomes[1].error is None


def test_a_request_that_is_all_forced_is_answered_at_once():
    decoder = Decoder(FakeModel())
    [(key, completion)] = decoder.submit(7, ask(constraint=Choice(("yes",))))
    assert key == 7
    assert completion.text("a") == "yes"
    assert decoder.model.decodes == 0
    assert not decoder.busy
    assert decoder.stats().requests == 1


def test_forced_tokens_are_decoded_in_one_call_and_counted():
    model = FakeModel()
    decoder = Decoder(model)
    schema = Json('{"enum": [{"a": "a long text that has to follow"}, {"b": "and another one"}]}')
    decoder.submit(0, ask(constraint=schema, max_tokens=60))
    [completion] = drain(decoder).values()
    text = completion.text("a")
    assert completion.fills["a"].finish == "constraint"
    assert completion.usage.generated == 1
    assert completion.usage.forced == len(text) - 1
    assert model.decodes == 1, "up to the choice; what follows it is not needed any more"
    more = Request(
        (*ask(constraint=schema, max_tokens=60).parts, Text("."), Slot("b", max_tokens=1))
    )
    decoder.submit(1, more)
    [completion] = drain(decoder).values()
    assert model.decodes == 3
    assert completion.usage.prompt == len("question.")


def test_starts_are_told_before_the_decode_that_touches_them():
    started = []
    fake = FakeModel()
    decoder = Decoder(
        fake, max_running=2, on_start=lambda keys: started.append((fake.decodes, keys))
    )
    for key in range(3):
        decoder.submit(key, ask(f"{key}"))
    drain(decoder)
    assert started == [(0, [0, 1]), (5, [2])]


def test_cancelling_ends_a_request_wherever_it_is():
    decoder = Decoder(FakeModel(), max_running=1)
    for key in range(3):
        decoder.submit(key, ask(f"{key}"))
    decoder.step()
    [(key, completion)] = decoder.cancel(0)
    assert key == 0
    assert isinstance(completion.error, Cancelled)
    assert completion.usage.generated == 1
    [(_, waiting)] = decoder.cancel(2)
    assert waiting.usage.generated == 0
    assert decoder.cancel(0) == []
    assert list(drain(decoder)) == [1]


def test_deadlines_end_requests_that_wait_or_run():
    decoder = Decoder(FakeModel(), max_running=1)
    now = Request((Text("a"), Slot("a")), deadline=0.0)
    decoder.submit(0, ask("first"))
    decoder.submit(1, now)
    decoder.submit(2, Request((Text("b"), Slot("a", max_tokens=3)), deadline=1e6))
    outcomes = drain(decoder)
    assert isinstance(outcomes[1].error, DeadlineExceeded)
    assert outcomes[0].error is outcomes[2].error is None


def test_batch_invariant_runs_alone_from_an_empty_cache_at_the_same_boundaries():
    def calls(requests: list[Request]) -> list[tuple]:
        fake = Recording(batch=8)
        decoder = Decoder(fake, batch_invariant=True)
        for key, request in enumerate(requests):
            decoder.submit(key, request)
        drain(decoder)
        return fake.calls

    one, other = ask("the same beginning, then this"), ask("the same beginning, or that")
    alone = calls([one])
    assert calls([other, one])[-len(alone) :] == alone
    assert calls([one, one, other])[: 2 * len(alone)] == alone * 2
    assert {sequence for call in alone for sequence in call[2]} == {0}


class Recording(FakeModel):
    def __init__(self, batch: int) -> None:
        super().__init__(batch=batch)
        self.calls: list[tuple] = []

    def decode(self, tokens, positions, sequences, outputs) -> int:
        self.calls.append((tuple(tokens), tuple(positions), tuple(sequences), tuple(outputs)))
        return super().decode(tokens, positions, sequences, outputs)


@pytest.mark.parametrize("code", [1, 2, -1, -2])
@pytest.mark.parametrize("call", [1, 2, 4, 6])
def test_batch_invariant_starts_again_from_scratch(code, call):
    """Tokens that were decoded one by one would differ in the last bit if computed together."""
    slots = Slot("a", max_tokens=3, ignore_eos=True), Slot("b", Choice(("only",))), Slot("c")
    request = Request((Text("a prompt of two calls"), *slots))
    fake = Recording(batch=16)
    decoder = Decoder(fake, batch_invariant=True)
    decoder.submit(0, request)
    [plain] = drain(decoder).values()
    alone, fake.calls = fake.calls, []
    fake.fail = {fake.decodes + call: code}
    decoder.submit(1, request)
    [completion] = drain(decoder).values()
    assert fake.calls == alone[:call] + alone
    assert completion.fills == plain.fills
    assert completion.usage.prompt == plain.usage.prompt
    computed = sum(len(tokens) for tokens, *_ in alone[: call - 1])
    assert completion.usage.prefilled == plain.usage.prefilled + computed


class Damaged(FakeModel):
    """After a fatal code nothing works until the cache is made anew."""

    broken = False

    def decode(self, *batch) -> int:
        code = super().decode(*batch)
        self.broken |= code < -1
        return -3 if self.broken else code

    def reset(self) -> None:
        super().reset()
        self.broken = False


def test_what_stays_in_the_cache_is_what_the_text_was():
    """A stop takes text back, all that follows is forced: nothing is left to decode after it."""
    model = FakeModel()
    decoder = Decoder(model)
    letters = "abcdefghijklmnopqrstuvwxyz"
    stops = tuple(one + two for one in letters for two in letters)
    slots = Slot("a", max_tokens=300, stop=stops), Slot("b", Choice(("only this",)))
    decoder.submit(0, Request((Text("question"), *slots)))
    [completion] = drain(decoder).values()
    assert completion.fills["a"].finish == "stop"
    for sequence, tokens in decoder.scheduler.retained.items():
        assert model.held_tokens(sequence) == tokens


def test_a_fatal_code_makes_the_cache_anew():
    decoder = Decoder(Damaged(fail={3: -2}))
    for key in range(3):
        decoder.submit(key, ask(f"{key}"))
    assert [completion.error for completion in drain(decoder).values()] == [None] * 3


def test_a_long_prefill_does_not_hold_up_what_decodes():
    decoder = Decoder(FakeModel(context=2000, batch=8))
    decoder.submit(0, ask("short", max_tokens=20))
    decoder.step()
    decoder.submit(1, ask("x" * 400))
    done = {}
    for _ in range(20):
        done |= dict(decoder.step())
    assert list(done) == [0]


def test_stats_count_decodes_rows_and_seconds():
    decoder = Decoder(FakeModel())
    for key in range(4):
        decoder.submit(key, ask(f"{key}", max_tokens=10, constraint=Json('{"type": "string"}')))
    drain(decoder)
    stats = decoder.stats()
    assert stats.requests == 4
    assert stats.decodes == decoder.model.decodes
    assert stats.occupancy == 4.0
    assert stats.prefilled == stats.prefilled + stats.reused == 4
    assert stats.generated + stats.forced == 40
    spent = (stats.decode_seconds, stats.sample_seconds, stats.constraint_seconds)
    assert all(seconds > 0 for seconds in (*spent, stats.bookkeeping_seconds))


def test_a_second_batch_finds_what_the_first_one_left():
    decoder = Decoder(FakeModel())
    for number in range(2):
        decoder.submit(number, ask("a prompt that stays"))
        [completion] = drain(decoder).values()
    assert completion.usage.prefilled == 1
    assert completion.usage.reused == len("a prompt that stays") - 1
