from __future__ import annotations

from pathlib import Path

import pytest

from promptflow.engine.model.quantize import FORMATS, PURE, quantize
from promptflow.errors import ModelInvalid


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(ModelInvalid, match="no format 'q9': the formats are q4_0, q4_0_pure"):
        quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q9")


def test_every_format_is_one_of_llama_cpps():
    c = pytest.importorskip("llama_cpp.llama_cpp")
    for form in FORMATS:
        assert hasattr(c, f"LLAMA_FTYPE_MOSTLY_{form.removesuffix(PURE).upper()}")


def test_a_file_that_is_no_model_is_an_error_with_llama_cpps_words(tmp_path: Path):
    source = tmp_path / "a.gguf"
    source.write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(ModelInvalid, match=r"cannot write a\.gguf as q8_0:\n"):
        quantize(source, tmp_path / "b.gguf", "q8_0")
    assert not (tmp_path / "b.gguf").exists()
