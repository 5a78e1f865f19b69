"""Where a worker runs: a supervised child process, or a thread of this one.

A host takes messages and hands back what the worker emits. It knows nothing of requests: what was
running when a child dies is the engine's business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptflow.engine.frames import Message, read_frame, write_frame
from promptflow.errors import EngineLost

if TYPE_CHECKING:
    from promptflow.engine.scheduler import Model

OnMessage = Callable[[Message], None]
OnLost = Callable[[EngineLost], None]
LOG_LINES = 20


class ChildHost:
    """A worker in a child process, over two pipes; its stderr's last lines are kept."""

    def __init__(self, settings: Message) -> None:
        """Start the child, wait until its model is loaded and has survived a probe decode.

        ``ready`` is its first frame. Raises EngineLost where the child dies before that.
        """
        root = str(Path(__file__).parents[2])
        path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "promptflow.engine.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *path])},
        )
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._sending = threading.Lock()
        self._log_thread = threading.Thread(target=self._keep_log, daemon=True)
        self._log_thread.start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        try:
            write_frame(self._stdin, settings)
            ready = read_frame(self._stdout)
        except OSError:
            ready = None
        except BaseException:
            self._process.kill()
            raise
        if ready is None:
            raise self._post_mortem("while it loaded the model")
        self.ready: Message = ready

    def start(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Hand every further frame to ``on_message``; call ``on_lost`` once when the child dies."""

        def listen() -> None:
            while True:
                try:
                    message = read_frame(self._stdout)
                except (OSError, ValueError):
                    message = None
                if message is None:
                    on_lost(self._post_mortem("while it ran"))
                    return
                on_message(message)

        threading.Thread(target=listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Return the child's process number."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a message; a dead child is noticed by the listener, not here."""
        with self._sending:
            try:
                write_frame(self._stdin, message)
            except (OSError, ValueError):
                return

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line.decode("utf-8", "replace").rstrip())
        self._process.stderr.close()

    def _post_mortem(self, when: str) -> EngineLost:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log_thread.join(timeout=2)
        self._stdout.close()
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
            if -code == signal.SIGKILL:
                how += " (probably out of memory)"
        log = "\n  ".join(self.log) or "(no log lines)"
        return EngineLost(f"the engine's process died {when}: {how}. Last log lines:\n  {log}")

    def close(self) -> None:
        """End the child; idempotent."""
        self.send({"op": "close"})
        with self._sending, contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ThreadHost:
    """A worker in a thread of this process: for fakes and debugging. A crash takes all with it."""

    pid = 0

    def __init__(self, settings: Message, model: Model | None = None) -> None:
        """Load the model of ``settings``, or take a ``model`` such as ``fake.FakeModel``."""
        # Here only: these need numpy and llguidance, which a program that merely imports does not.
        from promptflow.engine import worker
        from promptflow.engine.constraint import Constraints, byte_tokenizer
        from promptflow.engine.request import to_wire

        features = ""
        if model is None:
            model, constraints, features = worker.load(settings)
        else:
            constraints = Constraints(byte_tokenizer(), model.vocabulary)
        self._emit: OnMessage = lambda message: None
        self._worker = worker.Worker(model, constraints, settings, lambda m: self._emit(m))
        self.ready: Message = {"ready": to_wire(model.info), "features": features}
        self._thread: threading.Thread | None = None

    def start(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Start the thread."""
        self._emit = on_message

        def run() -> None:
            try:
                self._worker.run()
            except Exception as error:
                on_lost(EngineLost(f"the engine's thread died: {type(error).__name__}: {error}"))
                raise

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Queue a message."""
        self._worker.inbox.put(message)

    def close(self) -> None:
        """Stop the thread after its current batch; idempotent."""
        self._worker.inbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)


Host = ChildHost | ThreadHost


def usable_cores() -> int:
    """Return how many physical cores this process may use; ggml's workers spin, one on each."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    siblings: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.exists() else str(cpu))
    return min(len(siblings), _quota())


def _quota() -> int:
    """Return the cores that the control group allows, rounded up."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if path.exists():
        quota, _, period = path.read_text().strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            return max(1, -(-int(quota) // int(period)))
    return 1 << 20


def describe(ready: Message) -> dict[str, Any]:
    """Return the fields of ModelInfo from a worker's first frame."""
    fields = {key: value for key, value in ready["ready"].items() if key != "_"}
    return {**fields, "features": ready["features"]}
