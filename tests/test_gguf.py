import os
import random
import struct

import pytest
import tiny_models
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from promptflow.catalog import check_gguf, locate, read_gguf
from promptflow.errors import ModelInvalid, ModelNotFound
from promptflow.gguf import TENSOR_TYPES

U16, U32, I32, F32, STRING, ARRAY, U64 = 2, 4, 5, 6, 8, 9, 10


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    codes = {U16: "<H", U32: "<I", I32: "<i", F32: "<f", U64: "<Q"}
    if kind == STRING:
        data = text(value)
    elif kind == ARRAY:
        of, items = value
        data = struct.pack("<IQ", of, len(items))
        data += b"".join(text(x) if of == STRING else struct.pack(codes[of], x) for x in items)
    else:
        data = struct.pack(codes[kind], value)
    return text(key) + struct.pack("<I", kind) + data


def tensor(name, shape=(32, 2), kind=0, offset=0):
    head = (
        text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    )
    return head + struct.pack("<IQ", kind, offset)


PAIRS = [
    pair("general.architecture", STRING, "llama"),
    pair("llama.context_length", U32, 2048),
    pair("llama.block_count", U32, 2),
    pair("tokenizer.chat_template", STRING, "{{ messages }}"),
    pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "a", "é"])),
    pair("tokenizer.ggml.token_type", ARRAY, (I32, [3, 1, 1])),
    pair("tokenizer.ggml.bos_token_id", U32, 0),
]
TENSORS = [tensor("a"), tensor("b", (256, 1), 12, offset=256)]
"""64 F32 numbers (256 bytes), then one Q4_K block (144 bytes)."""


def gguf(pairs=PAIRS, tensors=TENSORS, *, version=3, magic=b"GGUF", counts=None, weights=400):
    counts = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(weights)


def split_gguf(count, *, metadata_first=False, total=None):
    """The parts of a model as llama.cpp's tool cuts it: a tensor in each, metadata in the first.

    ``metadata_first`` leaves the first without a tensor; ``total`` is what each says of all.
    """
    total = (count - metadata_first) if total is None else total
    parts = []
    for number in range(count):
        own = PAIRS if number == 0 else []
        split = [
            pair("split.no", U16, number),
            pair("split.count", U16, count),
            pair("split.tensors.count", I32, total),
        ]
        empty = metadata_first and number == 0
        tensors = [] if empty else [tensor(f"t{number}")]
        parts.append(gguf([*own, *split], tensors, weights=0 if empty else 256))
    return parts


def put_parts(folder, parts, stem="m", count=None):
    """Write parts under the names that they are found by; return their paths."""
    paths = []
    for number, data in enumerate(parts, 1):
        path = folder / f"{stem}-{number:05}-of-{count or len(parts):05}.gguf"
        path.write_bytes(data)
        paths.append(path)
    return paths


def without(key):
    return [one for one in PAIRS if key.encode() not in one]


def test_a_header_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    found = read_gguf(path)
    assert (found.version, found.tensors, found.vocabulary) == (3, 2, 3)
    assert (found.architecture, found.context_length) == ("llama", 2048)
    assert found.chat_template == "{{ messages }}"
    assert found.metadata["llama.block_count"] == 2
    assert "tokenizer.ggml.tokens" not in found.metadata
    assert found.size == path.stat().st_size


def test_a_number_a_layer_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    heads = pair("llama.attention.head_count_kv", ARRAY, (U32, [0, 8]))
    long = pair("llama.long", ARRAY, (F32, [0.5] * 513))
    path.write_bytes(gguf([*PAIRS, heads, long, pair("llama.names", ARRAY, (STRING, ["a"]))]))
    metadata = read_gguf(path).metadata
    assert metadata["llama.attention.head_count_kv"] == (0, 8)
    assert not {"llama.long", "llama.names", "tokenizer.ggml.token_type"} & metadata.keys()


def test_the_types_of_tensors_are_those_of_the_gguf_package_and_of_ggml():
    package = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: TENSOR_TYPES[kind] for kind in package} == package
    library = tiny_models.ggml()
    for kind, sizes in TENSOR_TYPES.items():
        known = library.ggml_blck_size(kind), library.ggml_type_size(kind)
        assert sizes == known or kind == GGMLQuantizationType.Q8_1


def test_every_truncation_is_refused(tmp_path):
    data = gguf()
    path = tmp_path / "model.gguf"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelInvalid, match="promptflow models get"):
            check_gguf(path)
    path.write_bytes(data)
    check_gguf(path)


BAD = {
    "magic": (gguf(magic=b"GGML"), "not a GGUF file"),
    "an html page": (b"<!doctype html>" + bytes(100), "not a GGUF file"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4"),
    "big-endian": (gguf(version=3 << 24), "version"),
    "no tensors": (gguf(tensors=[]), "0 tensors"),
    "no pairs": (gguf(pairs=[]), "0 metadata pairs"),
    "many tensors": (gguf(counts=(1 << 60, 7)), "tensors"),
    "many pairs": (gguf(counts=(2, 1 << 63)), "metadata pairs"),
    "more pairs than there are": (gguf(counts=(2, 1000)), "model.gguf"),
    "a key twice": (gguf([*PAIRS, PAIRS[0]]), "given twice"),
    "an empty key": (gguf([*PAIRS, pair("", U32, 1)]), "empty"),
    "a key that is not text": (gguf([*PAIRS, pair(b"\xff", U32, 1)]), "not UTF-8"),
    "a long key": (gguf([*PAIRS, pair("k" * 70_000, U32, 1)]), "metadata key of 70,000"),
    "text of 2^63 bytes": (gguf([*PAIRS, text("k") + struct.pack("<IQ", 8, 1 << 63)]), "bytes"),
    "a long text": (gguf([*PAIRS, pair("k", STRING, "x" * ((1 << 20) + 1))]), "at most"),
    "an unknown type": (gguf([*PAIRS, text("k") + struct.pack("<I", 77)]), "type 77"),
    "an array of arrays": (
        gguf([*PAIRS, text("k") + struct.pack("<IIQ", 9, 9, 1)]),
        "elements of type 9",
    ),
    "an endless array": (
        gguf([*PAIRS, text("k") + struct.pack("<IIQ", 9, 4, 1 << 62)]),
        "elements",
    ),
    "an endless text in an array": (
        gguf([*PAIRS, text("k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 62)]),
        "holds text of",
    ),
    "no architecture": (gguf(without("architecture")), "no architecture"),
    "alignment 0": (gguf([*PAIRS, pair("general.alignment", U32, 0)]), "alignment 0"),
    "alignment 33": (gguf([*PAIRS, pair("general.alignment", U32, 33)]), "alignment 33"),
    "alignment as text": (gguf([*PAIRS, pair("general.alignment", STRING, "x")]), "alignment"),
    "blocks": (
        gguf([*without("block_count"), pair("llama.block_count", U32, 513)]),
        "513 blocks",
    ),
    "token types": (
        gguf([*without("token_type"), pair("tokenizer.ggml.token_type", ARRAY, (I32, [1]))]),
        "does not fit the 3 tokens",
    ),
    "scores of another type": (
        gguf([*PAIRS, pair("tokenizer.ggml.scores", ARRAY, (I32, [1, 2, 3]))]),
        "does not fit the 3 tokens",
    ),
    "a token id": (
        gguf([*PAIRS, pair("tokenizer.ggml.eos_token_id", U32, 3)]),
        "there are 3 tokens",
    ),
    "tokens that are numbers": (
        gguf([*without("tokenizer.ggml"), pair("tokenizer.ggml.tokens", ARRAY, (U32, [1]))]),
        "no list of text",
    ),
    "a tensor twice": (gguf(tensors=[TENSORS[0], tensor("a", offset=256)]), "there twice"),
    "a long tensor name": (gguf(tensors=[tensor("t" * 65)]), "tensor name of 65"),
    "no dimensions": (gguf(tensors=[tensor("a", ())]), "0 dimensions"),
    "five dimensions": (gguf(tensors=[tensor("a", (1,) * 5)]), "5 dimensions"),
    "a dimension of zero": (gguf(tensors=[tensor("a", (32, 0))]), "0 elements"),
    "dimensions that overflow": (
        gguf(tensors=[tensor("a", (1 << 32, 1 << 32, 1 << 32))]),
        "elements",
    ),
    "a removed type": (gguf(tensors=[tensor("a", kind=4)]), "type 4"),
    "a row that is no block": (gguf(tensors=[tensor("a", (255, 1), 12)]), "multiple of 256"),
    "an offset outside": (gguf(tensors=[tensor("a", offset=1 << 62)]), "starts at"),
    "an offset inside another": (gguf(tensors=[TENSORS[0], tensor("b", offset=32)]), "starts at"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_a_malformed_file_is_refused(tmp_path, data, message):
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ModelInvalid, match=message):
        check_gguf(tmp_path / "model.gguf")


def test_a_damaged_header_never_does_worse_than_being_refused(tmp_path):
    chance = random.Random(2)
    path = tmp_path / "model.gguf"
    refused = 0
    for _ in range(3000):
        data = bytearray(gguf())
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(len(data) - 400)] = chance.choice([0, 1, 127, 128, 255])
        path.write_bytes(data)
        try:
            check_gguf(path)
        except ModelInvalid:
            refused += 1
    assert refused > 1000


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ModelInvalid, match="it holds no GGUF file"):
        check_gguf(tmp_path)
    with pytest.raises(ModelInvalid, match="no such file"):
        check_gguf(tmp_path / "model.gguf")
    (tmp_path / "inner.gguf").write_bytes(gguf())
    with pytest.raises(ModelInvalid, match=r"did you mean .*inner\.gguf"):
        check_gguf(tmp_path)


@pytest.fixture(scope="module")
def real():
    try:
        return locate("smollm2-135m")
    except ModelNotFound as error:
        pytest.skip(str(error))


def test_a_real_model_is_accepted(real):
    found = read_gguf(real)
    assert (found.architecture, found.context_length, found.vocabulary) == ("llama", 8192, 49152)
    assert "im_start" in found.chat_template


def test_a_real_model_truncated_anywhere_is_refused(real, tmp_path):
    """Only the header is copied: the check never reads the weights, only where they end."""
    chance = random.Random(3)
    size = real.stat().st_size
    path = tmp_path / "model.gguf"
    with real.open("rb") as file:
        path.write_bytes(file.read(8_000_000))
    os.truncate(path, size)
    check_gguf(path)
    # The last tensor ends before the padding of the last block of 32 bytes.
    near = [size - 32 - chance.randrange(10_000) for _ in range(50)]
    points = [*near, *(chance.randrange(size - 32) for _ in range(150))]
    for length in sorted(points, reverse=True):
        os.truncate(path, length)
        with pytest.raises(ModelInvalid, match=r"truncated|not a GGUF"):
            check_gguf(path)


def test_a_real_model_with_a_damaged_tensor_table_is_refused(real, tmp_path):
    """200 times, one bit of the shape, type or offset of a tensor is changed."""
    chance = random.Random(4)
    with real.open("rb") as file:
        header = file.read(8_000_000)
    at = header.index(text("token_embd.weight"))
    numbers = []
    for _ in range(read_gguf(real).tensors - 1):
        at += 8 + struct.unpack_from("<Q", header, at)[0]
        end = at + 4 + 8 * header[at] + 12
        numbers += range(at, end)
        at = end
    path = tmp_path / "model.gguf"
    path.write_bytes(header)
    os.truncate(path, real.stat().st_size)
    check_gguf(path)
    with path.open("r+b", buffering=0) as file:
        for place in chance.sample(numbers, 200):
            os.pwrite(file.fileno(), bytes([header[place] ^ 1 << chance.randrange(8)]), place)
            with pytest.raises(ModelInvalid):
                check_gguf(path)
            os.pwrite(file.fileno(), header[place : place + 1], place)


@pytest.mark.parametrize("metadata_first", [False, True])
def test_any_part_stands_for_all(tmp_path, metadata_first):
    paths = put_parts(tmp_path, split_gguf(3, metadata_first=metadata_first))
    for path in paths:
        found = read_gguf(path)
        assert found.path == paths[0]
        assert found.parts == tuple(paths)
        assert found.architecture == "llama"
        assert found.tensors == 3 - metadata_first
        assert found.size == sum(one.stat().st_size for one in paths)
        assert locate(path) == locate(str(path)) == paths[0]


def test_a_missing_part_is_named(tmp_path):
    for missing in range(3):
        folder = tmp_path / str(missing)
        folder.mkdir()
        paths = put_parts(folder, split_gguf(3))
        paths[missing].unlink()
        for path in paths:
            with pytest.raises(ModelInvalid, match=f"{paths[missing].name}: missing"):
                locate(path)
    for path in paths:
        path.unlink(missing_ok=True)
    with pytest.raises(ModelNotFound, match="no such file"):
        locate(paths[1])


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    three, two = split_gguf(3), split_gguf(2)
    wrong = {
        "of another count": ([three[0], two[1], three[2]], "its header 2"),
        "out of order": ([three[0], three[2], three[1]], "its header 3"),
        "twice": ([three[0], three[1], three[1]], "its header 2"),
        "whole models": ([gguf(), gguf(), gguf()], "its header 1"),
        "too few tensors": (split_gguf(3, total=4), "4 tensors in all parts, they have 3"),
        "a truncated one": ([three[0], three[1][:-1], three[2]], "truncated"),
        "no GGUF": ([three[0], b"<html>" + bytes(100), three[2]], "not a GGUF file"),
    }
    for number, (parts, message) in enumerate(wrong.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ModelInvalid, match=message):
            read_gguf(put_parts(folder, parts)[0])


def test_the_same_tensor_in_two_parts_is_refused(tmp_path):
    parts = split_gguf(2)
    parts[1] = parts[1].replace(b"t1", b"t0")
    with pytest.raises(ModelInvalid, match="'t0' is in another part too"):
        read_gguf(put_parts(tmp_path, parts)[0])


def test_a_part_under_another_name_is_refused(tmp_path):
    for number, data in enumerate(split_gguf(2)):
        path = tmp_path / f"part{number}.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelInvalid, match=f"one part of 2.*-0000{number + 1}-of-00002.gguf"):
            read_gguf(path)


def test_a_part_beyond_the_count_is_refused(tmp_path):
    for name in ("m-00003-of-00002.gguf", "m-00000-of-00002.gguf"):
        with pytest.raises(ModelInvalid, match="no part"):
            locate(tmp_path / name)


def test_a_model_of_one_part_is_a_model(tmp_path):
    path = put_parts(tmp_path, split_gguf(1))[0]
    assert read_gguf(path).parts == (path,)
    (tmp_path / "x-00001-of-00001.gguf").write_bytes(gguf())
    assert read_gguf(tmp_path / "x-00001-of-00001.gguf").tensors == 2
