"""The loop's own rules; that its text is right is the subject of test_oracle.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Beam, Choice, Completion, Json, Request, Sampling, Slot, Text
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


def filled(context: int, *parts: Text | Slot) -> dict[str, tuple[int, str]]:
    """Decode alone; return how many tokens each slot was given, and how it ended."""
    decoder = Decoder(FakeModel(context=context))
    [completion] = (dict(decoder.submit(0, Request(parts))) | drain(decoder)).values()
    assert completion.error is None
    return {name: (fill.generated, fill.finish) for name, fill in completion.fills.items()}


def fitting(name: str, least: int = 1, **settings) -> Slot:
    return Slot(name, max_tokens=40, ignore_eos=True, fits=True, least=least, **settings)


def test_a_slot_that_fits_is_cut_where_the_context_ends():
    assert filled(100, Text("x" * 20), fitting("a")) == {"a": (40, "length")}
    assert filled(50, Text("x" * 20), fitting("a")) == {"a": (30, "length")}
    assert filled(21, Text("x" * 20), fitting("a")) == {"a": (1, "length")}


def test_slots_that_fit_leave_later_ones_what_they_need():
    parts = Text("x" * 20), fitting("a"), Text("y" * 5), fitting("b", least=7)
    assert filled(200, *parts) == {"a": (40, "length"), "b": (40, "length")}
    assert filled(80, *parts) == {"a": (40, "length"), "b": (15, "length")}
    assert filled(50, *parts) == {"a": (18, "length"), "b": (7, "length")}
    fixed = Slot("b", max_tokens=9, ignore_eos=True)
    assert filled(50, *parts[:3], fixed) == {"a": (16, "length"), "b": (9, "length")}
    short = Slot("a", Choice(("yes",)), max_tokens=40, fits=True)
    assert filled(50, Text("x" * 20), short, Text("y" * 5), fitting("b"))["b"] == (22, "length")


def test_a_slot_that_fits_is_refused_only_below_its_least():
    decoder = Decoder(FakeModel(context=50))
    with pytest.raises(
        ContextOverflow,
        match=r"prompt has 45 tokens and needs at least 6 more: 1 over .* 50.* lower least",
    ):
        decoder.submit(0, Request((Text("x" * 45), fitting("a", least=6))))
    decoder.submit(1, Request((Text("x" * 45), fitting("a", least=5))))
    both = Request((Text("x" * 20), fitting("a"), Text("y"), Slot("b", max_tokens=39)))
    with pytest.raises(ContextOverflow, match="needs at least 40 more: 11 over"):
        decoder.submit(2, both)
    assert [completion.fills["a"].generated for completion in drain(decoder).values()] == [5]


def test_a_search_that_fits_has_room_for_all_its_hypotheses():
    """Four of ten tokens, or one of forty."""
    for width, context in ((4, 60), (1, 60)):
        parts = Text("x" * 20), fitting("a", beam=Beam(width))
        decoder = Decoder(FakeModel(context=context))
        decoder.submit(0, Request(parts))
        [completion] = drain(decoder).values()
        texts = [alternative.text for alternative in completion.fills["a"].alternatives]
        assert len(texts) == width
        assert all(len(text) == 40 // width for text in texts)
        assert decoder.stats().preempted == 0


def test_a_constraint_that_the_context_cuts_short_ended_at_its_length():
    digits = Json('{"type": "array", "items": {"const": 1}, "minItems": 30, "maxItems": 30}')
    parts = Text("x" * 20), Slot("a", digits, max_tokens=200, fits=True)
    assert filled(200, *parts)["a"][1] == "constraint"
    assert filled(50, *parts)["a"][1] == "length"


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


def samples(count: int, **settings) -> list[Request]:
    slot = Slot("a", sampling=Sampling(1.0, **settings.pop("sampling", {})), **settings)
    return [Request((Text("a question of some length"), slot), seed) for seed in range(count)]


def alone(request: Request, context: int) -> Completion:
    decoder = Decoder(FakeModel(context=context))
    decoder.submit(0, request)
    return drain(decoder)[0]


def test_samples_with_high_bounds_run_side_by_side():
    """Twenty bounds of 4,096 tokens in a context of 8,192, and answers of a few dozen."""
    ends = {"logit_bias": ((256, 4.0),)}
    decoder = Decoder(FakeModel(context=8192), max_running=32)
    together: set[int] = set()
    for key, request in enumerate(samples(20, max_tokens=4096, sampling=ends)):
        decoder.submit(key, request)
    outcomes: dict[int, Completion] = {}
    while decoder.busy:
        outcomes |= dict(decoder.step())
        together.add(len(decoder.scheduler.running))
    assert max(together) == 20
    assert decoder.stats().preempted == 0
    assert {completion.fills["a"].finish for completion in outcomes.values()} == {"stop"}


def test_samples_that_run_to_their_bounds_are_as_alone_and_computed_once_more_at_most():
    """Two fit at a time. At a sixteenth of a context of 8,192 and bounds of 4,096."""
    requests = samples(20, max_tokens=240, ignore_eos=True)
    decoder = Decoder(FakeModel(context=512), max_running=32)
    decoder.scheduler._lengths = Lengths(16)
    for key, request in enumerate(requests):
        decoder.submit(key, request)
    outcomes = drain(decoder)
    expected = [alone(request, 512) for request in requests]
    assert [outcomes[key].fills for key in range(20)] == [one.fills for one in expected]
    assert {completion.fills["a"].finish for completion in expected} == {"length"}
    need = sum(one.usage.prompt + one.usage.generated for one in expected)
    assert decoder.stats().preempted > 10
    assert decoder.model.decoded_tokens <= 1.5 * need


def test_drafts_take_only_cells_that_are_free():
    fake, codes = FakeModel(context=48), []
    decode = fake.decode
    fake.decode = lambda *batch: codes.append(decode(*batch)) or codes[-1]
    decoder = Decoder(fake, max_running=2, pass_rows=1000.0)
    decoder.scheduler._lengths = Lengths(1)
    for key, text in enumerate(("abcdefghij" * 2, "klmnopqrst" * 2)):
        decoder.submit(key, ask(text, max_tokens=20))
    while decoder.busy:
        decoder.step()
        assert codes[-1] == 0, "the model never has to say that it has no room"
    assert decoder.stats().drafted > 0


def test_a_model_with_fewer_cells_than_it_said_answers_all_the_same():
    """What was sent back does not come again before the others have gone on."""
    fake = FakeModel(context=60)
    decoder = Decoder(fake, max_running=4)
    decoder.model.cells = 30
    for key in range(4):
        decoder.submit(key, ask("x" * 8 + f"{key}", max_tokens=12))
    for _ in range(500):
        if decoder.busy:
            decoder.step()
    assert not decoder.busy
    assert decoder.stats().preempted > 0


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


class Clock:
    """A clock that goes on by a second with every decode call."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def monotonic(self) -> float:
        return float(self._model.decodes)

    perf_counter = monotonic


def test_a_deadline_ends_a_request_that_waits_prefills_or_generates(monkeypatch):
    """What was written until then is kept, the slot that is open included."""
    fake = FakeModel(batch=4)
    monkeypatch.setattr("promptflow.engine.loop.decoder.time", Clock(fake))
    decoder = Decoder(fake, max_running=2)
    slots = Slot("a", Choice(("yes",))), Text(" "), Slot("b", max_tokens=50, ignore_eos=True)
    decoder.submit(0, Request((Text("q"), *slots), deadline=7.0))  # generates
    decoder.submit(1, Request((Text("x" * 90), Slot("a")), deadline=9.0))  # is still prefilling
    decoder.submit(2, Request((Text("w"), Slot("a")), deadline=5.0))  # waits
    decoder.submit(3, Request((Text("v"), Slot("a", max_tokens=3)), deadline=1e6))
    decoder.submit(4, Request((Text("u"), Slot("a")), deadline=5.0), waited=4.0)
    ended = {}
    while decoder.busy:
        for key, completion in [*decoder.expire(), *decoder.step()]:
            ended[key] = completion.seconds, completion
    assert [key for key in ended if ended[key][1].error is None] == [3]
    assert [ended[key][0] for key in (4, 2, 0, 1)] == [5, 5, 7, 9], "as soon as it is late"
    assert "not done within its deadline of 5 s" in str(ended[4][1].error)
    for key in (0, 1, 2, 4):
        assert isinstance(ended[key][1].error, DeadlineExceeded)
    generated = ended[0][1]
    assert generated.fills["a"].text == "yes"
    partial = generated.fills["b"]
    assert partial.finish == "error"
    assert partial.generated == generated.usage.generated > 3
    assert decoder_text(Request((Text("q"), *slots))).startswith(partial.text)
    assert len(partial.text) >= 3
    assert not ended[1][1].fills
    assert 0 < ended[1][1].usage.prefilled < 90
    assert ended[2][1].usage.prefilled == 0
    assert decoder.scheduler.cache.cells.used == fake.used_cells() <= len("v") + 3


def decoder_text(request: Request) -> str:
    decoder = Decoder(FakeModel())
    decoder.submit(0, request)
    return drain(decoder)[0].text("b")


@pytest.mark.parametrize(("byte", "text"), [(0xC3, ""), (0xA9, "\ufffd")])
def test_a_request_that_fails_keeps_whole_characters(byte, text):
    decoder = Decoder(FakeModel())
    decoder.submit(0, ask(sampling=Sampling(logit_bias=((byte, 99.0),))))
    decoder.step()
    [(_, completion)] = decoder.cancel(0)
    assert completion.fills["a"].text == text


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
    assert {seq_id for call in alone for seq_id in call[2]} == {0}


class Recording(FakeModel):
    def __init__(self, batch: int) -> None:
        super().__init__(context=8000, batch=batch)
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
    for seq_id, tokens in decoder.scheduler.cache.retained.items():
        assert model.held_tokens(seq_id) == tokens


def test_a_fatal_code_makes_the_cache_anew():
    decoder = Decoder(Damaged(fail={3: -2}))
    for key in range(3):
        decoder.submit(key, ask(f"{key}"))
    assert [completion.error for completion in drain(decoder).values()] == [None] * 3


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("batch", [8, 16])
def test_long_prefills_hold_up_no_running_decode_by_more_than_two_steps(batch, lookup):
    """Counted in decode calls between one token of a sequence and its next."""
    fake = Recording(batch=batch)
    decoder = Decoder(fake, max_running=8, pass_rows=1000.0 * lookup)
    stops = {"stop": ("zz", "qq"), "max_tokens": 30}  # text that is cut is computed again
    for key in range(4):
        decoder.submit(key, ask(f"{key}", **stops))
    decoder.step()
    gaps: list[int] = []
    last = {key: (0, fake.decodes) for key in range(4)}
    for number in range(400):
        if number % 7 == 0 and number < 60:
            decoder.submit(100 + number, ask("x" * 400 + f"{number}", max_tokens=3))
        decoder.step()
        for key in list(last):
            job = decoder.job(key)
            if job is None:
                del last[key]
            elif len(job.sequence.tokens) > last[key][0]:
                gaps.append(fake.decodes - last[key][1])
                last[key] = len(job.sequence.tokens), fake.decodes
    assert not decoder.busy
    assert len(gaps) > 4 * 25 or lookup
    assert max(gaps) <= 2
    assert max(len(set(sequences)) for _, _, sequences, _ in fake.calls) > 4, "they ran together"


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


@pytest.mark.parametrize("memory", ["dense", "windowed", "hybrid", "recurrent"])
@pytest.mark.parametrize("stop", ["e", "st", "#"])
def test_what_goes_on_before_the_end_of_a_continued_request_takes_the_state_before(memory, stop):
    """A stop string, or a tokenizer that joins the last letters with what follows."""
    model = FakeModel(memory=memory, window=16, batch=512)
    decoder = Decoder(model, max_running=4)
    biases = tuple((token, 9.0) for token in b"estr")
    for number in range(12):
        first = ask(
            f"{number} begins", max_tokens=37, stop=(stop,), sampling=Sampling(logit_bias=biases)
        )
        decoder.submit(0, replace(first, continued=True))
        fill = drain(decoder)[0].fills["a"]
        text = fill.text if fill.finish == "stop" else fill.text[:-2]
        decoder.submit(1, ask(f"{number} begins{text}, and goes on", max_tokens=1))
        usage = drain(decoder)[1].usage
        assert usage.prompt == usage.prefilled + usage.reused
        if len(text) > 10:
            lost = 1 if fill.finish == "stop" else 8
            assert usage.prefilled <= len(", and goes on") + lost
    assert model.refused == 0
