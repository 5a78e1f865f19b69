from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from promptflow.engine.process.last_words import ERRORS, LINES, LastWords

ASSERT = "/src/ggml/src/ggml.c:123: GGML_ASSERT(n_tokens <= n_batch) failed"
GDB = """\
warning: File "/usr/bin/python3-gdb.py" auto-loading has been declined by your `auto-load safe-path'
To enable execution of this file add
\tadd-auto-load-safe-path /usr/bin/python3-gdb.py
line to your configuration file "/root/.config/gdb/gdbinit".
[New LWP 301]
[Thread debugging using libthread_db enabled]
Using host libthread_db library "/lib/x86_64-linux-gnu/libthread_db.so.1".
0x00007fb3d60f1bd3 in __GI___wait4 (pid=30329, options=0) at ../sysdeps/unix/sysv/linux/wait4.c:30
30\t../sysdeps/unix/sysv/linux/wait4.c: No such file or directory.
#1  0x00007fb3d5c1e68b in ggml_print_backtrace () from libggml-base.so
90\t./Include/internal/pycore_call.h: No such file or directory.
[Inferior 1 (process 30320) detached]
"""
REFUSED = """\
Could not attach to process.  If your uid matches the uid of the target
process, check the setting of /proc/sys/kernel/yama/ptrace_scope, or try
again as the root user.  For more details, see /etc/sysctl.d/10-ptrace.conf
ptrace: Operation not permitted.
No stack.
The program is not being run.
"""
NATIVE = """\
WARNING: Using native backtrace. Set GGML_BACKTRACE_LLDB for more info.
WARNING: GGML_BACKTRACE_LLDB may cause native MacOS Terminal.app to crash.
See: https://github.com/ggml-org/llama.cpp/pull/17869
/lib/libggml-base.so(ggml_print_backtrace+0x3b)[0x7f6b24c07b80]
/lib/x86_64-linux-gnu/libc.so.6(+0x29d90) [0x7f6b24c07b81]
"""


def words(text: str, code: int = -signal.SIGABRT) -> str:
    said = LastWords()
    for line in text.splitlines():
        said.hear(f"{line}\n".encode())
    return said.of(code)


@pytest.mark.parametrize("noise", [GDB, REFUSED, NATIVE, 20 * GDB + REFUSED], ids=len)
def test_an_assertion_is_the_cause_and_the_debugger_is_left_out(noise):
    shown = words(f"load: fine\n{ASSERT}\n{noise}Fatal Python error: Aborted\n")
    assert shown.startswith(f"SIGABRT: {ASSERT} (run `promptflow doctor`")
    _, _, log = shown.partition("Last log lines:\n  ")
    kept = [line.strip() for line in log.splitlines()]
    left = [line for line in kept if not line.startswith(("load", "/src", "Fatal"))]
    assert left == []


@pytest.mark.parametrize(
    "line",
    [
        "CUDA error: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "  what():  std::bad_alloc",
        "ggml.c:1: fatal error",
        "RuntimeError: out of order",
        "json.decoder.JSONDecodeError: Expecting value",
    ],
)
def test_the_cause_is_named_before_the_lines_that_pushed_it_out(line):
    many = "\n".join(f"line {n}" for n in range(3 * LINES))
    shown = words(f"first\n{line}\n{many}")
    assert f"SIGABRT: {line}" in shown
    assert shown.endswith(f"line {3 * LINES - 1}")
    assert "first" not in shown


def test_errors_outlive_other_lines_in_bounded_memory():
    said = LastWords()
    for number in range(1000):
        said.hear(b"load: failed to map %d" % number + b"x" * 100_000)
        for _ in range(LINES):
            said.hear(b"dots")
    lines = said.of(1).partition("Last log lines:\n")[2].splitlines()
    assert len(lines) == LINES + ERRORS
    assert lines[0].startswith("  load: failed to map 995x")
    assert max(map(len, lines)) < 600


def test_control_characters_are_visible():
    assert r"\x1b]0;owned\x07 failed" in words("\x1b]0;owned\x07 failed")
    assert words("a\tb").endswith(r"a\tb")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGKILL, "SIGKILL (probably out of memory: lower EngineOptions(context=...)"),
        (-signal.SIGSEGV, "SIGSEGV (run `promptflow doctor`"),
        (-signal.SIGTERM, "SIGTERM (somebody ended it: send the requests again)"),
        (3, "exit code 3 (run `promptflow doctor`"),
    ],
)
def test_how_it_ended_and_what_to_do(code, expected):
    assert words("", code).startswith(expected)
    assert words("", code).endswith("(no log lines)")


def test_an_error_from_which_the_child_recovered_is_not_why_it_was_killed():
    assert words("RuntimeError: once", -signal.SIGKILL).startswith("SIGKILL (probably")


DEATHS = {
    "ggml": """
import ctypes, llama_cpp
ggml = ctypes.CDLL(os.path.dirname(llama_cpp.__file__) + "/lib/libggml-base.so")
ggml.ggml_abort(b"ggml.c", 7, b"GGML_ASSERT(%s) failed", b"n_batch > 0")""",
    "python": "raise ValueError('no such model')",
    "exit": "sys.exit(3)",
    "segv": "faulthandler.enable()\nos.kill(os.getpid(), signal.SIGSEGV)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ("ggml", "SIGABRT: ggml.c:7: GGML_ASSERT(n_batch > 0) failed ("),
        ("python", "exit code 1: ValueError: no such model ("),
        ("exit", "exit code 3 ("),
        ("segv", "SIGSEGV ("),
        ("killed", "SIGKILL (probably out of memory"),
    ],
)
@pytest.mark.parametrize("debugger", [False, True])
def test_what_real_deaths_leave(fate, expected, debugger):
    environment = {k: v for k, v in os.environ.items() if k != "GGML_NO_BACKTRACE"}
    if not debugger:
        environment["GGML_NO_BACKTRACE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", "import faulthandler, os, signal, sys\n" + DEATHS[fate]],
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
        env=environment,
    )
    shown = words(done.stderr.decode(), done.returncode)
    assert shown.startswith(expected)
    assert "wait4" not in shown
