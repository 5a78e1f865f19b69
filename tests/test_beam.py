"""Beam search against an exhaustive one; that it decodes as if alone is shown in test_oracle.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Beam, Completion, Fill, Regex, Request, Sampling, Slot, Text
from promptflow.errors import EngineError

PROMPT = "abc"


def answer(decoder: Decoder, *slots: Slot, seed: int = 0) -> Completion:
    outcomes = dict(decoder.submit(0, Request((Text(PROMPT), *slots), seed)))
    while decoder.busy:
        outcomes |= dict(decoder.step())
    return outcomes[0]


def searched(model: FakeModel, beam: Beam, **settings) -> Fill:
    completion = answer(Decoder(model), Slot("s", beam=beam, **settings))
    assert completion.error is None
    return completion.fills["s"]


def shares(model: FakeModel, text: str) -> np.ndarray:
    """The log-probabilities of what follows ``text``, from the whole history at once."""
    tokens = [*PROMPT.encode(), *text.encode()]
    model.decode(tokens, list(range(len(tokens))), [0] * len(tokens), [True] * len(tokens))
    logits = model.logits(len(tokens) - 1).astype(np.float64)
    model.drop(0, 0)
    return logits - math.log(np.exp(logits).sum())


def exhaustive(model: FakeModel, letters: str, longest: int, penalty: float) -> dict[str, float]:
    """Every text of one to ``longest`` letters with the score of Beam's definition."""
    ends = [256, ord("\n")]
    found = {}
    for length in range(1, longest + 1):
        for letter in itertools.product(letters, repeat=length):
            text = "".join(letter)
            total = sum(shares(model, text[:i])[ord(text[i])] for i in range(length))
            steps = length
            if length < longest:
                total += math.log(sum(np.exp(shares(model, text)[end]) for end in ends))
                steps += 1
            found[text] = total / steps**penalty
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(seed, penalty):
    beam = Beam(14, penalty)
    fill = searched(FakeModel(seed=seed), beam, constraint=Regex("[ab]{1,3}"), max_tokens=8)
    expected = exhaustive(FakeModel(seed=seed), "ab", 3, penalty)
    ranked = sorted(expected, key=lambda text: -expected[text])
    assert [a.text for a in fill.alternatives] == ranked
    assert fill.text == ranked[0]
    for alternative in fill.alternatives:
        assert math.isclose(alternative.score, expected[alternative.text], rel_tol=1e-4)


@pytest.mark.parametrize("within", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_search_within_some_nats_finds_all_that_ends_within_them(seed, within):
    def search(beam: Beam) -> Fill:
        constraint = Regex("[ab]{1,3}")
        return searched(FakeModel(seed=seed), beam, constraint=constraint, max_tokens=8)

    whole, pruned = search(Beam(14, 0.0)), search(Beam(14, 0.0, within))
    least = whole.alternatives[0].logprob - within
    assert [a.text for a in pruned.alternatives] == [
        a.text for a in whole.alternatives if a.logprob >= least
    ]
    assert pruned.generated <= whole.generated


def test_a_search_within_some_nats_costs_less():
    def cost(within: float | None) -> int:
        slot = {"beam": Beam(14, 0.0, within), "constraint": Regex("[ab]{1,6}"), "max_tokens": 8}
        return sum(searched(FakeModel(seed=seed), **slot).generated for seed in range(4))

    assert cost(1.0) < cost(None)


def test_a_beam_of_one_is_greedy():
    settings = {"max_tokens": 12, "ignore_eos": True}
    fill = searched(FakeModel(), Beam(1), **settings)
    greedy = answer(Decoder(FakeModel()), Slot("s", **settings)).fills["s"]
    assert (fill.text, fill.finish) == (greedy.text, "length")
    assert math.isclose(fill.logprob, greedy.logprob)


def test_a_wider_beam_finds_more_probable_texts():
    settings = {"max_tokens": 6, "ignore_eos": True}
    fills = [searched(FakeModel(seed=3), Beam(width), **settings) for width in (1, 4, 16)]
    logprobs = [fill.alternatives[0].logprob for fill in fills]
    assert logprobs[0] < logprobs[-1]
    assert [len(fill.alternatives) for fill in fills] == [1, 4, 16]
    for fill in fills:
        scores = [alternative.score for alternative in fill.alternatives]
        assert scores == sorted(scores, reverse=True)


def test_the_prompt_is_prefilled_once_and_every_hypothesis_forks_it():
    model = FakeModel()
    completion = answer(Decoder(model), Slot("s", max_tokens=5, ignore_eos=True, beam=Beam(4)))
    assert completion.usage.prefilled == len(PROMPT)
    # The last tokens of hypotheses that end at max_tokens need no decoding.
    assert model.decoded_tokens == len(PROMPT) + completion.usage.generated
    assert completion.usage.generated <= 4 * 4


def test_what_follows_a_searched_slot_follows_its_best_text():
    slots = Slot("s", max_tokens=4, ignore_eos=True, beam=Beam(3)), Slot("t", max_tokens=4)
    completion = answer(Decoder(FakeModel(seed=5)), *slots)
    best = completion.fills["s"].text
    after = Request((Text(PROMPT + best), Slot("t", max_tokens=4)), 0)
    decoder = Decoder(FakeModel(seed=5))
    decoder.submit(0, after)
    while decoder.busy:
        [*done] = decoder.step()
    assert completion.fills["t"].text == done[0][1].fills["t"].text


def test_a_stop_string_ends_a_hypothesis():
    fill = searched(FakeModel(), Beam(8), max_tokens=8, stop=("a", "e", "i", "o", "u", " "))
    assert not any(set("aeiou ") & set(alternative.text) for alternative in fill.alternatives)


@pytest.mark.parametrize("code", [1, 2, -1, -2])
@pytest.mark.parametrize("call", range(1, 6))
def test_a_search_that_is_interrupted_begins_again(code, call):
    settings = {"max_tokens": 5, "ignore_eos": True}
    expected = searched(FakeModel(), Beam(3), **settings)
    fill = searched(FakeModel(fail={call: code}), Beam(3), **settings)
    assert fill.alternatives == expected.alternatives


def test_a_poisoned_hypothesis_fails_its_request_and_frees_every_sequence():
    poison = ord(searched(FakeModel(), Beam(1), max_tokens=2, ignore_eos=True).text[0])
    model = FakeModel(poison=poison)
    decoder = Decoder(model)
    completion = answer(decoder, Slot("s", max_tokens=6, ignore_eos=True, beam=Beam(4)))
    assert isinstance(completion.error, EngineError)
    assert not decoder.scheduler.running
    assert model.used_cells() == decoder.scheduler.cache.cells.used == 0
    assert answer(decoder, Slot("s", max_tokens=1)).error is None


def test_a_beam_does_not_sample():
    with pytest.raises(ValueError, match="slot 's': a beam does not sample"):
        Slot("s", sampling=Sampling(0.7), beam=Beam())
