from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import promptflow as pf
from promptflow.errors import (
    ProgramError,
    UnknownField,
    UnknownOption,
    UnsupportedOption,
    names_options,
)
from promptflow.layout import Decoding


def program() -> Any:
    return pf.Predict("question -> answer")


@pytest.mark.parametrize(
    ("wrong", "given", "nearest"),
    [
        (lambda o: pf.Predict("q -> a", **o), "temperatur", "temperature"),
        (lambda o: pf.Predict("q -> a", **o), "max_token", "max_tokens"),
        (lambda o: pf.Predict("q -> a", **o), "stops", "stop"),
        (lambda o: pf.Predict("q -> a", **o), "layuot", "layout"),
        (lambda o: pf.Predict("q -> a", **o), "untill", "until"),
        (lambda o: program().call(question="?", config=o), "temprature", "temperature"),
        (lambda o: program().call(question="?", config=o), "rollout", "rollout_id"),
        (lambda o: pf.ChainOfThought("q -> a", **o), "reasoning_token", "reasoning_tokens"),
        (lambda o: pf.ChainOfThought("q -> a", **o), "demo", "demos"),
        (lambda o: pf.ZeroShotCoT("q -> a", **o), "trigger", "triggers"),
        (lambda o: pf.ZeroShotCoT("q -> a", **o), "max_toknes", "max_tokens"),
        (lambda o: pf.SelfConsistency(program(), **o), "temperatur", "temperature"),
        (lambda o: pf.SelfConsistency(program(), **o), "votes", "vote"),
        (lambda o: pf.BestOf(program(), **o), "treshold", "threshold"),
        (lambda o: pf.TreeOfThoughts(**o), "bredth", "breadth"),
        (lambda o: pf.Judge("Good?", **o), "signatur", "signature"),
        (lambda o: pf.PairJudge("Better?", **o), "signatur", "signature"),
        (lambda o: pf.GroundedQA("none", **o), "threshol", "threshold"),
        (lambda o: pf.Sampling(**o), "temperatur", "temperature"),
        (lambda o: pf.EngineOptions(**o), "contxt", "context"),
        (lambda o: pf.load("none", **o), "option", "options"),
        (lambda o: pf.configure("openai/gpt-4o-mini", **o), "temprature", "temperature"),
        (lambda o: pf.run_many(program(), [], **o), "progres", "progress"),
        (lambda o: pf.evaluate(program(), [], "f1", **o), "journl", "journal"),
        (lambda o: pf.optimize(program(), [], [], "f1", **o), "budgt", "budget"),
        (lambda o: pf.Budget(**o), "token", "tokens"),
        (lambda o: pf.load_data("none.csv", **o), "encodng", "encoding"),
        (lambda o: pf.load_program("none", **o), "forc", "force"),
        (lambda o: pf.resolve_program("none", **o), "specs", "spec"),
        (lambda o: pf.Relevance(**o), "signatur", "signature"),
        (lambda o: pf.Problem(**o), "stat", "start"),
        (lambda o: pf.Agent("question -> answer", **o), "tool", "tools"),
        (lambda o: pf.Slot("a", **o), "max_token", "max_tokens"),
        (lambda o: pf.Request((), **o), "sed", "seed"),
        (lambda o: pf.Beam(**o), "widht", "width"),
        (lambda o: pf.Choice((), **o), "weighd", "weighed"),
        (lambda o: pf.Engine("none", **o), "option", "options"),
        (lambda o: pf.SlotAdapter(**o), "layot", "layout"),
        (lambda o: Decoding(**o), "reasoning_token", "reasoning_tokens"),
        (lambda o: pf.search_tool(None, **o), "retrever", "retriever"),
        (lambda o: pf.read_tool(**o), "serch", "search"),
        (lambda o: pf.Embedder("none", **o), "prefixs", "prefixes"),
        (lambda o: pf.CrossEncoderReranker("none", **o), "nam", "name"),
        (lambda o: pf.save_program(program(), "none", **o), "lok", "lock"),
    ],
)
def test_a_misspelled_option_names_the_nearest(
    wrong: Callable[[dict[str, int]], Any], given: str, nearest: str
) -> None:
    with pytest.raises(UnknownOption) as caught:
        wrong({given: 1})
    assert repr(given) in str(caught.value)
    assert f"did you mean {nearest!r}?" in str(caught.value)
    assert isinstance(caught.value, TypeError)  # as Python has it


def test_a_misspelled_field_names_the_nearest() -> None:
    with pytest.raises(UnknownField, match=r"no field 'questin' \(did you mean 'question'\?\)"):
        program().call(questin="?")


@pytest.mark.parametrize("name", ["temperature", "n", "seed", "max_tokens", "stop", "weigh"])
def test_an_option_is_no_attribute_that_nobody_reads(name: str) -> None:
    with pytest.raises(ProgramError, match="write predict"):
        setattr(program(), name, 1)


def test_an_option_that_is_like_nothing_shows_what_there_is() -> None:
    with pytest.raises(UnknownOption, match=r"no option 'zzz'; known: .*temperature"):
        pf.Sampling(zzz=1)


def test_an_unsupported_option_is_no_type_error_of_pythons() -> None:
    assert not issubclass(UnsupportedOption, TypeError)


def test_what_is_right_passes_through() -> None:
    @names_options
    def add(a: int, *, b: int = 1) -> int:
        """Add."""
        return a + b

    assert add(1, b=2) == add(a=1, b=2) == 3
    assert add.__doc__ == "Add."
    with pytest.raises(TypeError):
        add()
