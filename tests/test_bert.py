"""The passes of our own over BERT and its kin, against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders

from promptflow.errors import ModelInvalid
from promptflow.retrieval.bert import shape_of
from promptflow.retrieval.embed import Embedder

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
