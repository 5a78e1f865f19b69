"""The child process that embeds: texts in, vectors out, one message after the other."""

from __future__ import annotations

import base64
import queue
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from promptflow.engine.process.frames import Message
from promptflow.engine.process.wire import to_wire
from promptflow.engine.process.worker import Emit, die_first, serve
from promptflow.errors import EngineError, PromptflowError

if TYPE_CHECKING:
    from promptflow.engine.model.llama import Encoder


class EmbeddingWorker:
    """Answer ``embed`` and ``count`` messages."""

    def __init__(self, encoder: Encoder, emit: Emit) -> None:
        """Answer with what ``encoder`` computes."""
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._encoder = encoder
        self._emit = emit

    def receive(self, message: Message) -> None:
        """Put a message into the inbox, from any thread."""
        self._inbox.put(message)

    def run(self) -> None:
        """Answer message after message."""
        while True:
            message = self._inbox.get()
            answer: Message = {"key": message["key"]}
            try:
                answer["reply"] = self._answer(message)
            except PromptflowError as error:
                answer["failed"] = to_wire(error)
            except Exception as error:
                wrapped = EngineError(f"it cannot be embedded: {type(error).__name__}: {error}")
                answer["failed"] = to_wire(wrapped)
            self._emit(answer)

    def _answer(self, message: Message) -> object:
        tokens = [self._encoder.tokenize(text) for text in message["texts"]]
        if message["op"] == "count":
            return [len(one) for one in tokens]
        return base64.b64encode(self._encoder.encode(tokens).tobytes()).decode()


def _embedding(settings: Message, emit: Emit) -> tuple[Message, EmbeddingWorker]:
    try:
        from promptflow.engine.model import llama
    except ImportError as error:
        raise EngineError(
            f"llama.cpp cannot be loaded ({error}): run `pip install llama-cpp-python`"
        ) from error
    llama.log_to_stderr()
    options = llama.Load(**settings["load"])
    encoder = llama.Encoder(Path(settings["path"]), settings["name"], settings["sha256"], options)
    encoder.encode([encoder.tokenize("probe")])  # a kernel that crashes does so here
    ready = {"ready": to_wire(encoder.info), "features": llama.system_info()}
    return ready, EmbeddingWorker(encoder, emit)


if __name__ == "__main__":
    die_first()
    serve(int(sys.argv[1]), _embedding)
