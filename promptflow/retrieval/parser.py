"""The limited child that turns files into texts, one after the other, until its socket closes.

It gets an open file and its kind, and answers with a head as JSON, ``{"title", "pages", "warnings",
"sha256", "length"}`` or ``{"error", "sha256"}``, and then the text. Its limits hold memory and
time, so that a file which makes a parser loop or swell costs one line in the report; no file can be
written. No sandbox against native code.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import resource
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptflow.encodings import Undecodable
from promptflow.retrieval.kinds import Parsed, Unreadable

HEAD = struct.Struct("!I")
READY = b"r"
HEAD_LIMIT = 1 << 20
"""Bytes of a message's head: the starts of a hundred thousand pages, and no more."""
_LONGEST = 1_000_000
_NO_WORD = re.compile(rf"(?<!\S)\S{{{_LONGEST}}}")
_WORN = 300 << 20
"""Bytes of memory after which a child gives its place to a fresh one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may cost: bytes, bytes of text, memory, seconds, characters a byte.

    Of ``cpu``, a small file may use two seconds, and two more for each megabyte.
    """

    file: int = 100 << 20
    text: int = 12_000_000
    memory: int = 1 << 30
    cpu: int = 6
    wall: int = 9
    expansion: int = 100


@dataclass(frozen=True, slots=True)
class Request:
    """A file to read: its name, the function of its kind, and where modules of users lie."""

    name: str
    read: str
    limits: Limits
    path: tuple[str, ...] = ()
    cpu: int = 6


def text_of(request: Request, data: bytes) -> Parsed:
    """Return what a file says, fit for UTF-8 and for SQLite. Raises Unreadable with the reason."""
    module, _, function = request.read.partition(":")
    try:
        parsed: Parsed = getattr(importlib.import_module(module), function)(data, request.name)
    except Unreadable:
        raise
    except Undecodable as error:
        advice = f". Convert it: iconv -f {error.likely} -t UTF-8" if error.likely else ""
        raise Unreadable(f"{error}{advice}") from error
    except MemoryError:
        raise Unreadable(f"needs more than {request.limits.memory >> 20} MiB to read") from None
    except RecursionError:
        raise Unreadable("nested too deeply to be read") from None
    except Exception as error:
        # Parsers raise what they like on a broken file; the reason is all that is wanted of it.
        raise Unreadable(f"{type(error).__name__}: {error}"[:300]) from error
    most = min(request.limits.text, max(1 << 20, request.limits.expansion * len(data)))
    if len(parsed.text) > most:
        raise Unreadable(f"{len(parsed.text)} characters, more than the {most} allowed: split it")
    if _NO_WORD.search(parsed.text):
        raise Unreadable(f"not text: more than {_LONGEST} characters without a space")
    # Lone surrogates have no UTF-8 form, and SQLite ends text at a zero.
    return Parsed(
        _storable(parsed.text),
        _storable(" ".join(parsed.title.split()))[:1000],
        tuple(map(int, parsed.pages)),
        tuple(map(_storable, parsed.warnings[:20])),
    )


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", " ")


def _limit(limits: Limits, cpu: int) -> None:
    """Hold this process to the memory of a file and to its seconds from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime) + cpu + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, resource.RLIM_INFINITY))


def _answer(message: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], bytes]:
    limits = Limits(**message.pop("limits"))
    request = Request(
        message["name"], message["read"], limits, tuple(message["path"]), message["cpu"]
    )
    sys.path.extend(place for place in request.path if place not in sys.path)
    _limit(limits, request.cpu)
    sha256 = ""
    try:
        with open(descriptor, "rb") as file:
            data = file.read(limits.file + 1)
        if len(data) > limits.file:
            raise Unreadable(f"more than the {limits.file} bytes allowed")
        sha256 = hashlib.sha256(data).hexdigest()
        parsed = text_of(request, data)
        body = parsed.text.encode()
        if len(body) > limits.text:
            raise Unreadable(f"{len(body)} bytes of text, more than the {limits.text} allowed")
    except Unreadable as error:
        return {"error": str(error)[:1000], "sha256": sha256}, b""
    except MemoryError:
        return {"error": f"needs more than {limits.memory >> 20} MiB to read", "sha256": ""}, b""
    except OSError as error:
        return {"error": f"cannot be read: {error.strerror}", "sha256": ""}, b""
    head = {key: value for key, value in asdict(parsed).items() if key != "text"}
    return {**head, "sha256": sha256, "length": len(body)}, body


def receive(connection: socket.socket, size: int) -> bytearray:
    """Return exactly ``size`` bytes. Raises EOFError if the other side has gone."""
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        count = connection.recv_into(view[have:])
        if not count:
            raise EOFError
        have += count
    return data


def _peak() -> int:
    """Return the most bytes that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which Linux begins at what the parent held when it forked.
        [held] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(held.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Answer requests from the socket that is standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=0)
    connection.sendall(READY)
    while True:
        start, descriptors, _, _ = socket.recv_fds(connection, HEAD.size, 1)
        if not start:
            return
        size = HEAD.unpack(start + receive(connection, HEAD.size - len(start)))[0]
        message = json.loads(receive(connection, size))
        head, body = _answer(message, descriptors[0])
        # What libraries keep of a hostile file goes with the child.
        head["last"] = _peak() > _WORN
        packed = json.dumps(head).encode()
        if len(packed) > HEAD_LIMIT:
            packed = json.dumps({"error": "more pages than can be told"}).encode()
            body = b""
        connection.sendall(HEAD.pack(len(packed)) + packed)
        connection.sendall(body)
        if head["last"]:
            return


if __name__ == "__main__":
    try:
        main()
    except (EOFError, BrokenPipeError, ConnectionError):
        os._exit(0)
