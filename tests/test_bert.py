"""The passes of our own over BERT and its kin, against sentence-transformers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders
import torch
from safetensors.torch import save_file

from promptflow.errors import ModelInvalid
from promptflow.retrieval import bert_batches
from promptflow.retrieval.bert import shape_of
from promptflow.retrieval.embed import Embedder, batched

TEXTS = [
    "the tree of thought is a search",
    "what people said about the water",
    "",
    "red, green and blue. " * 30,
    "xyz 42?",
    "\u6f22\u5b57",
]
KINDS = [
    ("bert", "mean", False), ("bert", "cls", True), ("xlm-roberta", "cls", False),
    ("xlm-roberta", "cls", True), ("roberta", "mean", False),
]  # fmt: skip


def theirs(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    found = model.encode(texts, prompt="", normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(found)


@pytest.mark.parametrize(("kind", "pooling", "torch_only"), KINDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_sentence_transformers(
    tmp_path: Path, kind: str, pooling: str, torch_only: bool, normalize: bool
) -> None:
    folder = tiny_encoders.write(
        tmp_path, kind, pooling=pooling, torch_only=torch_only, normalize=normalize
    )
    shape = shape_of(folder)
    assert shape is not None
    assert shape.is_plain is not torch_only
    embedder = Embedder(folder)
    expected = theirs(folder, TEXTS)
    assert np.abs(embedder.encode(TEXTS) - expected).max() < 1e-5
    queries = np.stack([embedder.encode_query(text) for text in TEXTS])
    assert np.abs(queries - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 0.01, "it embeds everything alike"


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "max"), ("distilbert", "mean")])
def test_what_is_not_known_is_left_to_sentence_transformers(
    tmp_path: Path, kind: str, pooling: str
) -> None:
    folder = tiny_encoders.write(tmp_path, kind, pooling=pooling)
    assert shape_of(folder) is None
    embedder = Embedder(folder)
    expected = theirs(folder, TEXTS)
    assert np.abs(embedder.encode(TEXTS) - expected).max() < 1e-5
    assert np.abs(embedder.encode_query(TEXTS[0]) - expected[0]).max() < 1e-5


def test_the_length_of_vectors_is_that_of_the_last_module(tmp_path: Path) -> None:
    folder = tiny_encoders.write(tmp_path / "dense", "bert", pooling="mean")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "2_Dense").mkdir()
    kind = "sentence_transformers.models.Dense"
    modules[2] = {"idx": 2, "name": "2", "path": "2_Dense", "type": kind}
    settings = {"in_features": 32, "out_features": 20, "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    (folder / "2_Dense/config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    weights = {"linear.weight": torch.randn(20, 32), "linear.bias": torch.randn(20)}
    save_file(weights, folder / "2_Dense/model.safetensors")
    (folder / "modules.json").write_text(json.dumps(modules))
    both = tiny_encoders.write(tmp_path / "both", "bert", pooling="mean")
    changed = json.loads((both / "1_Pooling/config.json").read_text())
    changed |= {"pooling_mode_cls_token": True}
    (both / "1_Pooling/config.json").write_text(json.dumps(changed))
    cut = tiny_encoders.write(tmp_path / "cut", "bert", pooling="mean", prompts={})
    (cut / "config_sentence_transformers.json").write_text('{"truncate_dim": 8, "prompts": {}}')
    for place, length in [(folder, 20), (both, 64), (cut, 8)]:
        embedder = Embedder(place)
        assert embedder.dimension == length
        assert np.abs(embedder.encode(TEXTS) - theirs(place, TEXTS)).max() < 1e-5
        assert embedder.encode_query(TEXTS[0]).shape == (length,)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "electra"}),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"is_decoder": True}),
        ("config.json", {"position_embedding_type": "relative_key"}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}),
    ],
)
def test_a_shape_that_is_not_computed_here_is_not_taken_for_one(
    tmp_path: Path, file: str, changes: dict[str, object]
) -> None:
    folder = tiny_encoders.write(tmp_path, "bert", pooling="mean")
    assert shape_of(folder) is not None
    config = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(config))
    assert shape_of(folder) is None


def test_pooling_is_read_as_new_versions_write_it(tmp_path: Path) -> None:
    folder = tiny_encoders.write(tmp_path, "bert", pooling="mean")
    for mode in ("mean", "cls"):
        stated = {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True}
        (folder / "1_Pooling/config.json").write_text(json.dumps(stated))
        shape = shape_of(folder)
        assert shape is not None
        assert shape.pooling == mode


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    """A pickle that would write a file when it is loaded."""
    import pickle

    class Evil:
        def __reduce__(self) -> object:
            return open, (str(tmp_path / "owned"), "w")

    folder = tiny_encoders.write(tmp_path / "model", "xlm-roberta", torch_only=True)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Evil()}))
    with pytest.raises(ModelInvalid, match="cannot be loaded"):
        Embedder(folder).encode(["a"])
    assert not (tmp_path / "owned").exists()


def test_a_faster_precision_is_taken_only_where_it_is_near_and_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_encoders.write(tmp_path, "bert", pooling="mean")
    shape = shape_of(folder)
    assert shape is not None
    sample = Embedder(folder)._tokenizer().encode_batch(TEXTS[:4])
    ids = [one.ids[:50] for one in sample]
    exact = bert_batches.Batches(shape)
    for near, faster, expected in [
        (0.9, 0.0, "bfloat16"), (1.1, 0.0, "float32"), (0.9, 1e9, "float32"),
    ]:  # fmt: skip
        monkeypatch.setattr(bert_batches, "NEAR", near)
        monkeypatch.setattr(bert_batches, "FASTER", faster)
        chosen, measured = bert_batches.faster(shape, exact, ids)
        assert chosen.precision == expected
        assert 0.9 < measured["cosine"] <= 1.000001
        assert measured["speedup"] > 0
    quick = bert_batches.Batches(shape, "bfloat16")
    cosines = (quick.encode(ids) * exact.encode(ids)).sum(axis=1)
    assert measured["cosine"] == pytest.approx(cosines.min(), abs=1e-5)


def test_few_texts_are_embedded_in_float32_and_many_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bert_batches, "FASTER", 0.0)
    embedder = Embedder(tiny_encoders.write(tmp_path, "bert", pooling="mean"))
    embedder.encode(TEXTS * 5)
    assert (embedder.precision, embedder.measured) == ("float32", {})
    many = embedder.encode(TEXTS * 12)
    assert embedder.precision == "bfloat16"
    assert set(embedder.measured) == {"speedup", "cosine"}
    few = Embedder(embedder.path).encode(TEXTS)
    assert ((many[: len(TEXTS)] * few).sum(axis=1) > 0.999).all()


def test_queries_leave_the_threads_of_numpy_as_they_were(tmp_path: Path) -> None:
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    embedder = Embedder(tiny_encoders.write(tmp_path, "bert", pooling="mean"))
    np.ones((64, 64)) @ np.ones((64, 64))
    before = threads()
    workers = [threading.Thread(target=embedder.encode_query, args=(t,)) for t in TEXTS * 4]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert threads() == before


def test_batches_on_several_cores_are_put_in_their_places(tmp_path: Path) -> None:
    embedder = Embedder(tiny_encoders.write(tmp_path, "bert", pooling="mean"))
    texts = [f"{word} {'the water ' * (at % 9)}" for at, word in enumerate(TEXTS * 40)]
    threads = torch.get_num_threads()
    together = embedder.encode(texts[:60]), embedder.encode(texts)
    assert torch.get_num_threads() == threads
    for found in together:
        for at in (0, 7, 30, 59):
            alone = Embedder(embedder.path).encode([texts[at]])[0]
            assert float(found[at] @ alone) > 0.999


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([5, 3, 4], [[1, 2, 0]]),
        ([600, 2, 600, 3], [[1, 3], [0], [2]]),
        ([2000], [[0]]),
        ([512, 512, 512], [[0, 1], [2]]),
    ],
)
def test_texts_of_like_length_share_a_batch(lengths: list[int], expected: list[list[int]]) -> None:
    assert list(batched(lengths)) == expected
