from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings, strategies as st

from promptflow.engine.cache.cache import Cache
from promptflow.engine.cache.cells import Copy, Drop
from promptflow.engine.cache.retention import FIRST_AGE, LEAST_AGE, RENT
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.loop.scheduler import PATIENCE, SCORED_ROWS, Plan, Scheduler
from promptflow.engine.sequence import Sequence

TRUNK = list(range(100, 110))
ROW = np.zeros(3, dtype=np.float32)


def sequence(number: int, tokens: list[int], room: int = 5, **more: Any) -> Sequence:
    return Sequence(number, list(tokens), len(tokens) + room, **more)


def scheduling(
    cells: int, batch: int, sequences: int, max_running: int, sharing: bool = True
) -> Scheduler:
    cache = Cache(cells, sequences, sharing)
    return Scheduler(cache, batch, min(max_running, sequences))


def step(scheduler: Scheduler) -> Plan:
    while not scheduler.relieve()[0]:
        scheduler.preempt(scheduler.first_to_go(scheduler.running))
    plan = scheduler.step()
    for one, take in plan.rows:
        scheduler.computed(one, take)
    return plan


def finish(scheduler: Scheduler, *sequences: Sequence) -> None:
    for one in sequences:
        while one.pending:
            step(scheduler)
        scheduler.finish(one, keep=True)


def rows(plan: Plan) -> list[tuple[int, int]]:
    return [(one.number, take) for one, take in plan.rows]


def test_siblings_wait_for_one_prefill_and_share_it():
    scheduler = scheduling(1000, 64, 8, 8)
    sequences = [sequence(n, [*TRUNK, n]) for n in range(4)]
    for one in sequences:
        scheduler.submit(one)
    assert rows(step(scheduler)) == [(0, 11)]
    plan = step(scheduler)
    assert rows(plan) == [(1, 1), (2, 1), (3, 1)]
    assert [move.end for move in plan.moves] == [10, 10, 10]
    assert scheduler.cache.cells.used == 10 + 4


def test_programs_that_arrive_together_are_computed_one_after_the_other():
    scheduler = scheduling(1000, 64, 32, 16)
    heads = [[number] * 100 for number in (7, 8)]
    sequences = [sequence(number, [*heads[number % 2], number]) for number in range(12)]
    for one in sequences:
        scheduler.submit(one)
    assert rows(step(scheduler)) == [(0, 64)]
    assert rows(step(scheduler)) == [(0, 37)], "nothing of the other program yet"
    assert {one.number % 2 for one in scheduler.running} == {0}
    step(scheduler)
    assert sum(one.number % 2 == 0 for one in scheduler.running) == 6


def test_nested_prefixes_are_computed_from_the_root_on():
    scheduler = scheduling(1000, 64, 8, 8)
    for number, tail in enumerate([[1], [2, 2, 2, 1], [2, 2, 2, 2]]):
        scheduler.submit(sequence(number, TRUNK + tail))
    assert rows(step(scheduler)) == [(0, 11)]
    assert rows(step(scheduler)) == [(1, 4)]
    assert rows(step(scheduler)) == [(2, 1)]


def test_without_sharing_nothing_is_taken_or_left():
    scheduler = scheduling(1000, 64, 8, 8, sharing=False)
    sequences = [sequence(n, TRUNK) for n in range(2)]
    for one in sequences:
        scheduler.submit(one)
    plan = step(scheduler)
    assert rows(plan) == [(0, 10), (1, 10)]
    assert not plan.moves
    assert not sequences[0].wants
    finish(scheduler, *sequences)
    assert not scheduler.cache.retained
    assert scheduler.cache.cells.used == 0


def test_the_longest_ready_prefix_goes_first():
    scheduler = scheduling(1000, 64, 8, max_running=1)
    first = sequence(0, TRUNK)
    scheduler.submit(first)
    finish(scheduler, first)
    scheduler.submit(sequence(1, [1, 2, 3]))
    scheduler.submit(sequence(2, [*TRUNK, 5]))
    assert [one.number for one in step(scheduler).admitted] == [2]


def test_a_sequence_is_overtaken_a_limited_number_of_times():
    scheduler = scheduling(10_000, 64, 8, max_running=1)
    trunk = sequence(0, TRUNK)
    scheduler.submit(trunk)
    finish(scheduler, trunk)
    scheduler.submit(sequence(1, [1, 2, 3]))
    order = []
    for number in range(2, 2 * PATIENCE):
        scheduler.submit(sequence(number, [*TRUNK, number]))
        [admitted] = step(scheduler).admitted
        order.append(admitted.number)
        finish(scheduler, admitted)
    assert order.index(1) == PATIENCE + 1


def test_a_sequence_that_only_waits_in_line_loses_no_patience():
    scheduler = scheduling(10_000, 64, 8, max_running=1)
    for number in range(PATIENCE + 10):
        scheduler.submit(sequence(number, [number]))
    last = scheduler.waiting[-1]
    for _ in range(PATIENCE + 5):
        [admitted] = step(scheduler).admitted
        finish(scheduler, admitted)
    assert last.skipped == 0


def test_decoding_goes_before_prefill_within_the_batch():
    scheduler = scheduling(1000, 8, 8, 8)
    long, short = sequence(0, list(range(30))), sequence(1, [50])
    scheduler.submit(short)
    assert rows(step(scheduler)) == [(1, 1)]
    scheduler.submit(long)
    short.tokens.append(51)
    assert rows(step(scheduler)) == [(1, 1), (0, 7)]
    short.tokens.append(52)
    assert rows(step(scheduler)) == [(1, 1), (0, 7)]


def test_scored_positions_of_a_batch_are_limited():
    scheduler = scheduling(10_000, 512, 8, 8)
    one = sequence(0, list(range(400)), scored_from=100)
    other = sequence(1, [900, 901])
    scheduler.submit(one)
    scheduler.submit(other)
    assert rows(step(scheduler)) == [(1, 2), (0, 100 + SCORED_ROWS)]
    assert rows(step(scheduler)) == [(0, SCORED_ROWS)]
    assert rows(step(scheduler)) == [(0, 400 - 100 - 2 * SCORED_ROWS)]


def test_the_end_of_a_waiting_prompt_is_asked_of_who_computes_it():
    scheduler = scheduling(1000, 4, 8, 8)
    holder, twin, part = sequence(0, TRUNK), sequence(1, TRUNK), sequence(2, TRUNK[:6])
    for one in (holder, twin):
        scheduler.submit(one)
    step(scheduler)
    scheduler.submit(part)  # comes while the holder is on its way there
    assert holder.wants == {9, 5}
    assert scheduler.waiting_at(holder, 5) == [part]
    assert holder.wants == {9}
    part.row = ROW
    step(scheduler)
    plan = step(scheduler)
    assert plan.admitted == [part]
    assert plan.moves == [Copy(holder.seq_id, part.seq_id, 6)]
    assert part.pending == 0
    assert part.row is ROW


def test_without_the_logits_the_last_token_is_computed_again():
    scheduler = scheduling(1000, 64, 8, 8)
    first, twin = sequence(0, TRUNK), sequence(1, TRUNK)
    scheduler.submit(first)
    finish(scheduler, first)
    scheduler.submit(twin)
    plan = step(scheduler)
    assert plan.moves[0].end == 9
    assert rows(plan) == [(1, 1)]


def test_capacity_is_reserved_up_to_what_sequence_may_need():
    scheduler = scheduling(40, 64, 8, 8)
    sequences = [sequence(n, [n] * 10, room=5) for n in range(3)]
    for one in sequences:
        scheduler.submit(one)
    assert [one.number for one in step(scheduler).admitted] == [0, 1]
    assert not step(scheduler).admitted
    finish(scheduler, sequences[0])
    assert [one.number for one in step(scheduler).admitted] == [2]


def test_a_shared_prefix_is_reserved_once():
    scheduler = scheduling(40, 64, 8, 8)
    for number in range(4):
        scheduler.submit(sequence(number, [*TRUNK, number], room=4))
    step(scheduler)
    assert len(step(scheduler).admitted) == 3


def test_the_least_recently_used_prefix_is_evicted_first():
    scheduler = scheduling(60, 64, 8, 8)
    for number in range(3):
        one = sequence(number, [number] * 8, room=0)
        scheduler.submit(one)
        finish(scheduler, one)
    again = sequence(3, [*[0] * 8, 9], room=0)
    scheduler.submit(again)
    finish(scheduler, again)
    plan = Plan()
    scheduler.submit(sequence(4, [7] * 40, room=0))
    plan = scheduler.step()
    assert plan.moves == [Drop(1)]
    assert scheduler.cache.evicted == 1


def test_where_only_the_prefix_itself_can_be_evicted_its_tail_is():
    scheduler = scheduling(40, 64, 8, 8)
    scheduler.cache.retain_limit = 40
    old = sequence(0, [*TRUNK, *[1] * 20], room=0)
    scheduler.submit(old)
    finish(scheduler, old)
    heir = sequence(1, [*TRUNK, *[2] * 20], room=5)
    scheduler.submit(heir)
    plan = step(scheduler)
    assert plan.moves == [Drop(0, 10), Copy(0, heir.seq_id, 10)]
    assert scheduler.cache.retained == {0: TRUNK}
    assert scheduler.cache.cells.used == 30


def test_a_prefix_is_taken_over_where_no_sequence_number_is_left():
    scheduler = scheduling(100, 64, sequences=1, max_running=4)
    old, heir = sequence(0, [*TRUNK, 1]), sequence(1, [*TRUNK, 2])
    scheduler.submit(old)
    finish(scheduler, old)
    scheduler.submit(heir)
    plan = step(scheduler)
    assert plan.moves == [Drop(0, 10)]
    assert rows(plan) == [(1, 1)]
    assert heir.seq_id == 0
    assert not scheduler.cache.retained


def test_sequence_numbers_held_by_finished_sequence_are_given_up_for_new_ones():
    scheduler = scheduling(1000, 64, sequences=2, max_running=2)
    for number in range(20):
        one = sequence(number, [number, 1])
        scheduler.submit(one)
        finish(scheduler, one)
        assert not scheduler.waiting
    assert len(scheduler.cache.retained) == 2


def test_what_can_never_fit_is_handed_back():
    scheduler = scheduling(20, 64, 8, 8)
    kept, giant = sequence(0, [1, 2]), sequence(1, [3] * 21, room=0)
    scheduler.submit(kept)
    step(scheduler)
    scheduler.submit(giant)
    assert not step(scheduler).hopeless, "something runs, and may make room"
    finish(scheduler, kept)
    assert step(scheduler).hopeless == [giant]
    assert not scheduler.waiting


def test_a_finished_sequence_replaces_those_it_covers():
    scheduler = scheduling(1000, 64, 8, 8)
    short, long, again = sequence(0, TRUNK), sequence(1, [*TRUNK, 1, 2]), sequence(2, [*TRUNK, 1])
    for one in (short, long, again):
        scheduler.submit(one)
        finish(scheduler, one)
    assert list(scheduler.cache.retained.values()) == [[*TRUNK, 1, 2]]
    assert scheduler.cache.cells.used == 12


def test_finished_sequences_keep_half_of_the_cache_at_most():
    scheduler = scheduling(100, 64, 64, 8)
    for number in range(20):
        one = sequence(number, [number] * 9, room=0)
        scheduler.submit(one)
        finish(scheduler, one)
    assert scheduler.cache.cells.used == 45


def test_a_preempted_sequence_starts_again_from_what_others_hold():
    scheduler = scheduling(1000, 64, 8, 8)
    first, second = sequence(0, [*TRUNK, 1]), sequence(1, [*TRUNK, 2])
    scheduler.submit(first)
    scheduler.submit(second)
    step(scheduler)
    step(scheduler)
    second.tokens.append(3)
    scheduler.preempt(second)
    assert (second.computed, second.preempted, second.seq_id) == (0, 1, -1)
    plan = step(scheduler)
    assert rows(plan) == [(1, 2)]
    assert plan.moves == [Copy(first.seq_id, second.seq_id, 10)]


def test_a_preempted_sequence_keeps_logits_for_nobody():
    scheduler = scheduling(1000, 4, 8, 8)
    holder, twin = sequence(0, TRUNK), sequence(1, TRUNK)
    scheduler.submit(holder)
    scheduler.submit(twin)
    step(scheduler)
    assert holder.wants
    scheduler.finish(twin, keep=False)
    scheduler.preempt(holder)
    step(scheduler)
    assert not holder.wants


def test_a_preempted_holder_lets_its_siblings_go_on():
    scheduler = scheduling(1000, 4, 8, 8)
    holder, sibling = sequence(0, TRUNK), sequence(1, [*TRUNK, 1])
    scheduler.submit(holder)
    scheduler.submit(sibling)
    step(scheduler)
    scheduler.finish(holder, keep=False)
    assert rows(step(scheduler)) == [(1, 4)]


def test_cut_takes_cells_back_and_the_tree_forgets_only_when_the_sequence_ends():
    scheduler = scheduling(1000, 64, 8, 8)
    one = sequence(0, TRUNK)
    scheduler.submit(one)
    step(scheduler)
    assert scheduler.cache.cut(one, 10) == []
    assert scheduler.cache.cut(one, 4) == [Drop(0, 4)]
    assert scheduler.cache.cells.used == one.computed == 4
    del one.tokens[4:]
    scheduler.finish(one, keep=False)
    assert not list(scheduler.cache.tree.nodes())
    assert scheduler.cache.cells.used == 0


def test_finishing_a_waiting_sequence_forgets_it():
    scheduler = scheduling(1000, 64, 8, 8)
    one = sequence(0, TRUNK)
    scheduler.submit(one)
    assert scheduler.finish(one, keep=True) == []
    assert not step(scheduler).rows


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=20), st.integers(0, 10)),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(
    prompts,
    st.sampled_from([30, 50, 400]),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_every_sequence_is_admitted_in_the_end(prompts, cells, batch, sequences, running):
    scheduler = scheduling(cells, batch, sequences, running)
    queue = [sequence(number, tokens, room) for number, (tokens, room) in enumerate(prompts)]
    for one in queue:
        scheduler.submit(one)
    for _ in range(2_000):
        if not scheduler.waiting and not scheduler.running:
            break
        plan = step(scheduler)
        assert not plan.hopeless
        assert 0 < sum(take for _, take in plan.rows) <= batch
        assert scheduler.cache.cells.used <= cells
        assert len(scheduler.running) <= min(sequences, running)
        for one in list(scheduler.running):
            if not one.pending and len(one.tokens) < one.length_limit:
                one.tokens.append(2)
            elif not one.pending:
                scheduler.finish(one, keep=True)
    assert not scheduler.waiting
    assert not scheduler.running


def answer_all(scheduler: Scheduler, ends: dict[Sequence, int], together: list[int]) -> int:
    """Run sequences until each holds the tokens of its end; return how many were computed.

    Adds to ``together`` how many sequences each step had.
    """
    computed = 0
    for one in ends:
        scheduler.submit(one)
    for _ in range(100_000):
        if not scheduler.waiting and not scheduler.running:
            return computed
        plan = step(scheduler)
        assert plan.rows
        assert not plan.hopeless
        assert scheduler.cache.cells.used <= scheduler.cache.cells.capacity
        together.append(len(plan.rows))
        computed += sum(take for _, take in plan.rows)
        for one in list(scheduler.running):
            if not one.pending and len(one.tokens) < ends[one]:
                one.tokens.append(-1 - len(one.tokens) - 1000 * one.number)
            elif not one.pending:
                scheduler.finish(one, keep=True)
    raise AssertionError("it does not come to an end")


def test_short_answers_with_high_bounds_run_side_by_side():
    scheduler = scheduling(8192, 512, 80, 32)
    ends = {sequence(n, [*TRUNK * 10, n], room=4096): 150 + 7 * n for n in range(20)}
    together: list[int] = []
    assert answer_all(scheduler, ends, together) == 100 + sum(end - 100 for end in ends.values())
    assert not any(one.preempted for one in ends)
    assert together[1:40] == [20] * 39


def test_answers_that_run_to_their_bounds_are_not_computed_again_and_again():
    """Two fit at a time. At an eighth of a context of 8,192 and bounds of 4,096."""
    scheduler = scheduling(1024, 64, 80, 32)
    scheduler._lengths = Lengths(32)
    ends = {sequence(n, [*TRUNK, n], room=500): 511 for n in range(20)}
    computed = answer_all(scheduler, ends, [])
    assert 1.1 * 20 * 500 < computed < 1.4 * 20 * 500
    assert sum(one.preempted for one in ends) == 18


def test_answers_longer_than_was_likely_run_together_when_they_come_back():
    scheduler = scheduling(1024, 64, 80, 32)
    scheduler._lengths = Lengths(1)
    ends = {sequence(n, [*TRUNK, n], room=1000): 11 + 60 + n for n in range(20)}
    assert answer_all(scheduler, ends, []) < 1.5 * 20 * 70
    assert 0 < sum(one.preempted for one in ends) < 8


def test_what_is_within_its_cells_stays_when_another_outgrows_its_own():
    scheduler = scheduling(100, 64, 8, 8)
    scheduler._lengths = Lengths(10)
    grows, other = sequence(0, [1] * 10, room=90), sequence(1, [2] * 10, room=60, kind="other")
    scheduler._lengths.ended("other", 50)
    for one in (grows, other):
        scheduler.submit(one)
    step(scheduler)
    grows.tokens += [3] * 40
    other.tokens += [4] * 39
    step(scheduler)
    assert scheduler.running == [grows, other]
    other.tokens += [4] * 2
    assert scheduler.first_to_go(scheduler.running) is grows
    step(scheduler)
    assert scheduler.running == [other]
    assert grows.preempted == 1
    young = sequence(2, [5] * 10, room=90)
    scheduler.submit(young)
    scheduler.finish(other, keep=False)
    step(scheduler)
    assert scheduler.running == [grows], "what comes back has cells for twice what it had written"
    assert grows.likely == 10 + 2 * 40
    scheduler.finish(grows, keep=False)
    step(scheduler)
    assert young.likely == 10 + 40, "and new ones of its kind for as much"


def test_forks_of_a_search_are_likely_to_grow_as_it_is():
    scheduler = scheduling(200, 64, 8, 8)
    scheduler._lengths = Lengths(20)
    lead = sequence(0, TRUNK, room=90, forks=2, fork_limit=90)
    scheduler.submit(lead)
    step(scheduler)
    assert scheduler.cache.promised() == 3 * 20
    child = Sequence(7, [*TRUNK, 1], 100)
    scheduler.fork(lead, child, lead)
    assert scheduler.cache.promised() == 3 * 20


answers = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(1, 90), st.integers(0, 90)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(answers, st.sampled_from([125, 200, 400]), st.sampled_from([1, 8, 64]), st.integers(1, 32))
def test_whatever_answers_come_to_they_end_and_little_is_computed_twice(
    answers, cells, first, running
):
    scheduler = scheduling(cells, 16, 40, running)
    scheduler._lengths = Lengths(first)
    ends = {}
    for number, (prompt, kind, written, more) in enumerate(answers):
        one = sequence(number, [kind] * prompt, room=written + more, kind=kind)
        one.length_limit = min(one.length_limit, cells)
        ends[one] = min(prompt + written, cells)
    computed = answer_all(scheduler, ends, [])
    assert computed <= 2.5 * sum(ends.values())


def alone(scheduler: Scheduler, number: int, tokens: list[int]) -> int:
    """Run a sequence to its end and return how many tokens it took from the cache."""
    one = sequence(number, tokens, room=0)
    scheduler.submit(one)
    plan = scheduler.step()
    taken = one.computed
    for each, take in plan.rows:
        scheduler.computed(each, take)
    finish(scheduler, one)
    return taken


def test_old_tails_go_and_beginnings_that_two_prompts_had_stay():
    scheduler, size = scheduling(100_000, 4096, 64, 8), FIRST_AGE * 3 // 5
    for number in range(3):
        alone(scheduler, number, [*TRUNK, *[number] * 50])
    alone(scheduler, 3, [7] * size)
    assert len(scheduler.cache.retained) == 4, "nothing is older than the limit yet"
    alone(scheduler, 4, [8] * size)
    assert list(scheduler.cache.retained.values()) == [TRUNK, [7] * size, [8] * size]
    assert scheduler.cache.cells.used == 10 + 2 * size
    assert alone(scheduler, 5, [*TRUNK, 0]) == 10
    alone(scheduler, 6, [9] * (RENT + 1))
    assert list(scheduler.cache.retained.values()) == [[9] * (RENT + 1)]


def test_tails_that_nobody_asks_for_leave_sooner_until_one_is_asked_for():
    scheduler = scheduling(100_000, 4096, 64, 8)
    for number in range(100):
        alone(scheduler, number, [*TRUNK, *[number] * 40])
    assert scheduler.cache.cells.used < LEAST_AGE + 100
    asked = [*TRUNK, *[50] * 40]
    assert alone(scheduler, 200, asked) == 10, "it has left"
    for number in range(100, 120):
        alone(scheduler, number, [*TRUNK, *[number] * 40])
        assert alone(scheduler, 200 + number, asked) == 49


def test_a_conversation_is_kept_whole_through_its_turns():
    scheduler = scheduling(100_000, 4096, 64, 8)
    talks = [[number] * 2000 for number in range(4)]
    for turn in range(6):
        for number, talk in enumerate(talks):
            before = len(talk)
            talk += [number, turn] * 60
            taken = alone(scheduler, 4 * turn + number, talk)
            assert taken == before or turn < 3, "the first turns are too long to outlast each other"


def test_programs_called_in_turn_compute_their_beginnings_twice_at_most():
    scheduler = scheduling(100_000, 4096, 64, 8)
    heads = [[number] * 800 for number in range(4)]
    taken = [
        alone(scheduler, 4 * turn + number, [*head, 9, turn])
        for turn in range(5)
        for number, head in enumerate(heads)
    ]
    assert taken[:4] == [0] * 4
    assert taken[8:] == [801] * 12


@given(st.integers(0, 1 << 30))
@settings(max_examples=25)
def test_a_refusal_that_is_remembered_changes_no_plan(seed):
    def plans(remember: bool) -> list[object]:
        rng = np.random.default_rng(seed)
        scheduler = scheduling(4096, 64, 40, 32)
        if not remember:
            scheduler._width.still_refuses = lambda running: False
        waiting = [
            sequence(n, [n % 3] * 40 + [9] * int(rng.integers(90)) + [n], 8) for n in range(24)
        ]
        seen: list[object] = []
        while waiting or scheduler.running or scheduler.waiting:
            for one in [waiting.pop() for _ in range(min(len(waiting), int(rng.integers(4))))]:
                scheduler.submit(one)
            seen.append(rows(step(scheduler)))
            for one in list(scheduler.running):
                if not one.pending and len(one.tokens) < one.length_limit:
                    one.tokens.append(5)
                elif not one.pending:
                    scheduler.finish(one, keep=True)
        return seen

    assert plans(True) == plans(False)
