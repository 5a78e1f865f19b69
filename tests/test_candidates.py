"""Quantizations in the names of files, and the one that is meant."""

from __future__ import annotations

import random

import pytest

from promptflow.catalog.candidates import candidates, choose, names_of, quant_of
from promptflow.catalog.hub import hub_name
from promptflow.errors import ModelNotFound

QUANTS = {
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": "Q4_K_M",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "Q4_1",
    "Llama-3.2-3B-Instruct-IQ4_XS.gguf": "IQ4_XS",
    "Qwen3-30B-A3B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "gpt-oss-20b-MXFP4_MOE.gguf": "MXFP4_MOE",
    "gemma-3-4b-it-qat-q4_0.gguf": "Q4_0",
    "model-f16.gguf": "F16",
    "model.BF16.gguf": "BF16",
    "model-fp16.gguf": "FP16",
    "BitNet-TQ2_0.gguf": "TQ2_0",
    "ggml-model-i2.gguf": "",
    "Q8_0/model-00001-of-00002.gguf": "Q8_0",
    "model-Q5_K_S-00001-of-00002.gguf": "Q5_K_S",
    "x/Meta-Llama-3-8B.Q4_K_M.imat.gguf": "Q4_K_M",
    "mistral-7b-Q4_0_4_4.gguf": "Q4_0_4_4",
    "Qwen2-7B.gguf": "",
    "phi-2.gguf": "",
}


@pytest.mark.parametrize("file", QUANTS)
def test_the_quantization_is_read_from_the_name(file):
    assert quant_of(file) == QUANTS[file]


FILES = {
    "m-Q4_K_M.gguf": 1,
    "m-UD-Q4_K_M.gguf": 2,
    "m-UD-Q2_K_XL.gguf": 3,
    "m-fp16.gguf": 4,
    "m-abliterated.gguf": 5,
    "other/n-Q8_0.gguf": 6,
    "other/o-Q8_0.gguf": 7,
    "mmproj-Q6_K.gguf": 8,
    "m.imatrix.gguf": 9,
    "lora-Q3_K.gguf": 10,
    "explorations-Q5_0.gguf": 11,
    "README.md": 12,
}


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("ud-q4_k_m", "m-UD-Q4_K_M.gguf"),
        ("Q2_K_XL", "m-UD-Q2_K_XL.gguf"),
        ("F16", "m-fp16.gguf"),
        ("abliterated", "m-abliterated.gguf"),
        ("Q5_0", "explorations-Q5_0.gguf"),
    ],
)
def test_the_one_that_is_meant_is_chosen(quant, file):
    assert choose(candidates(FILES), quant, "hf:a/b").file == file


@pytest.mark.parametrize("quant", ["Q6_K", "Q3_K", "Q4", "K_M", "imatrix", "Q8_0", "", "liberated"])
def test_what_is_not_there_or_not_one_is_refused(quant):
    with pytest.raises(ModelNotFound, match="hf:a/b"):
        choose(candidates(FILES), quant, "hf:a/b")


def test_names_that_can_be_typed_are_told():
    with pytest.raises(ModelNotFound) as caught:
        choose(candidates(FILES), "Q8_0", "hf:a/b", "@v1")
    assert "hf:a/b/other/n-Q8_0.gguf@v1" in str(caught.value)
    with pytest.raises(ModelNotFound) as caught:
        choose(candidates({"a-Q8_0.gguf": 2_000_000, "b.gguf": None}), "Q4_0", "hf:a/b", "@v1")
    assert "it has hf:a/b:Q8_0@v1 (2 MB), hf:a/b/b.gguf@v1" in str(caught.value)


def test_parts_are_one_candidate():
    files = dict.fromkeys(["x-00001-of-00003.gguf", "x-00003-of-00003.gguf"], 5)
    (one,) = candidates(files)
    assert one.file == "x-00001-of-00003.gguf"
    assert one.missing == ("x-00002-of-00003.gguf",)
    assert one.size is None
    assert candidates({**files, "x-00002-of-00003.gguf": 1})[0].size == 11


def test_whatever_is_listed_can_be_typed():
    """In repositories made at random."""
    chance = random.Random(3)
    quants = ["Q4_K_M", "q4_k_m", "UD-Q4_K_M", "Q8_0", "f16", "BF16", "", "imat", "IQ2_XXS"]
    for _ in range(300):
        files = {}
        for _ in range(chance.randint(1, 8)):
            folder = chance.choice(["", "", "a/", "Q8_0/", "x y/"])
            stem = chance.choice(["m", "Model (v2)", "n.v1", "Qwen3-7B", "fp16-tune"])
            quant, dot = chance.choice(quants), chance.choice("-._")
            part = chance.choice(["", "", "-00001-of-00001", "-00001-of-00002"])
            files[f"{folder}{stem}{dot}{quant}{part}.gguf"] = chance.choice([None, 1, 10**9])
        found = candidates(files)
        for one in found:
            name = names_of([*found], "hf:a/b", "@v1")[found.index(one)]
            read = hub_name(name)
            typed = candidates(files) if not read.file else []
            chosen = choose(typed, read.quant, "hf:a/b").file if typed else read.file
            assert chosen == one.file, (name, list(files))
