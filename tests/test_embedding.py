"""GGUF files that embed: the vectors of llama-cpp-python, one text at a time, by our child."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from promptflow.engine.embedding import EmbeddingEngine
from promptflow.errors import EngineLost, ForkedUse, ModelInvalid

TEXTS = [
    "the water that they would see there",
    "red",
    "what people said about the question, and then some other words after that. " * 4,
    "",
    "\ud55c\uad6d\uc5b4 caf\u00e9 <|im_end|>",
    "the water that they would see",
]
MEAN, CLS, LAST, RANK = 1, 2, 3, 4
POOLED = {
    "bert": [MEAN, CLS],
    "nomic-bert": [MEAN],
    "qwen3": [LAST, MEAN],
    "llama": [LAST],
    "gemma3": [MEAN],
}
CASES = [(name, pooling) for name, all_of in POOLED.items() for pooling in all_of]


def make(architecture: str, folder: Path, **changes: object) -> EmbeddingEngine:
    path = tiny_models.write(architecture, folder, **changes)
    return EmbeddingEngine(path, architecture, "0" * 64, trained=tiny_models.CONTEXT)


def alone(path: Path, texts: list[str]) -> np.ndarray:
    """What llama-cpp-python makes of each text, one after the other."""
    from llama_cpp import Llama

    model = Llama(str(path), embedding=True, n_ctx=512, n_batch=512, n_ubatch=512,
                  n_gpu_layers=0, verbose=False)  # fmt: skip
    read = model.tokenize
    # Control tokens are text here, as in any document.
    model.tokenize = lambda data, *_, **__: read(data, True, False)  # type: ignore[method-assign]
    found = np.array([model.embed(text) for text in texts])
    model.close()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize(("architecture", "pooling"), CASES)
def test_vectors_are_those_of_llama_cpp_python(
    tmp_path: Path, architecture: str, pooling: int
) -> None:
    texts = [text for text in TEXTS if text]
    with make(architecture, tmp_path, pooling_type=pooling) as engine:
        assert engine.info.pooling == {MEAN: "mean", CLS: "cls", LAST: "last"}[pooling]
        together = engine.encode(texts)
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        expected = alone(Path(engine.info.path), texts)
        assert np.abs(together - expected).max() < 2e-3
        assert np.abs(expected[0] - expected[1]).max() > 0.05, "it embeds everything alike"
        one_by_one = np.concatenate([engine.encode([text]) for text in texts])
        assert np.abs(together - one_by_one).max() < 2e-3


def test_many_texts_of_all_lengths_are_embedded_in_passes(tmp_path: Path) -> None:
    words = tiny_models.TEXT.split()
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(words, size)) for size in random.integers(1, 200, 70)]
    with make("bert", tmp_path, pooling_type=MEAN) as engine:
        together = engine.encode(texts)
        some = [0, 7, 60, 69]
        assert np.abs(together[some] - engine.encode([texts[at] for at in some])).max() < 2e-3


def test_a_text_without_tokens_is_no_vector(tmp_path: Path) -> None:
    with make("bert", tmp_path, pooling_type=MEAN) as engine:
        assert engine.count(["", " red"]) == [0, 1]
        assert not engine.encode(["", "red"])[0].any()
        assert engine.encode([]).shape[0] == 0


def test_a_text_that_is_too_long_is_cut(tmp_path: Path) -> None:
    path = tiny_models.write("bert", tmp_path, pooling_type=MEAN)
    with EmbeddingEngine(path, "bert", "0" * 64, trained=40) as engine:
        assert engine.count([" red" * 500]) == [40]
        long, cut = engine.encode([" red" * 500, " red" * 40])
        assert np.abs(long - cut).max() < 1e-5


def test_an_encoder_that_states_no_pooling_takes_the_mean(tmp_path: Path) -> None:
    with make("bert", tmp_path) as engine:
        assert engine.info.pooling == "mean"


@pytest.mark.parametrize(
    ("architecture", "changes", "why"),
    [
        ("qwen3", {}, "model of text, which states no pooling"),
        ("bert", {"pooling_type": RANK}, "reranker"),
    ],
)
def test_what_is_no_embedder_is_refused(
    tmp_path: Path, architecture: str, changes: dict[str, int], why: str
) -> None:
    with make(architecture, tmp_path, **changes) as engine, pytest.raises(ModelInvalid, match=why):
        engine.encode(["red"])


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EmbeddingEngine]:
    with make("bert", tmp_path, pooling_type=MEAN) as engine:
        yield engine


def test_a_child_that_is_killed_is_started_again(engine: EmbeddingEngine) -> None:
    before = engine.encode(TEXTS)
    assert engine._host is not None
    os.kill(engine._host.pid, signal.SIGKILL)
    assert np.array_equal(engine.encode(TEXTS), before)


def test_a_child_that_dies_of_what_it_is_asked_is_not_asked_for_ever(
    engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    running = EmbeddingEngine._running

    def killed(self: EmbeddingEngine) -> object:
        host = running(self)
        starts.append(host.pid)
        os.kill(host.pid, signal.SIGKILL)
        return host

    monkeypatch.setattr(EmbeddingEngine, "_running", killed)
    with pytest.raises(EngineLost, match="SIGKILL"):
        engine.encode(["red"])
    assert len(set(starts)) == 2


def test_an_answer_that_nobody_waits_for_is_not_taken_for_another(
    engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.encode(["red"])
    with monkeypatch.context() as patch:

        def interrupted() -> object:
            raise KeyboardInterrupt

        patch.setattr(engine, "_answers", type("Answers", (), {"get": staticmethod(interrupted)}))
        with pytest.raises(KeyboardInterrupt):
            engine.encode(["blue"])
    assert np.array_equal(engine.encode(["red"]), expected)


def test_threads_get_their_own_answers(engine: EmbeddingEngine) -> None:
    words = tiny_models.TEXT.split()[:40]
    expected = dict(zip(words, engine.encode(words), strict=True))
    wrong = []

    def ask(mine: list[str]) -> None:
        for word in mine:
            if np.abs(engine.encode([word])[0] - expected[word]).max() > 2e-3:
                wrong.append(word)

    threads = [threading.Thread(target=ask, args=(words[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_is_told(engine: EmbeddingEngine) -> None:
    engine.encode(["red"])
    engine._pid += 1
    with pytest.raises(ForkedUse):
        engine.encode(["red"])
    engine._pid -= 1
