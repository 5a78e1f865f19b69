"""What is put before queries and passages: as a model says itself, or as its publisher says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_encoders

from promptflow.errors import ModelInvalid, StoreError
from promptflow.retrieval import Index, build_index
from promptflow.retrieval.embed import Embedder, open_embedder
from promptflow.retrieval.prefixes import family_prefixes
from promptflow.retrieval.recipe import read_recipe

E5 = ("query: ", "passage: ")
NAMES = {
    "multilingual-e5-small": E5,
    "multilingual-e5-small-q4": E5,
    "hf:intfloat/multilingual-e5-large": E5,
    "hf:intfloat/e5-base-v2": E5,
    "hf:someone/multilingual-e5-small-GGUF:Q8_0": E5,
    "hf:intfloat/multilingual-e5-large-instruct": None,
    "hf:BAAI/bge-m3": None,
    "all-minilm-l6-v2": None,
    "hf:org/mobile5-small": None,
    "hf:nomic-ai/nomic-embed-text-v1.5-GGUF": ("search_query: ", "search_document: "),
    "hf:BAAI/bge-small-en-v1.5": (
        "Represent this sentence for searching relevant passages: ", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_families_are_known_by_their_names(name: str) -> None:
    assert family_prefixes(name) == NAMES[name]


def test_instructions_hold_the_question_in_their_last_line() -> None:
    found = family_prefixes("Qwen3-Embedding-0.6B-Q8_0.gguf")
    assert found is not None
    assert found[0].splitlines()[-1] == "Query:"
    assert found[1] == ""


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": "q: ", "document": "d: "}, ("q: ", "d: ")),
        ({"query": "q: ", "passage": "p: "}, ("q: ", "p: ")),
        ({"query": "q: ", "document": ""}, ("q: ", "")),
        ({"clustering": "c: "}, E5),
        ({}, E5),
        (None, E5),
    ],
)
def test_a_model_speaks_for_itself(
    tmp_path: Path, prompts: dict[str, str] | None, expected: tuple[str, str]
) -> None:
    folder = tiny_encoders.write(tmp_path / "my-e5-small", "bert", prompts=prompts)
    assert Embedder(folder).prefixes == expected
    assert Embedder(folder, prefixes=("", "")).prefixes == ("", "")


def test_vectors_are_those_of_the_prefixed_texts(tmp_path: Path) -> None:
    folder = tiny_encoders.write(tmp_path, "bert", prompts={"query": "red ", "document": "blue "})
    plain, own = Embedder(folder, prefixes=("", "")), Embedder(folder)
    assert (own.encode(["water"]) == plain.encode(["blue water"])).all()
    assert (own.encode_query("water") == plain.encode_query("red water")).all()
    assert own.sha256 != plain.sha256
    assert own.max_tokens < plain.max_tokens


def test_an_index_records_its_prefixes_and_opens_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_encoders.write(tmp_path / "e5-small", "bert", longest=200)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("the water is blue")
    recipe = tmp_path / "indexes" / "mine" / "index.toml"
    recipe.parent.mkdir(parents=True)
    plain = f'documents = "docs"\nembedder = "{model}"\nchunk_size = 40\n'
    for line, expected in [("", E5), ('prefixes = ["q ", ""]', ("q ", ""))]:
        recipe.write_text(f"{plain}{line}\n")
        with build_index("mine", progress=False) as index:
            assert index.manifest.embedder["prefixes"] == list(expected)
        # What the recipe says by now is not what the vectors were made with.
        recipe.write_text(plain)
        with Index.open("mine") as index:
            index.search("the water", k=1, mode="dense")
            assert index._encoder().prefixes == expected


@pytest.mark.parametrize("value", ['["one"]', '["a", "b", "c"]', "[1, 2]", '"query: "'])
def test_other_prefixes_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "index.toml"
    path.write_text(f"prefixes = {value}\n")
    with pytest.raises(StoreError, match="prefixes is"):
        read_recipe(path)


def test_an_embedder_that_has_none_takes_none() -> None:
    with pytest.raises(ModelInvalid, match="takes no prefixes"):
        open_embedder("hashing-64", ("query: ", ""))
    assert open_embedder("hashing-64", ("", "")).dimension == 64


def test_the_table_of_families_is_whole() -> None:
    from promptflow.retrieval.prefixes import FAMILIES
    from promptflow.storage import toml_loads

    for family in toml_loads(FAMILIES.read_text(encoding="utf-8"))["families"]:
        assert set(family) == {"pattern", "query", "passage"}
        assert json.dumps(family["query"]).strip('"')
