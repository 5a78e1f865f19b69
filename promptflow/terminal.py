"""Text for people: what a model or a document wrote is shown to a terminal, never obeyed by it.

A terminal takes some characters for commands: to move, to hide, to rename, to paste. Whoever reads
an answer, a file's name or an error did not ask for them, and a pipe may end at a terminal too.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable

# C0 but tab and newline, DEL, C1, marks that reorder text, separators of lines and paragraphs, the
# byte order mark, and halves of characters, which no encoding writes. Joiners of letters and emoji
# stay: text needs them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: object, *, in_line: bool = False) -> str:
    """Return ``str(text)`` with control characters as escapes, ends of lines too ``in_line``."""
    shown = HIDDEN.sub(_escape, str(text).replace("\r\n", "\n"))
    return shown.replace("\n", "\\n").replace("\t", "\\t") if in_line else shown


def visible_json(text: str) -> str:
    """Return JSON with control characters as its own escapes, which read back as they were."""
    return HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: object = "", *, end: str = "\n", error: bool = False) -> None:
    """Write visible text to stdout, or to stderr where ``error``."""
    stream = sys.stderr if error else sys.stdout
    shown = visible(text) + end
    try:
        stream.write(shown)
    except UnicodeEncodeError:  # a stream that is not UTF-8: what it lacks is shown as escapes
        encoding = stream.encoding or "ascii"
        stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def say_painted(spans: Iterable[tuple[str, str]]) -> None:
    """Write visible texts to stdout, each in its colour where stdout is a terminal that has some.

    A colour is what stands between ``ESC [`` and ``m``: ``1;33``. ``NO_COLOR`` switches them off.
    """
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    for text, colour in spans:
        if plain:
            say(text, end="")
        else:
            sys.stdout.write(f"\x1b[{colour}m")
            say(text, end="\x1b[0m")


def listen(prompt: str = "") -> str:
    """Return the next line of stdin; ``prompt`` is shown where both ends are a terminal.

    Raises EOFError at the end.
    """
    live = sys.stdin.isatty() and sys.stdout.isatty()
    if live:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 with it, arrows edit the line
    return input(prompt if live else "")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
