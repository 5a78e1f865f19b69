from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import ROOT

from promptflow import sandbox
from promptflow.sandbox import Job, Rendered, RenderFailed, render_here, render_limited


def layout(source: str, **context: Any) -> Job:
    return Job("layout", source, context, secret="5ec2e7")


def test_both_ways_write_the_same():
    job = layout(
        "{% set stop = ['a', 'b'] %}{{ turn('user') }}{% for x in xs %}{{ x.y }}{% endfor %}"
    )
    job = Job(job.kind, job.source, {"xs": [{"y": "1"}, {"y": "\ud800"}]}, job.secret)
    expected = Rendered(f"{sandbox.turn_mark('5ec2e7', 'user')}1\ud800", ("a", "b"))
    assert render_here(job) == render_limited(job) == expected


def test_one_child_renders_all():
    render_limited(layout("a"))
    process = sandbox._renderer.process
    assert process is not None
    for number in range(100):
        assert render_limited(layout("{{ n }}", n=number)).text == str(number)
    assert sandbox._renderer.process is process


ENDLESS = (
    "\n{% set s = 'x' * 9999 %}\n{% for a in s %}{% for b in s %}{% for c in s %}\n"
    "{%- if c == 'y' %}z{% endif %}{% endfor %}{% endfor %}{% endfor %}"
)


def test_what_does_not_end_is_ended_with_its_line():
    with pytest.raises(RenderFailed, match="not done within 1 s of processor time") as caught:
        render_limited(layout(ENDLESS))
    assert caught.value.line in (3, 4)
    assert render_limited(layout("b")).text == "b"


def test_native_code_that_does_not_end_is_killed():
    """One call that never comes back to Python."""
    job = layout("{{ ([[1] * 9999] * 9999) | sum(start=[]) }}")
    with pytest.raises(RenderFailed, match=r"processor time|MemoryError"):
        render_limited(job)
    assert render_limited(layout("b")).text == "b"


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'a' | center(1000000000) }}",
        "{% set x %}{% for a in 'x' * 9999 %}{{ 'y' * 9999 }}{% endfor %}{% endset %}"
        "{{ x ~ x ~ x ~ x ~ x ~ x }}",
    ],
)
def test_memory_is_bounded(source: str):
    with pytest.raises(RenderFailed, match=r"MemoryError|over 4,194,304 characters"):
        render_limited(layout(source))
    assert render_limited(layout("b")).text == "b"


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("\n\n{{ 9**(9**9) }}", 3, "over 4,096"),
        ("{{ 'x' * 10**10 }}", 1, "10,000,000,000 items, over 10,000"),
        ("{{ [1] * 10001 }}", 1, "over 10,000"),
        ("\n{{ 3.5 * 'x' }}", 2, "TypeError"),
        ("{% for i in range(10**9) %}x{% endfor %}", 1, "'range' is undefined"),
        ("a\n{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}", 2, "RecursionError"),
        ("a\nb{{ ''.__class__ }}", 2, "access to attribute '__class__'"),
        ("{{ turn.__globals__ }}", 1, "access to attribute '__globals__'"),
        ("{{ turn(1) }}", 1, "the role of a turn is text"),
        ("a\n\n{{ nothing }}", 3, "'nothing' is undefined"),
        ("a\n{% for %}", 2, "Expected an expression"),
        ("\n{{ 1", 2, "unexpected end of template"),
        ("{% include '/etc/passwd' %}", 1, "TemplateNotFound: /etc/passwd"),
        ("{% include '../errors.py' %}", 1, "TemplateNotFound: ../errors.py"),
        ("a\n{% for a in 'x' * 9999 %}{{ 'y' * 9999 }}{% endfor %}", 2, "the output is over"),
        ("{% set stop = 'x' %}", None, "stop is str, and it is a list of texts"),
        ("{% set stop = [1] %}", None, "stop is list, and it is a list of texts"),
        (" " * 300_000, None, "300,000 characters are over"),
        ("{{" + "(" * 5000 + ")" * 5000 + "}}", None, "RecursionError"),
    ],
)
def test_the_reason_and_the_line_are_told(source: str, line: int | None, says: str):
    for render in (render_here, render_limited):
        with pytest.raises(RenderFailed) as caught:
            render(layout(source))
        assert says in str(caught.value)
        assert caught.value.line == line


def test_a_child_that_died_is_replaced():
    render_limited(layout("a"))
    process = sandbox._renderer.process
    assert process is not None
    process.kill()
    process.wait()
    assert render_limited(layout("b")).text == "b"


def test_threads_take_turns():
    with ThreadPoolExecutor(8) as pool:
        jobs = [layout("{{ n }}", n=n) for n in range(200)]
        assert [done.text for done in pool.map(render_limited, jobs)] == [
            str(n) for n in range(200)
        ]


def test_a_forked_process_has_a_child_of_its_own():
    render_limited(layout("a"))
    process = sandbox._renderer.process
    assert process is not None
    pid = os.fork()
    if not pid:
        ok = False
        try:
            ok = render_limited(layout("{{ n }}", n=7)).text == "7"
            ok = ok and sandbox._renderer.process is not process
            sandbox._renderer.stop()
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert render_limited(layout("b")).text == "b"
    assert sandbox._renderer.process is process


def test_a_process_forked_while_another_thread_renders_does_not_wait():
    with sandbox._renderer.lock:
        pid = os.fork()
        if not pid:
            ok = False
            try:
                ok = render_limited(layout("a")).text == "a"
                sandbox._renderer.stop()
            finally:
                os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_interrupt_leaves_nothing_half_read(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_read", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            render_limited(layout("a"))
    assert render_limited(layout("b")).text == "b"


def test_the_child_ends_with_its_parent():
    code = (
        "from promptflow import sandbox\n"
        "sandbox.render_limited(sandbox.Job('layout', 'a', {}))\n"
        "print(sandbox._renderer.process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
