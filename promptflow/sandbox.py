"""Jinja templates of strangers, rendered in a child process with limits on time and memory.

A template is a program. Jinja's sandbox keeps it from reaching files and code, not from running for
ever or filling the memory, so templates that did not come with this package run in a process of
their own: one for all of them, since starting it takes 0.2 s. What breaks a limit may end it; the
next call starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from promptflow import child

if TYPE_CHECKING:
    from jinja2 import Environment, Template

CPU_SECONDS = 1.0
"""Processor time of one rendering; native code that does not look up is killed half a second on."""
WALL_SECONDS = 30.0  # by the clock: a machine may be busy
MEMORY_BYTES = 256 << 20
MAX_SOURCE = 256 * 1024
MAX_RANGE = 10_000
"""The longest range, and the longest text or list that repetition makes."""
MAX_BITS = 4096
"""The longest whole number that a product makes."""
MAX_OUTPUT = 4 << 20
LAYOUTS = Path(__file__).resolve().parent / "layouts"
"""What layouts may import from: this package's own, whoever wrote the layout."""

Kind = Literal["chat", "layout"]


class RenderFailed(Exception):
    """A template that cannot be rendered: why, and at which of its lines where that is known."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class Job:
    """A template and what it sees.

    ``secret`` is what markers of turns are made of in a layout: ``turn(role)`` writes one.
    """

    kind: Kind
    source: str
    context: Mapping[str, Any]
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a template, and the ``stop`` that it sets."""

    text: str
    stop: tuple[str, ...] = ()


def render_here(job: Job) -> Rendered:
    """Render in this process, without limits on time: for templates of this package.

    Raises RenderFailed.
    """
    template = None
    try:
        if len(job.source) > MAX_SOURCE:
            raise ValueError(f"{len(job.source):,} characters are over {MAX_SOURCE:,}")
        template = _template(job.kind, job.source)
        return _written(template, job)
    except RenderFailed:
        raise
    except (Exception, _Overtime) as error:
        raise RenderFailed(_reason(error), _line(error, template)) from error


def _reason(error: BaseException) -> str:
    text = str(error) or "no more is known"
    told = type(error).__name__ not in ("UndefinedError", "TemplateSyntaxError", "_Overtime")
    return f"{type(error).__name__}: {text}"[:300] if told else text[:300]


def _written(template: Template, job: Job) -> Rendered:
    def turn(role: str) -> str:
        if not isinstance(role, str) or "\0" in role:
            raise TypeError(f"turn({role!r}): the role of a turn is text")
        return turn_mark(job.secret, role)

    context = template.new_context({**job.context, **({"turn": turn} if job.secret else {})})
    pieces, size = [], 0
    running = template.root_render_func(context)
    for piece in running:
        pieces.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT:
            line = template.get_corresponding_lineno(cast(Any, running).gi_frame.f_lineno)
            raise RenderFailed(f"the output is over {MAX_OUTPUT:,} characters", line)
    stop = context.get_exported().get("stop", ())
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        raise RenderFailed(f"stop is {type(stop).__name__}, and it is a list of texts")
    return Rendered("".join(pieces), tuple(stop))


def _bundled(name: str) -> str | None:
    """Return the text of a layout of this package, or of what its layouts share."""
    known = {path.name: path for path in (*LAYOUTS.glob("*.jinja"), *LAYOUTS.glob("*.j2"))}
    return known[name].read_text(encoding="utf-8") if name in known else None


def imports_of(source: str) -> list[str]:
    """Return the names of the bundled files that a layout imports, and they in turn."""
    from jinja2 import TemplateError, meta

    found: list[str] = []
    environment = _environment("layout")
    waiting = [source]
    while waiting:
        with contextlib.suppress(TemplateError):  # whoever renders it says what is wrong
            names = meta.find_referenced_templates(environment.parse(waiting.pop()))
            for name in names:
                if name is not None and name not in found and (text := _bundled(name)):
                    found.append(name)
                    waiting.append(text)
    return found


def turn_mark(secret: str, role: str) -> str:
    """Return what ``turn(role)`` writes into a layout's text."""
    return f"\0{secret}.turn:{role}\0"


def _line(error: BaseException, template: Template | None) -> int | None:
    """Return the template's innermost line that ``error`` passed through."""
    line: int | None = getattr(error, "lineno", None)
    trace = error.__traceback__ if template is not None else None
    while trace is not None:
        if template is trace.tb_frame.f_globals.get("__jinja_template__"):
            # tb_lineno is None where a timer broke in between two lines.
            lines = trace.tb_frame.f_code.co_lines()
            known = [n for start, _, n in lines if n is not None and start <= trace.tb_lasti]
            line = cast("Template", template).get_corresponding_lineno(known[-1])
        trace = trace.tb_next
    return line


@functools.lru_cache(maxsize=64)
def _template(kind: Kind, source: str) -> Template:
    return _environment(kind).from_string(source)


@functools.cache
def _environment(kind: Kind) -> Environment:
    """Return a sandbox in which powers are small, repetition is bounded and globals are few."""
    from jinja2 import FunctionLoader, StrictUndefined, Undefined
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """A sandbox that refuses what makes huge numbers or texts of small ones."""

        intercepted_binops = frozenset(("**", "*"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Refuse a product or a power that is too long, before it is computed."""
            if (size := _size(operator, left, right)) is not None:
                raise SecurityError(f"{operator} makes {size}")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """``{% generation %}`` marks what the model wrote, for those who train on it."""

        tags = {"generation"}  # noqa: RUF012 as Jinja declares it

        def parse(self, parser: Any) -> Any:
            """Return what stands between the marks."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    if kind == "layout":
        loader = FunctionLoader(_bundled)
        environment = Bounded(undefined=StrictUndefined, autoescape=False, loader=loader)
        environment.globals.clear()
        return environment

    environment = Bounded(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        keep_trailing_newline=True,
        undefined=Undefined,
    )
    environment.filters["tojson"] = _tojson
    environment.filters["from_json"] = json.loads
    namespace = environment.globals["namespace"]
    environment.globals.clear()
    environment.globals.update(
        namespace=namespace,
        range=_bounded_range,
        dict=dict,
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
    )
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as the templates of models expect it: Jinja's own escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    from jinja2.exceptions import SecurityError

    raise SecurityError(message)


def _bounded_range(*bounds: int) -> range:
    values = range(*bounds)
    if len(values) > MAX_RANGE:
        raise ValueError(f"a range of {len(values):,} is over {MAX_RANGE:,}")
    return values


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _size(operator: str, left: Any, right: Any) -> str | None:
    """Say how large a product or a power would be; None where that is bearable."""
    for one, other in ((left, right), (right, left)):
        if hasattr(one, "__len__") and isinstance(other, int):
            length = len(one) * other
            return f"{length:,} items, over {MAX_RANGE:,}" if length > MAX_RANGE else None
    if not (isinstance(left, int) and isinstance(right, int)):
        return None
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(right, 0)
    return f"a number of {bits:,} bits, over {MAX_BITS:,}" if bits > MAX_BITS else None


# The limited child


class _Overtime(BaseException):
    """Raised in the child where the processor time of a job is over; no template catches it."""


def render_limited(job: Job) -> Rendered:
    """Render a stranger's template within the limits of time, memory and output.

    The template sees ``job.context`` as JSON data. Raises RenderFailed.
    """
    with _renderer.lock:
        reply = _renderer.ask(
            {
                "kind": job.kind,
                "source": job.source,
                "context": dict(job.context),
                "secret": job.secret,
            }
        )
    if "reason" in reply:
        raise RenderFailed(reply["reason"], reply["line"])
    return Rendered(reply["text"], tuple(reply["stop"]))


@dataclass(slots=True)
class _Renderer:
    """The child, started when it is needed; the lock is held by whoever asks it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    process: subprocess.Popen[bytes] | None = None
    inherited: list[subprocess.Popen[bytes] | None] = field(default_factory=list)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the child's answer, or why there is none."""
        process = self._running()
        try:
            assert process.stdin is not None
            data = json.dumps(message, default=str).encode()
            process.stdin.write(struct.pack(">I", len(data)) + data)
            process.stdin.flush()
            reply = self._reply(process)
        except OSError as error:
            reply = {"reason": f"the process that renders it: {error}", "line": None, "last": True}
        except BaseException:
            self.stop()
            raise
        if reply.get("last"):
            self.stop()
        return reply

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = subprocess.Popen(
                child.command("promptflow.sandbox"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child.environment(),
            )
        return self.process

    def _reply(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        until = monotonic() + WALL_SECONDS
        assert process.stdout is not None
        stream = process.stdout.fileno()
        size = _read(stream, 4, until)
        data = _read(stream, struct.unpack(">I", size)[0], until) if len(size) == 4 else b""
        with contextlib.suppress(ValueError):
            reply: dict[str, Any] = json.loads(data)
            return reply
        if monotonic() >= until:
            return {"reason": f"not done within {WALL_SECONDS:g} s", "line": None, "last": True}
        code = process.wait(timeout=WALL_SECONDS)
        reason = f"the process that renders it ended with code {code}"
        if code == -signal.SIGPROF:
            reason = f"not done within {CPU_SECONDS:g} s of processor time"
        return {"reason": reason, "line": None, "last": True}

    def stop(self) -> None:
        """End the child."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()

    def leave(self) -> None:
        """Leave the child to the process that this one was forked from, whoever held the lock."""
        self.inherited.append(self.process)  # dropped, it would be waited for
        self.process, self.lock = None, threading.Lock()


_renderer = _Renderer()
atexit.register(_renderer.stop)
os.register_at_fork(after_in_child=_renderer.leave)


def _read(stream: int, size: int, until: float) -> bytes:
    """Return ``size`` bytes, or fewer where the stream or the time ends."""
    data = b""
    while len(data) < size:
        ready, _, _ = select.select([stream], [], [], max(0.0, until - monotonic()))
        if not ready or not (block := os.read(stream, size - len(data))):
            break
        data += block
    return data


def main() -> None:
    """Answer jobs from stdin on stdout, each within its limits, until stdin ends."""
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGVTALRM, _overtime)
    while len(size := sys.stdin.buffer.read(4)) == 4:
        data = sys.stdin.buffer.read(struct.unpack(">I", size)[0])
        _write(sys.stdout.buffer, _answer(json.loads(data)))


def _overtime(*_: object) -> None:
    raise _Overtime(f"not done within {CPU_SECONDS:g} s of processor time")


def _write(stream: BinaryIO, reply: Mapping[str, Any]) -> None:
    data = json.dumps(reply).encode()
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    try:
        return _timed(Job(**message))
    except _Overtime as error:  # it came between two statements of ours
        return {"reason": str(error), "line": None, "last": True}


def _timed(job: Job) -> dict[str, Any]:
    try:
        # The first raises at the line that runs; the second kills where no line comes to an end.
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS + 0.5)
        done = render_here(job)
        return {"text": done.text, "stop": done.stop}
    except RenderFailed as error:
        last = isinstance(error.__cause__, MemoryError | RecursionError)
        return {"reason": str(error), "line": error.line, "last": last}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
