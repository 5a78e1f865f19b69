"""Tiny GGUF models of real architectures: random weights, the vocabulary of a few words.

llama.cpp itself says which tensors an architecture has: a model made of metadata alone names them,
and their shapes, to whoever fills them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as c

WINDOW = 32
CONTEXT = 2048
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = (
    "the of and to in is was that for it on are as with at be this have from or had by not but "
    "what all were when we there can an your which their said if do will each about how up out "
    "them then she many some so these would other into has more her two like him see time could "
    "make than first been its who now people my made over did down only way find use may water "
    "long little very after words called just where most know question answer passage system user "
    "assistant reasoning yes no red green blue"
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PLAIN = {
    "context_length": CONTEXT,
    "embedding_length": 64,
    "block_count": 4,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
_EXPERTS = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 48,
}
_WINDOW = {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2}
_SCAN = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
}
_STATE = {**_SCAN, "ssm.group_count": 2}
_DELTA = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 2,
    "rope.dimension_sections": [4, 2, 2, 0],
}
_HYBRID = {"attention.head_count_kv": [0, 2, 0, 2]}

DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "smollm3": {},
    "granite": {"logit_scale": 1.0},
    "glm4": {},
    "qwen3": {},
    "qwen3moe": _EXPERTS,
    "phi3": {"attention.sliding_window": WINDOW},  # llama.cpp leaves its window out
    "deepseek2": {
        **_EXPERTS,
        "expert_shared_count": 1,
        "leading_dense_block_count": 1,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 32,
        "attention.kv_lora_rank": 32,
        "attention.key_length": 40,
        "attention.value_length": 32,
        "attention.key_length_mla": 24,
        "attention.value_length_mla": 16,
        "rope.dimension_count": 8,
    },
}
WINDOWED: dict[str, dict[str, Any]] = {
    "gemma2": _WINDOW,
    "gemma3": _WINDOW,
    "gemma3n": {**_WINDOW, "block_count": 22, "feed_forward_length": 32},
    "gemma4": {
        **_WINDOW,
        "block_count": 6,
        "attention.sliding_window_pattern": [True, True, True, False, True, False],
        "attention.shared_kv_layers": 2,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.key_length_swa": 16,
        "attention.value_length_swa": 16,
        "rope.dimension_count_swa": 16,
        "embedding_length_per_layer_input": 16,
        "rope.freq_base_swa": 10000.0,
    },
    "olmo2": _WINDOW,
    "cohere2": {**_WINDOW, "logit_scale": 1.0, "attention.layer_norm_epsilon": 1e-5},
    "gpt-oss": {**_WINDOW, **_EXPERTS},
    "llama4": {**_EXPERTS, "interleave_moe_layer_step": 2},  # chunks of 8,192
}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": _SCAN,
    "mamba2": _STATE,
    "rwkv7": {
        "wkv.head_size": 64,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.decay_lora_rank": 16,
        "attention.iclr_lora_rank": 16,
        "attention.value_residual_mix_lora_rank": 16,
        "attention.gate_lora_rank": 16,
    },
}
HYBRID: dict[str, dict[str, Any]] = {
    "lfm2": {**_HYBRID, "shortconv.l_cache": 3},
    "lfm2moe": {
        **_HYBRID,
        **_EXPERTS,
        "shortconv.l_cache": 3,
        "leading_dense_block_count": 1,
        "expert_gating_func": 2,
    },
    "qwen35": _DELTA,
    "qwen35moe": {**_DELTA, **_EXPERTS, "expert_shared_feed_forward_length": 48},
    "qwen3next": {**_DELTA, **_EXPERTS, "expert_shared_feed_forward_length": 48},
    "granitehybrid": {**_STATE, **_HYBRID},
    "falcon-h1": _STATE,
    "jamba": {**_SCAN, **_HYBRID},
    "kimi-linear": {
        **_EXPERTS,
        "attention.head_count": [4, 4, 4, 4],
        "attention.head_count_kv": [0, 1, 0, 1],
        "attention.kv_lora_rank": 32,
        "attention.key_length": 40,
        "attention.value_length": 32,
        "attention.key_length_mla": 24,
        "attention.value_length_mla": 16,
        "rope.dimension_count": 8,
        "ssm.conv_kernel": 4,
        "kda.head_dim": 16,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
    },
    "nemotron_h": {
        **_STATE,
        "attention.layer_norm_epsilon": 1e-5,
        "block_count": 6,
        "attention.head_count_kv": [0, 2, 0, 0, 2, 0],
        "feed_forward_length": [0, 0, 96, 0, 0, 96],
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "bert": {
        "attention.causal": False,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.head_count_kv": 4,
        "tokenizer.ggml.token_type_count": 2,
    },
    "nomic-bert": {
        "attention.causal": False,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.head_count_kv": 4,
        "tokenizer.ggml.token_type_count": 2,
        "rope.freq_base": 1000.0,
    },
    "t5": {"attention.relative_buckets_count": 8, "attention.head_count_kv": 4},
    "llada": {"attention.causal": False},
    "plamo2": {**_STATE, **_HYBRID, "ssm.group_count": 0},
    "dream": {"attention.causal": False},
}
ARCHITECTURES = DENSE | WINDOWED | RECURRENT | HYBRID | REFUSED


def write(architecture: str, folder: Path, **changes: Any) -> Path:
    """Write a model of ``architecture`` into ``folder`` and return its path.

    ``changes`` are keys of the metadata without the architecture's name, with ``__`` for dots.
    """
    keys = _PLAIN | ARCHITECTURES[architecture]
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    path = folder / f"{architecture}.gguf"
    header = folder / f"{architecture}.header"
    _writer(header, architecture, keys, {})
    shapes = _tensors(header)
    header.unlink()
    _writer(
        path,
        architecture,
        keys,
        {name: weights(architecture, name, shape) for name, shape in shapes.items()},
    )
    return path


def _writer(
    path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, np.ndarray]
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_chat_template(TEMPLATE)
    for key, value in keys.items():
        name = key if key.startswith("tokenizer.") else f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)
    _add_vocabulary(writer)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cut(path: Path, folder: Path, tensors: int) -> list[Path]:
    """Write a model in parts of so many ``tensors`` each into ``folder``; return their paths."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / path.name, architecture, split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(
                name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None
            )
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    writer.write_header_to_file(folder / path.name)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{path.stem}-*-of-*.gguf"))


@functools.cache
def vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens of a byte-level BPE vocabulary and its merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    tokens = [*CONTROLS, *(letters[byte] for byte in range(256))]
    merges: list[str] = []
    for word in TEXT.split():
        whole = letters[32] + word
        for end in range(2, len(whole) + 1):
            if whole[:end] not in tokens:
                tokens.append(whole[:end])
                merges.append(f"{whole[: end - 1]} {whole[end - 1]}")
    return tokens, merges


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens, merges = vocabulary()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if text in CONTROLS else normal for text in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(CONTROLS.index("<|im_start|>"))
    writer.add_eos_token_id(CONTROLS.index("<|im_end|>"))
    writer.add_pad_token_id(CONTROLS.index("<|endoftext|>"))
    writer.add_add_bos_token(False)


class _Tensor(ctypes.Structure):
    """The first fields of ``struct ggml_tensor``."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
    ]


class _Init(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]


@functools.cache
def ggml() -> ctypes.CDLL:
    """Return the ggml library that llama_cpp has loaded."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Init]
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_get_name.argtypes = [ctypes.c_void_p]
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    return library


def _tensors(header: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that llama.cpp makes for the metadata of ``header``."""
    library = ggml()
    found: dict[str, tuple[int, ...]] = {}

    def note(tensor: int, _: Any) -> None:
        name = library.ggml_get_name(tensor).decode()
        shape = list(_Tensor.from_address(tensor).ne)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        found[name] = tuple(reversed(shape))

    callback = c.llama_model_set_tensor_data_t(note)
    metadata = library.gguf_init_from_file(str(header).encode(), _Init(True, None))
    assert metadata, header
    params = c.llama_model_default_params()
    params.n_gpu_layers = 0
    model = c.llama_model_init_from_user(metadata, callback, None, params)
    assert model, f"llama.cpp makes no model of {header}"
    c.llama_model_free(model)
    library.gguf_free(metadata)
    return found


_SHARPNESS = {"gemma2": 0.5, "gemma3": 0.5, "gemma3n": 0.2, "gemma4": 0.2}
"""Of attention, so that rounding does not grow from layer to layer."""


def weights(architecture: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return random weights for a tensor, always the same for a name and shape."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("token_embd.weight"):
        return (values / 4).astype(np.float16 if "per_layer" in name else np.float32)
    if "rope" in name:
        return np.ones(shape, np.float32)
    if "norm" in name and name.endswith("weight"):
        return _about(architecture, name) + values / 10
    if "ssm_a" in name:
        return -np.abs(values) / 4 - np.float32(0.02)
    if len(shape) == 1:
        return _about(architecture, name) + values / 5
    return values * _gain(architecture, name) / np.float32(np.sqrt(shape[-1]))


def _about(architecture: str, name: str) -> float:
    """Return the mean of a vector."""
    if "time_mix_w0" in name or "ssm_dt" in name:
        return -3.0  # what was read fades slowly
    if "_q_norm" in name or "_k_norm" in name:
        return _SHARPNESS.get(architecture, 2)
    return 2.0 if "post" in name else float("norm" in name and name.endswith("weight"))


def _gain(architecture: str, name: str) -> float:
    """Return how much larger than its input what a tensor makes of it is."""
    if "attn_q" in name or "attn_k" in name:
        return 2 * _SHARPNESS.get(architecture, 2)
    if any(part in name for part in ("attn_output", "_out", "down")):
        return 4.0
    return 1.0 if architecture == "gemma3n" and name != "output.weight" else 2.0
