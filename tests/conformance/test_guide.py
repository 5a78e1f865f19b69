"""The guide's own questions, asked of a small model: answered rightly, or not where it is silent.

On two kinds of numerics, as two processors have them: logits differ by a little between kernels, so
each answer is to be surer, or less sure, than the threshold by a margin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import promptflow as pf
from promptflow.engine import EngineOptions
from promptflow.errors import ModelNotFound
from promptflow.flow import run_many

MODEL = "qwen2.5-coder-0.5b"
MARGIN = 0.05
NUMERICS = {
    "repacked weights": EngineOptions(),
    "plain weights, flash attention": EngineOptions(extra_buffers=False, flash_attention=True),
}
ANSWERED = {
    "Which phrase does zero-shot chain of thought add to a question?": r"[Ll]et's think step by",
    "How many demonstrations should I use?": r"4 to 8|a handful",
    "Who published self-consistency?": r"Xuezhi Wang",
    "Which temperature did the tree-of-thoughts experiments use?": r"^0\.7$",
    "What is another name of few-shot prompting?": r"in-context learning",
    "What does pf.SelfConsistency(pf.ZeroShotCoT(...)) do?": r"samples several chains",
}
SILENT = [
    "How much does a licence of promptflow cost?",
    "Which graphics card does the guide recommend for training?",
    "Who won the football world cup in 1998?",
    "What is the telephone number of support?",
]


@pytest.fixture(scope="module", params=NUMERICS)
def given(request: pytest.FixtureRequest) -> Iterator[dict[str, pf.Prediction]]:
    """What is answered to each question."""
    try:
        lm = pf.load(MODEL, options=NUMERICS[request.param])
    except ModelNotFound:
        pytest.skip(f"{MODEL} is not on this machine: promptflow models get {MODEL}")
    asked = [*ANSWERED, *SILENT]
    with pf.build_index("guide", progress=False) as index, lm.text_engine:
        inputs = [{"question": question} for question in asked]
        yield dict(zip(asked, run_many(pf.GroundedQA(index), inputs, lm=lm), strict=True))


@pytest.mark.parametrize("question", ANSWERED)
def test_what_the_guide_says_is_answered(given: dict[str, pf.Prediction], question: str) -> None:
    result = given[question]
    assert not result.abstained, (result.reason, result.candidates[:3])
    assert re.search(ANSWERED[question], result.answer)
    assert result.quotes_exact
    assert not result.flagged
    assert result.answerable >= needed() + MARGIN


@pytest.mark.parametrize("question", SILENT)
def test_where_the_guide_is_silent_nothing_is_answered(
    given: dict[str, pf.Prediction], question: str
) -> None:
    result = given[question]
    assert result.abstained
    assert result.answerable <= needed() - MARGIN


def needed() -> float:
    """Return the threshold that comes with promptflow."""
    from promptflow.modules.abstention import default_calibration

    return default_calibration().threshold
