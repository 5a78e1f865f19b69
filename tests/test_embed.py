"""Vectors: unit length, the same by every road, and an identity that changes when they would."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import dspy
import numpy as np
import pytest
from hypothesis import given, strategies as st

from promptflow.errors import ModelInvalid, ModelNotFound
from promptflow.retrieval.bert import shape_of
from promptflow.retrieval.embed import Embedder, HashingEmbedder, open_embedder

TEXTS = [
    "A thought tree is searched breadth first.",
    "Breadth-first search of a tree of thoughts.",
    "The cat sat on the mat.",
    "caf\u00e9 \u4e2d\u6587 \U0001f600",
    "",
    "word " * 400,
]


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Embedder:
    return Embedder(minilm, name="all-minilm-l6-v2")


def test_vectors_are_unit_float32_whatever_the_batch(embedder: Embedder) -> None:
    together = embedder.encode(TEXTS)
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), 384)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    assert np.allclose(together, alone, atol=1e-5)
    assert embedder.encode([]).shape == (0, 384)


def test_vectors_are_those_of_sentence_transformers(embedder: Embedder) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(embedder.path), device="cpu", local_files_only=True)
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert np.allclose(embedder.encode(TEXTS), expected, atol=1e-5)


def test_a_query_has_the_vector_of_a_passage(embedder: Embedder) -> None:
    passages = embedder.encode(TEXTS)
    queries = np.stack([embedder.encode_query(text) for text in TEXTS])
    assert queries.dtype == np.float32
    assert np.abs(passages - queries).max() < 1e-5


def test_like_texts_are_near(embedder: Embedder) -> None:
    tree, same, cat = embedder.encode(TEXTS[:3])
    assert tree @ same > 0.7
    assert tree @ cat < 0.3


def test_a_query_needs_no_torch(minilm: Path) -> None:
    code = (
        "import sys; from promptflow.retrieval.embed import Embedder\n"
        f"print(Embedder({str(minilm)!r}).encode_query('hello').shape)\n"
        "print(sorted({'torch', 'transformers', 'scipy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(384,)\n[]\n"


def test_progress_counts_every_text(embedder: Embedder) -> None:
    seen: list[int] = []
    embedder.encode(["a word " * 100, "b"] * 40, progress=seen.append)
    assert sum(seen) == 80
    assert len(seen) > 1


def test_tokens_are_counted_without_a_cut(embedder: Embedder) -> None:
    assert embedder.count("") == 0
    assert embedder.count("hello world") == 2
    assert embedder.count("word " * 1000) == 1000
    # Word pieces call this one unknown token, but a passage of that length is not one token long.
    assert embedder.count("a" * 12_000) == 1000
    assert embedder.max_tokens == 254


def test_the_identity_follows_the_files_that_decide_the_vectors(
    minilm: Path, tmp_path: Path, embedder: Embedder
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    assert Embedder(copy).sha256 == embedder.sha256
    (copy / "README.md").write_text("other words")
    assert Embedder(copy).sha256 == embedder.sha256
    data = bytearray((copy / "tokenizer.json").read_bytes())
    data[-2] ^= 1
    (copy / "tokenizer.json").write_bytes(data)
    assert Embedder(copy).sha256 != embedder.sha256
    assert Embedder(minilm, prefixes=("", "passage: ")).sha256 != embedder.sha256


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "model_type", "electra"),
        ("config.json", "hidden_act", "relu"),
        ("config.json", "position_embedding_type", "relative_key"),
        ("1_Pooling/config.json", "pooling_mode_cls_token", True),
        ("1_Pooling/config.json", "pooling_mode_mean_tokens", False),
    ],
)
def test_only_the_known_shape_is_computed_in_numpy(
    minilm: Path, tmp_path: Path, file: str, key: str, value: object
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(minilm / name, copy / name)
    (copy / "model.safetensors").symlink_to(minilm / "model.safetensors")
    shape = shape_of(copy)
    assert shape is not None
    assert shape.is_plain
    config = json.loads((copy / file).read_text()) | {key: value}
    (copy / file).write_text(json.dumps(config))
    assert shape_of(copy) is None


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="promptflow models get all-minilm-l6-v2"):
        Embedder(tmp_path)


def test_an_encoder_with_broken_weights_is_refused(minilm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelInvalid, match="cannot be loaded"):
        Embedder(copy).encode(["a"])
    with pytest.raises(ModelInvalid, match="cannot be loaded"):
        Embedder(copy).encode_query("a")


def test_names_open_embedders(minilm: Path) -> None:
    assert isinstance(open_embedder("hashing-64"), HashingEmbedder)
    assert open_embedder("hashing-64").dimension == 64
    assert open_embedder("all-minilm-l6-v2").name == "all-minilm-l6-v2"
    assert open_embedder(str(minilm)).dimension == 384
    with pytest.raises(ModelNotFound):
        open_embedder("no-such-embedder")


@given(st.lists(st.text(max_size=60), max_size=5))
def test_hashed_vectors_are_unit_or_zero(texts: list[str]) -> None:
    embedder = HashingEmbedder(64)
    vectors = embedder.encode(texts)
    assert vectors.shape == (len(texts), 64)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(vector, embedder.encode_query(text))
        assert abs(np.linalg.norm(vector) - 1) < 1e-5 or not vector.any()


def test_hashed_vectors_are_the_same_everywhere() -> None:
    vector = HashingEmbedder(8).encode_query("prompt programs")
    expected = [-0.525, 0.0, 0.131, 0.0, 0.0, 0.788, -0.263, -0.131]
    assert vector.tolist() == pytest.approx(expected, abs=1e-3)
    a, b, c = HashingEmbedder().encode(["tree of thoughts", "a thought tree", "boiling osmium"])
    assert a @ b > a @ c


def test_an_embedder_crosses_to_other_processes_and_copies_share_it(minilm: Path):
    embedder = Embedder(minilm, name="small", prefixes=("q: ", ""))
    assert copy.deepcopy(embedder) is embedder
    wrapped = dspy.Embedder(embedder.encode, caching=False)
    for again in (
        pickle.loads(pickle.dumps(embedder)),
        pickle.loads(cloudpickle.dumps(wrapped)).model.__self__,
    ):
        assert (again.name, again.path, again.prefixes) == ("small", embedder.path, ("q: ", ""))
    assert copy.deepcopy(wrapped).model.__self__ is embedder
