from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from promptflow.engine.tickets import REPLAYS, Tickets, frames, resolve
from promptflow.errors import Cancelled, DeadlineExceeded, EngineLost

LOST = EngineLost("gone")


def submission(text: str, deadline: float | None = None) -> dict:
    return {"op": "submit", "job": {"text": text, "deadline": deadline}}


def send(tickets: Tickets, *messages: dict) -> list[tuple[int, Future]]:
    """Issue messages that are all sent at once."""
    issued = tickets.issue(messages)
    assert list(tickets.due()) == [key for key, _ in issued]
    return issued


def test_a_ticket_is_settled_once():
    tickets = Tickets(8)
    [(key, future)] = send(tickets, submission("a"))
    tickets.settle(key, 1)
    tickets.settle(key, 2)
    assert future.result(0) == 1
    [(other, future)] = send(tickets, submission("b"))
    assert other != key
    tickets.settle(other, LOST)
    assert future.exception(0) is LOST


def test_what_had_started_is_lost_and_the_rest_is_sent_again():
    tickets = Tickets(8)
    (a, first), (b, second) = send(tickets, submission("a"), submission("b"))
    tickets.start([a, 99])
    tickets.sort_out(LOST)
    assert tickets.due() == {b: submission("b")}
    assert first.exception(0) is LOST
    tickets.settle(b, "done")
    assert second.result(0) == "done"


def test_what_waits_outlives_any_number_of_workers_that_began_something():
    tickets = Tickets(8)
    [(key, waiting)] = send(tickets, submission("a"))
    for _ in range(REPLAYS + 3):
        [(other, _)] = send(tickets, submission("b"))
        tickets.start([other])
        tickets.sort_out(LOST)
        assert list(tickets.due()) == [key]
        [(other, _)] = send(tickets, submission("c"))
        tickets.settle(other, "done")
        tickets.sort_out(LOST)
        assert list(tickets.due()) == [key]
    assert not waiting.done()


def test_a_request_is_sent_again_a_limited_number_of_times_where_nothing_begins():
    tickets = Tickets(8)
    [(key, future)] = send(tickets, submission("a"))
    for _ in range(REPLAYS):
        tickets.sort_out(LOST)
        assert list(tickets.due()) == [key]
    tickets.sort_out(LOST)
    assert tickets.due() == {}
    assert future.exception(0) is LOST


def test_a_deadline_keeps_running_while_a_request_is_sent_again():
    tickets = Tickets(8)
    late, free = submission("a", deadline=9.0), submission("b")
    send(tickets, late, free)
    tickets.sort_out(LOST)
    first, second = tickets.due().values()
    assert first["job"].pop("waited") > 0
    assert first == late
    assert second == free
    assert "waited" not in late["job"]


def test_all_that_is_open_can_fail_at_once():
    tickets = Tickets(1)
    issued = tickets.issue([submission("a"), submission("b")])
    tickets.due()
    tickets.fail(LOST)
    assert all(future.exception(0) is LOST for _, future in issued)
    tickets.sort_out(LOST)
    assert tickets.due() == {}
    assert list(tickets.due()) == []
    send(tickets, submission("c"))


def test_no_more_than_may_wait_are_sent_and_in_order():
    tickets = Tickets(2)
    keys = [key for key, _ in tickets.issue([submission(text) for text in "abcdef"])]
    assert list(tickets.due()) == keys[:2]
    assert tickets.due() == {}
    [(stats, _)] = tickets.issue([{"op": "stats"}])
    assert list(tickets.due()) == [stats], "what costs the model nothing need not wait"
    tickets.start(keys[:2])
    tickets.start(keys[:2])  # admitted again after a preemption
    assert list(tickets.due()) == keys[2:4]
    tickets.settle(keys[0], "done")
    assert tickets.due() == {}, "one that ran does not make room a second time"
    tickets.settle(keys[2], LOST)
    assert list(tickets.due()) == [keys[4]]
    tickets.sort_out(LOST)
    assert list(tickets.due()) == [stats, *keys[3:5]]
    tickets.start(keys)
    assert list(tickets.due()) == [keys[5]]
    assert tickets.in_line == 0


def test_who_waits_for_room_hears_of_it():
    tickets = Tickets(1)
    (a, _), (b, late) = tickets.issue([submission("a"), submission("b", deadline=0.0)])
    tickets.due()
    assert tickets.wait(a, 0)
    assert not tickets.wait(b, 0)
    heard = threading.Thread(target=tickets.wait, args=(b, None))
    heard.start()
    assert tickets.expire() is None
    heard.join(10)
    assert not heard.is_alive()
    assert isinstance(late.exception(0), DeadlineExceeded)


def test_what_stands_in_line_expires_there():
    tickets = Tickets(1)
    deadlines = [None, 0.0, 60.0, 90.0, None]
    issued = tickets.issue([submission("x", deadline) for deadline in deadlines])
    tickets.due()
    left = tickets.expire()
    assert left is not None
    assert 0 < left <= 60.0
    assert isinstance(issued[1][1].exception(0), DeadlineExceeded)
    assert "not begun within its deadline of 0 s" in str(issued[1][1].exception(0))
    assert [future.done() for _, future in issued] == [False, True, False, False, False]
    tickets.settle(issued[0][0], "done")
    assert list(tickets.due()) == [issued[2][0]], "the settled one takes no place"


def test_what_stands_in_line_is_cancelled_there():
    tickets = Tickets(1)
    (a, first), (b, second), (c, third) = tickets.issue([submission(text) for text in "abc"])
    tickets.due()
    assert tickets.withdraw([a, b, 99]) == [a]
    assert isinstance(second.exception(0), Cancelled)
    assert not first.done()
    assert not third.done()
    tickets.settle(a, "done")
    assert list(tickets.due()) == [c]


def test_deltas_go_to_who_asked_until_the_end():
    tickets, heard = Tickets(8), []
    [(key, _)] = tickets.issue([submission("a")], lambda *delta: heard.append(delta))
    [(other, _)] = tickets.issue([submission("b")])
    tickets.tell(key, "slot", "text")
    tickets.tell(other, "slot", "to nobody")
    tickets.settle(key, "done")
    tickets.tell(key, "slot", "too late")
    assert heard == [("slot", "text")]


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
