"""What several threads choose is what one chooses, in the same order, errors included."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.constraint import Clock
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Beam, Choice, Completion, Json, Request, Sampling, Slot, Text
from promptflow.engine.slot.drawing import Drawers
from promptflow.engine.slot.filling import Filling, Pick, Vocabulary
from promptflow.engine.slot.sampling import generator
from promptflow.errors import NumericError

SLOTS = (
    Slot("greedy", max_tokens=12, ignore_eos=True),
    Slot("hot", max_tokens=12, sampling=Sampling(1.3), logprobs=3),
    Slot("cut", max_tokens=12, sampling=Sampling(0.9, top_k=9, top_p=0.9), stop=("e", "t")),
    Slot("json", Json('{"type": "integer", "maximum": 900}'), max_tokens=8, sampling=Sampling(1.0)),
    Slot("again", max_tokens=9, sampling=Sampling(0.7, repetition_penalty=1.3, min_p=0.02)),
    Slot("weighed", Choice(("yes", "no")), max_tokens=9, logprobs=2),
    Slot("searched", max_tokens=6, beam=Beam(3)),
)
POISON = ord("~")


def completions(drawers: int) -> list[Completion]:
    """Decode requests of every kind, some of which fail at once and some in the middle."""
    decoder = Decoder(
        FakeModel(sequences=48, words=("ab", "the"), poison=POISON), max_running=24, drawers=drawers
    )
    ended: dict[int, Completion] = {}
    for key in range(40):
        chosen = [SLOTS[(key + place) % len(SLOTS)] for place in range(2)]
        text = f"{key % 5} question {'~' * (key % 11 == 3)}"
        request = Request((Text(text), chosen[0], Text("; "), chosen[1]), seed=key)
        ended |= dict(decoder.submit(key, request))
    while decoder.busy:
        ended |= dict(decoder.step())
    decoder.close()
    return [replace(ended[key], seconds=0.0) for key in range(40)]


def told(completion: Completion) -> tuple[object, ...]:
    return (repr(completion.fills), completion.usage, repr(completion.error))


def test_any_number_of_threads_gives_the_same_to_the_last_bit():
    alone = [told(completion) for completion in completions(1)]
    assert any("NumericError" in error for *_, error in alone)
    assert any(error == "None" for *_, error in alone)
    for threads in (2, 3, 8):
        assert [told(completion) for completion in completions(threads)] == alone


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7, 32])
def test_every_row_gets_its_own_pick_or_its_own_error(rows):
    model = FakeModel()
    vocabulary, constraints = Vocabulary(model), model.constraints()
    logits = np.random.default_rng(rows).normal(0, 2, (rows, model.vocabulary))
    logits = logits.astype(np.float32)
    logits[3:4] = np.nan
    slots = [Filling(SLOTS[0], vocabulary, constraints, generator(1, row)) for row in range(rows)]
    drawers = Drawers(3)
    drawn = drawers.draw(list(zip(slots, logits, strict=True)))
    drawers.close()
    drawers.close()
    assert len(drawn) == rows
    for number, pick in enumerate(drawn):
        if number == 3:
            assert isinstance(pick, NumericError)
        else:
            assert isinstance(pick, Pick)
            assert pick.token == logits[number][:256].argmax()


def test_a_slot_that_drew_stands_where_it_stood():
    model = FakeModel()
    filling = Filling(SLOTS[0], Vocabulary(model), model.constraints(), generator(1, 0))
    filling.draw(np.zeros(model.vocabulary, np.float32))
    assert filling.tokens == []


def test_the_work_is_shared_out():
    """Threads that wait for each other come on only where all of them work."""
    meeting = threading.Barrier(2, timeout=10)

    class Waiting:
        def draw(self, logits: np.ndarray) -> Pick:
            if logits[0]:
                meeting.wait()
            return Pick(int(logits[0]), 0.0)

    drawers = Drawers(2)
    rows = [(Waiting(), np.array([number < 2])) for number in range(4)]
    assert [pick.token for pick in drawers.draw(rows)] == [1, 1, 0, 0]
    drawers.close()


def test_a_clock_counts_a_second_that_threads_share_once(monkeypatch):
    now = iter((1.0, 5.0, 7.0, 8.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock, inside, leave = Clock(), threading.Event(), threading.Event()

    def work() -> None:
        with clock:
            inside.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)  # from 1.0
        inside.wait(10)
        with clock:
            leave.set()
            working.result(10)
        # to 5.0, when the last has left
    with clock:  # from 7.0 to 8.0
        pass
    assert clock.seconds == 5.0
