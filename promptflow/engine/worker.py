"""The engine's child process: frames in, frames out, the decode loop between them.

``Worker`` is the same loop for a thread of
this process (``isolate=False``), fed with the same messages.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from promptflow.engine.constraint import Constraints
from promptflow.engine.decoder import Decoder, Finished
from promptflow.engine.frames import Message, read_frame, write_frame
from promptflow.engine.request import Completion, Text, request_from_wire, to_wire
from promptflow.engine.scheduler import Model
from promptflow.errors import ModelInvalid, PromptflowError

Emit = Callable[[Message], None]


class Worker:
    """Answer messages from ``inbox`` until told to close."""

    def __init__(self, model: Model, constraints: Constraints, settings: Message, emit: Emit):
        """Decode with ``settings``: max_running and batch_invariant."""
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._model = model
        self._emit = emit
        self._decoder = Decoder(
            model,
            constraints,
            max_running=settings["max_running"],
            batch_invariant=settings["batch_invariant"],
            on_start=lambda keys: emit({"started": keys}),
        )

    def run(self) -> None:
        """Loop: take what has arrived, then decode one batch."""
        while True:
            block = not self._decoder.busy
            while True:
                try:
                    message = self.inbox.get(block=block)
                except queue.Empty:
                    break
                if message is None:
                    self._model.close()
                    return
                self._handle(message)
                block = False
            if self._decoder.busy:
                self._finish(self._decoder.step())

    def _handle(self, message: Message) -> None:
        operation = message["op"]
        if operation == "submit":
            for key, wire in message["jobs"]:
                try:
                    self._decoder.submit(key, request_from_wire(wire))
                except PromptflowError as error:
                    self._finish([(key, Completion(error=error))])
        elif operation == "cancel":
            done = [self._decoder.cancel(key) for key in message["keys"]]
            self._finish([finished for finished in done if finished is not None])
        elif operation == "score":
            prefix = [Text(text, trusted) for text, trusted in message["prefix"]]
            for key, continuation in message["jobs"]:
                try:
                    self._decoder.score(key, prefix, continuation)
                except PromptflowError as error:
                    self._finish([(key, Completion(error=error))])
        elif operation == "pieces":
            parts = [Text(text, trusted) for text, trusted in message["parts"]]
            tokens = self._decoder.tokenize(parts)
            pieces = [self._decoder.piece_text(token) for token in tokens]
            self._emit({"reply": message["key"], "value": pieces})
        elif operation == "stats":
            self._emit({"reply": message["key"], "value": to_wire(self._decoder.stats())})

    def _finish(self, finished: list[Finished]) -> None:
        if finished:
            self._emit({"done": [[key, to_wire(outcome)] for key, outcome in finished]})


def probe(model: Model) -> None:
    """Decode a few tokens, so that a kernel which crashes does so before any request."""
    tokens = [token % model.vocabulary for token in range(16)]
    outputs = [False] * 15 + [True]
    code = model.decode(tokens, list(range(16)), [0] * 16, outputs)
    if code == 0:
        code = model.decode([1], [16], [0], [True])
    model.drop(0, 0)
    if code != 0:
        raise ModelInvalid(f"the first decode failed with code {code}")


def load(settings: Message) -> tuple[Model, Constraints, str]:
    """Load a GGUF model as ``settings`` say, probe it, and return the CPU features too."""
    from promptflow.engine import llama

    llama.log_to_stderr()
    options = llama.Load(**settings["load"])
    model = llama.Model(Path(settings["path"]), settings["name"], settings["sha256"], options)
    probe(model)
    return model, model.constraints(), llama.system_info()


def _die_first() -> None:
    """Ask Linux to pick this process, not its parent, when memory is short."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"500")
        os.close(descriptor)
    except OSError:
        return


def main() -> None:
    """Serve frames on stdin and stdout until stdin closes."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    frames_in = os.fdopen(os.dup(0), "rb")
    frames_out = os.fdopen(os.dup(1), "wb")
    # Whatever native code prints must not end up between frames.
    os.dup2(2, 1)
    settings = read_frame(frames_in)
    if settings is None:
        return
    try:
        model, constraints, features = load(settings)
    except PromptflowError as error:
        write_frame(frames_out, {"fatal": to_wire(error)})
        return
    worker = Worker(model, constraints, settings, lambda frame: write_frame(frames_out, frame))

    def feed() -> None:
        while (message := read_frame(frames_in)) is not None:
            if message["op"] == "close":
                break
            worker.inbox.put(message)
        # The parent is gone or done with us: waiting for a decode to end helps nobody. This is also
        # how an orphan ends: PR_SET_PDEATHSIG fires when the *thread* that started us ends.
        os._exit(0)

    write_frame(frames_out, {"ready": to_wire(model.info), "features": features})
    threading.Thread(target=feed, daemon=True).start()
    worker.run()


if __name__ == "__main__":
    _die_first()
    main()
