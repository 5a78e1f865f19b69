"""Frames between the engine and its child: four bytes of length, big-endian, then JSON.

Both ends are ours, so infinities and lone surrogates pass, which strict JSON would refuse.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """Return the frame of ``message``."""
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack(">I", len(data)) + data


def write_frame(stream: IO[bytes], message: Message) -> None:
    """Write one frame and flush it."""
    stream.write(encode(message))
    stream.flush()


def read_frame(stream: IO[bytes]) -> Message | None:
    """Read one frame; None where the stream ends, in the middle of a frame too."""
    header = _read_exactly(stream, 4)
    if header is None:
        return None
    data = _read_exactly(stream, struct.unpack(">I", header)[0])
    if data is None:
        return None
    message: Message = json.loads(data.decode("utf-8", "surrogatepass"))
    return message


def _read_exactly(stream: IO[bytes], count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = stream.read(count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
