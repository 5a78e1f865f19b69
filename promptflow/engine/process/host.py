"""Where a worker runs: a supervised child process, or a thread of this one.

A host takes messages and hands back what the worker emits. It knows nothing of requests: what was
running when a child dies is the engine's business.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from promptflow import child
from promptflow.engine.process.frames import Message, encode, read_frame
from promptflow.engine.process.last_words import LastWords
from promptflow.engine.process.wire import from_wire, to_wire
from promptflow.errors import EngineLost, PromptflowError

if TYPE_CHECKING:
    from promptflow.engine.model.protocol import Model

log = logging.getLogger("promptflow")
OnMessage = Callable[[Message], None]
OnLost = Callable[[EngineLost], None]
WORKER = child.command("promptflow.engine.process.worker")
CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
SAFER: tuple[Message, ...] = (
    {"extra_buffers": False, "fallback": True},
    {"extra_buffers": False, "fallback": True, "threads": 1},
)
"""What is changed in ``load`` when a child crashed while loading, one after the other."""


class ChildHost:
    """A worker in a child process, over two pipes; its stderr's last lines are kept."""

    def __init__(self, settings: Message, command: Sequence[str] = WORKER) -> None:
        """Start the child, wait until its model is loaded and has survived a probe decode.

        ``ready`` is its first frame: ``fatal`` in it is the error that ended it. ``crashed`` tells
        whether native code brought it down while it loaded.
        """
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # ggml looks whether it is set. A debugger's backtrace says nothing of the cause, takes
            # seconds, and is written over llama.cpp's last words.
            env={**child.environment(), "GGML_NO_BACKTRACE": "1"},
        )
        self._said = LastWords()
        self.crashed = False
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._listening = False
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._log_thread = threading.Thread(target=self._keep_log, daemon=True)
        self._log_thread.start()
        threading.Thread(target=self._write, daemon=True).start()
        try:
            self.ready = self._first_frame(settings)
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def _first_frame(self, settings: Message) -> Message:
        self.send(settings)
        ready = self._read()
        if ready is not None:
            return ready
        lost = self._post_mortem("while it loaded the model")
        self.crashed = self._process.returncode in CRASHES
        return {"fatal": to_wire(lost)}

    def start(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Hand every further frame to ``on_message``; call ``on_lost`` once when the child dies."""

        def listen() -> None:
            while (message := self._read()) is not None:
                on_message(message)
            on_lost(self._post_mortem("while it ran"))

        self._listening = True
        threading.Thread(target=listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Return the child's process number."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a message; a dead child is noticed by the listener, not here."""
        self._outbox.put(encode(message))

    def _write(self) -> None:
        """Write frames in a thread of its own: Ctrl-C must not cut one in two."""
        with contextlib.suppress(OSError):
            while (frame := self._outbox.get()) is not None:
                self._stdin.write(frame)
                self._stdin.flush()
        with contextlib.suppress(OSError):
            self._stdin.close()

    def _read(self) -> Message | None:
        try:
            return read_frame(self._stdout)
        except (OSError, ValueError):
            return None

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(1 << 16):
            self._said.hear(line)
        self._process.stderr.close()

    def _post_mortem(self, when: str) -> EngineLost:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log_thread.join(timeout=2)
        self._outbox.put(None)
        self._stdout.close()
        return EngineLost(f"the engine's process died {when}: {self._said.of(code)}")

    def close(self) -> None:
        """End the child; idempotent."""
        self._outbox.put(None)
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._listening:
            self._stdout.close()


class ThreadHost:
    """A worker in a thread of this process: for fakes and debugging. A crash takes all with it."""

    pid = 0

    def __init__(self, settings: Message, model: Model | None = None) -> None:
        """Load the model of ``settings``, or take a ``model`` such as ``fake.FakeModel``."""
        # Here only: these need numpy and llguidance, which a program that merely imports does not.
        from promptflow.engine.process import worker

        features = ""
        if model is None:
            model, features = worker.load(settings)
        else:
            model.reset()
        self._emit: OnMessage = lambda message: None
        self._worker = worker.Worker(model, settings, lambda message: self._emit(message))
        self.ready: Message = {"ready": to_wire(model.info), "features": features}
        self._thread: threading.Thread | None = None

    def start(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Start the thread."""
        self._emit = on_message

        def run() -> None:
            try:
                self._worker.run()
            except Exception as error:
                log.exception("the engine's thread died")
                on_lost(EngineLost(f"the engine's thread died: {type(error).__name__}: {error}"))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Queue a message."""
        self._worker.receive(message)

    def close(self) -> None:
        """Stop the thread after its current batch; idempotent."""
        self._worker.inbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)


Host = ChildHost | ThreadHost


def launch(settings: Message, command: Sequence[str] = WORKER) -> tuple[ChildHost, Message]:
    """Start a child; one that crashes while it loads is tried again with safer settings.

    Return it with the settings that it survived. Raises EngineLost where none is survived, and what
    the child says of a model that it cannot load.
    """
    for change in (*SAFER, None):
        host = ChildHost(settings, command)
        if "fatal" not in host.ready:
            return host, settings
        host.close()
        error: PromptflowError = from_wire(PromptflowError, host.ready["fatal"])
        if change is None or not host.crashed:
            raise error
        log.warning(
            "Loading %s did not survive a probe decode (%s); trying %s.",
            settings.get("path"),
            str(error).partition(" (run `promptflow doctor`")[0],
            ", ".join(f"{name}={value}" for name, value in change.items() if name != "fallback"),
        )
        settings = {**settings, "load": {**settings["load"], **change}}
    raise AssertionError("unreachable")


def describe(ready: Message) -> dict[str, Any]:
    """Return the fields of ModelInfo from a worker's first frame."""
    fields = {key: value for key, value in ready["ready"].items() if key != "_"}
    return {**fields, "features": ready["features"]}
