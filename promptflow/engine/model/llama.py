"""The only file that imports llama_cpp: load, tokenize, decode, share and drop cells.

It checks every precondition of ``llama_decode`` that is known to abort the process
(GGML_ASSERT cannot be caught), and returns its code instead of raising.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as c

from promptflow.engine.interface import EncoderInfo, ModelInfo
from promptflow.engine.model import constraint
from promptflow.errors import EngineError, ModelInvalid
from promptflow.terminal import say


@dataclass(frozen=True, slots=True)
class Load:
    """How to load a model: cells of the cache, tokens a batch, threads, layers on the GPU.

    ``extra_buffers=False`` keeps llama.cpp from repacking weights for special kernels (AMX among
    them): slower, and the way around a kernel that crashes. ``fallback`` tells that one did.
    """

    context: int = 8192
    batch: int = 512
    sequences: int = 64
    threads: int = 1
    gpu_layers: int = 0
    extra_buffers: bool = True
    flash_attention: bool = False
    micro_batch: int = 512
    kv_type: str = "f16"
    fallback: bool = False

    @property
    def name(self) -> str:
        """Return what ``ModelInfo.load`` says of it."""
        if not self.fallback:
            return "default"
        return "no extra buffers" + (", one thread" if self.threads == 1 else "")

    @property
    def numerics(self) -> str:
        """Return what makes its logits others than those of the default choices."""
        cache = f"{self.kv_type} cache" if self.kv_type != "f16" else ""
        return ", ".join(filter(None, ("flash attention" if self.flash_attention else "", cache)))


def build() -> str:
    """Return the version of llama-cpp-python."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def system_info() -> str:
    """Return the CPU features that this build of llama.cpp uses."""
    text: str = c.llama_print_system_info().decode()
    return text


def _load_weights(path: Path, load: Load) -> Any:
    params = c.llama_model_default_params()
    params.n_gpu_layers = load.gpu_layers
    params.use_extra_bufts = load.extra_buffers
    model = c.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelInvalid(f"llama.cpp refuses {path}; its log says why")
    return model


def quantize(source: Path, target: Path, form: str, threads: int, pure: bool = False) -> None:
    """Write ``source`` to ``target`` with weights of type ``form``, such as "q4_0".

    A few tensors keep more bits, the output layer among them, unless ``pure``. Raises ModelInvalid
    where llama.cpp cannot; its log says why.
    """
    params = c.llama_model_quantize_default_params()
    params.ftype = getattr(c, f"LLAMA_FTYPE_MOSTLY_{form.upper()}")
    params.pure = pure
    params.nthread = threads
    params.allow_requantize = True
    if c.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) != 0:
        raise ModelInvalid(f"llama.cpp cannot write {source} as {form}")


MIXED_UP = {"plamo2"}
"""Architectures whose sequences llama.cpp mixes up: see kv_head in its src/models/plamo2.cpp."""
NO_TEXT = (
    "is {} model, which does not write text token by token: take a model made for text generation, "
    "such as those of `promptflow models list`"
)


class Model:
    """A GGUF model with one cache that all sequences share."""

    def __init__(self, path: Path, name: str, sha256: str, load: Load) -> None:
        """Load ``path``; raises ModelInvalid where llama.cpp refuses the file."""
        c.llama_backend_init()
        self._load = load
        self._path = path
        self._model = _load_weights(path, load)
        self._vocab = c.llama_model_get_vocab(self._model)
        self.cells = load.context
        self.batch = min(load.batch, self.cells)
        self.max_sequences = min(load.sequences, c.llama_max_parallel_sequences())
        self._ctx = self._make_context()
        self._memory = c.llama_get_memory(self._ctx)
        memory = self._kind()
        self._batch = c.llama_batch_init(self.batch, 0, 1)
        self._read_vocabulary()
        trained: int = c.llama_model_n_ctx_train(self._model)
        self.info = ModelInfo(
            name=name,
            path=str(path),
            sha256=sha256,
            architecture=self._metadata("general.architecture"),
            context=min(self.cells, trained) if trained > 0 else self.cells,
            vocabulary=self.vocabulary,
            template=self._metadata("tokenizer.chat_template", 1 << 18),
            build=build(),
            load=load.name,
            memory=memory,
            window=c.llama_model_n_swa(self._model) if memory == "windowed" else 0,
            numerics=load.numerics,
            bos=self._special_text(c.llama_vocab_bos(self._vocab)),
            eos=self._special_text(c.llama_vocab_eos(self._vocab)),
        )

    def _kind(self) -> str:
        """Return what the memory can do: see ``interface.MEMORY``. Raises ModelInvalid."""
        architecture = self._metadata("general.architecture")
        if c.llama_model_has_encoder(self._model) or not c.llama_model_has_decoder(self._model):
            raise ModelInvalid(f"{self._path} ({architecture}) {NO_TEXT.format('an encoder')}")
        if c.llama_model_is_diffusion(self._model):
            raise ModelInvalid(f"{self._path} ({architecture}) {NO_TEXT.format('diffusion')}")
        if not self._memory:
            raise ModelInvalid(f"{self._path} ({architecture}) {NO_TEXT.format('an embedder')}")
        if architecture in MIXED_UP:
            raise ModelInvalid(
                f"{self._path}: {build()} writes the states of {architecture} into one another's "
                "place where several sequences are decoded together: take another model"
            )
        if c.llama_model_is_recurrent(self._model):
            return "recurrent"
        if c.llama_model_is_hybrid(self._model):
            return "hybrid"
        return "windowed" if c.llama_model_n_swa(self._model) > 0 else "dense"

    def _make_context(self) -> Any:
        load = self._load
        params = c.llama_context_default_params()
        params.n_ctx = self.cells
        # llama.cpp sets a row of logits aside for each sequence, and aborts where a batch is less.
        params.n_batch = max(self.batch, self.max_sequences)
        params.n_ubatch = min(self.batch, load.micro_batch)
        params.n_seq_max = self.max_sequences
        params.n_threads = load.threads
        params.n_threads_batch = load.threads
        params.kv_unified = True
        params.flash_attn_type = int(load.flash_attention)
        params.type_k = params.type_v = getattr(c, f"GGML_TYPE_{load.kv_type.upper()}")
        params.no_perf = True
        context = c.llama_init_from_model(self._model, params)
        if not context:
            raise ModelInvalid(
                f"llama.cpp cannot make a context of {self.cells:,} tokens for {self._path}: "
                "lower EngineOptions(context=...)"
            )
        return context

    def _read_vocabulary(self) -> None:
        self.vocabulary: int = c.llama_vocab_n_tokens(self._vocab)
        tokens = range(self.vocabulary)
        attributes = [c.llama_vocab_get_attr(self._vocab, t) for t in tokens]
        self._controls = [t for t in tokens if attributes[t] & c.LLAMA_TOKEN_ATTR_CONTROL]
        marked = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_USER_DEFINED
        self._special = [t for t in tokens if attributes[t] & marked]
        ends = {t for t in tokens if c.llama_vocab_is_eog(self._vocab, t)}
        self.end_tokens = frozenset(ends | set(self._controls))
        self._eog = sorted(ends)
        add_bos = c.llama_vocab_get_add_bos(self._vocab)
        self.bos: int | None = c.llama_vocab_bos(self._vocab) if add_bos else None
        self._pieces = self._read_pieces()

    def _metadata(self, key: str, size: int = 4096) -> str:
        buffer = ctypes.create_string_buffer(size)
        length: int = c.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    def _special_text(self, token: int) -> str:
        return self._pieces[token].decode("utf-8", "replace") if token >= 0 else ""

    def _read_pieces(self) -> list[bytes]:
        buffer = ctypes.create_string_buffer(1 << 14)
        pieces = []
        for token in range(self.vocabulary):
            size = c.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
            pieces.append(buffer.raw[: max(0, size)])
        return pieces

    def constraints(self) -> constraint.Constraints:
        """Return a compiler of constraints over this vocabulary."""
        controls = set(self._controls)
        pieces = [b"\xff" + p if t in controls else p for t, p in enumerate(self._pieces)]
        address = ctypes.cast(c._lib.llama_tokenize, ctypes.c_void_p).value
        assert address is not None
        tokenizer = constraint.llama_tokenizer(pieces, self._vocab, address, self._eog)
        return constraint.Constraints(tokenizer, self.vocabulary)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of ``text``; control tokens are parsed where ``special``."""
        data = text.encode("utf-8", "replace")
        if not data:
            return []
        buffer = (c.llama_token * (len(data) + 8))()
        count: int = c.llama_tokenize(
            self._vocab, data, len(data), buffer, len(buffer), False, special
        )
        assert count >= 0, "a text makes at most one token a byte"
        return list(buffer[:count])

    def control_texts(self) -> list[str]:
        """Return the texts that the tokenizer may read as one special token."""
        return [self._pieces[t].decode("utf-8", "replace") for t in self._special]

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; none for control tokens."""
        return b"" if token in self.end_tokens else self._pieces[token]

    def control_piece(self, token: int) -> bytes:
        """Return how a control token is written."""
        return self._pieces[token]

    def decode(
        self, tokens: list[int], positions: list[int], sequences: list[int], outputs: list[bool]
    ) -> int:
        """Compute a batch; return the code of ``llama_decode``, -1 for what would abort it."""
        count = len(tokens)
        if not 1 <= count <= self.batch:
            return -1
        if min(tokens) < 0 or max(tokens) >= self.vocabulary:
            return -1
        if min(positions) < 0 or max(positions) >= self.cells:
            return -1
        if min(sequences) < 0 or max(sequences) >= self.max_sequences:
            return -1
        batch = self._batch
        batch.n_tokens = count
        ctypes.memmove(batch.token, (c.llama_token * count)(*tokens), count * 4)
        ctypes.memmove(batch.pos, (c.llama_pos * count)(*positions), count * 4)
        ctypes.memmove(batch.logits, bytes(outputs), count)
        ones = batch.n_seq_id
        numbers = batch.seq_id
        for row, seq_id in enumerate(sequences):
            ones[row] = 1
            numbers[row][0] = seq_id
        code: int = c.llama_decode(self._ctx, batch)
        return code

    def logits(self, row: int) -> np.ndarray:
        """Return a view of a row's logits, valid until the next decode."""
        pointer = c.llama_get_logits_ith(self._ctx, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))

    def copy(self, source: int, target: int, end: int) -> bool:
        """Share the first ``end`` cells of ``source`` with ``target``; copies no data.

        False where ``source`` does not hold what follows ``end`` would have to see.
        """
        if not self._holds(source, end):
            return False
        c.llama_memory_seq_cp(self._memory, source, target, 0, end)
        return bool(c.llama_memory_seq_pos_max(self._memory, target) == end - 1)

    def _holds(self, seq_id: int, end: int) -> bool:
        """Return whether a sequence may be cut to ``end`` tokens: for llama.cpp checks it not."""
        last: int = c.llama_memory_seq_pos_max(self._memory, seq_id)
        if last + 1 == end or self.info.memory == "dense":
            return last + 1 >= end
        if self.info.memory != "windowed" or last < end:
            return False  # a state is shared as it is, whatever part is asked for
        first: int = c.llama_memory_seq_pos_min(self._memory, seq_id)
        return first <= max(0, end - self.info.window + 1)

    def save(self, seq_id: int) -> bytes:
        """Return the state of a sequence's cells: keys, values and positions."""
        size = c.llama_state_seq_get_size(self._ctx, seq_id)
        buffer = (ctypes.c_uint8 * size)()
        written = c.llama_state_seq_get_data(self._ctx, buffer, size, seq_id)
        return bytes(memoryview(buffer)[:written])

    def restore(self, seq_id: int, data: bytes, count: int) -> bool:
        """Give an empty ``seq_id`` the ``count`` cells that ``save`` returned; False if refused.

        llama.cpp checks their shapes and types, but not what they hold.
        """
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        read = c.llama_state_seq_set_data(self._ctx, buffer, len(data), seq_id)
        last: int = c.llama_memory_seq_pos_max(self._memory, seq_id)
        return bool(read) and last == count - 1

    def drop(self, seq_id: int, start: int) -> bool:
        """Free the cells of ``seq_id`` from ``start`` on; False where it cannot be cut there."""
        if start > 0 and not self._holds(seq_id, start):
            return False
        return bool(c.llama_memory_seq_rm(self._memory, seq_id, start, -1))

    def reset(self) -> None:
        """Make the context anew: after a fatal code nothing in the old one can be trusted."""
        c.llama_free(self._ctx)
        self._ctx = None
        self._ctx = self._make_context()
        self._memory = c.llama_get_memory(self._ctx)

    def close(self) -> None:
        """Free the context and the model; idempotent."""
        if self._ctx:
            c.llama_free(self._ctx)
            self._ctx = None
        if self._model:
            c.llama_batch_free(self._batch)
            c.llama_model_free(self._model)
            self._model = None


POOLINGS = {
    c.LLAMA_POOLING_TYPE_MEAN: "mean",
    c.LLAMA_POOLING_TYPE_CLS: "cls",
    c.LLAMA_POOLING_TYPE_LAST: "last",
}


class Encoder:
    """A GGUF model that embeds texts, each with the pooling that its file states."""

    def __init__(self, path: Path, name: str, sha256: str, load: Load) -> None:
        """Load ``path`` for texts of up to ``load.context`` tokens, and batches of ``load.batch``.

        Raises ModelInvalid for a file that is no embedder.
        """
        c.llama_backend_init()
        self._path = path
        self._load = load
        self._model = _load_weights(path, load)
        self._vocab = c.llama_model_get_vocab(self._model)
        self._ctx = self._make_context()
        self._memory = c.llama_get_memory(self._ctx)
        self._batch = c.llama_batch_init(load.context, 0, 1)
        self.info = EncoderInfo(
            name=name,
            path=str(path),
            sha256=sha256,
            dimension=c.llama_model_n_embd_out(self._model),
            max_tokens=load.context,
            pooling=POOLINGS[c.llama_pooling_type(self._ctx)],
            build=build(),
            load=load.name,
        )

    def _make_context(self) -> Any:
        params = c.llama_context_default_params()
        # All tokens of a text have to be in one pass, where any may attend to any other.
        params.n_ctx = params.n_batch = params.n_ubatch = self._load.context
        params.n_seq_max = self._load.sequences
        params.n_threads = params.n_threads_batch = self._load.threads
        params.kv_unified = True
        params.embeddings = True
        params.flash_attn_type = int(self._load.flash_attention)
        params.no_perf = True
        context = c.llama_init_from_model(self._model, params)
        none = context and c.llama_pooling_type(context) == c.LLAMA_POOLING_TYPE_NONE
        if none and not c.llama_get_memory(context):
            # An encoder of an old file, which did not state it yet.
            c.llama_free(context)
            params.pooling_type = c.LLAMA_POOLING_TYPE_MEAN
            context = c.llama_init_from_model(self._model, params)
        if not context:
            raise ModelInvalid(
                f"llama.cpp cannot embed texts of {self._load.context:,} tokens with {self._path}"
            )
        if c.llama_pooling_type(context) in POOLINGS:
            return context
        ranks = c.llama_pooling_type(context) == c.LLAMA_POOLING_TYPE_RANK
        c.llama_free(context)
        raise ModelInvalid(
            f"{self._path} is a "
            + (
                "reranker, which makes scores"
                if ranks
                else "model of text, which states no pooling"
            )
            + ": take an embedder, such as all-minilm-l6-v2 or multilingual-e5-small-q4"
        )

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of ``text``, with the marks that the model has around a text."""
        data = text.encode("utf-8", "replace")
        buffer = (c.llama_token * (len(data) + 8))()
        count: int = c.llama_tokenize(
            self._vocab, data, len(data), buffer, len(buffer), True, False
        )
        assert count >= 0, "a text makes at most one token a byte"
        tokens = list(buffer[:count])
        if count <= self._load.context:
            return tokens
        marks = {c.llama_vocab_eos(self._vocab), c.llama_vocab_sep(self._vocab)}
        end = tokens[-1:] if tokens[-1] in marks else []
        return tokens[: self._load.context - len(end)] + end

    def encode(self, texts: list[list[int]]) -> np.ndarray:
        """Return the unit vectors (len(texts), dimension), float32, of texts given as tokens.

        Raises EngineError where llama.cpp cannot compute them.
        """
        vectors = np.zeros((len(texts), self.info.dimension), np.float32)
        full: list[int] = []
        for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
            if not texts[place]:
                continue
            tokens = sum(len(texts[one]) for one in full) + len(texts[place])
            if full and (tokens > self._load.batch or len(full) == self._load.sequences):
                vectors[full] = self._pass([texts[one] for one in full])
                full = []
            full.append(place)
        if full:
            vectors[full] = self._pass([texts[one] for one in full])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
        return unit

    def _pass(self, texts: list[list[int]]) -> list[np.ndarray]:
        """Return the vectors of texts that fit into one pass, not yet of unit length."""
        batch, row = self._batch, 0
        for number, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
                batch.token[row], batch.pos[row], batch.logits[row] = token, position, True
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, number
                row += 1
        batch.n_tokens = row
        if self._memory:
            c.llama_memory_clear(self._memory, False)
        if (code := c.llama_decode(self._ctx, batch)) != 0:
            raise EngineError(f"llama.cpp cannot embed {row} tokens (code {code})")
        found = []
        for number in range(len(texts)):
            pointer = c.llama_get_embeddings_seq(self._ctx, number)
            found.append(np.array(pointer[: self.info.dimension], np.float32))
        return found

    def close(self) -> None:
        """Free the context and the model; idempotent."""
        if self._model:
            c.llama_free(self._ctx)
            c.llama_batch_free(self._batch)
            c.llama_model_free(self._model)
            self._model = None


_Callback = Callable[[int, bytes, Any], None]
_kept: list[Any] = []


def log_to_stderr(warnings_only: bool = True) -> None:
    """Send llama.cpp's log lines to stderr, by default only warnings and errors."""

    def write(level: int, text: bytes, _: Any) -> None:
        # GGML_LOG_LEVEL_WARN is 3, ERROR 4; 5 continues the line before.
        if not warnings_only or level in (3, 4):
            with contextlib.suppress(ValueError, OSError):
                say(text.decode("utf-8", "replace"), end="", error=True)

    callback = c.llama_log_callback(write)
    _kept.append(callback)  # ctypes does not keep it alive
    c.llama_log_set(callback, ctypes.c_void_p(0))
