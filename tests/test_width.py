from __future__ import annotations

import pytest

from promptflow.engine.loop.width import EXPECTED, LEAST, PASS, PASS_GPU, Width


def width_of(fresh: int, answer: int, most: int = 64) -> int:
    """Return how many sequences of one kind run together."""
    width = Width()
    for _ in range(100):
        width.ended(answer, 1000)
    running = 0
    while running < most and width.is_worth(running, fresh, 1000, 0):
        running += 1
    return running


def cost(width: int, fresh: int, answer: int) -> float:
    """Return what one request costs, in cells attended to, beside others of its kind."""
    return answer * PASS / width + (fresh + answer) * width * fresh


@pytest.mark.parametrize("fresh", [1, 20, 70, 200, 600])
@pytest.mark.parametrize("answer", [1, 10, 32, 96, 400])
def test_as_many_run_together_as_cost_least(fresh: int, answer: int):
    best = min(range(1, 65), key=lambda width: cost(width, fresh, answer))
    assert abs(width_of(fresh, answer) - max(LEAST, best)) <= 1


def test_branches_run_side_by_side_and_long_prompts_a_few_at_a_time():
    assert width_of(fresh=1, answer=96) == 64
    assert width_of(fresh=70, answer=32) == 6
    assert width_of(fresh=600, answer=30) == LEAST


def test_an_answer_that_goes_on_lets_more_join():
    width = Width()
    assert not width.is_worth(LEAST, 200, 1000, 0)
    assert width.is_worth(LEAST, 200, 1000, 500)


def test_what_only_scores_a_text_writes_nothing():
    assert not Width().is_worth(LEAST, 20, 0, 0)


def test_answers_that_were_cut_short_do_not_make_later_ones_look_short():
    width = Width()
    for _ in range(100):
        width.ended(1, room=1)
    assert width.answer == EXPECTED
    for _ in range(100):
        width.ended(96, room=96)
    assert width.answer == pytest.approx(96, rel=0.01)


def test_beside_a_gpu_128_branches_run_side_by_side():
    alone, gpu = Width(), Width(PASS_GPU)
    assert not alone.is_worth(127, 4, 96, 0)
    assert gpu.is_worth(127, 4, 96, 0)
    assert not gpu.is_worth(127, 400, 96, 0), "long prompts are still a few at a time"
