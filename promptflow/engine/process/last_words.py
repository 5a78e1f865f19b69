"""What a child that died has said: its errors from the whole of its life, and its last lines.

ggml's abort may start a debugger, whose backtrace would push llama.cpp's own words out of sight.
"""

from __future__ import annotations

import re
import signal
from collections import deque

from promptflow.terminal import visible

LINES, ERRORS, LENGTH = 20, 5, 500  # last lines, errors before them, and characters of a line
_DEBUGGERS = (
    r"\[(New LWP|Thread debugging|Inferior|Detaching|Current thread is|TRUNCATED)",
    r"Using host libthread_db|0x[0-9a-f]+ in |#\d+\s|\d+\t|\s*\*?\s*(thread|frame) #",
    r".*\(.*\+0x[0-9a-f]+\) ?\[0x[0-9a-f]+\]$|\(lldb\)|Process \d+ (stopped|detached)",
    r"ptrace:|No stack|The program (is not|has no)|Could not attach|If your uid matches",
    r"the target process|process, check the setting of|again as (the )?root",
    r"warning: (File|process|\d|Unable|could not)|To (enable execution|completely disable)",
    r"\t(add-auto|set auto|info )|line to your conf|For more information about this sec",
    r'"?Auto-loading safe|This GDB|Enable debuginfod|Debuginfod|<?https://debuginfod|Download',
    r"Missing separate|WARNING: (Using native backtrace|GGML_BACKTRACE)|Extension modules:",
    r"See: https://github\.com/ggml-org",
)
_DEBUGGER = re.compile("|".join(_DEBUGGERS))
_FATAL = re.compile(
    r"GGML_ASSERT|GGML_ABORT|fatal error|CUDA error|terminate called|what\(\):|bad_alloc"
    r"|^[\w.]*(Error|Exception)\b",
    re.IGNORECASE,
)
_ERROR = re.compile(r"error|failed|cannot|unable to|out of memory|assert", re.IGNORECASE)
_ADVICE = {
    signal.SIGKILL: "probably out of memory: lower EngineOptions(context=...), or take a smaller "
    "model",
    signal.SIGTERM: "somebody ended it: send the requests again",
}


class LastWords:
    """The lines of a child's stderr that tell why it died, in bounded memory."""

    def __init__(self) -> None:
        """Have heard nothing."""
        self._lines: deque[str] = deque(maxlen=LINES)
        self._errors: deque[str] = deque(maxlen=ERRORS)
        self._fatal = ""

    def hear(self, line: bytes) -> None:
        """Keep a line, unless it is a debugger's; control characters become visible."""
        text = line.decode("utf-8", "replace").rstrip()[:LENGTH]
        if not text or _DEBUGGER.match(text):
            return
        text = visible(text, in_line=True)
        if len(self._lines) == LINES and _ERROR.search(self._lines[0]):
            self._errors.append(self._lines[0])
        self._lines.append(text)
        if _FATAL.search(text):
            self._fatal = text

    def of(self, code: int) -> str:
        """Return how a child with this return code ended, why, what to do, and its lines."""
        how, advice = f"exit code {code}", "run `promptflow doctor`, which loads the model anew"
        if code < 0:
            how = signal.Signals(-code).name
            advice = _ADVICE.get(signal.Signals(-code), advice)
        why = f": {self._fatal}" if self._fatal and code != -signal.SIGKILL else ""
        log = "\n  ".join([*self._errors, *self._lines]) or "(no log lines)"
        return f"{how}{why} ({advice}). Last log lines:\n  {log}"
