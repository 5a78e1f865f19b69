"""A GGUF file as the embedder of an index."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from promptflow.errors import ModelInvalid
from promptflow.retrieval import Index, build_index
from promptflow.retrieval.embed import TextEmbedder, open_embedder
from promptflow.retrieval.gguf_embedder import GgufEmbedder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_models.write("bert", tmp_path, pooling_type=1)


def test_an_index_is_built_and_searched_with_a_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "water.txt").write_text("People said many things about the long water.")
    (docs / "red.txt").write_text("Red and green and blue.")
    recipe = tmp_path / "indexes" / "mine" / "index.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(f'documents = "docs"\nembedder = "{path}"\n')
    with build_index("mine", progress=False) as built:
        assert built.manifest.embedder["dimension"] == 64
    with Index.open("mine") as index:
        [best] = index.search("Red and green and blue.", k=1, mode="dense")
        assert best.document == "red.txt"
        assert best.score == pytest.approx(1, abs=1e-3)


def test_what_it_says_of_itself(path: Path) -> None:
    embedder = open_embedder(str(path))
    assert isinstance(embedder, GgufEmbedder)
    protocol: TextEmbedder = embedder
    assert (protocol.dimension, protocol.name) == (64, str(path))
    assert embedder.max_tokens == tiny_models.CONTEXT
    assert embedder.count(" red green") == 2
    assert embedder.count("x" * 1200) >= 100
    assert copy.deepcopy(embedder) is embedder
    again = pickle.loads(pickle.dumps(embedder))
    assert np.array_equal(again.encode_query("red"), embedder.encode_query("red"))
    again.close()
    embedder.close()


def test_prefixes_are_those_of_its_family_or_given(path: Path, tmp_path: Path) -> None:
    plain = GgufEmbedder(path)
    assert plain.prefixes == ("", "")
    named = tmp_path / "multilingual-e5-small-Q8_0.gguf"
    named.write_bytes(path.read_bytes())
    family, given = GgufEmbedder(named), GgufEmbedder(named, prefixes=("", "doc: "))
    assert family.prefixes == ("query: ", "passage: ")
    assert len({plain.sha256, family.sha256, given.sha256}) == 3
    assert np.array_equal(family.encode_query("red"), plain.encode_query("query: red"))
    assert np.array_equal(family.encode(["red"]), plain.encode(["passage: red"]))
    assert family.max_tokens == tiny_models.CONTEXT - plain.count("passage: ")
    for one in (plain, family, given):
        one.close()


def test_progress_counts_every_text(path: Path) -> None:
    seen: list[int] = []
    embedder = GgufEmbedder(path)
    embedder.encode(["red", "blue green"] * 40, progress=seen.append)
    embedder.close()
    assert sum(seen) == 80


def test_a_model_of_text_is_refused(tmp_path: Path) -> None:
    embedder = GgufEmbedder(tiny_models.write("llama", tmp_path))
    with pytest.raises(ModelInvalid, match="states no pooling"):
        embedder.encode_query("red")
