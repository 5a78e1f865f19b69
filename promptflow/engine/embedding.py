"""Embed texts with a GGUF model, in a supervised child process as the engine's text is.

Light to import: llama.cpp is loaded by the child alone.
"""

from __future__ import annotations

import atexit
import base64
import os
import queue
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow import child
from promptflow.child import usable_cores
from promptflow.engine.interface import EncoderInfo
from promptflow.engine.process.frames import Message
from promptflow.engine.process.host import ChildHost, describe, launch
from promptflow.engine.process.wire import from_wire
from promptflow.errors import EngineLost, ForkedUse, PromptflowError

WORKER = child.command("promptflow.engine.process.embedding")
BATCH = 512
"""Tokens of one pass: where all texts of a pass are in one matrix, more cost more a token."""
SEQUENCES = 64
LONGEST = 2048
"""Tokens of the longest text, of models that could read longer ones: its memory is a square."""
TRIES = 2


class EmbeddingEngine:
    """Embed texts with the GGUF file at ``path``; ``trained`` is the longest text it was made for.

    The child starts with the first call. Any thread may call. Raises ModelInvalid for a file that
    is no embedder, and EngineLost where the child dies again when it is asked again.
    """

    def __init__(self, path: Path, name: str, sha256: str, *, trained: int | None = None) -> None:
        """Keep what to load; nothing is loaded yet."""
        longest = min(trained or BATCH, LONGEST)
        self._settings: Message = {
            "path": str(path),
            "name": name,
            "sha256": sha256,
            "load": {
                "context": longest,
                "batch": min(BATCH, longest),
                "sequences": min(SEQUENCES, longest),
                "threads": usable_cores(),
            },
        }
        self.max_tokens = longest
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._host: ChildHost | None = None
        self._info: EncoderInfo | None = None
        self._asked = 0
        self._answers: queue.SimpleQueue[Message | EngineLost] = queue.SimpleQueue()
        _open.add(self)

    @property
    def info(self) -> EncoderInfo:
        """What the child says of the model."""
        self._check_process()
        with self._lock:
            self._running()
            assert self._info is not None
            return self._info

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors (len(texts), dimension) of ``texts``."""
        data = base64.b64decode(self._ask("embed", texts))
        return np.frombuffer(data, np.float32).reshape(len(texts), self.info.dimension).copy()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, its marks included, cut at the longest."""
        counts: list[int] = self._ask("count", texts)
        return counts

    def _ask(self, operation: str, texts: Sequence[str]) -> Any:
        self._check_process()
        with self._lock:
            for _ in range(TRIES):
                answer = self._answered({"op": operation, "texts": list(texts)})
                if not isinstance(answer, EngineLost):
                    break
                self._host = None
        if isinstance(answer, EngineLost):
            raise answer
        if "failed" in answer:
            raise from_wire(PromptflowError, answer["failed"])
        return answer["reply"]

    def _answered(self, message: Message) -> Message | EngineLost:
        self._asked += 1
        self._running().send({**message, "key": self._asked})
        while True:
            answer = self._answers.get()
            # What a call that was interrupted had asked is answered all the same.
            if isinstance(answer, EngineLost) or answer["key"] == self._asked:
                return answer

    def _running(self) -> ChildHost:
        """Return the child's host, started if there is none. The lock is held."""
        if self._host is None:
            # What has crashed once is not tried again.
            host, self._settings = launch(self._settings, WORKER)
            fields = describe(host.ready)
            self._info = EncoderInfo(**fields)
            self._answers = queue.SimpleQueue()
            host.start(self._answers.put, self._answers.put)
            self._host = host
        return self._host

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedUse(
                "this embedder was made in another process: open it again in the forked child, or "
                "start processes with the 'spawn' method"
            )

    def close(self) -> None:
        """End the child; the next call starts another. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            host, self._host = self._host, None
        if host is not None:
            host.close()

    def __enter__(self) -> EmbeddingEngine:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        self.close()


_open: weakref.WeakSet[EmbeddingEngine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_open):
        engine.close()
