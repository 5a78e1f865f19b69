"""The engine's child on ``FakeModel``, killed at the point that its arguments name.

python -P mortal_worker.py FATE COUNT PARENT
"""

from __future__ import annotations

import os
import signal
import sys
from typing import IO

FATES = ("decode", "submit", "decode", "frame", "decode", "parent", "decode", "load")
"""In turn: only after a decode is a request known to have begun, and a third death in a row before
any has begun would end them all."""
WORDS = ("ab", "b.", ". the", "x\ny", "c\n", "the end", "é", "\n\n", "aa", "a-b-c-d")


class Life:
    """Ends at the ``count``-th time that it comes to ``fate``."""

    def __init__(self, fate: str, count: int) -> None:
        self.fate = fate
        self.left = count

    def comes_to(self, point: str) -> None:
        self.left -= point == self.fate
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def serve(life: Life, parent: int) -> None:
    from promptflow.engine.model.fake import FakeModel
    from promptflow.engine.process import worker
    from promptflow.engine.process.frames import Message, encode

    class Mortal(FakeModel):
        def tokenize(self, text: str, special: bool) -> list[int]:
            life.comes_to("submit")
            return super().tokenize(text, special)

        def decode(self, *batch: list) -> int:
            life.comes_to("decode")
            return super().decode(*batch)

    def load(settings: Message) -> tuple[FakeModel, str]:
        if life.fate == "load":
            os.kill(os.getpid(), signal.SIGKILL)
        return Mortal(batch=16, words=WORDS), "fake"

    def write_frame(stream: IO[bytes], message: Message) -> None:
        frame = encode(message)
        stream.write(frame[: len(frame) // 2])
        stream.flush()
        if "ready" not in message:
            life.comes_to("frame")
        stream.write(frame[len(frame) // 2 :])
        stream.flush()

    worker.load, worker.write_frame = load, write_frame
    worker.main(parent)


if __name__ == "__main__":
    serve(Life(sys.argv[1], int(sys.argv[2])), int(sys.argv[3]))
