"""Write a GGUF file with random weights in the shape of a model that people run.

    python benchmarks/gpu/shapes.py tiny|0.5b|8b|32b FILE [--type f16|q8_0|q4_0|q4_k]

Speed depends on shapes and types, not on what the weights say. The vocabulary has 151,936 made-up
tokens that read English at two or three letters a token, and the logits are finite and as spread as
those of trained models. Tensors repeat a pool of random blocks and are written one by one: 32B in
q4_k are 19 GB, as fast as the disk takes them.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import gguf
import numpy as np

VOCABULARY = 151_936
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by how often English has them
SPACE = "\u0120"  # how byte-level BPE writes a space
POOL = 65_537  # random blocks; a prime, so that no row of a tensor is its neighbour's
GAIN = 4.0  # spread of the logits
_TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_k": gguf.GGMLQuantizationType.Q4_K,
}
Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer with gated feed-forward layers and grouped keys and values."""

    architecture: str
    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    form: str
    tied: bool = False


SHAPES = {
    "tiny": Shape("qwen2", 256, 2, 512, 4, 2, 64, "q8_0", tied=True),
    "0.5b": Shape("qwen2", 896, 24, 4864, 14, 2, 64, "q8_0", tied=True),
    "8b": Shape("llama", 4096, 32, 14336, 32, 8, 128, "q4_k"),
    "32b": Shape("qwen2", 5120, 64, 27648, 40, 8, 128, "q4_k"),
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of each tensor, rows first."""
    wide, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    yield "token_embd.weight", (VOCABULARY, shape.width)
    if not shape.tied:
        yield "output.weight", (VOCABULARY, shape.width)
    yield "output_norm.weight", (shape.width,)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name, rows in (("attn_q", wide), ("attn_k", keys), ("attn_v", keys)):
            yield f"{block}.{name}.weight", (rows, shape.width)
            if shape.architecture == "qwen2":
                yield f"{block}.{name}.bias", (rows,)
        yield f"{block}.attn_output.weight", (shape.width, wide)
        yield f"{block}.ffn_gate.weight", (shape.inner, shape.width)
        yield f"{block}.ffn_up.weight", (shape.inner, shape.width)
        yield f"{block}.ffn_down.weight", (shape.width, shape.inner)
        yield f"{block}.attn_norm.weight", (shape.width,)
        yield f"{block}.ffn_norm.weight", (shape.width,)


def type_of(name: str, form: str) -> Type:
    """Return how a matrix is stored: in files of q4_k the vocabulary keeps six bits."""
    if form == "q4_k" and name in ("token_embd.weight", "output.weight"):
        return Type.Q6_K
    return _TYPES[form]


@functools.cache
def pool(kind: Type, spread: float) -> np.ndarray:
    """Return random blocks of a type as rows of bytes; their values have that deviation."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    if kind == Type.F16:
        values = rng.standard_normal((POOL, 1)) * spread
        return values.astype(np.float16).view(np.uint8)
    blocks = rng.integers(0, 256, (POOL, size), dtype=np.uint8)
    scales = {Type.Q8_0: (0,), Type.Q4_0: (0,), Type.Q4_K: (0, 2), Type.Q6_K: (208,)}[kind]
    # In q4_k values are d * scale * (0 to 15) - m * scale: m makes their mean zero.
    factors = dict(zip(scales, (1.0, 7.5), strict=False))
    for unit in (1.0, None):
        if unit is None:
            unit = spread / float(gguf.quants.dequantize(blocks[:4096], kind).std())
        for at, factor in factors.items():
            blocks[:, at : at + 2] = np.full((POOL, 1), unit * factor, np.float16).view(np.uint8)
    assert gguf.quants.dequantize(blocks[:1], kind).size == block
    return blocks


def contents(name: str, shape: tuple[int, ...], form: str) -> tuple[np.ndarray, Type]:
    """Return the bytes of a tensor as rows, and its type."""
    if len(shape) == 1:
        value = 0.0 if name.endswith("bias") else 1.0
        return np.full(shape, value, np.float32), Type.F32
    kind = type_of(name, form)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    gain = GAIN if name in ("output.weight", "token_embd.weight") else 1.0
    blocks = pool(kind, gain / math.sqrt(shape[-1])).reshape(-1)
    return np.resize(blocks, (shape[0], shape[1] // block * size)), kind


@functools.cache
def vocabulary() -> tuple[list[str], list[str]]:
    """Return tokens and merges: all pairs of letters, then pairs with a letter, then two pairs."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    tokens = [letters[byte] for byte in range(256)]
    inner = [a + b for a, b in product(LETTERS, LETTERS)]
    pairs = [*(SPACE + letter for letter in LETTERS), *inner]
    merges = [f"{pair[0]} {pair[1]}" for pair in pairs]
    merges += [f"{pair} {letter}" for pair, letter in product(pairs, LETTERS)]
    # The rarest letters come last in pairs, so what is cut off here is hardly ever met.
    ranked = sorted(
        product(range(len(pairs)), range(len(inner))),
        key=lambda two: (two[0] + 8) * (two[1] + 8),
    )
    left = VOCABULARY - len(CONTROLS) - len(tokens) - len(merges)
    merges += [f"{pairs[a]} {inner[b]}" for a, b in ranked[:left]]
    tokens += [merge.replace(" ", "") for merge in merges]
    return [*tokens, *CONTROLS], merges


def write(shape: Shape, path: Path, form: str = "") -> None:
    """Write a model of ``shape``; ``form`` is the type of its matrices."""
    form = form or shape.form
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_context_length(32_768)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    tokens, merges = vocabulary()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in CONTROLS else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    for name, size in tensors(shape):
        kind = Type.F32 if len(size) == 1 else type_of(name, form)
        block, taken = gguf.GGML_QUANT_SIZES[kind]
        row = size[-1] // block * taken
        dtype = np.dtype({Type.F32: np.float32, Type.F16: np.float16}.get(kind, np.uint8))
        stored = (*size[:-1], row) if dtype == np.uint8 else size
        writer.add_tensor_info(name, stored, dtype, math.prod(size[:-1]) * row, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, size in tensors(shape):
        writer.write_tensor_data(contents(name, size, form)[0])
    writer.close()


def main() -> None:
    """Write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=_TYPES, default="")
    arguments = parser.parse_args()
    begun = time.monotonic()
    write(SHAPES[arguments.shape], arguments.file, arguments.type)
    size = arguments.file.stat().st_size / 1e9
    print(f"{arguments.file}: {size:.2f} GB in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
