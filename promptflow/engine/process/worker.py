"""The engine's child process: frames in, frames out, the decode loop between them.

``Worker`` is the same loop for a thread of this process (``isolate=False``), fed with the same
messages.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from promptflow.engine.cache.disk import folder_of
from promptflow.engine.loop.decoder import Decoder, Finished
from promptflow.engine.model.protocol import Model
from promptflow.engine.process.frames import Message, read_frame, write_frame
from promptflow.engine.process.wire import from_wire, to_wire
from promptflow.engine.request import Completion, Part, Request, Slot, Text
from promptflow.engine.slot.deltas import Deltas
from promptflow.engine.slot.job import FillJob
from promptflow.errors import EngineError, ModelInvalid, PromptflowError
from promptflow.terminal import say

Emit = Callable[[Message], None]
ORPHAN_SECONDS = 2.0  # how often a child looks whether its parent still lives


class Worker:
    """Answer messages from ``inbox`` until told to close."""

    def __init__(self, model: Model, settings: Message, emit: Emit) -> None:
        """Decode with ``settings``: max_running, batch_invariant, pass_rows, prefixes."""
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._model = model
        self._emit_frame = emit
        self._pipe = 0.0
        self._streams: dict[int, Deltas] = {}
        self._decoder = Decoder(
            model,
            max_running=settings["max_running"],
            batch_invariant=settings["batch_invariant"],
            pass_rows=settings["pass_rows"],
            drawers=settings["drawers"],
            pass_cells=settings["pass_cells"],
            prefixes=folder_of(model.info, settings) if settings["prefixes"] else None,
            on_start=lambda keys: self._emit({"started": keys}),
        )

    def receive(self, message: Message) -> None:
        """Put a message into the inbox, from any thread; deadlines count from here."""
        self.inbox.put({**message, "arrived": time.monotonic()})

    def run(self) -> None:
        """Loop: take what has arrived, end what is late, then decode one batch."""
        while True:
            block = not self._decoder.busy
            while True:
                try:
                    message = self.inbox.get(block=block)
                except queue.Empty:
                    break
                if message is None:
                    self._decoder.close()
                    self._model.close()
                    return
                self._handle(message)
                block = False
            self._finish(self._decoder.expire())
            if self._decoder.busy:
                finished = self._decoder.step()
                self._tell()
                self._finish(finished)

    def _handle(self, message: Message) -> None:
        operation = message["op"]
        if operation == "submit":
            for key, wire in message["jobs"]:
                self._try(key, self._submit, key, wire, message)
        elif operation == "score":
            prefix = [Text(*text) for text in message["prefix"]]
            for key, text in message["jobs"]:
                self._try(key, self._decoder.score, key, prefix, text)
        elif operation == "cancel":
            for key in message["keys"]:
                self._finish(self._decoder.cancel(key))
        elif operation == "keep":
            self._try(message["key"], self._keep, message)
        elif operation == "look":
            self._try(message["key"], self._look, message)
        elif operation == "stats":
            self._reply(message["key"], self._stats())

    def _try(self, key: int, attempt: Callable[..., None], *arguments: object) -> None:
        """Let what one request brings about fail that request alone."""
        try:
            attempt(*arguments)
        except PromptflowError as error:
            self._finish([(key, Completion(error=error))])
        except Exception as error:
            say(traceback.format_exc(), end="", error=True)
            wrapped = EngineError(f"the engine cannot take it: {type(error).__name__}: {error}")
            self._finish([(key, Completion(error=wrapped))])

    def _submit(self, key: int, wire: Message, message: Message) -> None:
        begun = time.perf_counter()
        waited = wire.pop("waited", 0.0) + time.monotonic() - message["arrived"]
        request: Request = from_wire(Request, wire)
        self._pipe += time.perf_counter() - begun
        self._finish(self._decoder.submit(key, request, waited))
        job = self._decoder.job(key)
        if message.get("stream") and isinstance(job, FillJob):
            self._streams[key] = Deltas(job)

    def _tell(self) -> None:
        """Emit what was added to the texts of requests that stream."""
        deltas = [
            [key, slot, text] for key, told in self._streams.items() for slot, text in told.fresh()
        ]
        if deltas:
            self._emit({"deltas": deltas})

    def _keep(self, message: Message) -> None:
        prefix = [Text(*text) for text in message["prefix"]]
        self._reply(message["key"], self._decoder.keep(prefix))

    def _look(self, message: Message) -> None:
        prompts = self._decoder.tools.prompts
        # A slot is null: texts around it are tokenized apart.
        parts: list[Part] = [
            Slot(f"{number}") if text is None else Text(*text)
            for number, text in enumerate(message["parts"])
        ]
        before = prompts.before_slots([*parts, Slot("end")])
        # JSON has no bytes, and a token may be a part of a character.
        pieces = [prompts.piece(t).decode("latin-1") for tokens in before for t in tokens]
        self._reply(message["key"], [pieces, self._decoder.cache.held(before[0])])

    def _stats(self) -> Message:
        stats: Message = to_wire(replace(self._decoder.stats(), pipe_seconds=self._pipe))
        return stats

    def _reply(self, key: int, value: object) -> None:
        self._emit({"reply": key, "value": value})

    def _finish(self, finished: list[Finished]) -> None:
        if finished:
            for key, _ in finished:
                self._streams.pop(key, None)
            done = [[key, to_wire(outcome)] for key, outcome in finished]
            # The totals come along, so that they outlive this process.
            self._emit({"done": done, "stats": self._stats()})

    def _emit(self, frame: Message) -> None:
        begun = time.perf_counter()
        self._emit_frame(frame)
        self._pipe += time.perf_counter() - begun


def probe(model: Model) -> None:
    """Decode a few tokens, so that a kernel which crashes does so before any request."""
    count = min(16, model.batch)
    tokens = [token % model.vocabulary for token in range(count)]
    outputs = [False] * (count - 1) + [True]
    code = model.decode(tokens, list(range(count)), [0] * count, outputs)
    if code == 0 and count < model.cells:
        code = model.decode([1], [count], [0], [True])
    if not model.drop(0, 0):
        raise ModelInvalid(f"{model.info.path} does not give up a sequence that it has decoded")
    if code != 0:
        raise ModelInvalid(f"the first decode of {model.info.path} failed with code {code}")


def load(settings: Message) -> tuple[Model, str]:
    """Load a GGUF model as ``settings`` say, probe it, and return the CPU features too."""
    try:
        from promptflow.engine.model import llama
    except ImportError as error:
        raise EngineError(
            f"llama.cpp cannot be loaded ({error}): run `pip install llama-cpp-python llguidance`"
        ) from error
    llama.log_to_stderr()
    options = llama.Load(**settings["load"])
    model = llama.Model(Path(settings["path"]), settings["name"], settings["sha256"], options)
    probe(model)
    return model, llama.system_info()


def die_first() -> None:
    """Ask Linux to pick this process, not its parent, when memory is short."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"500")
        os.close(descriptor)
    except OSError:
        return


def _end_with(parent: int) -> None:
    """End this process when ``parent`` has ended.

    The end of stdin says so too, unless a process that the parent forked holds the pipe open; and
    PR_SET_PDEATHSIG fires when the *thread* that started this process ends.
    """
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(0)


class Inbox(Protocol):
    """What serves the messages of one child: ``Worker``, and the one that embeds."""

    def receive(self, message: Message) -> None:
        """Put a message into the inbox, from any thread."""

    def run(self) -> None:
        """Answer messages for good."""


Make = Callable[[Message, Emit], tuple[Message, Inbox]]
"""What loads a model as settings say, and returns its first frame and what serves it."""


def _text(settings: Message, emit: Emit) -> tuple[Message, Inbox]:
    model, features = load(settings)
    ready = {"ready": to_wire(model.info), "features": features}
    return ready, Worker(model, settings, emit)


def serve(parent: int, make: Make) -> None:
    """Serve frames on stdin and stdout until stdin closes or the process ``parent`` ends."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    frames_in = os.fdopen(os.dup(0), "rb")
    frames_out = os.fdopen(os.dup(1), "wb")
    # Whatever native code prints must not end up between frames.
    os.dup2(2, 1)
    settings = read_frame(frames_in)
    if settings is None:
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        ready, worker = make(settings, lambda frame: write_frame(frames_out, frame))
    except PromptflowError as error:
        write_frame(frames_out, {"fatal": to_wire(error)})
        return

    def feed() -> None:
        while (message := read_frame(frames_in)) is not None:
            if message["op"] == "close":
                break
            worker.receive(message)
        # The parent is gone or done with us: waiting for a decode to end helps nobody.
        os._exit(0)

    write_frame(frames_out, ready)
    threading.Thread(target=feed, daemon=True).start()
    worker.run()


def main(parent: int) -> None:
    """Serve a model of text."""
    serve(parent, _text)


if __name__ == "__main__":
    die_first()
    main(int(sys.argv[1]))
