"""Cosines of unrelated texts, against a loop over the pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from promptflow.retrieval import HashingEmbedder, Index, build_index
from promptflow.retrieval.calibration import unrelated

WORDS = "tree beam search water stone river light north paper glass horse green"


def passages(number: int) -> list[str]:
    rng = np.random.default_rng(number)
    return [" ".join(rng.choice(WORDS.split(), 20)) for _ in range(number)]


def test_numbers_are_those_of_the_pairs() -> None:
    embedder = HashingEmbedder(64)
    texts = passages(20)
    found = unrelated(embedder, texts, embedder.encode(texts))
    pairs, own = [], []
    for at, text in enumerate(texts):
        query = embedder.encode_query(" ".join(text.split()[:12])[:80])
        for other, passage in enumerate(texts):
            cosine = float(query @ embedder.encode([passage])[0])
            (own if other == at else pairs).append(cosine)
    assert found["pairs"] == len(pairs) == 20 * 19
    assert found["mean"] == pytest.approx(np.mean(pairs), abs=1e-3)
    assert found["std"] == pytest.approx(np.std(pairs), abs=1e-3)
    assert found["own"] == pytest.approx(np.median(own), abs=1e-3)
    for name, part in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert found[name] == pytest.approx(np.percentile(pairs, part), abs=1e-3)
    assert found["own"] > found["p95"]


def test_copies_are_not_unrelated() -> None:
    embedder = HashingEmbedder(64)
    texts = ["the same words"] * 30
    assert unrelated(embedder, texts, embedder.encode(texts)) == {}


def test_few_passages_tell_nothing() -> None:
    embedder = HashingEmbedder(64)
    assert unrelated(embedder, passages(7), embedder.encode(passages(7))) == {}
    assert unrelated(embedder, [], np.zeros((0, 64), np.float32)) == {}


def test_an_index_records_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    for number, text in enumerate(passages(30)):
        (docs / f"{number}.txt").write_text(text)
    embedder = HashingEmbedder(64)
    with build_index("mine", docs, embedder=embedder, progress=False) as index:
        first = index.manifest.measured
    assert first["precision"] == "float32"
    assert first["unrelated"]["pairs"] >= 30 * 20
    assert -1 <= first["unrelated"]["p50"] <= first["unrelated"]["p99"] <= 1
    (docs / "new.txt").write_text("another stone in the river")
    with build_index("mine", embedder=embedder, progress=False) as index:
        assert index.manifest.measured == first
    with build_index("mine", embedder=embedder, progress=False, force=True) as index:
        assert index.manifest.measured["unrelated"] != first["unrelated"]
    with Index.open("mine", embedder=embedder) as index:
        assert index.info()["measured"] == dict(index.manifest.measured)
