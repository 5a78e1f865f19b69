from __future__ import annotations

from promptflow.engine.loop.batch import Batch, batch_of
from promptflow.engine.sequence import Sequence


def sequence(tokens: list[int], seq_id: int, **state) -> Sequence:
    return Sequence(0, tokens, 100, seq_id=seq_id, **state)


def test_a_decoding_task_wants_logits_after_its_last_token():
    assert batch_of([(sequence([5, 6, 7], 3, computed=2), 1)]) == Batch([7], [2], [3], [True])


def test_a_chunk_of_a_prompt_wants_none_but_those_that_are_asked_for():
    rows = [(sequence([5, 6, 7, 8], 0, wants={1}), 3), (sequence([9], 1), 1)]
    assert batch_of(rows) == Batch(
        [5, 6, 7, 9], [0, 1, 2, 0], [0, 0, 0, 1], [False, True, False, True]
    )


def test_scored_positions_want_logits():
    batch = batch_of([(sequence([5, 6, 7], 0, scored_from=1), 3)])
    assert batch.outputs == [False, True, True]


def test_a_draft_follows_its_task_and_every_token_of_it_wants_logits():
    rows = [
        (sequence([5, 6], 2, computed=1, draft=[7, 8]), 1),
        (sequence([9, 9], 4, computed=1), 1),
    ]
    assert batch_of(rows) == Batch([6, 7, 8, 9], [1, 2, 3, 1], [2, 2, 2, 4], [True] * 4)
