from __future__ import annotations

from concurrent.futures import Future

import pytest

from promptflow.engine.tickets import REPLAYS, Tickets, frames, resolve
from promptflow.errors import EngineLost

LOST = EngineLost("gone")


def submission(text: str, deadline: float | None = None) -> dict:
    return {"op": "submit", "job": {"text": text, "deadline": deadline}}


def test_a_ticket_is_settled_once():
    tickets = Tickets()
    [(key, future)] = tickets.issue([submission("a")])
    tickets.settle(key, 1)
    tickets.settle(key, 2)
    assert future.result(0) == 1
    [(other, future)] = tickets.issue([submission("b")])
    assert other != key
    tickets.settle(other, LOST)
    assert future.exception(0) is LOST


def test_what_had_started_is_lost_and_the_rest_is_sent_again():
    tickets = Tickets()
    (a, first), (b, second) = tickets.issue([submission("a"), submission("b")])
    tickets.start([a, 99])
    again = tickets.sort_out(LOST)
    assert again == {b: submission("b")}
    assert first.exception(0) is LOST
    tickets.settle(b, "done")
    assert second.result(0) == "done"


def test_what_waits_outlives_any_number_of_workers_that_began_something():
    tickets = Tickets()
    [(key, waiting)] = tickets.issue([submission("a")])
    for _ in range(REPLAYS + 3):
        [(other, _)] = tickets.issue([submission("b")])
        tickets.start([other])
        assert list(tickets.sort_out(LOST)) == [key]
        [(other, _)] = tickets.issue([submission("c")])
        tickets.settle(other, "done")
        assert list(tickets.sort_out(LOST)) == [key]
    assert not waiting.done()


def test_a_request_is_sent_again_a_limited_number_of_times_where_nothing_begins():
    tickets = Tickets()
    [(key, future)] = tickets.issue([submission("a")])
    for _ in range(REPLAYS):
        assert list(tickets.sort_out(LOST)) == [key]
    assert tickets.sort_out(LOST) == {}
    assert future.exception(0) is LOST


def test_a_deadline_keeps_running_while_a_request_is_sent_again():
    tickets = Tickets()
    late, free = submission("a", deadline=1e-9), submission("b")
    tickets.issue([late, free])
    first, second = tickets.sort_out(LOST).values()
    assert first["job"] == {"text": "a", "deadline": 0.0}
    assert second == free
    assert late == submission("a", deadline=1e-9)


def test_all_that_is_open_can_fail_at_once():
    tickets = Tickets()
    issued = tickets.issue([submission("a"), submission("b")])
    tickets.fail(LOST)
    assert all(future.exception(0) is LOST for _, future in issued)
    assert tickets.sort_out(LOST) == {}


def test_jobs_of_one_kind_travel_in_one_frame():
    messages = {
        1: {"op": "submit", "job": "a"},
        2: {"op": "submit", "job": "b"},
        3: {"op": "score", "prefix": [], "job": "c"},
        4: {"op": "score", "prefix": ["p"], "job": "d"},
        5: {"op": "score", "prefix": ["p"], "job": "e"},
        6: {"op": "stats"},
        7: {"op": "submit", "job": "f"},
    }
    assert frames(messages) == [
        {"op": "submit", "jobs": [[1, "a"], [2, "b"]]},
        {"op": "score", "prefix": [], "jobs": [[3, "c"]]},
        {"op": "score", "prefix": ["p"], "jobs": [[4, "d"], [5, "e"]]},
        {"op": "stats", "key": 6},
        {"op": "submit", "jobs": [[7, "f"]]},
    ]
    assert "jobs" not in messages[1], "a message may be sent again"


def test_a_cancelled_future_is_left_alone():
    future: Future[int] = Future()
    future.cancel()
    resolve(future, 1)
    assert future.cancelled()
    failed: Future[int] = Future()
    resolve(failed, LOST)
    with pytest.raises(EngineLost):
        failed.result(0)
