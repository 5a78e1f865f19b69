"""Texts to vectors of unit length: the only import of sentence_transformers.

Passages are embedded in batches by ``bert_batches`` where that knows the model, which is faster,
and by sentence-transformers where it does not. Importing either takes seconds, so a query is
embedded by ``bert`` in numpy.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promptflow.child import ForkLock
from promptflow.errors import MissingDependency, ModelInvalid, names_options
from promptflow.retrieval.bert import (
    FIRST_POSITION,
    Bert,
    Shape,
    pooling_modes,
    read_json_file,
    shape_of,
)
from promptflow.retrieval.prefixes import Prefixes, least_tokens, own_prefixes
from promptflow.storage import sha256_cached

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    from promptflow.retrieval.bert_batches import Batches

Array = NDArray[np.float32]
Progress = Callable[[int], object]
BATCH_TOKENS = 1024
"""Tokens of one batch, its padding included: more of them leave the caches of a core."""
ENOUGH = 64
"""Texts of one call from which on it is worth to measure a faster precision."""
SAMPLE = 8
DECIDING = (
    "config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json",
    "model*.safetensors", "pytorch_model*.bin",
)  # fmt: skip


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
        """Return the unit vectors (len(texts), dimension) of passages.

        ``progress`` is told how many are new.
        """

    def encode_query(self, text: str) -> Array:
        """Return the unit vector (dimension,) of a query."""


def identity(embedder: TextEmbedder) -> dict[str, Any]:
    """Return what a manifest says of an embedder: what tells whether vectors can be compared."""
    return {
        "name": embedder.name,
        "sha256": embedder.sha256,
        "dimension": embedder.dimension,
        "normalised": True,
        "prefixes": list(getattr(embedder, "prefixes", ("", ""))),
    }


@names_options
class Embedder:
    """A sentence-transformers folder: ``Embedder(path).encode(["a text"])``.

    Nothing is loaded until the first call that needs it. ``prefixes`` stand in for the model's own.
    Raises ModelInvalid for a folder that is not a sentence encoder.
    """

    def __init__(
        self, path: str | Path, *, name: str | None = None, prefixes: Prefixes | None = None
    ) -> None:
        """Take the model in the folder ``path``; ``name`` is what errors and manifests call it."""
        self.path = Path(path)
        self.name = name or str(path)
        self.precision = "float32"
        self.measured: dict[str, float] = {}
        config = read_json_file(self.path / "config.json")
        self.dimension = _dimension(self.path)
        if not config or not self.dimension:
            raise ModelInvalid(
                f"{self.path}: not a sentence-transformers folder (it needs config.json, "
                "modules.json and the weights). Get one: promptflow models get all-minilm-l6-v2"
            )
        self.prefixes = prefixes or own_prefixes(self.path, self.name)
        self._given = prefixes
        self._lock = ForkLock()
        self._sha256 = ""
        self._shape = shape_of(self.path)
        self._tokens = _most_tokens(self.path, config)
        self._query: Bert | None = None
        self._batches: Batches | None = None
        self._model: SentenceTransformer | None = None
        self._loaded_tokenizer: Tokenizer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process by its folder; the model is loaded there when it is needed."""
        return _embedder, (self.path, self.name, self._given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Embedder:
        """Return itself: copies of a program share the model."""
        return self

    @property
    def sha256(self) -> str:
        """The hash of the weights, the tokenizer, the settings and the prefixes."""
        if not self._sha256:
            digest = hashlib.sha256()
            for path in _deciding(self.path):
                name = path.relative_to(self.path).as_posix()
                digest.update(f"{name}={sha256_cached(path)}\n".encode())
            digest.update(repr(self.prefixes).encode())
            self._sha256 = digest.hexdigest()
        return self._sha256

    @functools.cached_property
    def max_tokens(self) -> int:
        """The longest text that is read whole beside its prefix."""
        # Two of the positions are the marks at the start and the end.
        return self._tokens - 2 - max(self.count(prefix) for prefix in self.prefixes)

    def count(self, text: str) -> int:
        """Return the length of ``text`` in tokens, at least one for every 12 characters."""
        tokens = self._tokenizer().encode(text, add_special_tokens=False).ids
        return max(len(tokens), least_tokens(text))

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> Array:
        """Return unit vectors (len(texts), dimension), float32, of passages."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        prefixed = [self.prefixes[1] + text for text in texts]
        with self._lock:
            for places, found in self._encoded(prefixed) if prefixed else ():
                vectors[places] = found
                if progress is not None:
                    progress(len(places))
        return vectors

    def encode_query(self, text: str) -> Array:
        """Return the unit vector (dimension,) of a query, without torch where that can be."""
        prefixed = self.prefixes[0] + text
        with self._lock:
            if self._query is None and self._shape is not None and self._shape.is_plain:
                with _loading(self.path):
                    self._query = Bert(self._shape)
            if self._query is not None:
                return self._query.encode(self._numbers(prefixed))
            [(_, [vector])] = self._encoded([prefixed])
        one: Array = vector
        return one

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Array]]:
        """Yield places in ``texts`` and their vectors, batch by batch. The lock is held."""
        if self._shape is None:
            yield from _by_sentence_transformers(self._transformer(), texts)
            return
        ids = [self._cut(one.ids) for one in self._tokenizer().encode_batch(list(texts))]
        from promptflow.retrieval.bert_batches import each

        encoder = self._measured(self._shape, ids)
        batches = [(at, [ids[place] for place in at]) for at in batched([len(one) for one in ids])]
        yield from each(encoder, batches)

    def _measured(self, shape: Shape, ids: Sequence[Sequence[int]]) -> Batches:
        """Return the encoder, in the faster precision once there were enough texts to measure."""
        from promptflow.retrieval.bert_batches import Batches, faster

        if self._batches is None:
            with _loading(self.path):
                self._batches = Batches(shape)
        if not self.measured and len(ids) >= ENOUGH:
            sample = sorted(ids[:: len(ids) // SAMPLE], key=len)
            self._batches, self.measured = faster(shape, self._batches, sample)
            self.precision = self._batches.precision
        return self._batches

    def _numbers(self, text: str) -> list[int]:
        return self._cut(self._tokenizer().encode(text).ids)

    def _cut(self, ids: list[int]) -> list[int]:
        """Return the tokens that are read: the mark at the end stays."""
        return ids if len(ids) <= self._tokens else ids[: self._tokens - 1] + ids[-1:]

    def _tokenizer(self) -> Tokenizer:
        if self._loaded_tokenizer is None:
            from tokenizers import Tokenizer

            with _loading(self.path):
                tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            self._loaded_tokenizer = tokenizer
        return self._loaded_tokenizer

    def _transformer(self) -> SentenceTransformer:
        if self._model is None:
            self._model = _load(self.path, self._tokens)
        return self._model


def _dimension(folder: Path) -> int:
    """Return the length of a model's vectors as its modules say; 0 for what is no such model."""
    length = 0
    for module in read_json_file(folder / "modules.json"):
        said = read_json_file(folder / str(module.get("path", "")) / "config.json")
        width = said.get("word_embedding_dimension") or said.get("embedding_dimension")
        if str(module.get("type", "")).endswith(".Pooling") and width:
            length = int(width) * max(1, len(pooling_modes(said)))
        elif said.get("out_features"):
            length = int(said["out_features"])
    cut = read_json_file(folder / "config_sentence_transformers.json").get("truncate_dim")
    return min(length, int(cut)) if cut else length


def _most_tokens(folder: Path, config: dict[str, Any]) -> int:
    stated = read_json_file(folder / "sentence_bert_config.json").get("max_seq_length")
    first = FIRST_POSITION.get(config.get("model_type", ""), 0)
    return int(stated or config.get("max_position_embeddings", 512) - first)


def _deciding(folder: Path) -> list[Path]:
    """Return the files of a model on which its vectors depend."""
    files = [path for name in DECIDING for path in folder.glob(name)]
    for module in read_json_file(folder / "modules.json"):
        if path := module.get("path", ""):
            files += (folder / path).rglob("*")
    return sorted(path for path in files if path.is_file())


def batched(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield places in ``lengths``, the like ones together, at most BATCH_TOKENS with padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[place] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _load(path: Path, tokens: int) -> SentenceTransformer:
    with sentence_transformers_for("embedding passages") as library, _loading(path):
        model: SentenceTransformer = library.SentenceTransformer(
            str(path), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
        )
        model.max_seq_length = tokens
        return model


@contextmanager
def sentence_transformers_for(what: str) -> Iterator[Any]:
    """Give the library sentence-transformers, which shows no bars of its own while it loads.

    Raises MissingDependency that says ``what`` needs it.
    """
    try:
        import sentence_transformers
        from transformers.utils import logging
    except ImportError as error:
        raise MissingDependency(
            f"{what} needs sentence-transformers ({error}): pip install sentence-transformers"
        ) from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield sentence_transformers
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        # Each loader has exceptions of its own for a broken file; tokenizers raises Exception.
        raise ModelInvalid(
            f"{path}: cannot be loaded ({error}). "
            "Get it again: promptflow models get all-minilm-l6-v2"
        ) from error


def _by_sentence_transformers(
    model: SentenceTransformer, texts: Sequence[str]
) -> Iterator[tuple[list[int], Array]]:
    from promptflow.retrieval.bert_batches import own_threads

    for places in batched([1 + len(text) // 4 for text in texts]):
        with own_threads():
            vectors = model.encode(
                [texts[place] for place in places],
                prompt="",  # it is before the texts already
                batch_size=len(places),
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        yield places, np.asarray(vectors, np.float32)


def _embedder(path: Path, name: str, prefixes: Prefixes | None) -> Embedder:
    return Embedder(path, name=name, prefixes=prefixes)


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
        return max(len(re.findall(r"\w+|[^\w\s]", text)), least_tokens(text))

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


def open_embedder(name: str, prefixes: Sequence[str] = ()) -> TextEmbedder:
    """Return the embedder of a catalogue name, a folder, a GGUF file, or ``hashing-<dimension>``.

    A name on the hub (``hf:``) is fetched. Two ``prefixes``, before a query and before a passage,
    stand in for the embedder's own. Raises ModelNotFound with the command that fetches it.
    """
    given = (prefixes[0], prefixes[1]) if prefixes else None
    kind, _, dimension = name.partition("-")
    if kind == "hashing" and dimension.isdigit() and 1 <= int(dimension) <= 65536:
        if any(prefixes):
            raise ModelInvalid(f"{name} takes no prefixes: leave out {list(prefixes)!r}")
        return HashingEmbedder(int(dimension))
    from promptflow.catalog import obtain

    path = obtain(name)
    if path.is_dir():
        return Embedder(path, name=name, prefixes=given)
    from promptflow.retrieval.gguf_embedder import GgufEmbedder

    return GgufEmbedder(path, name=name, prefixes=given)
