"""What a cache shares, by what the memory of its model can do."""

from __future__ import annotations

import pytest

from promptflow.engine.cache.cache import GRAIN, Cache, whole_from_of
from promptflow.engine.cache.cells import Copy, Drop
from promptflow.engine.sequence import NEVER, Sequence

TRUNK = list(range(100, 140))


def sequence(number: int, tokens: list[int], room: int = 50) -> Sequence:
    return Sequence(number, list(tokens), len(tokens) + room)


def begin(cache: Cache, one: Sequence, source: int = -1, shared: int = 0) -> list:
    moves: list = []
    cache.begin(one, source, shared, moves)
    return moves


def run(cache: Cache, one: Sequence) -> list:
    """Compute what is known of a sequence, keeping its state at its stops."""
    kept = []
    while one.pending:
        cache.extend(one, min(one.pending, cache.until_stop(one)))
        kept += cache.keep(one)
    return kept


@pytest.mark.parametrize("window", [1, 8, 41])
def test_a_sequence_as_long_as_the_window_is_whole(window: int):
    cache = Cache(1000, 8, whole_from=whole_from_of("windowed", window))
    for length in (window - 1, window):
        one = sequence(length, list(range(length)), room=0)
        begin(cache, one)
        run(cache, one)
        assert cache.is_whole(one.seq_id) == (length >= window)
        cache.end(one, keep=False)


def test_kinds_of_memory():
    assert whole_from_of("dense", 0) == NEVER
    assert whole_from_of("recurrent", 0) == whole_from_of("hybrid", 0) == 0


def test_a_prefill_stops_where_others_part_from_it_and_they_take_the_keeper():
    cache = Cache(1000, 8, whole_from=0)
    first, *others = [sequence(n, [*TRUNK, n, n, n]) for n in range(4)]
    begin(cache, first)
    cache.part(first, others)
    assert first.stops == {len(TRUNK)}
    kept = run(cache, first)
    assert [move.end for move in kept] == [len(TRUNK)]
    for other in others:
        source, shared = cache.best_prefix(other)
        assert shared == len(TRUNK)
        assert cache.retained[source] == TRUNK
        assert begin(cache, other, source, shared) == [Copy(source, other.seq_id, shared)]


def test_those_that_part_a_few_tokens_later_take_the_keeper_before():
    cache = Cache(1000, 8, whole_from=0)
    first = sequence(0, [*TRUNK, 1, 2, 3])
    begin(cache, first)
    cache.part(first, [sequence(1, [*TRUNK, 9]), sequence(2, [*TRUNK, 1, 9])])
    assert first.stops == {len(TRUNK)}
    many = [sequence(n, [*TRUNK, 1, 2, 9]) for n in range(GRAIN)]
    cache.part(first, many)
    assert first.stops == {len(TRUNK), len(TRUNK) + 2}


def test_where_two_prompts_parted_the_third_finds_a_keeper():
    cache = Cache(1000, 8, whole_from=0)
    for number in range(3):
        one = sequence(number, TRUNK + [number] * 3)
        source, shared = cache.best_prefix(one)
        assert shared == (len(TRUNK) if number == 2 else 0)
        begin(cache, one, source, shared)
        run(cache, one)
        cache.end(one, keep=True)


def test_a_cut_begins_again_from_the_last_state_that_is_held():
    cache = Cache(1000, 8, whole_from=0)
    one = sequence(0, TRUNK)
    one.stops |= {20, 30}
    begin(cache, one)
    run(cache, one)
    moves = cache.cut(one, 35)
    assert one.computed == 30
    assert moves[0] == Drop(one.seq_id)
    assert moves[1].end == 30
    assert cache.cut(one, 19)[0] == Drop(one.seq_id)
    assert one.computed == 0


def test_a_state_before_what_may_be_taken_back_replaces_the_one_before():
    cache = Cache(1000, 8, whole_from=0)
    one = sequence(0, TRUNK)
    begin(cache, one)
    run(cache, one)
    for number in range(5):
        one.tokens.append(number)
        one.stops.add(one.computed + 1)
        run(cache, one)
    answers = [tokens for tokens in cache.retained.values() if len(tokens) > len(TRUNK)]
    assert answers == [one.tokens]


def test_finished_text_does_not_displace_the_keepers_that_it_went_through():
    cache = Cache(1000, 8, whole_from=0)
    one = sequence(0, TRUNK)
    one.stops.add(20)
    begin(cache, one)
    run(cache, one)
    cache.end(one, keep=True)
    assert sorted(map(len, cache.retained.values())) == [20, len(TRUNK)]


def test_dense_memory_makes_no_keepers():
    cache = Cache(1000, 8)
    one = sequence(0, TRUNK)
    one.stops.add(20)
    begin(cache, one)
    cache.part(one, [sequence(1, [*TRUNK[:30], 1])])
    assert cache.until_stop(one) == NEVER
    cache.extend(one, 20)
    assert cache.keep(one) == []
    assert cache.retained == {}


def ended(cache: Cache, number: int, length: int, continued: bool = False) -> list[int]:
    """Run a sequence of ``length`` new tokens, a half of them its prompt; return its tokens."""
    one = sequence(number, [1_000 * number + n for n in range(length // 2)])
    one.prompt, one.continued = length // 2, continued
    source, shared = cache.best_prefix(one)
    assert cache.make_room(one, source, shared, [])
    begin(cache, one, source, shared)
    run(cache, one)
    one.tokens += [1_000 * number + n for n in range(length // 2, length)]
    run(cache, one)
    cache.end(one, keep=True)
    return one.tokens


def test_an_end_that_will_be_continued_stays_until_it_is():
    cache = Cache(1000, 8)
    pinned = ended(cache, 1, 100, continued=True)
    plain = ended(cache, 2, 100)
    for number in range(3, 23):  # each one evicts others, and makes them older
        ended(cache, number, 150)
    assert cache.held(pinned) == len(pinned)
    assert cache.held(plain) == 0
    sibling = sequence(50, [*pinned[:50], 7])
    begin(cache, sibling, *cache.best_prefix(sibling))
    cache.end(sibling, keep=False)
    assert list(cache._pins.values()) == [50], "it shares the prompt alone"
    after = sequence(51, [*pinned, 7])
    source, shared = cache.best_prefix(after)
    assert shared == len(pinned)
    begin(cache, after, source, shared)
    assert not cache._pins
    cache.end(after, keep=False)
    for number in range(23, 33):
        ended(cache, number, 150)
    assert cache.held(pinned) == 0


def test_ends_to_be_continued_are_the_last_that_running_sequences_take():
    cache = Cache(1000, 8)
    pinned = [ended(cache, number, 200, continued=True) for number in range(1, 4)]
    plain = ended(cache, 4, 100)
    grown = sequence(5, [7_000 + n for n in range(350)], room=0)
    assert cache.make_room(grown, *cache.best_prefix(grown), [])
    assert [cache.held(tokens) for tokens in pinned] == [200, 200, 200]
    assert cache.held(plain) == 0
    grown = sequence(6, [7_000 + n for n in range(700)], room=0)
    assert cache.make_room(grown, *cache.best_prefix(grown), [])
    assert [cache.held(tokens) for tokens in pinned] == [0, 0, 200]


def test_an_end_that_nobody_continues_lapses():
    cache = Cache(400, 8)
    pinned = ended(cache, 1, 100, continued=True)
    number = 2
    while cache._clock < 400 * 4:
        assert cache.held(pinned) == 100
        ended(cache, number, 100)
        number += 1
    for last in range(number, number + 3):
        ended(cache, last, 100)
    assert cache.held(pinned) == 0
    assert not cache._pins


def test_equal_texts_to_be_continued_are_held_once():
    cache = Cache(1000, 8)
    for _ in range(3):
        pinned = ended(cache, 1, 100, continued=True)
    assert len(cache.retained) == len(cache._pins) == 1
    assert cache.evict_all()
    assert cache.held(pinned) == len(cache._pins) == 0
