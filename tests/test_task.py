from __future__ import annotations

from promptflow.engine.task import Task


def test_a_task_promises_what_it_may_still_need_and_what_its_forks_may():
    task = Task(1, [5, 6, 7], length_limit=20, computed=2, forks=3, fork_limit=9)
    assert (task.pending, task.promised) == (1, 18)
    task.spares = [4, 5]
    assert task.promised == 18 + 2 * 9, "forks that have not been made yet"
