"""The public types as a user's type checker sees them. Never run: mypy reads it."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import assert_type

import promptflow as pf


def engine_calls(engine: pf.TextEngine) -> None:
    request = pf.Request(
        (pf.Text("2 + 2 = "), pf.Slot("sum", constraint=pf.Choice(("3", "4")), logprobs=2)), seed=1
    )
    [completion] = engine.generate([request])
    assert_type(completion, pf.Completion)
    assert_type(completion.fills["sum"], pf.Fill)
    assert_type(completion.error, pf.PromptflowError | None)
    assert_type(completion.usage + completion.usage, pf.Usage)
    assert_type(engine.submit(request), Future[pf.Completion])
    assert_type(engine.stats(), pf.Stats)
    assert_type(engine.info, pf.ModelInfo)
    assert_type(engine.score([pf.Text("a")], ["b", "c"]), list[tuple[pf.TokenLogprob, ...]])


def an_engine_is_a_text_engine(path: Path) -> pf.TextEngine:
    return pf.Engine(path, pf.EngineOptions(context=4096))


def constraints() -> list[pf.Constraint]:
    return [
        pf.Json('{"type": "integer"}'),
        pf.Regex("[0-9]+"),
        pf.Choice(("yes", "no")),
        pf.Lark('start: "a"'),
        pf.Substring(("a passage",)),
    ]


def programs() -> None:
    predict = pf.Predict("question -> answer", sampling=pf.Sampling(temperature=0.7))
    assert_type(predict.call(question="?"), pf.Call)
    assert_type(pf.run(predict, question="?"), pf.Prediction)
    assert_type(pf.run_many(predict, [{"question": "?"}]), list[pf.Prediction | pf.PromptflowError])


def retrieval(folder: Path) -> None:
    index = pf.build_index("guide", folder)
    assert_type(index, pf.Index)
    assert_type(index.search("chain of thought", k=3), list[pf.Passage])


def measurements(program: pf.Predict, path: Path) -> None:
    data = pf.load_data(path)
    result = pf.evaluate(program, data, pf.f1)
    assert_type(result, pf.Evaluation)
    assert_type(pf.compare(result, result), pf.Comparison)


def errors() -> None:
    try:
        pf.load("no-such-model")
    except pf.errors.ModelNotFound as error:
        assert_type(error, pf.errors.ModelNotFound)
