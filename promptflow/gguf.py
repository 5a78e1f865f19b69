"""The header of a GGUF file, read and checked in Python before native code sees the file.

llama.cpp aborts or reads out of bounds on many malformed files. This reader accepts less than
llama.cpp does: counts and lengths are bounded, arithmetic cannot overflow, and every tensor must
lie inside the file, so that a truncated download is found here. It knows nothing of vocabularies
beyond their lengths, and it does not read the weights: a flipped bit in them is found by the hash.
A model may be cut into parts, ``X-00001-of-00003.gguf`` and so on: any of them stands for all.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from promptflow.errors import ModelInvalid

MAX_PAIRS = 4_096
MAX_TENSORS = 65_536
MAX_STRING = 1 << 20
MAX_ARRAY = 2_000_000
MAX_HEADER = 1 << 28
MAX_ELEMENTS = 1 << 48
MAX_ALIGNMENT = 4_096
MAX_BLOCKS = 512
MAX_NAME = 64
MAX_PARTS = 1_024
PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
STRING, ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

TENSOR_TYPES: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24),
    8: (32, 34), 9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176),
    14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50),
    20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
    42: (64, 18),
}  # fmt: skip
"""Elements and bytes of one block, by ggml type number; numbers that ggml removed are missing.

As the gguf package has them, which gives type 9 (Q8_1) four bytes more than ggml does: it is a type
of activations, and no file holds it.
"""


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a GGUF header says.

    ``metadata`` holds arrays of a number a layer as tuples, and leaves out longer ones and text.
    Of a model in ``parts``, ``path`` is the first, ``size`` (bytes) and ``tensors`` are those of
    all, and the rest is said by the first.
    """

    path: Path
    size: int
    version: int
    tensors: int
    architecture: str
    context_length: int | None
    vocabulary: int
    chat_template: str
    metadata: dict[str, Any] = field(repr=False)
    parts: tuple[Path, ...] = ()
    tensor_names: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, slots=True)
class _Array:
    kind: int
    length: int
    values: tuple[Any, ...] | None = field(default=None, compare=False)  # of short ones


class _Reader:
    """Little-endian values from the start of a file, which is read as far as they go."""

    __slots__ = ("at", "data", "file", "path", "size")

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.data = bytearray()
        self.at = 0

    def refuse(self, why: str) -> NoReturn:
        raise ModelInvalid(
            f"{self.path}: {why}. Fetch it again with `promptflow models get`, or from where you "
            "got it."
        )

    def need(self, count: int) -> None:
        """Read on until ``count`` bytes beyond the current place are in memory."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.size:
            self.refuse(f"truncated: its header goes beyond its {self.size:,} bytes")
        if end > MAX_HEADER:
            self.refuse(f"its header is longer than {MAX_HEADER:,} bytes")
        while len(self.data) < end:
            block = self.file.read(max(1 << 20, len(self.data)))
            if not block:
                self.refuse("it became shorter while it was read")
            self.data += block

    def value(self, code: str) -> Any:
        self.need(struct.calcsize("<" + code))
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self, what: str, limit: int = MAX_STRING) -> str:
        length = self.value("Q")
        if length > limit:
            self.refuse(f"{what} of {length:,} bytes, at most {limit:,} are allowed")
        self.need(length)
        text = self.data[self.at : self.at + length]
        self.at += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} that is not UTF-8: {bytes(text[:40])!r}")

    def skip_strings(self, count: int, what: str) -> None:
        # A vocabulary with its merges is 300,000 of them: no call for each.
        length_at, data, at = _LENGTH.unpack_from, self.data, self.at
        have = len(data) - 8
        for _ in range(count):
            if at > have:
                self.at = at
                self.need(8)
                have = len(data) - 8
            (length,) = length_at(data, at)
            if length > MAX_STRING:
                self.refuse(f"{what} holds text of {length:,} bytes, at most {MAX_STRING:,}")
            at += 8 + length
        self.at = at
        self.need(0)

    def array(self, what: str) -> _Array:
        kind, length = self.value("I"), self.value("Q")
        if length > MAX_ARRAY:
            self.refuse(f"{what} has {length:,} elements, at most {MAX_ARRAY:,} are allowed")
        if kind == STRING:
            self.skip_strings(length, what)
        elif kind in SCALARS:
            layout = f"<{length}{SCALARS[kind]}"
            count = struct.calcsize(layout)
            self.need(count)
            start, self.at = self.at, self.at + count
            if length <= MAX_BLOCKS:
                return _Array(kind, length, struct.unpack_from(layout, self.data, start))
        else:
            self.refuse(f"{what} has elements of type {kind}, which GGUF does not have")
        return _Array(kind, length)


def parts_of(path: str | Path) -> tuple[Path, ...]:
    """Return the paths of all parts of a model by the name of any, the first first.

    A file with another name is its only part. Raises ModelInvalid for part 3 of 2.
    """
    path = Path(path)
    match = PART.fullmatch(path.name)
    if match is None:
        return (path,)
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count <= MAX_PARTS:
        raise ModelInvalid(f"{path}: no part {number} of {count}; the parts are 1 to {MAX_PARTS:,}")
    return tuple(
        path.with_name(f"{match['stem']}-{one:05}-of-{count:05}.gguf")
        for one in range(1, count + 1)
    )


def stem_of(path: str | Path) -> str:
    """Return a model file's name without its ending and the number of its part."""
    path = Path(path)
    match = PART.fullmatch(path.name)
    return path.stem if match is None else match["stem"]


def read_gguf(path: str | Path) -> Gguf:
    """Read and check the header of a GGUF file, without its weights; of all parts, if it has some.

    Raises ModelInvalid for a folder, a missing, truncated or malformed file, and for parts that are
    not all there or do not belong together.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"did you mean {path / inside[0]}?" if inside else "it holds no GGUF file"
        raise ModelInvalid(f"{path}: a folder where a GGUF file is wanted; {hint}")
    parts = parts_of(path)
    missing = [part for part in parts if not part.exists()]
    if len(parts) > 1 and missing:
        raise ModelInvalid(
            f"{missing[0]}: missing, and a model needs all of its {len(parts)} parts"
            + (f" ({len(missing)} are missing)" if len(missing) > 1 else "")
            + ". Put it beside the others, or fetch the model again from where you got it."
        )
    return _joined([_read_file(part) for part in parts])


def _read_file(path: Path) -> Gguf:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Reader(path, file, size))
    except FileNotFoundError as error:
        raise ModelInvalid(f"{path}: no such file") from error
    except OSError as error:
        raise ModelInvalid(f"{path}: cannot be read: {error.strerror}") from error


def _joined(headers: list[Gguf]) -> Gguf:
    """Return the header of a whole model; refuse parts that are not those of one."""
    first, names = headers[0], frozenset[str]()
    for number, header in enumerate(headers, 1):
        count = _split(header, "count", 1) or 1
        if len(headers) == 1 and count > 1:
            part = f"-{_split(header, 'no', 0) + 1:05}-of-{count:05}.gguf"
            _mixed(header, f"one part of {count}, which are found by a name that ends in {part!r}")
        if count != len(headers):
            _mixed(header, f"its name says {len(headers)} parts, its header {count}")
        if count > 1 and _split(header, "no", 0) != number - 1:
            _mixed(header, f"its name says part {number}, its header {_split(header, 'no', 0) + 1}")
        if twice := names & header.tensor_names:
            _mixed(header, f"the tensor {min(twice)!r} is in another part too")
        names |= header.tensor_names
    if len(headers) > 1:
        for header in headers:
            wanted = _split(header, "tensors.count", len(names))
            if wanted != len(names):
                _mixed(header, f"it says {wanted:,} tensors in all parts, they have {len(names):,}")
    return replace(
        first,
        size=sum(header.size for header in headers),
        tensors=len(names),
        parts=tuple(header.path for header in headers),
        tensor_names=names,
    )


def _split(header: Gguf, key: str, otherwise: int) -> int:
    value = header.metadata.get(f"split.{key}", otherwise)
    return value if type(value) is int and value >= 0 else -1


def _mixed(header: Gguf, why: str) -> NoReturn:
    raise ModelInvalid(
        f"{header.path}: the parts of this model do not belong together: {why}. Name them as they "
        "were published, or fetch the model again."
    )


def check_gguf(path: str | Path) -> None:
    """Refuse with ModelInvalid what is no whole, well-formed GGUF file; read only its header."""
    read_gguf(path)


def _read(reader: _Reader) -> Gguf:
    if reader.size < 24 or reader.value("4s") != b"GGUF":
        start = bytes(reader.data[:4])
        reader.refuse(f"not a GGUF file: it has {reader.size:,} bytes and starts with {start!r}")
    version = reader.value("I")
    if version not in (2, 3):
        reader.refuse(f"GGUF version {version}; versions 2 and 3 are supported")
    tensors, pairs = reader.value("Q"), reader.value("Q")
    if tensors > MAX_TENSORS:
        reader.refuse(f"{tensors:,} tensors; 1 to {MAX_TENSORS:,} are allowed")
    if not 1 <= pairs <= MAX_PAIRS:
        reader.refuse(f"{pairs:,} metadata pairs; 1 to {MAX_PAIRS:,} are allowed")
    metadata = _metadata(reader, pairs)
    # The first of several parts may hold metadata alone.
    if tensors < 1 and metadata.get("split.count", 1) in (0, 1):
        reader.refuse(f"{tensors:,} tensors; 1 to {MAX_TENSORS:,} are allowed")
    architecture = _checked_metadata(reader, metadata)
    names = _check_tensors(reader, tensors, metadata.get("general.alignment", 32))
    tokens = metadata.get("tokenizer.ggml.tokens")
    context = metadata.get(f"{architecture}.context_length")
    template = metadata.get("tokenizer.chat_template")
    return Gguf(
        path=reader.path,
        size=reader.size,
        version=version,
        tensors=tensors,
        architecture=architecture,
        context_length=context if isinstance(context, int) else None,
        vocabulary=tokens.length if isinstance(tokens, _Array) else 0,
        chat_template=template if isinstance(template, str) else "",
        metadata=_plain(metadata),
        parts=(reader.path,),
        tensor_names=names,
    )


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(value, _Array):
            found[key] = value
        elif value.values is not None and not key.startswith("tokenizer."):
            found[key] = value.values
    return found


def _metadata(reader: _Reader, pairs: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.string("a metadata key", 65_535)
        if not key or key in metadata:
            reader.refuse(f"the metadata key {key!r} is empty or given twice")
        kind = reader.value("I")
        if kind == STRING:
            metadata[key] = reader.string(repr(key))
        elif kind == ARRAY:
            metadata[key] = reader.array(repr(key))
        elif kind in SCALARS:
            metadata[key] = reader.value(SCALARS[kind])
        else:
            reader.refuse(f"{key!r} has type {kind}, which GGUF does not have")
    return metadata


def _checked_metadata(reader: _Reader, metadata: dict[str, Any]) -> str:
    later = type(part := metadata.get("split.no", 0)) is int and part > 0
    architecture = metadata.get("general.architecture", "none" if later else None)
    if not isinstance(architecture, str) or not architecture:
        reader.refuse("its metadata names no architecture (general.architecture)")
    alignment = metadata.get("general.alignment", 32)
    if (
        type(alignment) is not int
        or not 1 <= alignment <= MAX_ALIGNMENT
        or alignment.bit_count() > 1
    ):
        reader.refuse(f"alignment {alignment!r}; a power of two up to {MAX_ALIGNMENT} is allowed")
    blocks = metadata.get(f"{architecture}.block_count", 1)
    if type(blocks) is not int or not 0 <= blocks <= MAX_BLOCKS:
        reader.refuse(f"{blocks!r} blocks; at most {MAX_BLOCKS} are allowed")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None:
        _check_vocabulary(reader, metadata, tokens)
    return architecture


def _check_vocabulary(reader: _Reader, metadata: dict[str, Any], tokens: Any) -> None:
    if not isinstance(tokens, _Array) or tokens.kind != STRING:
        reader.refuse("tokenizer.ggml.tokens is no list of text")
    for key, kind in (("scores", 6), ("token_type", 5)):
        array = metadata.get(f"tokenizer.ggml.{key}")
        if array is not None and array != _Array(kind, tokens.length):
            reader.refuse(f"tokenizer.ggml.{key} does not fit the {tokens.length:,} tokens")
    for key, value in metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            unset = value == 0xFFFFFFFF
            if type(value) is not int or not (unset or 0 <= value < tokens.length):
                reader.refuse(f"{key} is {value!r}, but there are {tokens.length:,} tokens")


def _check_tensors(reader: _Reader, count: int, alignment: int) -> frozenset[str]:
    names: set[str] = set()
    expected, end, last = 0, 0, ""
    for _ in range(count):
        name = reader.string("a tensor name", MAX_NAME)
        if name in names:
            reader.refuse(f"the tensor {name!r} is there twice")
        names.add(name)
        size = _tensor_size(reader, name)
        offset = reader.value("Q")
        if offset != expected:
            reader.refuse(f"the tensor {name!r} starts at {offset:,} and not at {expected:,}")
        end, last = offset + size, name
        expected = _aligned(end, alignment)
    needed = _aligned(reader.at, alignment) + end
    if names and needed > reader.size:
        reader.refuse(
            f"truncated: the tensor {last!r} ends at byte {needed:,}, the file at {reader.size:,}"
        )
    return frozenset(names)


def _tensor_size(reader: _Reader, name: str) -> int:
    dimensions = reader.value("I")
    if not 1 <= dimensions <= 4:
        reader.refuse(f"the tensor {name!r} has {dimensions} dimensions; 1 to 4 are allowed")
    elements = 1
    row = 0
    for axis in range(dimensions):
        length = reader.value("Q")
        row = row if axis else length
        elements *= length
        if not 0 < elements <= MAX_ELEMENTS:
            reader.refuse(f"the tensor {name!r} has {elements:,} elements")
    kind = reader.value("I")
    if kind not in TENSOR_TYPES:
        reader.refuse(f"the tensor {name!r} has type {kind}, which ggml does not have")
    block, size = TENSOR_TYPES[kind]
    if row % block:
        reader.refuse(f"the tensor {name!r} has rows of {row:,}, not a multiple of {block}")
    return elements // block * size


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
