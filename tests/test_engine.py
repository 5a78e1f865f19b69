from __future__ import annotations

import asyncio
import copy
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from conftest import ROOT, SMOLLM

from promptflow.catalog import locate, model_sha256
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.model import memory
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.process.wire import submission
from promptflow.engine.request import (
    Beam,
    Choice,
    Completion,
    Json,
    Regex,
    Request,
    Sampling,
    Slot,
    Text,
)
from promptflow.engine.stream import Delta
from promptflow.errors import (
    CapacityError,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineLost,
    ForkedUse,
    ModelInvalid,
    ModelNotFound,
    QueueFull,
    TemplateError,
)

MODEL = SMOLLM


def ask(text: str = "question", seed: int = 0, deadline: float | None = None, **slot) -> Request:
    return Request((Text(text), Slot("a", **{"max_tokens": 8, **slot})), seed, deadline)


def long(text: str = "long") -> Request:
    return ask(text, max_tokens=3_000, ignore_eos=True)


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text("a") for completion in completions]


@pytest.fixture
def fake():
    with Engine(FakeModel()) as engine:
        yield engine


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# In a thread, with a model that is not one


def test_completions_come_in_order_and_are_counted(fake):
    seen = []
    requests = [ask(f"{number}", sampling=Sampling(1.0)) for number in range(40)]
    together = fake.generate(requests, seen.append)
    assert seen == list(range(1, 41))
    assert texts(together) == [fake.generate([request])[0].text("a") for request in requests]
    assert fake.generate([]) == []


def test_an_error_is_a_value_in_its_place(fake):
    good, long, bad = fake.generate([ask(), ask("x" * 9_000), ask(constraint=Json("{"))])
    assert good.error is None
    assert isinstance(long.error, ContextOverflow)
    assert isinstance(bad.error, EngineError)
    with pytest.raises(ContextOverflow):
        long.text("a")


def test_seeds_and_slots_decide_the_text(fake):
    def sample(seed: int) -> Completion:
        return fake.generate([ask(seed=seed, sampling=Sampling(1.0), max_tokens=20)])[0]

    assert sample(1).text("a") == sample(1).text("a") != sample(2).text("a")


def test_threads_get_their_own_answers(fake):
    requests = [ask(f"{number % 7} {number}", seed=number) for number in range(120)]
    expected = texts(fake.generate(requests))
    with ThreadPoolExecutor(16) as pool:
        futures = list(pool.map(fake.submit, requests))
    assert [future.result(30).text("a") for future in futures] == expected
    assert fake.stats().occupancy > 1


def test_futures_can_be_awaited(fake):
    requests = [ask(f"{number}") for number in range(9)]

    async def answers() -> list[Completion]:
        return await asyncio.gather(*(asyncio.wrap_future(fake.submit(r)) for r in requests))

    assert texts(asyncio.run(answers())) == texts(fake.generate(requests))


def test_cancelling_a_future_cancels_its_request(fake):
    running = [fake.submit(long(f"{number}")) for number in range(40)]
    assert all(future.cancel() for future in running)
    assert fake.generate([ask()])[0].error is None
    assert fake.stats().requests == 41
    assert fake.stats().generated < 40 * 3_000
    with pytest.raises(CancelledError):
        running[0].result()


def test_a_late_request_says_so(fake):
    late, good = fake.generate([ask(deadline=0.0), ask(deadline=60.0)])
    assert isinstance(late.error, DeadlineExceeded)
    assert good.error is None


def test_ctrl_c_cancels_what_is_unfinished(fake):
    def interrupt(done: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fake.generate([ask(), *(long(f"{number}") for number in range(30))], interrupt)
    assert texts(fake.generate([ask()])) == texts(fake.generate([ask()]))
    assert fake.stats().requests == 33
    assert fake.stats().generated < 30 * 3_000


# Streams


def told(deltas: list[Delta]) -> dict[str, str]:
    """The joined deltas of each slot; the last delta is the completion."""
    *deltas, last = deltas
    assert last.completion is not None
    assert all(delta.completion is None and delta.text for delta in deltas)
    joined: dict[str, str] = {}
    for delta in deltas:
        joined[delta.slot] = joined.get(delta.slot, "") + delta.text
    return joined


MANY_SLOTS = Request(
    (
        Text("question"),
        Slot("plain", max_tokens=30, stop=("e", "tt"), sampling=Sampling(1.0)),
        Text("\nForced:"),
        Slot("forced", Choice(("yes",)), lead=" "),
        Slot("pattern", Regex("[a-d]{3,9}"), lead=" "),
        Text("."),
        Slot("searched", beam=Beam(3), max_tokens=4),
        Slot("weighed", Choice(("ab", "ac", "b"), weighed=True)),
        Text("."),
        Slot("last", max_tokens=9, ignore_eos=True),
    ),
    seed=3,
)


def test_a_stream_tells_each_slot_as_it_is_written(fake):
    [expected] = fake.generate([MANY_SLOTS])
    deltas = list(fake.stream(MANY_SLOTS))
    assert deltas[-1].completion.fills == expected.fills
    assert told(deltas) == {name: f.text for name, f in expected.fills.items() if f.text}
    by_slot = [delta.slot for delta in deltas]
    assert by_slot.count("last") == 9
    assert by_slot.count("searched") == by_slot.count("weighed") == 1


def test_only_requests_that_stream_cost_frames():
    model, frames = FakeModel(), []
    with Engine(model) as engine:
        receive = engine._host._worker._emit_frame
        engine._host._worker._emit_frame = lambda frame: (frames.append(frame), receive(frame))
        engine.generate([ask(), ask("other")])
        assert not [frame for frame in frames if "deltas" in frame]
        list(engine.stream(ask()))
        assert [frame for frame in frames if "deltas" in frame]


def test_streams_run_beside_each_other_and_beside_the_rest(fake):
    requests = [ask(f"{number}", ignore_eos=True) for number in range(12)]
    expected = texts(fake.generate(requests))
    streams = [fake.stream(request) for request in requests[::2]]
    futures = [fake.submit(request) for request in requests[1::2]]
    assert [told(list(stream))["a"] for stream in streams] == expected[::2]
    assert texts([future.result(30) for future in futures]) == expected[1::2]
    assert fake.stats().occupancy > 1


@pytest.mark.parametrize("leave", ["close", "break", "with"])
def test_leaving_a_stream_cancels_its_request(leave):
    with Engine(FakeModel(), EngineOptions(max_running=1)) as engine:
        behind = engine.submit(ask(max_tokens=3))
        stream = engine.stream(long())
        assert next(stream).slot == "a"
        if leave == "close":
            stream.close()
            assert list(stream) == []
        elif leave == "with":
            with stream:
                next(stream)
        del stream
        assert behind.result(30).error is None
        assert engine.generate([ask()])[0].error is None
        assert engine.stats().requests == 3
        assert engine.stats().generated < 3_000


def test_500_streams_left_at_random_leave_nothing_behind():
    model = FakeModel(context=2000)
    with Engine(model, EngineOptions(max_running=4, max_waiting=8)) as engine:
        [before] = engine.generate([ask(ignore_eos=True)])
        rng = random.Random(3)
        for number in range(500):
            stream = engine.stream(ask(f"{number % 9} " * 9, ignore_eos=True))
            read = list(itertools.islice(stream, rng.randrange(0, 10)))
            assert [delta.completion for delta in read[:8]] == [None] * len(read[:8])
            if number % 2:
                stream.close()
        del stream
        [after] = engine.generate([ask(ignore_eos=True)])
        assert after.fills == before.fills
        while engine.stats().requests < 502:
            engine.generate([ask()])
        decoder = engine._host._worker._decoder
        assert not decoder.scheduler.running
        assert not decoder.scheduler.waiting
        for move in decoder.scheduler.cache.evict_all():
            model.drop(move.seq_id, move.start)
        assert model.used_cells() == decoder.scheduler.cache.cells.used == 0


def test_a_stream_that_fails_ends_with_its_error(fake):
    [refused] = fake.stream(ask("x" * 9_000))
    assert isinstance(refused.completion.error, ContextOverflow)
    *_, last = fake.stream(ask(deadline=0.0))
    assert isinstance(last.completion.error, DeadlineExceeded)


def test_an_engine_that_dies_ends_its_streams():
    model = Dying()
    # What is forced at its beginning is known before it has started.
    waiting = Request((Text("q"), Slot("first", Choice(("yes",))), *MANY_SLOTS.parts), seed=3)
    with Engine(model, EngineOptions(max_running=1)) as engine:
        model.dies = 6
        first, second = engine.stream(long("1")), engine.stream(waiting)
        deltas = list(first)
        assert isinstance(deltas[-1].completion.error, EngineLost)
        assert len(deltas) > 1
        expected = engine.generate([waiting])[0].fills
        again = list(second)
        assert again[-1].completion.fills == expected, "what had not started runs again"
        assert told(again) == {name: fill.text for name, fill in expected.items() if fill.text}


def test_closing_the_engine_ends_its_streams():
    engine = Engine(FakeModel())
    stream = engine.stream(long())
    next(stream)
    engine.close()
    assert isinstance(list(stream)[-1].completion.error, EngineLost)
    stream.close()


def test_streams_can_be_read_from_asyncio(fake):
    requests = [ask(f"{number}", ignore_eos=True) for number in range(6)]
    expected = texts(fake.generate(requests))

    async def read(request: Request) -> str:
        return told([delta async for delta in fake.stream(request)])["a"]

    async def every() -> list[str]:
        return await asyncio.gather(*map(read, requests))

    assert asyncio.run(every()) == expected


# A line before the worker


class Held(FakeModel):
    """Decodes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()
        self.began = threading.Event()

    def decode(self, *batch) -> int:
        self.began.set()
        assert self.may.wait(60)
        return super().decode(*batch)


@pytest.fixture
def crowded():
    """An engine with one request on the model and two that wait, which is as many as may."""
    model = Held()
    with Engine(model, EngineOptions(max_running=1, max_waiting=2)) as engine:
        waiting = [engine.submit(ask("0"))]
        model.began.wait(30)
        waiting += [engine.submit(ask(f"{number}")) for number in (1, 2)]
        yield engine, model, waiting
        model.may.set()


def in_worker(engine: Engine) -> int:
    """How many requests the worker holds, told by itself."""
    return len(engine._host._worker._decoder._entries) + engine._host._worker.inbox.qsize()


def test_a_full_queue_says_so_with_its_numbers(crowded):
    engine, model, waiting = crowded
    for enter in (engine.submit, engine.stream):
        with pytest.raises(QueueFull, match=r"2 requests wait already.* within 0 s.*max_waiting"):
            enter(ask("3"), timeout=0)
    model.may.set()
    assert [future.result(30).error for future in waiting] == [None] * 3
    assert engine.stats().requests == 3, "what was refused never ran"


def test_submit_waits_for_room(crowded):
    engine, model, _ = crowded
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(engine.submit, ask(f"{number}"), 60.0) for number in range(20)]
        assert in_worker(engine) == 3
        model.may.set()
        completions = [future.result(60).result(60) for future in futures]
    assert texts(completions) == texts(engine.generate([ask(f"{n}") for n in range(20)]))


def test_any_number_can_be_generated_and_few_wait_at_the_worker():
    seen = []

    class Watching(FakeModel):
        def decode(self, *batch) -> int:
            seen.append(in_worker(engine))
            return super().decode(*batch)

    requests = [ask("a prefix that all share " + "abcdefg"[n % 7] * 3) for n in range(300)]
    with Engine(FakeModel()) as other:
        expected = texts(other.generate(requests))
        shared = other.stats().prefilled
    with Engine(Watching(), EngineOptions(max_running=2, max_waiting=5)) as engine:
        done: list[int] = []
        assert texts(engine.generate(requests, done.append)) == expected
        assert done == list(range(1, 301))
        assert engine.stats().prefilled <= shared + 300, "a token each, where logits are needed"
    assert max(seen) == 7


def test_what_is_interrupted_in_line_never_runs(crowded):
    engine, model, _ = crowded

    def interrupt(done: int) -> None:
        signal.raise_signal(signal.SIGINT)

    model.may.set()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([ask(), *(long(f"{number}") for number in range(30))], interrupt)
    assert engine.generate([ask()])[0].error is None
    assert engine.stats().requests <= 3 + 1 + 3 + 1


def test_a_deadline_passes_in_line_too(crowded):
    engine, _, _ = crowded
    late, later = engine.generate([ask("3", deadline=0.0), ask("4", deadline=1e-3)])
    assert isinstance(late.error, DeadlineExceeded)
    assert isinstance(later.error, DeadlineExceeded)
    assert isinstance(engine.submit(ask("5", deadline=1e-3)).result(30).error, DeadlineExceeded)


def test_an_event_loop_is_not_blocked_by_a_full_queue(crowded):
    engine, model, _ = crowded

    async def use() -> list[Completion]:
        with pytest.raises(QueueFull, match="agenerate"):
            engine.submit(ask("3"))
        task = asyncio.create_task(engine.agenerate([ask("3"), ask("x" * 9_000), ask("4")]))
        given_up = asyncio.create_task(engine.agenerate([long("5"), long("6")]))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        model.may.set()
        assert await engine.agenerate([]) == []
        return await task

    good, refused, other = asyncio.run(use())
    assert isinstance(refused.error, ContextOverflow)
    assert texts([good, other]) == texts(engine.generate([ask("3"), ask("4")]))
    assert engine.stats().requests == 3 + 2 + 2


def test_what_stands_in_line_outlives_the_worker():
    model = Dying()
    with Engine(model, EngineOptions(max_running=1, max_waiting=1)) as engine:
        requests = [ask(f"{number}", ignore_eos=True) for number in range(6)]
        expected = texts(engine.generate(requests))
        model.dies = model.decodes + 3
        lost, *rest = engine.generate(requests)
        assert isinstance(lost.error, EngineLost)
        assert texts(rest) == expected[1:]
        assert engine.stats().restarts == 1


def test_closing_ends_what_stands_in_line(crowded):
    engine, model, waiting = crowded
    posted = engine._post([submission(ask("3", deadline=1e6))] * 3)
    timer = engine._expiry
    assert engine._tickets.in_line == 3
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(engine.close)
        model.may.set()
        closing.result(30)
    assert all(future.done() for future in [*waiting, *(future for _, future in posted)])
    timer.join(30)
    assert not timer.is_alive()


def test_scores_are_logprobs_of_given_text(fake):
    scores = fake.score([Text("prefix")], ["ab", "c"])
    assert [[token.token for token in tokens] for tokens in scores] == [["a", "b"], ["c"]]
    completion = fake.generate([ask("prefix", constraint=Choice(("ab", "cd")), logprobs=0)])[0]
    sampled = completion.fills["a"].logprobs[0]
    assert fake.score([Text("prefix")], [sampled.token])[0][0].logprob == sampled.logprob
    assert fake.score([Text("prefix")], []) == []
    with pytest.raises(EngineError, match="empty"):
        fake.score([Text("prefix")], ["a", ""])


def test_what_cannot_be_kept_or_tokenized_is_an_engine_error(fake):
    with pytest.raises(EngineError, match="keeps no prefixes"):
        fake.keep([Text("prefix")])
    with pytest.raises(EngineError, match="cannot take it"):
        fake.pieces([Text(None)])


def test_prompts_are_shown_token_by_token(fake):
    parts = [Text("a<|im_end|>", True), Slot("s"), Text("<|", False), Slot("t")]
    assert fake.pieces(parts) == ["a", "<|im_end|>", "<", "|"]
    assert fake.count(parts) == 4


def test_a_model_without_a_template_says_what_to_do(fake):
    with pytest.raises(TemplateError, match="layout='completion'"):
        fake.scaffold(["user"])


def test_closing_ends_what_runs_and_what_comes():
    engine = Engine(FakeModel())
    running = engine.submit(long())
    engine.close()
    engine.close()
    assert isinstance(running.result(10).error, EngineLost)
    with pytest.raises(EngineLost, match="make a new one"):
        engine.generate([ask()])
    with pytest.raises(EngineLost):
        engine.submit(ask())
    assert engine.child_pid == 0


def test_copies_share_one_engine(fake):
    assert copy.deepcopy({"engine": fake})["engine"] is fake


class Dying(FakeModel):
    """Dies, as far as a thread can, at the decode call ``dies``."""

    dies = 0

    def decode(self, *batch) -> int:
        if self.decodes + 1 == self.dies:
            self.decodes += 1
            raise RuntimeError("as asked")
        return super().decode(*batch)


def test_what_ran_is_lost_and_what_waited_runs_again():
    model = Dying()
    with Engine(model, EngineOptions(max_running=2)) as engine:
        requests = [ask(f"{number}", max_tokens=4, ignore_eos=True) for number in range(6)]
        expected = texts(engine.generate(requests))
        before = engine.stats()
        model.dies = model.decodes + 6
        completions = engine.generate(requests)
        lost = [number for number, c in enumerate(completions) if c.error is not None]
        assert len(lost) == 2
        assert all(isinstance(completions[number].error, EngineLost) for number in lost)
        kept = [number for number in range(6) if number not in lost]
        assert texts([completions[n] for n in kept]) == [expected[n] for n in kept]
        assert texts(engine.generate(requests)) == expected
        stats = engine.stats()
        assert stats.restarts == 1
        assert stats.requests == before.requests + 4 + 6
        assert stats.generated == before.generated + 4 * 10


def test_an_engine_that_cannot_start_again_fails_what_waits():
    class Once(Dying):
        def reset(self) -> None:
            if self.dies:
                raise EngineError("not a second time")

    model = Once()
    with Engine(model, EngineOptions(max_running=1)) as engine:
        model.dies = 2
        first, second = engine.generate([ask("1", ignore_eos=True), ask("2")])
        assert isinstance(first.error, EngineLost)
        assert "not a second time" in str(second.error)
        with pytest.raises(EngineError, match="not a second time"):
            engine.generate([ask()])
        assert engine.stats().requests == 0


def test_a_start_that_is_killed_too_is_tried_again():
    class Killed(Dying):
        starts = 0

        def reset(self) -> None:
            super().reset()
            self.starts += 1
            if self.starts == 2:
                raise EngineLost("killed while it loaded")

    model = Killed()
    with Engine(model, EngineOptions(max_running=1)) as engine:
        model.dies = 2
        first, second = engine.generate([ask("1", ignore_eos=True), ask("2")])
        assert isinstance(first.error, EngineLost)
        assert second.error is None
        assert model.starts == 3


def test_a_forked_child_is_told_at_once(fake):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        for use in (lambda: fake.generate([ask()]), lambda: fake.submit(ask()), fake.stats):
            try:
                use()
            except ForkedUse as error:
                os.write(write, f"{error}\n".encode())
        fake.close()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        lines = told.read().splitlines()
    assert os.waitpid(pid, 0)[1] == 0
    assert len(lines) == 3
    assert "make a new Engine in the forked child" in lines[0]
    assert fake.generate([ask()])[0].error is None


# Files that are no models: refused before a process is started


def test_a_directory_is_no_model(tmp_path):
    with pytest.raises(ModelInvalid, match=r"director|folder"):
        Engine(tmp_path)


def test_a_missing_model_says_how_to_get_one(tmp_path):
    with pytest.raises(ModelNotFound):
        Engine(tmp_path / "missing.gguf")
    with pytest.raises(ModelNotFound, match="smollm2-135m"):
        Engine("smollm2-135")


@pytest.mark.parametrize("size", [0, 3, 4, 100, 500_000, 20_000_000])
def test_a_truncated_model_is_refused(tmp_path, size):
    path = tmp_path / "short.gguf"
    with locate(MODEL).open("rb") as source, path.open("wb") as target:
        target.write(source.read(size))
    with pytest.raises(ModelInvalid, match=r"short\.gguf"):
        Engine(path)


def test_another_file_is_no_model(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time " * 1_000)
    with pytest.raises(ModelInvalid, match="not a GGUF"):
        Engine(path)


def test_a_context_larger_than_memory_is_refused():
    if (memory.free_bytes() or 0) > 90e9:
        pytest.skip("needs a machine with less than 90 GB free")
    with pytest.raises(CapacityError, match=r"lower EngineOptions\(context=...\)"):
        Engine(MODEL, EngineOptions(context=1 << 22))


# A child process with a model


def counting(number: int, **slot) -> Request:
    return ask(f"Count: {number}, {number + 1}, {number + 2},", **{"max_tokens": 12, **slot})


@pytest.mark.model
def test_a_killed_child_loses_what_ran_and_nothing_else():
    requests = [counting(number, ignore_eos=True) for number in range(8)]
    with Engine(MODEL, EngineOptions(context=1024, max_running=2)) as engine:
        killed = engine.child_pid
        done_before = []

        def kill(done: int) -> None:
            if done == 2:
                done_before.append(done)
                os.kill(killed, signal.SIGKILL)

        completions = engine.generate(requests, kill)
        lost = [c for c in completions if c.error is not None]
        assert done_before
        assert 1 <= len(lost) <= 2
        assert all(isinstance(completion.error, EngineLost) for completion in lost)
        assert "SIGKILL" in str(lost[0].error)
        assert not is_alive(killed)
        assert engine.child_pid != killed
        assert [c.error for c in engine.generate(requests)] == [None] * 8
        stats = engine.stats()
        assert stats.restarts == 1
        assert stats.requests == 16 - len(lost)
        last = engine.child_pid
    assert not is_alive(last)


@pytest.mark.model
def test_a_child_killed_between_calls_is_replaced():
    with Engine(MODEL, EngineOptions(context=512)) as engine:
        expected = texts(engine.generate([counting(3)]))
        child = os.pidfd_open(engine.child_pid)
        os.kill(engine.child_pid, signal.SIGKILL)
        select.select([child], [], [], 30)
        os.close(child)
        assert texts(engine.generate([counting(3)])) == expected
        assert engine.stats().restarts == 1


def test_a_stream_comes_through_the_child(smollm):
    deltas = list(smollm.stream(counting(3, ignore_eos=True, stop=("zz",))))
    completion = deltas[-1].completion
    assert told(deltas)["a"] == completion.text("a")
    assert len(deltas) > 6
    with smollm.stream(counting(4, ignore_eos=True, max_tokens=400)) as stream:
        assert next(stream).text
        before = smollm.stats()
    assert smollm.generate([counting(4)])[0].error is None
    assert smollm.stats().generated - before.generated < 400


@pytest.mark.model
def test_a_killed_child_ends_its_streams():
    with Engine(MODEL, EngineOptions(context=512)) as engine:
        stream = engine.stream(counting(3, max_tokens=400, ignore_eos=True))
        first = next(stream)
        os.kill(engine.child_pid, signal.SIGKILL)
        *_, last = stream
        assert first.text
        assert isinstance(last.completion.error, EngineLost)
        assert told([*engine.stream(counting(3))])["a"]


ORPHANING = """
import os, sys, time
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.request import Request, Slot, Text
engine = Engine("smollm2-135m-q4_0", EngineOptions(context=512))
def run(count):
    slot = Slot("a", max_tokens=count, ignore_eos=True)
    return engine.submit(Request((Text("Count to 1000: 1, 2,"), slot)))
run(1).result()
other = os.fork()  # holds the pipes open
if other == 0:
    time.sleep(120)
    os._exit(0)
running = run(490)
print(engine.child_pid, other, flush=True)
running.result()
time.sleep(120)
"""


@pytest.mark.model
def test_no_child_outlives_a_killed_parent():
    """Not even one that decodes, with a pipe that another process holds open."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANING],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with parent:
        worker, other = map(int, parent.stdout.readline().split())
        try:
            watch = os.pidfd_open(worker)
            parent.kill()
            parent.wait(10)
            ended, _, _ = select.select([watch], [], [], 30)
            os.close(watch)
            assert ended, "the engine's child still runs"
        finally:
            os.kill(other, signal.SIGKILL)


def test_ctrl_c_is_the_parents(smollm):
    def interrupt(done: int) -> None:
        os.killpg(0, 0)  # the group exists
        os.kill(smollm.child_pid, signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = smollm.child_pid
    with pytest.raises(KeyboardInterrupt):
        smollm.generate([counting(1), counting(2)], interrupt)
    assert smollm.generate([counting(1)])[0].error is None
    assert smollm.child_pid == before


def test_a_typed_slot_is_valid_and_an_engine_knows_its_model(smollm):
    year = {"type": "integer", "minimum": 1000, "maximum": 2100}
    schema = {"type": "object", "properties": {"year": year}, "required": ["year"]}
    constraint = Json(json.dumps({**schema, "additionalProperties": False}))
    request = ask("Rome, in JSON:", constraint=constraint, lead=" ", max_tokens=30)
    [completion] = smollm.generate([request])
    assert completion.fills["a"].finish == "constraint"
    assert completion.fills["a"].text.startswith('{"year": ')
    assert completion.usage.forced > 2
    info = smollm.info
    assert info.name == MODEL
    assert info.sha256 == model_sha256(locate(MODEL))
    assert info.architecture == "llama"
    assert info.context == 8192
    assert info.build.startswith("llama-cpp-python")
    assert "<|im_start|>" in info.template
    assert smollm.scaffold(["user"])[-1] == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_prefix_is_prefilled_once_for_all(smollm):
    trunk = "A long common beginning, which everything after it shares. " * 8
    completions = smollm.generate([ask(f"{trunk}{number}", max_tokens=2) for number in range(6)])
    prompts = [smollm.count([Text(f"{trunk}{number}")]) for number in range(6)]
    prefilled = sum(completion.usage.prefilled for completion in completions)
    assert prefilled <= prompts[0] + 5 * 2


@pytest.mark.model
def test_batch_invariant_text_depends_on_nothing_else():
    options = EngineOptions(context=2048, batch_invariant=True)
    requests = [counting(n, sampling=Sampling(0.8), logprobs=0) for n in range(4)]
    with Engine(MODEL, options) as engine:
        together = engine.generate(requests)
        backwards = engine.generate(requests[::-1])[::-1]
        alone = [engine.generate([request])[0] for request in requests]
    for first, second, third in zip(together, backwards, alone, strict=True):
        assert first.fills == second.fills == third.fills


@pytest.mark.model
def test_a_model_may_run_in_this_process(tmp_path):
    """In a process of its own here, since the default build of llama.cpp may abort it."""
    code = (
        "from promptflow.engine import Engine, EngineOptions\n"
        "from promptflow.engine.request import *\n"
        "with Engine('smollm2-135m-q4_0', EngineOptions(context=256, isolate=False)) as engine:\n"
        "    request = Request((Text('1, 2, 3,'), Slot('a', max_tokens=3)))\n"
        "    print(engine.child_pid, [delta.text for delta in engine.stream(request)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.startswith("0 ['"), done.stderr
    assert done.returncode == 0, done.stderr


# Renewed


def test_a_renewed_engine_has_seen_nothing(fake):
    first = fake.generate([ask("the same question again")])[0]
    again = fake.generate([ask("the same question again")])[0]
    assert again.usage.reused > 0 == first.usage.reused
    assert fake.renew()
    renewed = fake.generate([ask("the same question again")])[0]
    assert (renewed.usage, renewed.text("a")) == (first.usage, first.text("a"))
    assert (fake.renewals, fake.stats().restarts) == (1, 0)
    assert fake.stats().requests == 3


def test_an_engine_that_has_done_nothing_is_not_renewed(fake):
    for _ in range(3):
        assert fake.renew()
        assert fake.count([Text("some words")]) > 0
    assert fake.renewals == 0
    fake.generate([ask()])
    assert fake.renew()
    assert fake.renew()
    fake.generate([ask()])
    assert fake.renewals == 1


def test_an_engine_at_work_is_not_renewed(fake):
    future = fake.submit(long())
    assert not fake.renew()
    assert future.cancel()
    assert fake.generate([ask()])[0].text("a")


def test_an_exact_engine_gives_equal_batches_whole(fake):
    """More requests than may wait go in blocks: none follows when the clock says so."""
    with Engine(FakeModel(), EngineOptions(max_waiting=4, max_running=2)) as engine:
        requests = [ask(f"question {n % 3}") for n in range(11)]
        expected = texts(engine.generate(requests))
        assert engine.renew(exact=True)
        told = []
        found = engine.generate(requests, told.append)
        assert texts(found) == expected
        assert told == list(range(1, 12))
        usages = [completion.usage for completion in found]
        for _ in range(3):
            assert engine.renew(exact=True)
            assert [c.usage for c in engine.generate(requests)] == usages


def test_a_renewed_child_answers_and_reads_no_prefix_where_it_is_exact():
    with Engine(MODEL, EngineOptions(context=1024)) as engine:
        text = "Kept on disk: " + " ".join(f"word {n}" for n in range(60))
        engine.keep([Text(text)])
        reused = []
        for exact in (False, True, False):
            assert engine.renew(exact=exact)
            reused.append(engine.generate([ask(text)])[0].usage.reused)
        assert reused[1] == 0
        assert min(reused[0], reused[2]) > 60
        assert engine.renewals == 3
        assert engine.stats().restarts == 0


def test_a_slot_that_fits_streams_to_the_end_of_the_context():
    parts = Text("a prompt"), Slot("a", max_tokens=4096, ignore_eos=True, fits=True)
    with Engine(FakeModel(context=60)) as engine:
        assert engine.count(parts) == len("a prompt")
        *deltas, last = engine.stream(Request(parts))
        fill = last.completion.fills["a"]
        assert "".join(delta.text for delta in deltas) == fill.text
        assert (fill.finish, fill.generated) == ("length", 60 - engine.count(parts))
        [whole] = engine.generate([Request(parts)])
        assert whole.fills["a"] == fill
