from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dspy
import pytest

from promptflow.engine import Engine, EngineOptions
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.evaluation import evaluate
from promptflow.evaluation.renewal import Exact
from promptflow.flow import run
from promptflow.lm import LocalLM
from promptflow.modules import Predict, SelfConsistency
from promptflow.optimization import Budget, Search, optimize
from promptflow.storage import Journal


@dataclass
class Renewed(ScriptedEngine):
    """A scripted engine that keeps what it was asked, and how it was renewed, in order."""

    log: list[Any] = field(default_factory=list)
    busy: bool = False

    def generate(self, requests: Any, on_done: Any = None) -> Any:
        self.log.append(len(requests))
        return super().generate(requests, on_done)

    def renew(self, *, exact: bool = False) -> bool:
        self.log.append("exact" if exact else "renewed")
        return not self.busy


def engine() -> Renewed:
    return Renewed(lambda text, slot: "4")


def numbers(count: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{n}?", answer="4").with_inputs("question") for n in range(count)
    ]


def test_each_chunk_of_a_journalled_evaluation_begins_with_a_fresh_engine(tmp_path):
    one = engine()
    lm = LocalLM(one)
    result = evaluate(
        Predict("question -> answer"), numbers(130), "f1", lm=lm, journal=tmp_path / "j"
    )
    assert one.log == ["exact", 64, "exact", 64, "exact", 2, "renewed"]
    assert result.exactness == "exact resume: a fresh engine for each of 3 steps, 0.0 s"
    again = engine()
    evaluate(
        Predict("question -> answer"), numbers(130), "f1", lm=LocalLM(again), journal=tmp_path / "j"
    )
    assert again.log == []
    bare = engine()
    found = evaluate(Predict("question -> answer"), numbers(130), "f1", lm=LocalLM(bare))
    assert (bare.log, found.exactness) == ([64, 64, 2], "")


def test_the_engines_of_parts_and_of_the_metric_are_renewed_too(tmp_path):
    engines = {name: engine() for name in ("configured", "part", "metric")}
    inner = Predict("question -> answer")
    inner.lm = LocalLM(engines["part"])
    judge, asked = Predict("answer -> good"), LocalLM(engines["metric"])

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return float(run(judge, lm=asked, answer=prediction.answer).good == "4")

    program = SelfConsistency(inner, n=2)
    lm = LocalLM(engines["configured"])
    evaluate(program, numbers(2), metric, lm=lm, journal=tmp_path / "j")
    assert engines["configured"].log == ["exact", "renewed"]
    assert engines["part"].log == ["exact", 4, "renewed"]
    assert engines["metric"].log == ["exact", 1, 1, "renewed"]


def test_each_step_of_a_journalled_search_begins_with_a_fresh_engine(tmp_path):
    for journal in (None, tmp_path / "j"):
        one = engine()
        result = optimize(
            Predict("question -> answer"),
            numbers(40),
            metric="f1",
            lm=LocalLM(one),
            budget=Budget(calls=60),
            journal=journal,
            search=Search(candidates=2),
            progress=False,
        )
        steps = [entry for entry in one.log if entry == "exact"]
        if journal is None:
            assert (steps, result.exactness) == ([], "")
        else:
            assert len(steps) == len(one.batches) > 2
            assert all(one.log[place] == "exact" for place in range(0, len(one.log) - 1, 2))
            assert f"each of {len(steps)} steps" in result.exactness


def test_an_engine_that_others_use_is_not_called_exact():
    one = engine()
    one.busy = True
    with Exact(LocalLM(one)) as exact:
        exact.begin()
    assert str(exact).startswith("resume is not exact: the engine answered other requests")


@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_run_that_goes_on_computes_what_the_whole_run_did(tmp_path, known):
    """The fake's caches differ as a real engine's do; the tokens that it reused show it."""

    def records(journal: Any, count: int) -> list[Any]:
        with Engine(FakeModel(), EngineOptions(max_waiting=8)) as fake:
            lm = LocalLM(fake, max_tokens=6)
            program = Predict("question -> answer", layout="completion")
            found = evaluate(program, numbers(count), "f1", lm=lm, journal=journal)
        return [(r.index, r.fields, r.usage, r.score) for r in found.records]

    whole = records(tmp_path / "whole", 130)
    resumed = tmp_path / "resumed"
    with Journal(tmp_path / "whole") as finished, Journal(resumed) as begun:
        for key, value in list(finished.items())[:known]:
            begun.append(key, value)
    assert records(resumed, 130) == whole


def test_a_search_that_goes_on_from_any_step_ends_as_the_whole_one(tmp_path):
    """Journals without times: what was reused and computed is in each record of it."""

    def metric(example, prediction, trace=None):
        return float(len(prediction.answer) % 2)

    def search(journal: Any) -> tuple[Any, Any]:
        with Engine(FakeModel()) as fake:
            found = optimize(
                Predict("question -> answer", layout="completion"),
                numbers(24),
                metric=metric,
                lm=LocalLM(fake, max_tokens=5),
                budget=Budget(calls=50),
                journal=journal,
                search=Search(candidates=3, demos=(1,)),
                progress=False,
            )
        with Journal(journal) as kept:
            return timeless(found.to_json()), timeless(dict(kept.items()))

    whole = search(tmp_path / "whole")
    assert len(whole[1]) > 2
    with Journal(tmp_path / "whole") as finished:
        entries, fingerprint = list(finished.items()), finished.meta("fingerprint")
    for known in range(len(entries)):
        with Journal(tmp_path / f"{known}") as begun:
            begun.meta("fingerprint", fingerprint)
            for key, value in entries[:known]:
                begun.append(key, value)
        assert search(tmp_path / f"{known}") == whole


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value
