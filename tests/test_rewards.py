from __future__ import annotations

from collections.abc import Callable

import pytest
from scripted_samples import scripted

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, ProgramError
from promptflow.flow import Prediction, run
from promptflow.modules.predict import Predict
from promptflow.modules.rewards import BestOf


def best(answers: list[str | Exception], **settings: object) -> tuple[Prediction, ScriptedEngine]:
    lm, engine = scripted(answers)
    return run(BestOf(Predict("q -> answer"), **settings), lm=lm, q="abc"), engine


def length(inputs: dict[str, str], prediction: Prediction) -> float:
    return len(prediction.answer) / len(inputs["q"])


def test_best_of_takes_the_highest_reward() -> None:
    result, _ = best(["a", "abcd", "ab", "dcba"], n=4, reward=length)
    assert (result.answer, result.reward) == ("abcd", pytest.approx(4 / 3))


def test_valid_samples_win_over_better_invalid_ones() -> None:
    accepts: Callable[[Prediction], bool] = lambda p: p.answer != "abcd"  # noqa: E731
    result, _ = best(["a", "abcd", "ab"], n=3, reward=length, valid=accepts)
    assert (result.answer, result.valid) == ("ab", True)
    result, _ = best(["abcd", "abcd"], n=2, reward=length, valid=accepts)
    assert (result.answer, result.valid) == ("abcd", False)


def test_best_of_stops_at_its_threshold() -> None:
    result, engine = best(["a", "abc", "abcd"], n=3, reward=length, threshold=1.0, batch=1)
    assert (result.answer, result.samples) == ("abc", 2)
    assert engine.batches == [1, 1]


def test_the_first_valid_sample_ends_the_search() -> None:
    result, engine = best(
        ["x", EngineLost("gone"), "7", "8"],
        n=4,
        reward="first",
        valid=lambda p: p.answer.isdigit(),
        batch=1,
    )
    assert (result.answer, result.samples, result.failed) == ("7", 3, 1)
    assert engine.batches == [1, 1, 1]


def test_the_most_probable_sample_wins() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    module = BestOf(Predict("q -> answer", max_tokens=6), n=6, temperature=1.5)
    result = run(module, lm=lm, q="?")
    fill = result.fills["answer"]
    assert result.reward == pytest.approx(fill.logprob / fill.generated)
    answers = [answer for _, _, answer in result.trace]
    means = [a.fills["answer"].logprob / a.fills["answer"].generated for a in answers]
    assert result.reward == pytest.approx(max(means))


def test_functions_are_settings_by_name() -> None:
    assert BestOf(Predict("q -> answer"), n=3).settings()["reward"] == "logprob"
    settings = BestOf(Predict("q -> answer"), reward=length, threshold=1.0).settings()
    assert settings["reward"] == {"code": f"{__name__}:length"}
    assert settings["threshold"] == 1.0


class Shortest:
    """A reward that is an object."""

    def __call__(self, inputs: dict[str, str], prediction: Prediction) -> float:
        return -len(prediction.answer)


@pytest.mark.parametrize("reward", ["logprob", "first", length, Shortest(), lambda i, p: 1])
def test_a_reward_is_a_number_for_each_sample(reward: object) -> None:
    """The contract of ``reward=``: the highest wins, of equal ones the first, and it is told."""
    result, engine = best(["abc", "a", "abcd", "b"], n=4, reward=reward)
    assert isinstance(result.reward, float)
    assert result.answer == {length: "abcd"}.get(
        reward, "a" if isinstance(reward, Shortest) else "abc"
    )
    assert sum(engine.batches) == 4
    again, _ = best(["abc", "a", "abcd", "b"], n=4, reward=reward, batch=1)
    assert (again.answer, again.reward) == (result.answer, result.reward)


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(ProgramError, match="is no number: return one, or -inf"):
        best(["a", "b"], n=2, reward=lambda inputs, prediction: float("nan"))
