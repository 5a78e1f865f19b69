"""Hosts, with small stand-ins for the worker's process: each does one thing that a child can do."""

from __future__ import annotations

import os
import queue
import signal
import sys

import pytest

from promptflow.engine.model.fake import FakeModel
from promptflow.engine.process.frames import Message
from promptflow.engine.process.host import ChildHost, ThreadHost, describe, launch
from promptflow.errors import EngineLost, ModelInvalid

READY = {"ready": {"_": "ModelInfo", "name": "stub"}, "features": "none"}
PRELUDE = """
import os, signal, sys
from promptflow.engine.process.frames import read_frame, write_frame
from promptflow.engine.process.wire import to_wire
from promptflow.errors import ModelInvalid
settings = read_frame(sys.stdin.buffer)
def say(message): write_frame(sys.stdout.buffer, message)
def ready(): say({"ready": {"name": "stub"}, "features": str(settings["load"])})
"""
SETTINGS = {"path": "m.gguf", "load": {"extra_buffers": True, "threads": 2}}


def stub(code: str) -> list[str]:
    return [sys.executable, "-P", "-c", PRELUDE + code]


def events(host: ChildHost | ThreadHost) -> queue.SimpleQueue:
    heard: queue.SimpleQueue[Message | EngineLost] = queue.SimpleQueue()
    host.start(heard.put, heard.put)
    return heard


def test_frames_go_to_the_child_and_back():
    host = ChildHost(SETTINGS, stub("ready()\nwhile m := read_frame(sys.stdin.buffer): say(m)"))
    assert host.ready["ready"] == {"name": "stub"}
    heard = events(host)
    for number in range(50):
        host.send({"number": number, "text": "\ud800 é" * number})
    assert [heard.get(timeout=10)["number"] for _ in range(50)] == list(range(50))
    host.close()
    host.close()
    assert isinstance(heard.get(timeout=10), EngineLost)
    with pytest.raises(ProcessLookupError):
        os.kill(host.pid, 0)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_child_that_crashes_while_loading_is_tried_with_safer_settings(name, caplog):
    code = f"os.kill(os.getpid(), signal.{name}) if settings['load']['extra_buffers'] else ready()"
    host, settings = launch(SETTINGS, stub(code))
    assert settings["load"] == {"extra_buffers": False, "fallback": True, "threads": 2}
    assert "'extra_buffers': False" in host.ready["features"]
    assert [record.message for record in caplog.records] == [
        f"Loading m.gguf did not survive a probe decode (the engine's process died while it loaded "
        f"the model: {name}); trying extra_buffers=False."
    ]
    assert SETTINGS["load"]["extra_buffers"] is True
    host.close()


def test_one_thread_is_the_last_resort(caplog):
    crash = "os.kill(os.getpid(), signal.SIGSEGV) if settings['load']['threads'] > 1 else ready()"
    host, settings = launch(SETTINGS, stub(crash))
    assert settings["load"] == {"extra_buffers": False, "fallback": True, "threads": 1}
    assert len(caplog.records) == 2
    host.close()


def test_a_child_that_crashes_with_all_settings_is_lost_with_its_last_words():
    crash = "print('ggml_abort: no', file=sys.stderr, flush=True)\nos.abort()"
    with pytest.raises(
        EngineLost, match=r"while it loaded the model: SIGABRT[\s\S]*ggml_abort: no"
    ):
        launch(SETTINGS, stub(crash))


def test_an_assertion_of_ggml_is_the_cause_and_no_debugger_is_started():
    abort = """
import ctypes, llama_cpp
ggml = ctypes.CDLL(os.path.dirname(llama_cpp.__file__) + "/lib/libggml-base.so")
ready()
read_frame(sys.stdin.buffer)
ggml.ggml_abort(b"ggml.c", 7, b"GGML_ASSERT(%s) failed", b"n_batch > 0")"""
    host = ChildHost(SETTINGS, stub(abort))
    heard = events(host)
    host.send({"any": "message"})
    lost = str(heard.get(timeout=60))
    assert "died while it ran: SIGABRT: ggml.c:7: GGML_ASSERT(n_batch > 0) failed (run" in lost
    assert len(lost.splitlines()) < 6
    host.close()


def test_a_child_killed_for_memory_is_not_tried_again(caplog):
    with pytest.raises(EngineLost, match=r"SIGKILL \(probably out of memory: lower EngineOptions"):
        launch(SETTINGS, stub("os.kill(os.getpid(), signal.SIGKILL)"))
    assert not caplog.records


def test_what_a_child_says_of_its_model_is_raised(caplog):
    code = "say({'fatal': to_wire(ModelInvalid('not a model'))})"
    with pytest.raises(ModelInvalid, match="not a model"):
        launch(SETTINGS, stub(code))
    assert not caplog.records


def test_a_child_that_ends_by_itself_is_lost_without_a_retry(caplog):
    with pytest.raises(EngineLost, match="exit code 3"):
        launch(SETTINGS, stub("sys.exit(3)"))
    assert not caplog.records


def test_a_death_is_told_once_with_signal_and_log():
    code = "print('last', file=sys.stderr, flush=True)\nready()\nread_frame(sys.stdin.buffer)"
    host = ChildHost(SETTINGS, stub(code))
    heard = events(host)
    os.kill(host.pid, signal.SIGTERM)
    lost = heard.get(timeout=10)
    assert isinstance(lost, EngineLost)
    assert "died while it ran: SIGTERM" in str(lost)
    assert "last" in str(lost)
    host.send({"into": "the void"})
    host.close()
    with pytest.raises(queue.Empty):
        heard.get(block=False)


def test_a_child_that_speaks_nonsense_is_lost():
    code = "ready()\nsys.stdout.buffer.write(b'\\0\\0\\0\\2{]')\nsys.stdout.flush()"
    host = ChildHost(SETTINGS, stub(code))
    assert isinstance(events(host).get(timeout=30), EngineLost)
    host.close()


def test_a_child_that_does_not_close_is_killed():
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nsignal.pause()"
    host = ChildHost(SETTINGS, stub(code))
    host.close()
    with pytest.raises(ProcessLookupError):
        os.kill(host.pid, 0)


def test_only_the_last_log_lines_are_kept():
    code = "for n in range(100): print('line', n, file=sys.stderr)\nsys.stderr.flush()\nos.abort()"
    with pytest.raises(EngineLost) as caught:
        launch(SETTINGS, stub(code))
    assert "line 99" in str(caught.value)
    assert "line 79" not in str(caught.value)


def test_a_thread_does_the_same_work():
    host = ThreadHost(
        {
            "max_running": 2,
            "batch_invariant": False,
            "pass_rows": 0.0,
            "drawers": 1,
            "pass_cells": 8192,
            "prefixes": False,
        },
        FakeModel(),
    )
    assert describe(host.ready)["name"] == "fake"
    assert host.pid == 0
    heard = events(host)
    host.send({"op": "stats", "key": 4})
    assert heard.get(timeout=10)["reply"] == 4
    host.close()
    host.close()


def test_a_thread_that_fails_is_lost():
    class Failing(FakeModel):
        def decode(self, *batch) -> int:
            raise RuntimeError("out of order")

    host = ThreadHost(
        {
            "max_running": 2,
            "batch_invariant": False,
            "pass_rows": 0.0,
            "drawers": 1,
            "pass_cells": 8192,
            "prefixes": False,
        },
        Failing(),
    )
    heard = events(host)
    host.send({"op": "score", "prefix": [], "jobs": [[1, "a"]]})
    assert heard.get(timeout=10) == {"started": [1]}
    lost = heard.get(timeout=10)
    assert isinstance(lost, EngineLost)
    assert "RuntimeError: out of order" in str(lost)
