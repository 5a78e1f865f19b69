from __future__ import annotations

from promptflow.engine.sequence import GROWTH, Task


def test_a_task_promises_what_it_may_still_need_and_what_its_forks_may():
    task = Task(1, [5, 6, 7], length_limit=20, computed=2, forks=3, fork_limit=9)
    assert (task.pending, task.promised(0)) == (1, 18)
    assert task.promised(2) == 18 + 2 * 9, "forks that have not been made yet"


def test_a_task_reaches_what_is_likely_then_half_again_and_never_beyond_its_limit():
    task = Task(1, [0] * 10, length_limit=100, likely=40, prompt=10)
    assert (task.reach, task.promised(0)) == (40, 40)
    task.computed = 10
    assert task.promised(0) == 30
    task.tokens += [0] * 30
    assert (task.reach, task.has_outgrown) == (40, False)
    task.tokens += [0]
    assert (task.reach, task.has_outgrown) == (41 + GROWTH, True)
    task.tokens += [0] * 19
    assert task.reach == 60 + 25
    task.tokens += [0] * 30
    assert task.reach == 100


def test_forks_reach_as_far_as_the_answer_and_never_beyond_their_own_limit():
    task = Task(1, [0] * 10, length_limit=100, likely=40, prompt=10, forks=3, fork_limit=20)
    assert task.promised(3) == 40 + 3 * 20
    task.fork_limit = 90
    assert task.promised(3) == 40 + 3 * 30
