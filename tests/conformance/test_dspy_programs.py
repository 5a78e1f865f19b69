"""Every module and optimizer that DSPy exports, on a real model: it runs, or it says why not.

Budgets are tiny and answers are not judged: what counts is that each comes to its end with typed
values, through our LM and adapter, over DSPy's modules and over ours. A new export of DSPy fails
``test_nothing_is_left_out`` until it stands here. The tiny model is random, of 16,384 tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import tiny_models
from conftest import SMOLLM
from dspy.teleprompt.teleprompt import Teleprompter

import promptflow as pf
from promptflow import catalog
from promptflow.errors import ModelNotFound
from promptflow.retrieval import HashingEmbedder

ROWS = [("2 + 3", "5"), ("4 + 4", "8"), ("9 + 1", "10"), ("7 + 6", "13"), ("3 + 8", "11")]
DATA = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ROWS]


@pytest.fixture(scope="module", params=["tiny", SMOLLM])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model: Any = request.param
    if model == "tiny":
        model = _tiny(tmp_path_factory.mktemp("tiny"))
    else:
        try:
            catalog.locate(model)
        except ModelNotFound as error:
            pytest.skip(f"{model} is not on this machine: {error}")
    # On two threads llama.cpp's spin, and a busy machine makes them ten times as slow.
    context = 16_384 if request.param == "tiny" else 8_192
    options = pf.EngineOptions(context=context, threads=1)
    lm = pf.load(model, options=options, max_tokens=12)
    yield lm
    lm.text_engine.close()


def _tiny(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models._PLAIN, "context_length", 16_384)
        return tiny_models.write("llama", folder)


@pytest.fixture(autouse=True)
def configured(lm: Any) -> Iterator[None]:
    random.seed(0)
    with dspy.context(lm=lm, adapter=pf.SlotAdapter(), track_usage=False):
        yield


def near(example: Any, prediction: Any, trace: Any = None, *_: Any) -> float:
    """A metric that a model without any sense meets now and then.

    DSPy saves no number of more than 64 bits, and such a model writes some.
    """
    digits = len(str(prediction.answer))
    return float(digits % 2 and digits < 18)


def told(example: Any, prediction: Any, *_: Any) -> Any:
    return dspy.Prediction(score=near(example, prediction), feedback="Write the number alone.")


def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


def embed(texts: list[str]) -> Any:
    return HashingEmbedder().encode(list(texts))


class Program(dspy.Module):
    """Two predictors, of DSPy's kind or of ours."""

    def __init__(self, predict: Any = dspy.Predict, reason: Any = dspy.ChainOfThought) -> None:
        super().__init__()
        self.rewrite = predict("question -> sum: str")
        self.answer = reason("question, sum -> answer: int")

    def forward(self, question: str) -> Any:
        return self.answer(question=question, sum=self.rewrite(question=question).sum)

    async def aforward(self, question: str) -> Any:
        made = await self.rewrite.acall(question=question)
        return await self.answer.acall(question=question, sum=made.sum)


KINDS: dict[str, Callable[[], Any]] = {
    "dspys": Program,
    "ours": lambda: Program(pf.Predict, pf.ChainOfThought),
}


def question(module: Any, **inputs: Any) -> Any:
    made = module(**(inputs or {"question": "2 + 3"}))
    assert isinstance(made.answer, int), made
    return made


def _voted() -> None:
    many = dspy.Predict("question -> answer: int", n=3, temperature=1.0)(question="2 + 3")
    assert isinstance(dspy.majority(many, normalize=str).answer, int)  # its own is for texts


def _parallel() -> None:
    calls = [(dspy.Predict("question -> answer: int"), e.inputs()) for e in DATA]
    results = dspy.Parallel(num_threads=4, disable_progress_bar=True)(calls)
    assert all(isinstance(result.answer, int) for result in results)


def _compared() -> None:
    tried = [dspy.Prediction(reasoning="so", answer=str(n)) for n in range(3)]
    module = dspy.MultiChainComparison("question -> answer: int", M=3)
    question(module, completions=tried, question="2 + 3")


def _nearest() -> None:
    [first] = dspy.KNN(k=1, trainset=DATA, vectorizer=dspy.Embedder(embed, caching=False))(
        question="2 + 3"
    )
    assert first.answer


def _agent(kind: Any) -> None:
    question(kind("question -> answer: int", tools=[add], max_iters=2))


def _coded(kind: Any, *tools: Any) -> None:
    with pytest.warns(DeprecationWarning, match="RLM"):
        module = kind(
            "question -> answer: int",
            *tools,
            max_iters=1,
            interpreter_factory=dspy.LocalInterpreter,
        )
    with contextlib.suppress(RuntimeError):  # what such a model writes is no Python
        question(module)


def _rewarded(kind: Any) -> None:
    def reward(arguments: Any, prediction: Any) -> float:
        return near(None, prediction)

    question(kind(dspy.ChainOfThought("question -> answer: int"), 2, reward, 1.0))
    question(kind(pf.ChainOfThought("question -> answer: int"), 2, reward, 1.0))


def _recursive() -> None:
    module = dspy.RLM(
        "question -> answer: int", max_iters=1, interpreter_factory=dspy.LocalInterpreter
    )
    question(module)


def _evaluated() -> None:
    result = dspy.Evaluate(devset=DATA, metric=near, num_threads=4)(Program())
    assert 0 <= result.score <= 100


def _streamed() -> None:
    async def heard() -> list[Any]:
        stream = dspy.streamify(dspy.Predict("question -> answer"))
        return [piece async for piece in stream(question="2 + 3")]

    assert isinstance(asyncio.run(heard())[-1], dspy.Prediction)


def _flexible() -> None:
    with dspy.context(interpreter_factory=dspy.LocalInterpreter):
        question(dspy.Flex("question -> answer: int"))


MODULES: dict[str, Callable[[], Any]] = {
    "Predict": lambda: question(dspy.Predict("question -> answer: int")),
    "ChainOfThought": lambda: question(dspy.ChainOfThought("question -> answer: int")),
    "ReAct": lambda: _agent(dspy.ReAct),
    "ReActV2": lambda: _agent(dspy.ReActV2),
    "BestOfN": lambda: _rewarded(dspy.BestOfN),
    "Refine": lambda: _rewarded(dspy.Refine),
    "MultiChainComparison": _compared,
    "majority": _voted,
    "Parallel": _parallel,
    "KNN": _nearest,
    "CodeAct": lambda: _coded(dspy.CodeAct, [add]),
    "ProgramOfThought": lambda: _coded(dspy.ProgramOfThought),
    "RLM": _recursive,
    "Flex": _flexible,
    "Evaluate": _evaluated,
    "streamify": _streamed,
}


@pytest.mark.filterwarnings("ignore:The 'prefix' argument:DeprecationWarning")  # DSPy's own use
@pytest.mark.parametrize("name", MODULES)
def test_a_module_runs(name: str):
    MODULES[name]()


ADAPTERS: dict[str, Callable[[], Any]] = {
    "SlotAdapter": pf.SlotAdapter,
    "ChatAdapter": lambda: dspy.ChatAdapter(use_json_adapter_fallback=False),
    "JSONAdapter": dspy.JSONAdapter,
    "XMLAdapter": dspy.XMLAdapter,
    "TwoStepAdapter": lambda: dspy.TwoStepAdapter(dspy.settings.lm),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_asks(name: str):
    """Of DSPy's own, JSONAdapter is held by its schema; the others read what was written."""
    with dspy.context(adapter=ADAPTERS[name]()):
        module = dspy.Predict("question -> answer: int")
        if name in ("SlotAdapter", "JSONAdapter"):
            question(module, question="2 + 3")
            return
        with contextlib.suppress(dspy.AdapterParseError, ValueError):
            question(module, question="2 + 3")


@pytest.mark.parametrize("agent", [dspy.ReAct, dspy.ReActV2])
def test_an_agent_runs_beside_others(agent: Any):
    program = agent("question -> answer: int", tools=[add], max_iters=2)
    results = pf.run_many(program, [{"question": q} for q, _ in ROWS[:3]])
    assert all(isinstance(result.answer, int) for result in results)
    assert isinstance(asyncio.run(program.acall(question="2 + 3")).answer, int)


def few(**more: Any) -> dict[str, Any]:
    return {"metric": near, "max_bootstrapped_demos": 1, "max_labeled_demos": 1, **more}


def _mipro(program: Any) -> Any:
    made = dspy.MIPROv2(
        metric=near,
        auto=None,
        num_candidates=2,
        max_bootstrapped_demos=1,
        max_labeled_demos=1,
        num_threads=2,
    )
    return made.compile(program, trainset=DATA[:3], valset=DATA[3:], num_trials=2, minibatch=False)


def _gepa(program: Any) -> Any:
    made = dspy.GEPA(
        metric=told,
        max_metric_calls=8,
        reflection_lm=dspy.settings.lm,
        reflection_minibatch_size=2,
        num_threads=2,
    )
    return made.compile(program, trainset=DATA[:3], valset=DATA[3:])


def _ensembled(program: Any) -> Any:
    def reduce(made: Any) -> Any:
        return dspy.majority(made, normalize=str)  # its own is for texts

    return dspy.Ensemble(reduce_fn=reduce).compile([program, program.deepcopy()])


def _better(program: Any) -> Any:
    program.set_lm(dspy.settings.lm)
    made = dspy.BetterTogether(metric=near, p=dspy.LabeledFewShot(k=1))
    return made.compile(program, trainset=DATA[:3], valset=DATA[3:], strategy="p")


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "LabeledFewShot": lambda p: dspy.LabeledFewShot(k=2).compile(p, trainset=DATA),
    "BootstrapFewShot": lambda p: dspy.BootstrapFewShot(**few()).compile(p, trainset=DATA),
    "BootstrapFewShotWithRandomSearch": lambda p: dspy.BootstrapFewShotWithRandomSearch(
        **few(num_candidate_programs=2, num_threads=2)
    ).compile(p, trainset=DATA[:3], valset=DATA[3:]),
    "BootstrapFewShotWithOptuna": lambda p: dspy.BootstrapFewShotWithOptuna(
        **few(num_candidate_programs=2, num_threads=2)
    ).compile(p, max_demos=1, trainset=DATA[:3], valset=DATA[3:]),
    "KNNFewShot": lambda p: dspy.KNNFewShot(
        k=2, trainset=DATA, vectorizer=dspy.Embedder(embed, caching=False), metric=near
    ).compile(p),
    "COPRO": lambda p: dspy.COPRO(metric=near, breadth=2, depth=1).compile(
        p, trainset=DATA[:2], eval_kwargs={"num_threads": 2, "display_progress": False}
    ),
    "MIPROv2": _mipro,
    "SIMBA": lambda p: dspy.SIMBA(
        metric=near, bsize=3, num_candidates=2, max_steps=1, max_demos=1, num_threads=2
    ).compile(p, trainset=DATA[:4]),
    "GEPA": _gepa,
    "InferRules": lambda p: dspy.InferRules(
        **few(num_candidates=1, num_rules=1, num_threads=2)
    ).compile(p, trainset=DATA[:3], valset=DATA[3:]),
    "Ensemble": _ensembled,
    "BetterTogether": _better,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_runs(name: str, kind: str, tmp_path: Path):
    compiled = OPTIMIZERS[name](KINDS[kind]())
    question(compiled)
    if type(compiled) is Program:  # an ensemble is another module
        compiled.set_lm(None)  # as DSPy's guide has it: a state names its LM
        path = tmp_path / "program.json"
        compiled.save(path)
        loaded = KINDS[kind]()
        loaded.load(path)
        question(loaded)
        asyncio.run(loaded.acall(question="2 + 3"))


def test_a_tuned_agent_runs():
    agent = dspy.ReAct("question -> answer: int", tools=[add], max_iters=1)
    question(dspy.BootstrapFewShot(**few()).compile(agent, trainset=DATA[:2]))


def test_avatar_cannot_be_made():
    """DSPy 3.4 has taken away the predictor that it was made of."""
    from dspy.predict.avatar import Avatar

    with pytest.raises(AttributeError, match="TypedPredictor"):
        Avatar("question -> answer", tools=[])


def test_weights_are_not_tuned():
    """A GGUF is read, never trained; DSPy asks its provider after it has gathered its examples."""
    program = Program()
    program.set_lm(dspy.settings.lm)
    with pytest.raises(Exception, match=r"fine-tun|finetun"):
        dspy.BootstrapFinetune(metric=near, num_threads=2).compile(program, trainset=DATA[:2])


TESTED_APART = {"AvatarOptimizer", "BootstrapFinetune", "BootstrapRS"}
"""Exported too; the last is another name of BootstrapFewShotWithRandomSearch."""
PLAIN = {"Module", "BaseModule", "Signature"}
FOREIGN = {"ColBERTv2", "Retrieve", "Embeddings", "EmbeddingsWithScores"}  # ask no model


def test_nothing_is_left_out():
    known = {*MODULES, *OPTIMIZERS, *TESTED_APART, *PLAIN, *FOREIGN}
    exported = {name: getattr(dspy, name) for name in dir(dspy)}
    wanted = {
        name
        for name, value in exported.items()
        if isinstance(value, type) and issubclass(value, dspy.Module | Teleprompter)
    }
    assert wanted <= known, wanted - known
