"""What is carried to a machine with a GPU: the files that a build needs, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "gpu" / "pack.py"
SPEC = importlib.util.spec_from_file_location("pack", PATH)
assert SPEC is not None
assert SPEC.loader is not None
pack = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pack)

LLAMA = "vendor/llama.cpp"


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        (f"{LLAMA}/CMakeLists.txt", True),
        (f"{LLAMA}/src/llama.cpp", True),
        (f"{LLAMA}/src/models/qwen3.cpp", True),
        (f"{LLAMA}/cmake/build-info.cmake", True),
        (f"{LLAMA}/ggml/CMakeLists.txt", True),
        (f"{LLAMA}/ggml/src/ggml.c", True),
        (f"{LLAMA}/ggml/src/ggml-cpu/arch/x86/quants.c", True),
        (f"{LLAMA}/ggml/src/ggml-cpu/arch/riscv/quants.c", False),
        (f"{LLAMA}/ggml/src/ggml-cuda/template-instances/mmq-instance-q4_k.cu", True),
        (f"{LLAMA}/ggml/src/ggml-vulkan/ggml-vulkan.cpp", False),
        (f"{LLAMA}/ggml/src/ggml-metal/ggml-metal.metal", False),
        (f"{LLAMA}/tools/batched-bench/main.cpp", True),
        (f"{LLAMA}/tools/server/server.cpp", False),
        (f"{LLAMA}/vendor/stb/CMakeLists.txt", True),
        (f"{LLAMA}/vendor/stb/stb_image.h", False),
        (f"{LLAMA}/models/ggml-vocab-llama-bpe.gguf", False),
        ("llama_cpp/llama_cpp.py", True),
        ("llama_cpp/lib/libllama.so", False),
        ("tests/test_llama.py", False),
    ],
)
def test_a_build_needs_it(name: str, needed: bool):
    assert pack.is_needed(name) is needed


def test_a_folder_and_an_archive_hold_the_same(tmp_path):
    sdist = tmp_path / "llama_cpp_python-1.0"
    for name in (f"{LLAMA}/CMakeLists.txt", f"{LLAMA}/docs/x.txt", "llama_cpp/__init__.py"):
        (sdist / name).parent.mkdir(parents=True, exist_ok=True)
        (sdist / name).write_text(name)
    with pack.tarfile.open(tmp_path / "sdist.tar.gz", "w:gz") as archive:
        archive.add(sdist, sdist.name)
    found = sorted(pack.entries(sdist))
    assert [name for name, _ in found] == ["llama_cpp/__init__.py", f"{LLAMA}/CMakeLists.txt"]
    assert sorted(pack.entries(tmp_path / "sdist.tar.gz")) == found
    pack.pack_llama(sdist, tmp_path / "llama.tar.xz")
    with pack.tarfile.open(tmp_path / "llama.tar.xz") as archive:
        names = archive.getnames()
    assert names == [*(name for name, _ in found), f"{LLAMA}/tools/CMakeLists.txt"]


def test_a_folder_without_llama_cpp_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no vendor/llama\.cpp/CMakeLists\.txt"):
        pack.pack_llama(tmp_path, tmp_path / "llama.tar.xz")
