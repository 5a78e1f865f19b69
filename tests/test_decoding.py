"""The options of decoding on the command line: what they choose, and what they refuse by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import promptflow as pf
from promptflow.cli import app
from promptflow.cli.decoding import Decoded
from promptflow.errors import UnsupportedOption

EVERY = {
    "temperature": 0.7,
    "top_k": 9,
    "top_p": 0.9,
    "min_p": 0.05,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.3,
}


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["run", "ask", "eval"])
def test_every_command_that_answers_has_every_option(command: str):
    shown = call(command, "--help").output
    for name in (*EVERY, "beam", "max_tokens", "n", "technique"):
        assert f"--{name.replace('_', '-')} " in shown, name
    assert "cot|sc|tot" in shown


def test_every_sampler_reaches_the_predictors():
    made = Decoded(**EVERY, max_tokens=5).applied(pf.Predict("a -> b"))
    assert made.decoding.sampling == pf.Sampling(**EVERY)
    assert made.decoding.max_tokens == 5
    assert Decoded(beam=3).applied(pf.Predict("a -> b")).decoding.beam == pf.Beam(3)
    kept = pf.Predict("a -> b", sampling=pf.Sampling(top_k=3))
    assert Decoded().applied(kept).decoding.sampling == pf.Sampling(top_k=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"beam": 4, "temperature": 0.5}, "leave out --temperature"),
        ({"beam": 4, "n": 3}, "leave out --n"),
        ({"beam": 4, "technique": "sc"}, "leave out --technique"),
        ({"beam": 4, "top_k": 3, "min_p": 0.1}, "--top-k, --min-p"),
        ({"beam": 0}, "--beam 0: give"),
        ({"n": 0}, "--n 0: give"),
        ({"max_tokens": 0}, "--max-tokens 0: give"),
        ({"n": 3, "temperature": 0.0}, "all the same"),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(given: Any, says: str):
    with pytest.raises(UnsupportedOption, match=says):
        Decoded(**given)


def test_a_command_that_takes_one_answer_refuses_several():
    with pytest.raises(UnsupportedOption, match="add --technique sc"):
        Decoded(n=3).applied(pf.Predict("a -> b"))
    with pytest.raises(UnsupportedOption, match="cot"):
        Decoded(n=3, technique="cot").applied(pf.Predict("a -> b"))


def test_a_search_and_samples_are_refused_together_before_any_call():
    engine = pf.ScriptedEngine(lambda text, slot: "x")
    lm = pf.load("scripted", engine=engine)
    program = pf.Predict("a -> b", beam=pf.Beam(2))
    assert program(a="x", lm=lm).b == "x"
    asked = len(engine.prompts)
    for sampled in (
        lambda: program(a="x", lm=lm, config={"n": 3}),
        lambda: program(a="x", lm=lm, config={"temperature": 0.5}),
        lambda: pf.flow.run(pf.SelfConsistency(program, field="b"), lm=lm, a="x"),
        lambda: program(a="x", lm=lm.copy(temperature=0.5)),
    ):
        with pytest.raises(UnsupportedOption, match="does not sample"):
            sampled()
    assert len(engine.prompts) == asked


def test_run_takes_all_of_it(tiny: Callable[[str], Path]):
    run = ("run", "question -> answer", "-i", "question=the red", "--model", tiny("llama"))
    refused = call(*run, "--beam", 2, "--temperature", 1)
    assert refused.exit_code == 2
    assert "--beam 2 searches" in refused.output
    sampled = ("--temperature", 1.5, "--top-k", 50, "--max-tokens", 4, "--json")
    several = json.loads(call(*run, "--n", 3, *sampled, "--layout", "json").stdout)
    assert len({one["answer"] for one in several["answers"]}) > 1
    voted = json.loads(call(*run, "--technique", "sc", "--n", 2, *sampled).stdout)
    assert voted["samples"] == 2
    found = json.loads(call(*run, "--beam", 2, "--max-tokens", 4, "--json").stdout)
    assert set(found) == {"answer", "tokens", "cut"}
    tree = call(*run, "--technique", "tot", "--n", 2, "--max-tokens", 4, "--json")
    assert tree.exit_code == 0, tree.output
    assert "reasoning" in json.loads(tree.stdout)
