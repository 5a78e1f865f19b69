"""Texts to vectors of unit length: the only import of sentence_transformers.

Passages are embedded in batches by sentence-transformers. Its import takes seconds, so a query is
embedded by ``bert.py`` where that knows the model; both give the same vector within 1e-6.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import MissingDependency, ModelInvalid
from promptflow.retrieval.bert import Bert, is_plain_bert, read_json_file
from promptflow.storage import sha256_cached

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Array = NDArray[np.float32]
Progress = Callable[[int], object]
HASHED = ("model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json")
WIDEST = 12
"""Characters that one token may stand for: word pieces call a long run of letters one unknown."""


class TextEmbedder(Protocol):
    """What an index needs of an embedder. ``sha256`` changes when the vectors would."""

    @property
    def name(self) -> str:
        """The name in the catalogue, or the path."""

    @property
    def sha256(self) -> str:
        """The hash of everything that decides the vectors."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""

    @property
    def max_tokens(self) -> int:
        """The longest text that is read whole, by ``count``."""

    def count(self, text: str) -> int:
        """Return the length of ``text`` in the embedder's tokens."""

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> Array:
        """Return unit vectors (len(texts), dimension); ``progress`` is told how many are new."""

    def encode_query(self, text: str) -> Array:
        """Return the unit vector (dimension,) of a query."""


class Embedder:
    """A sentence-transformers folder: ``Embedder(path).encode(["a text"])``.

    Nothing is loaded until the first call that needs it. Raises ModelInvalid for a folder that is
    not a sentence encoder.
    """

    def __init__(self, path: str | Path, *, name: str | None = None, batch: int = 32) -> None:
        """Take the model in the folder ``path``; ``name`` is what errors and manifests call it."""
        self.path = Path(path)
        self.name = name or str(path)
        config = read_json_file(self.path / "config.json")
        sentence = read_json_file(self.path / "sentence_bert_config.json")
        if "hidden_size" not in config or not (self.path / "modules.json").is_file():
            raise ModelInvalid(
                f"{self.path}: not a sentence-transformers folder (it needs config.json, "
                "modules.json and the weights). Get one: promptflow models get all-minilm-l6-v2"
            )
        self.dimension = int(config["hidden_size"])
        # Two of the positions are the marks at the start and the end.
        self.max_tokens = int(sentence.get("max_seq_length") or 512) - 2
        self._batch = batch
        self._lock = threading.Lock()
        self._sha256 = ""
        self._query: Bert | None = None
        self._model: SentenceTransformer | None = None
        self._count: Callable[[str], int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process by its folder; the model is loaded there when it is needed."""
        return _embedder, (self.path, self.name, self._batch)

    def __deepcopy__(self, memo: dict[int, Any]) -> Embedder:
        """Return itself: copies of a program share the model."""
        return self

    @property
    def sha256(self) -> str:
        """The hash of the weights, the tokenizer and the pooling."""
        if not self._sha256:
            digest = hashlib.sha256()
            for name in HASHED:
                path = self.path / name
                digest.update(f"{name}={sha256_cached(path) if path.is_file() else ''}\n".encode())
            self._sha256 = digest.hexdigest()
        return self._sha256

    def count(self, text: str) -> int:
        """Return the length of ``text`` in tokens, at least one for every 12 characters."""
        if self._count is None:
            with _loading(self.path):
                self._count = _token_counter(self.path)
        return max(self._count(text), math.ceil(len(text) / WIDEST))

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> Array:
        """Return unit vectors (len(texts), dimension), float32, by sentence-transformers."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        # Batches of like length waste least on padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        with self._lock:
            model = self._loaded() if texts else None
            for first in range(0, len(order), self._batch):
                places = order[first : first + self._batch]
                vectors[places] = _encoded(model, [texts[place] for place in places])
                if progress is not None:
                    progress(len(places))
        return vectors

    def encode_query(self, text: str) -> Array:
        """Return the unit vector (dimension,) of one text, without torch where that can be."""
        with self._lock:
            if self._query is None and is_plain_bert(self.path):
                with _loading(self.path):
                    self._query = Bert(self.path, self.max_tokens + 2)
            if self._query is not None:
                return self._query.encode(text)
        vector: Array = self.encode([text])[0]
        return vector

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            self._model = _load(self.path)
        return self._model


def _token_counter(path: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _load(path: Path) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingDependency(
            f"embedding passages needs sentence-transformers ({error}): "
            "pip install sentence-transformers"
        ) from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with _loading(path):
            return SentenceTransformer(str(path), device="cpu", local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Each loader has exceptions of its own for a broken file; tokenizers raises Exception.
        raise ModelInvalid(
            f"{path}: cannot be loaded ({error}). "
            "Get it again: promptflow models get all-minilm-l6-v2"
        ) from error


def _encoded(model: SentenceTransformer | None, texts: list[str]) -> Array:
    import torch

    if model is None:
        raise ModelInvalid("no model is loaded")
    threads = torch.get_num_threads()
    torch.set_num_threads(min(4, len(os.sched_getaffinity(0))))
    try:
        vectors = model.encode(
            texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
        )
    finally:
        torch.set_num_threads(threads)
    return np.asarray(vectors, np.float32)


def _embedder(path: Path, name: str, batch: int) -> Embedder:
    return Embedder(path, name=name, batch=batch)


class HashingEmbedder:
    """An embedder without a model, for tests: words and their letter triples, hashed.

    Texts that share words are near each other. The same on every machine.
    """

    max_tokens = 1 << 20

    def __init__(self, dimension: int = 256) -> None:
        """Make one for vectors of length ``dimension``."""
        self.dimension = dimension
        self.name = f"hashing-{dimension}"
        self.sha256 = hashlib.sha256(f"{self.name}:1".encode()).hexdigest()

    def count(self, text: str) -> int:
        """Return the number of words and marks, at least one for every 12 characters."""
        return max(len(re.findall(r"\w+|[^\w\s]", text)), math.ceil(len(text) / WIDEST))

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> Array:
        """Return unit vectors (len(texts), dimension), float32; a text without words is zero."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for place, text in enumerate(texts):
            vectors[place] = self.encode_query(text)
            if progress is not None:
                progress(1)
        return vectors

    def encode_query(self, text: str) -> Array:
        """Return the unit vector (dimension,) of one text."""
        vector = np.zeros(self.dimension, np.float32)
        for word in re.findall(r"\w+", text.lower()):
            padded = f"^{word}$"
            for piece in (word, *(padded[at : at + 3] for at in range(len(padded) - 2))):
                code = zlib.crc32(piece.encode())
                weight = 2.0 if piece == word else 0.5
                vector[code % self.dimension] += weight if code >> 31 else -weight
        length = float(np.linalg.norm(vector))
        return vector / np.float32(length) if length else vector


def open_embedder(name: str) -> TextEmbedder:
    """Return the embedder of a catalogue name, a folder, or ``hashing-<dimension>``.

    Raises ModelNotFound with the command that fetches it.
    """
    kind, _, dimension = name.partition("-")
    if kind == "hashing" and dimension.isdigit() and 1 <= int(dimension) <= 65536:
        return HashingEmbedder(int(dimension))
    from promptflow.catalog import locate

    return Embedder(locate(name), name=name)
