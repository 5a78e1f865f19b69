from __future__ import annotations

import math

import numpy as np
import pytest

from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Choice, Completion, Request, Sampling, Slot, Text
from promptflow.errors import EngineError

PROMPT = "Which? "
WORDS = ("blu", "10", "\nnext")
ENDS = (256, ord("\n"), 257 + WORDS.index("\nnext"))


def answer(model: FakeModel, options: tuple[str, ...], seed: int = 0, **settings) -> Completion:
    decoder = Decoder(model)
    slot = Slot("s", Choice(options, weighed=True), **settings)
    outcomes = dict(decoder.submit(0, Request((Text(PROMPT), slot), seed)))
    while decoder.busy:
        outcomes |= dict(decoder.step())
    return outcomes[0]


def exhaustive(model: FakeModel, options: tuple[str, ...]) -> dict[str, float]:
    """Each option's probability, summed over every way to write it in tokens."""
    pieces = {t: model.piece(t) for t in range(model.vocabulary) if model.piece(t)}

    def follow(tokens: list[int], written: bytes, share: float) -> None:
        if not any(o.startswith(written) and len(o) > len(written) for o in wanted):
            found[written.decode()] += share
            return
        history = [*PROMPT.encode(), *tokens]
        count = len(history)
        model.decode(history, list(range(count)), [0] * count, [True] * count)
        weights = np.exp(model.logits(count - 1).astype(np.float64))
        model.drop(0, 0)
        steps = [t for t, p in pieces.items() if any(o.startswith(written + p) for o in wanted)]
        ends = [t for t in ENDS if written in wanted]
        total = sum(weights[t] for t in [*steps, *ends])
        for token in steps:
            follow([*tokens, token], written + pieces[token], share * weights[token] / total)
        if ends:
            found[written.decode()] += share * sum(weights[t] for t in ends) / total

    wanted = [option.encode() for option in options]
    found = dict.fromkeys(options, 0.0)
    follow([], b"", 1.0)
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("blue", "red", "green", "yellow"),
        ("1", "10", "100", "2"),
        ("Monday", "Money", "Mon"),
        ("only",),
        ("é", "è", "blue", "black"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("seed", range(3))
def test_every_option_has_its_probability(options, seed):
    fill = answer(FakeModel(seed=seed, words=WORDS), options).fills["s"]
    expected = exhaustive(FakeModel(seed=seed, words=WORDS), options)
    assert {a.text for a in fill.alternatives} == set(options)
    for alternative in fill.alternatives:
        probability = math.exp(alternative.logprob)
        assert math.isclose(probability, expected[alternative.text], rel_tol=1e-3, abs_tol=1e-8)
    assert fill.text == max(expected, key=lambda text: expected[text])
    assert math.isclose(sum(math.exp(a.logprob) for a in fill.alternatives), 1.0, rel_tol=1e-6)


def test_four_options_cost_one_prefill_and_no_token():
    model = FakeModel(words=WORDS)
    completion = answer(model, ("A", "B", "C", "D"), lead=" ")
    assert (model.decodes, completion.usage.generated) == (1, 0)
    assert model.decoded_tokens == len(PROMPT) + 1  # and the lead
    assert completion.fills["s"].text in "ABCD"


def test_a_temperature_draws_options_by_their_weight():
    fills = [
        answer(FakeModel(words=WORDS), ("A", "B"), seed, sampling=Sampling(1.0)).fills["s"]
        for seed in range(400)
    ]
    share = math.exp(next(a.logprob for a in fills[0].alternatives if a.text == "A"))
    drawn = sum(fill.text == "A" for fill in fills)
    assert abs(drawn - 400 * share) < 4 * math.sqrt(400 * share * (1 - share)) + 1
    assert 0 < drawn < 400


def test_texts_after_a_weighed_choice_follow_the_chosen_option():
    decoder = Decoder(FakeModel(words=WORDS))
    slots = Slot("s", Choice(("1", "10", "2"), weighed=True)), Slot("t", max_tokens=5)
    decoder.submit(0, Request((Text(PROMPT), slots[0], Text("; "), slots[1])))
    outcomes = {}
    while decoder.busy:
        outcomes |= dict(decoder.step())
    chosen = outcomes[0].fills["s"].text
    decoder.submit(1, Request((Text(PROMPT), Slot("s", Choice((chosen,))), Text("; "), slots[1])))
    while decoder.busy:
        outcomes |= dict(decoder.step())
    assert outcomes[0].fills["t"].text == outcomes[1].fills["t"].text


def test_a_beam_or_no_end_does_not_go_with_it():
    with pytest.raises(ValueError, match="a weighed Choice takes no beam"):
        Slot("s", Choice(("a",), weighed=True), ignore_eos=True)


def test_an_option_that_has_no_room_is_refused_and_never_weighed_in_part():
    options = ("no", "perhaps not")
    decoder = Decoder(FakeModel(context=30))
    short = Slot("s", Choice(options, weighed=True), max_tokens=10)
    message = r"slot 's' weighs the option 'perhaps not' of 11 tokens, and has room for 10"
    for parts in ((Text(PROMPT), short), (Slot("a", max_tokens=1), short)):
        with pytest.raises(EngineError, match=message):
            decoder.submit(0, Request(parts))
    fitting = Slot("s", Choice(options, weighed=True), max_tokens=20, fits=True)
    with pytest.raises(EngineError, match=message):
        decoder.submit(0, Request((Text("x" * 20), fitting)))
    assert decoder.model.decodes == 0
    assert not decoder.busy
    assert answer(FakeModel(context=30), options, max_tokens=11).error is None


def test_ways_to_write_an_option_that_are_too_long_are_left_out():
    """ "blue" is two tokens, or four; "b" and "bl" are no options."""
    completion = answer(FakeModel(words=WORDS), ("blue", "red"), max_tokens=3)
    [first, second] = completion.fills["s"].alternatives
    assert {first.text, second.text} == {"blue", "red"}
    assert math.exp(first.logprob) + math.exp(second.logprob) == pytest.approx(1)
    assert min(first.logprob, second.logprob) > -math.inf
