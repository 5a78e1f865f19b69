from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from promptflow.engine.request import Completion, Fill
from promptflow.engine.stream import Delta, Feed, Stream, runs_event_loop
from promptflow.errors import EngineLost

DONE = Completion({"a": Fill("one two", "stop"), "b": Fill("three", "stop")})


def made() -> tuple[Feed, Stream, list[str]]:
    feed, calls = Feed(), []
    stream = Stream(feed, lambda: calls.append("cancel"), lambda: calls.append("abandon"))
    return feed, stream, calls


def test_the_end_brings_what_was_not_told_and_the_completion():
    feed, stream, calls = made()
    feed.tell("a", "one ")
    feed.tell("a", "tw")
    feed.end(DONE)
    last = Delta("", "", DONE)
    assert list(stream) == [
        *(Delta("a", "one "), Delta("a", "tw"), Delta("a", "o"), Delta("b", "three")),
        last,
    ]
    assert list(stream) == []
    stream.close()
    del stream
    assert calls == []


def test_an_error_ends_a_stream_as_a_value():
    feed, stream, _ = made()
    feed.tell("a", "one ")
    feed.end(Completion(error=EngineLost("gone")))
    first, last = stream
    assert first.text == "one "
    assert isinstance(last.completion.error, EngineLost)


def test_a_reader_waits_for_what_comes():
    feed, stream, _ = made()
    heard = []
    reader = threading.Thread(target=lambda: heard.extend(stream))
    reader.start()
    feed.tell("a", "one")
    feed.end(DONE)
    reader.join(10)
    assert [delta.text for delta in heard] == ["one", " two", "three", ""]


def test_closing_cancels_once_and_a_block_closes():
    feed, stream, calls = made()
    with stream as same:
        assert same is stream
        feed.tell("a", "one")
        assert next(stream).text == "one"
    stream.close()
    assert calls == ["cancel"]
    with pytest.raises(StopIteration):
        next(stream)


def test_what_nobody_reads_is_given_up():
    feed, stream, calls = made()
    feed.tell("a", "one")
    for _ in stream:
        break
    del stream
    gc.collect()
    assert calls == ["abandon"]


def test_an_event_loop_waits_without_being_blocked():
    async def reading() -> list[str]:
        feed, stream, _ = made()
        others = asyncio.Event()

        async def meanwhile() -> None:
            await others.wait()
            thread = threading.Thread(target=lambda: (feed.tell("a", "one"), feed.end(DONE)))
            thread.start()

        task = asyncio.create_task(meanwhile())
        asyncio.get_running_loop().call_soon(others.set)
        heard = [delta.text async for delta in stream]
        await task
        heard += [delta.text async for delta in stream]
        feed.tell("a", "after the end")
        return heard

    assert asyncio.run(reading()) == ["one", " two", "three", ""]


def test_a_loop_that_is_closed_does_not_harm_the_engine():
    feed, stream, _ = made()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0)

    asyncio.run(give_up())
    feed.tell("a", "to nobody")
    assert next(stream).text == "to nobody"


def test_a_thread_knows_whether_it_runs_an_event_loop():
    async def inside() -> tuple[bool, bool]:
        return runs_event_loop(), await asyncio.to_thread(runs_event_loop)

    assert asyncio.run(inside()) == (True, False)
    assert not runs_event_loop()
