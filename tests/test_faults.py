"""What fails, and what is too large: each request gets its own text or a typed error, none hangs.

Decodes that fail, logits that are no numbers, pools that are too small and children that are
killed, on ``FakeModel``, whose texts are compared with the reference of test_oracle.py.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import runpy
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, SMOLLM
from mortal_worker import FATES
from test_oracle import (
    REFERENCE,
    WORDS,
    WORDS_LIKELY,
    check_cells,
    comparable,
    drain,
    run,
)

from promptflow.engine import Engine, EngineOptions
from promptflow.engine.cache.cells import Drop
from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.loop.scheduler import Plan
from promptflow.engine.model.constraint import Constraints
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.process import host
from promptflow.engine.process.frames import Message
from promptflow.engine.process.host import ChildHost
from promptflow.engine.request import (
    Beam,
    Choice,
    Completion,
    Json,
    Request,
    Sampling,
    Slot,
    Substring,
    Text,
)
from promptflow.engine.sequence import common
from promptflow.errors import CapacityError, ContextOverflow, EngineError, EngineLost, NumericError

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
    for move in decoder.scheduler.cache.evict_all():
        decoder.model.drop(move.seq_id, move.start)
    assert decoder.model.used_cells() == decoder.scheduler.cache.cells.used == 0
    assert not list(decoder.scheduler.cache.tree.nodes())


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


# A pool that is smaller than the work

STEMS = ("", "the end " * 3, "aaab" * 40 + "the end", "x\ny" * 50 + "a-b-c-d" * 30, "é\n\n" * 60)


def slot_of(rng: np.random.Generator, name: str) -> Slot:
    """A slot of any kind that ends."""
    kinds = [
        Slot(name, max_tokens=int(rng.integers(1, 40)), stop=("b", "th")),
        Slot(name, max_tokens=int(rng.integers(1, 40)), ignore_eos=True),
        Slot(name, max_tokens=12, sampling=Sampling(1.0, logit_bias=WORDS_LIKELY)),
        Slot(name, PERSON, max_tokens=20),
        Slot(name, Substring(("a-b-c-d the end é",)), max_tokens=9),
        Slot(name, max_tokens=5, beam=Beam(3)),
        Slot(name, Choice(("a", "ab", "the end"), weighed=True), max_tokens=3),
    ]
    return kinds[rng.integers(len(kinds))]


def random_request(rng: np.random.Generator) -> Request:
    tail = "".join(rng.choice(list("abc \n"), int(rng.integers(1, 60))))
    parts = [Text(STEMS[rng.integers(len(STEMS))] + tail), slot_of(rng, "s")]
    if rng.random() < 0.3:
        parts += [Text(" and "), slot_of(rng, "t")]
    if rng.random() < 0.02:
        parts[1] = Slot("s", max_tokens=1_000)
    if rng.random() < 0.02:
        parts[1] = Slot("s", max_tokens=300, beam=Beam(4))
    return Request(tuple(parts), int(rng.integers(4)))


class Pool:
    """A decoder on 1,024 cells that claims now and then to have no room, three times in a row."""

    def __init__(self, rng: np.random.Generator) -> None:
        at = np.flatnonzero(rng.random(20_000) < 0.05)
        fake = Faulty(context=1_024, batch=64, fail=dict.fromkeys([*at, *(at + 1), *(at + 2)], 1))
        self.decoder = Decoder(fake, max_running=16)
        self.outcomes: dict[int, Completion] = {}
        self.resumed: list[int] = []  # tokens that preempted tasks began with
        self._step = self.decoder.scheduler.step
        self.decoder.scheduler.step = self._watched

    def submit(self, key: int, request: Request) -> None:
        try:
            self.outcomes |= dict(self.decoder.submit(key, request))
        except EngineError as error:
            self.outcomes[key] = Completion(error=error)

    def step(self) -> None:
        self.outcomes |= dict(self.decoder.step())
        check_cells(self.decoder)

    def _watched(self) -> Plan:
        """Check that what was preempted goes on from the longest prefix that the cache holds."""
        fake = self.decoder.model
        held = [fake.held_tokens(sequence) for sequence in range(fake.max_sequences)]
        plan = self._step()
        for move in plan.moves:
            if isinstance(move, Drop):
                del held[move.seq_id][move.start :]
        for task in plan.admitted:
            if task.preempted:
                tokens = task.tokens[: len(task.tokens) - (task.row is None)]
                assert task.computed >= max(common(tokens, one, len(tokens)) for one in held)
                self.resumed.append(task.computed)
        return plan


def test_500_requests_on_a_pool_of_1024_cells_get_their_own_texts_or_typed_errors():
    rng = np.random.default_rng(7)
    requests = [random_request(rng) for _ in range(500)]
    pool = Pool(rng)
    waiting = list(enumerate(requests))
    for _ in range(20_000):
        for key, request in waiting[: rng.integers(6)]:
            pool.submit(key, request)
            waiting.remove((key, request))
        if pool.decoder.busy:
            pool.step()
        elif not waiting:
            break
    assert sorted(pool.outcomes) == list(range(500)), "some never ended"
    errors: list[str] = []
    for key, request in enumerate(requests):
        completion = pool.outcomes[key]
        if completion.error is None:
            assert comparable(completion, request) == REFERENCE.fills(request)
        else:
            assert isinstance(completion.error, ContextOverflow | CapacityError)
            errors.append(str(completion.error))
    too_long, too_wide, no_room = (
        sum(bool(re.search(pattern, error)) for error in errors)
        for pattern in (
            r"prompt has [\d,]+ tokens .* up to [\d,]+ more: [\d,]+ over the context of 1,024",
            r"may need 1,[\d]+ cells for a beam of width 4, and the KV cache has 1,024",
            r"cache of 1,024 cells has no room for this request of up to [\d,]+ tokens",
        )
    )
    assert too_long + too_wide + no_room == len(errors)
    assert too_long > 3
    assert too_wide > 3
    assert no_room < 5, "it found none though it was alone"
    stats = pool.decoder.stats()
    assert stats.requests == 500 - too_long - too_wide
    assert stats.preempted == len(pool.resumed) + no_room > 50
    assert sum(pool.resumed) > 1_000, "prefixes that others hold are not computed again"
    check_empty(pool.decoder)


@pytest.mark.parametrize("call", range(3, 11))
def test_a_preempted_request_computes_again_what_the_cache_has_lost(call):
    """The newest one goes back to the prefix that the others hold; they notice nothing."""
    trunk, tails = "a-b-c-d" * 5, ["one", "win!", "three", "fours."]
    slot = Slot("s", max_tokens=10, ignore_eos=True)
    batch = [Request((Text(trunk + tail), slot)) for tail in tails]
    plain, crowded = Decoder(Faulty(batch=64)), Decoder(Faulty(batch=64, fail={call: 1}))
    expected, found = run(plain, batch), run(crowded, batch)
    assert [c.fills for c in found] == [c.fills for c in expected]
    assert [c.usage for c in found[:3]] == [c.usage for c in expected[:3]]
    # Call 1 computes the trunk, 2 the other tails, and each later one a token of everybody.
    lost = len(REFERENCE.tools.prompts.continuation("fours.")) + call - 3
    usage = expected[3].usage
    assert found[3].usage == replace(usage, prefilled=usage.prefilled + lost)
    assert crowded.stats().preempted == 1
    assert crowded.stats().prefilled == plain.stats().prefilled + lost
    assert crowded.model.decoded_tokens == plain.model.decoded_tokens + lost


# Children that are killed

MORTAL = ROOT / "tests" / "mortal_worker.py"
DEATHS = 50


def test_50_deaths_of_the_child_cost_what_ran_and_nothing_else(monkeypatch):
    """In a decode, half-way through a frame, while it takes requests, while it loads, at random."""
    starts = itertools.count()
    fates: list[str] = []
    killed: set[int] = set()

    def launch(settings: Message) -> tuple[ChildHost, Message]:
        fate = FATES[next(starts) % len(FATES)] if len(fates) < DEATHS else "old age"
        fates.append(fate)
        count = random.Random(len(fates)).randint(1, 9)
        return host.launch(settings, [sys.executable, "-P", str(MORTAL), fate, str(count)])

    def kill(done: int) -> None:
        pid = engine.child_pid  # once: 0, which it is between two children, would mean all of us
        if fates[-1] == "parent" and pid and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    threads, files = set(threading.enumerate()), os.listdir("/proc/self/fd")
    requests = [
        Request((Text(f"{n} the end {n % 9}"), Slot("s", max_tokens=3 + n % 5, ignore_eos=True)), n)
        for n in range(200)
    ]
    monkeypatch.setattr("promptflow.engine.engine.launch", launch)
    with Engine(SMOLLM, EngineOptions(max_running=2)) as engine:
        completions = engine.generate(requests, kill)
        assert len(fates) == DEATHS + 1
        assert engine.stats().restarts == DEATHS
        lost = [n for n, completion in enumerate(completions) if completion.error is not None]
        assert all("SIGKILL" in str(completions[n].error) for n in lost)
        assert all(type(completions[n].error) is EngineLost for n in lost)
        assert DEATHS / 2 <= len(lost) <= 2 * DEATHS
        later = engine.generate(requests)
        for n, (request, first, second) in enumerate(
            zip(requests, completions, later, strict=True)
        ):
            assert second.fills == REFERENCE.fills(request)
            assert n in lost or first.fills == second.fills
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == len(files)


@pytest.mark.model
def test_kills_of_a_child_with_a_model():
    """A slice of benchmarks/kills.py."""
    kills = runpy.run_path(str(ROOT / "benchmarks" / "kills.py"))
    with Engine(SMOLLM, kills["OPTIONS"]) as engine:
        result = kills["run"](engine, kills=3, requests=24, jitter=0.0)
    assert result.breaches == []
    assert result.kills == 3
    assert result.answered >= 24 - 2 * 3


@pytest.mark.model
def test_a_pool_smaller_than_the_work_with_a_model():
    """A slice of benchmarks/pool.py."""
    pool = runpy.run_path(str(ROOT / "benchmarks" / "pool.py"))
    result = pool["run"](SMOLLM, requests=14, alone=3, share=0.4)
    assert result.answered + result.refused + result.crowded == 14
    assert result.wrong == result.other == result.differ == 0
    assert result.answered >= 8
    assert result.preempted > 0
    assert result.alone > 0
