from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from promptflow.errors import BudgetExceeded
from promptflow.optimization.plan import LEAST, cost, fitting, make_plan, schedule
from promptflow.optimization.study import Budget


def test_halving_by_hand():
    assert schedule(12, 100) == [(12, 8), (6, 16), (3, 32), (2, 64)]
    # 13 x 8, 7 x 8, 4 x 16, 3 x 32 with the start beside them.
    assert cost(schedule(12, 100)) == 104 + 56 + 64 + 96
    assert schedule(1, 5) == [(1, 5)]
    assert schedule(12, 8) == [(12, 8)]


@given(
    st.integers(16, 3000),
    st.tuples(st.integers(2, 500), st.integers(4, 500), st.integers(4, 500)),
    st.integers(1, 40),
)
def test_a_plan_never_exceeds_its_calls(calls, sizes, candidates):
    plan = make_plan(sizes, candidates, 96, Budget(calls=calls))
    assert plan.calls <= calls
    assert plan.rungs
    assert LEAST <= plan.held <= max(LEAST, sizes[2])
    assert plan.calls == plan.bootstrap + cost(plan.rungs) + 2 * plan.held


def test_without_limits_all_data_is_used():
    plan = make_plan((30, 40, 50), 4, 96, Budget())
    assert (plan.bootstrap, plan.held) == (30, 50)
    assert str(plan).startswith(f"at most {plan.calls} runs: 30 to collect demos")


def test_the_smallest_budget():
    with pytest.raises(BudgetExceeded, match="give at least 16"):
        make_plan((30, 40, 50), 4, 96, Budget(calls=15))
    assert fitting(12, 40, 7) == []
    assert fitting(12, 40, 8) == [(1, 4)]


def test_little_money_seats_fewer_and_what_is_left_lengthens_the_last_rung():
    assert fitting(12, 40, 100) == [(4, 8), (2, 28)]
    assert fitting(12, 40, 60) == [(4, 4), (2, 17)]
    assert fitting(12, 10, 60) == [(5, 8), (3, 10)]
    assert fitting(12, 100, float("inf")) == schedule(12, 100)
