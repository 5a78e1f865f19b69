"""Cross-encoders as rerankers, with a tiny one of random weights."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from promptflow.errors import ModelInvalid, ModelNotFound
from promptflow.retrieval import Passage
from promptflow.retrieval.rerank import CrossEncoderReranker

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gold", "metal", "dense", "iron", "what"]


def passage(text: str, heading: str = "") -> Passage:
    return Passage("a.md", 0, 0, len(text), text, 0.0, heading)


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    """Write a BERT of random weights that gives so many scores a pair."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
        num_labels=labels,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_each_passage_gets_the_score_of_its_pair(tmp_path: Path) -> None:
    rerank = CrossEncoderReranker(cross_encoder(tmp_path / "model"))
    texts = ["gold metal", "iron", "dense dense metal gold"]
    scores = rerank("what metal", [passage(text) for text in texts])
    alone = [rerank("what metal", [passage(text)])[0] for text in texts]
    assert scores == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 6) for score in scores}) == 3
    headed = rerank("what metal", [passage("metal", "gold")])
    assert headed == pytest.approx([scores[0]], abs=1e-5)
    assert copy.deepcopy(rerank) is rerank
    [again] = pickle.loads(pickle.dumps(rerank))("what metal", [passage("iron")])
    assert again == pytest.approx(scores[1], abs=1e-5)


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    rerank = CrossEncoderReranker(cross_encoder(tmp_path / "model", labels=3))
    with pytest.raises(ModelInvalid, match="a classifier, not a reranker"):
        rerank("what", [passage("gold"), passage("iron")])


def test_a_model_that_is_not_there_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="hf download cross-encoder/nothing-of-this-name"):
        CrossEncoderReranker("cross-encoder/nothing-of-this-name")("what", [passage("gold")])
    folder = cross_encoder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"})[:-1])
    with pytest.raises(ModelInvalid, match="cannot be loaded as a cross-encoder"):
        CrossEncoderReranker(folder)("what", [passage("gold")])
