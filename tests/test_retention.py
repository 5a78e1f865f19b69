from __future__ import annotations

from itertools import takewhile

from hypothesis import given, strategies as st

from promptflow.engine.cache.retention import FIRST_AGE, LEAST_AGE, MOST_AGE, RENT, Retention

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=10)
TRUNK = list(range(100))


@given(st.lists(tokens, max_size=12), tokens, st.integers(1, 6))
def test_the_trunk_is_what_two_of_the_last_prompts_begin_with(prompts, asked, limit):
    retention = Retention(limit)
    for prompt in prompts:
        retention.began(prompt, 0)
    pairs = [zip(prompt, asked, strict=False) for prompt in prompts[-limit:]]
    last = [len(list(takewhile(lambda pair: pair[0] == pair[1], both))) for both in pairs]
    reach = sorted(last, reverse=True)
    assert retention.trunk(asked) == (reach[1] if len(reach) > 1 else 0)


def test_everything_stays_for_a_while_and_what_is_shared_for_as_long_as_it_pays():
    retention = Retention()
    for number in range(2):
        retention.began([*TRUNK, 1000 + number], 0)
    text = [*TRUNK, 1000, 7, 8]
    age = retention.age
    assert retention.kept(text, age) == len(text)
    assert retention.kept(text, age + 1) == len(TRUNK)
    assert retention.kept(TRUNK, RENT) == len(TRUNK)
    assert retention.kept(TRUNK, RENT + 1) == 0


def test_tails_that_leave_unasked_lower_the_age():
    retention = Retention()
    for number in range(200):
        assert retention.kept([number], RENT) == 0
    assert retention.age == LEAST_AGE


def test_a_trunk_that_stays_is_no_tail_that_leaves():
    retention = Retention()
    for _ in range(2):
        retention.began(TRUNK, len(TRUNK))
    for _ in range(10):
        retention.kept(TRUNK, RENT)
    assert retention.age == FIRST_AGE


def test_what_was_let_go_too_soon_raises_the_age():
    retention = Retention()
    retention.began(TRUNK, 0)
    retention.began([*TRUNK, *[1] * 20], 70)
    assert retention.age == FIRST_AGE, "30 of 120 tokens are little to regret"
    retention.began([*TRUNK, *[2] * 20], 69)
    assert retention.age == 2 * FIRST_AGE
    for number in range(9):
        retention.began([*TRUNK, number], 0)
    assert retention.age == MOST_AGE
    assert retention.kept([*TRUNK, 0], RENT + 1) == len(TRUNK) + 1
