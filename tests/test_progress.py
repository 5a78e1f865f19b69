from __future__ import annotations

import sys

import pytest

from promptflow.progress import bar, bars


def test_nothing_is_drawn_where_stderr_is_no_terminal(capsys):
    with bar("evaluate", 10) as advance:
        advance(5, "score 0.5")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("in_bytes", [False, True])
def test_a_terminal_is_shown_each_piece_of_work(capsys, monkeypatch, in_bytes):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with bars(in_bytes=in_bytes) as show:
        show("reading", 1, 4)
        show("embedding [x]", 2, 8, "half of [it]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading" in captured.err
    assert "embedding [x] half of [it]" in captured.err
    assert ("2/8 bytes" if in_bytes else "2/8") in captured.err


def test_it_is_not_shown_where_nobody_wants_it(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bar("evaluate", 10, False) as advance:
        advance(5)
    assert capsys.readouterr().err == ""
