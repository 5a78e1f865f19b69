from __future__ import annotations

import os
import subprocess

import pytest

from promptflow import child
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.process.frames import Message, encode, read_frame
from promptflow.engine.process.wire import from_wire, to_wire
from promptflow.engine.process.worker import Worker, probe
from promptflow.engine.request import (
    Completion,
    Json,
    Request,
    Slot,
    Text,
)
from promptflow.errors import (
    ConstraintError,
    ContextOverflow,
    EngineError,
    ModelInvalid,
    PromptflowError,
)

SETTINGS = {
    "max_running": 4,
    "batch_invariant": False,
    "pass_rows": 0.0,
    "drawers": 1,
    "pass_cells": 8192,
    "prefixes": False,
}


def answers(messages: list[Message]) -> list[Message]:
    """What a worker says to ``messages`` that have all arrived before it looks."""
    frames: list[Message] = []
    expected = sum(len(message.get("jobs", "1")) for message in messages if "keys" not in message)

    def emit(frame: Message) -> None:
        frames.append(frame)
        if sum(len(frame.get("done", ())) + ("reply" in frame) for frame in frames) == expected:
            worker.inbox.put(None)

    worker = Worker(FakeModel(), SETTINGS, emit)
    for message in messages:
        worker.receive(message)
    worker.run()
    return frames


def submit(*requests: Request) -> Message:
    return {"op": "submit", "jobs": [[key, to_wire(r)] for key, r in enumerate(requests)]}


def done(frames: list[Message]) -> dict[int, Message]:
    return {key: outcome for frame in frames for key, outcome in frame.get("done", [])}


def ask(text: str = "q", **settings) -> Request:
    return Request((Text(text), Slot("a", max_tokens=3, **settings)))


def test_a_batch_is_started_and_answered():
    frames = answers([submit(ask("one"), ask("two"))])
    assert frames[0] == {"started": [0, 1]}
    completions = [from_wire(Completion, wire) for wire in done(frames).values()]
    assert len(completions) == 2
    assert all(completion.error is None for completion in completions)


def test_totals_come_with_what_is_done():
    frames = answers([submit(ask("one"), ask("two")), {"op": "stats", "key": 9}])
    last = [frame["stats"] for frame in frames if "done" in frame][-1]
    assert last["requests"] == 2
    assert last["prefilled"] == 6
    assert last["pipe_seconds"] > 0
    [reply] = [frame for frame in frames if "reply" in frame]
    assert reply["reply"] == 9
    assert reply["value"].keys() == last.keys()


def test_a_request_that_cannot_run_is_an_error_in_its_place():
    frames = answers([submit(ask("x" * 5000), ask(constraint=Json("{")), ask("fine"))])
    errors = [from_wire(Completion, wire).error for _, wire in sorted(done(frames).items())]
    assert [type(error) for error in errors] == [ContextOverflow, ConstraintError, type(None)]


def test_what_nobody_thought_of_fails_its_request_alone(capsys):
    broken = to_wire(ask())
    broken["parts"][1]["max_tokens"] = 0
    outcomes = done(answers([submit(ask("fine")), {"op": "submit", "jobs": [[5, broken]]}]))
    assert from_wire(Completion, outcomes[0]).error is None
    error = from_wire(Completion, outcomes[5]).error
    assert type(error) is EngineError
    assert "the engine cannot take it: ValueError" in str(error)
    assert "Traceback" in capsys.readouterr().err


def test_cancelling_reaches_what_runs():
    frames = answers([submit(ask("one"), ask("two")), {"op": "cancel", "keys": [1, 77]}])
    outcomes = done(frames)
    assert outcomes[1]["error"]["type"] == "Cancelled"
    assert outcomes[0]["error"] is None


def test_scores_and_a_look_at_a_prompt():
    score = {"op": "score", "prefix": [["ab", False]], "jobs": [[1, "cd"], [2, ""]]}
    parts = [["a<|im_end|>", True], None, ["b", False]]
    frames = answers([score, {"op": "look", "key": 3, "parts": parts}])
    outcomes = done(frames)
    assert [token["token"] for token in outcomes[1]] == ["c", "d"]
    assert outcomes[2]["error"]["type"] == "EngineError"
    assert {"reply": 3, "value": [["a", "<|im_end|>", "b"], 0]} in frames


def test_the_probe_decodes_and_leaves_nothing():
    model = FakeModel()
    probe(model)
    assert model.decodes == 2
    assert model.used_cells() == 0
    probe(FakeModel(context=16, batch=1))
    with pytest.raises(ModelInvalid, match="code -3"):
        probe(FakeModel(fail={2: -3}))


def child_answers(settings: Message) -> tuple[Message | None, int]:
    process = subprocess.Popen(
        [*child.command("promptflow.engine.process.worker"), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child.environment(),
    )
    with process:
        process.stdin.write(encode(settings))
        process.stdin.flush()
        frame = read_frame(process.stdout)
        process.stdin.close()
        return frame, process.wait(timeout=30)


def test_a_child_says_why_it_cannot_load(tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"GGUF but no more")
    load = {"context": 64, "batch": 16, "sequences": 2, "threads": 1}
    settings = {**SETTINGS, "path": str(path), "name": "m", "sha256": "", "load": load}
    frame, code = child_answers(settings)
    assert isinstance(from_wire(PromptflowError, frame["fatal"]), ModelInvalid)
    assert code == 0
