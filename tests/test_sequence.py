from __future__ import annotations

from promptflow.engine.sequence import GROWTH, Sequence


def test_a_task_promises_what_it_may_still_need_and_what_its_forks_may():
    sequence = Sequence(1, [5, 6, 7], length_limit=20, computed=2, forks=3, fork_limit=9)
    assert (sequence.pending, sequence.promised(0)) == (1, 18)
    assert sequence.promised(2) == 18 + 2 * 9, "forks that have not been made yet"


def test_a_task_reaches_what_is_likely_then_half_again_and_never_beyond_its_limit():
    sequence = Sequence(1, [0] * 10, length_limit=100, likely=40, prompt=10)
    assert (sequence.reach, sequence.promised(0)) == (40, 40)
    sequence.computed = 10
    assert sequence.promised(0) == 30
    sequence.tokens += [0] * 30
    assert (sequence.reach, sequence.has_outgrown) == (40, False)
    sequence.tokens += [0]
    assert (sequence.reach, sequence.has_outgrown) == (41 + GROWTH, True)
    sequence.tokens += [0] * 19
    assert sequence.reach == 60 + 25
    sequence.tokens += [0] * 30
    assert sequence.reach == 100


def test_forks_reach_as_far_as_the_answer_and_never_beyond_their_own_limit():
    sequence = Sequence(1, [0] * 10, length_limit=100, likely=40, prompt=10, forks=3, fork_limit=20)
    assert sequence.promised(3) == 40 + 3 * 20
    sequence.fork_limit = 90
    assert sequence.promised(3) == 40 + 3 * 30
