from __future__ import annotations

from promptflow.evaluation.progress import bar


def test_nothing_is_drawn_where_stderr_is_no_terminal(capsys):
    with bar("evaluate", 10) as advance:
        advance(5, "score 0.5")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
