"""Pack what a machine with a GPU and no network needs to build and measure this project.

    python benchmarks/gpu/pack.py FOLDER [--llama SDIST] [--python 3.12]

FOLDER holds afterwards, in some 30 MB: llama.cpp's source as llama-cpp-python carries it, cut to
what one library and its own benchmark need; wheels for the Python that runs over there; this
project's code; and the prompts of the workloads as text. SDIST is llama-cpp-python's source, as a
.tar.gz or unpacked; without it pip downloads the version of constraints.txt.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
WHEELS = (
    "diskcache", "gguf", "jinja2", "lazy-loader", "llguidance", "markupsafe", "numpy",
    "platformdirs", "pyyaml", "requests", "tomli-w", "tqdm", "typing-extensions", "certifi",
    "charset-normalizer", "idna", "urllib3",
)  # fmt: skip
"""What importing the engine and the gguf package imports, without llama-cpp-python itself."""
GLIBC = (17, 24, 27, 28, 31, 34, 35)
PROJECT = ("promptflow", "signatures", "benchmarks", "tests/tiny_models.py", "constraints.txt")
LLAMA = "vendor/llama.cpp"
KEPT = (
    "LICENSE", "CMakeLists.txt", "cmake", "common", "ggml", "include", "licenses", "src", "vendor",
    "tools/batched-bench",
)  # fmt: skip
BACKENDS = ("ggml-cpu", "ggml-cuda")
SUFFIXES = (
    "", ".c", ".cc", ".cmake", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".in", ".inc", ".m4", ".py",
    ".txt",
)  # fmt: skip
ELSEWHERE = ("spacemit", "loongarch", "powerpc", "riscv", "s390", "wasm")
TOOLS = "find_package(Threads REQUIRED)\nllama_add_compile_flags()\nadd_subdirectory(batched-bench)"


def is_needed(name: str) -> bool:
    """Return whether a build needs a file of the sdist, named from the sdist's top."""
    path = PurePosixPath(name)
    if path.suffix not in SUFFIXES:
        return False
    if path.is_relative_to("llama_cpp"):
        return path.suffix == ".py"
    if not any(path.is_relative_to(f"{LLAMA}/{kept}") for kept in KEPT):
        return False
    parts = path.relative_to(LLAMA).parts
    if parts[:2] in (("vendor", "miniaudio"), ("vendor", "stb")):
        return path.name == "CMakeLists.txt"  # libraries of headers that only media tools read
    if parts[:2] == ("ggml", "src") and len(parts) > 3 and parts[2] not in BACKENDS:
        return False
    return not any(part in ELSEWHERE for part in parts)


def entries(sdist: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name, from the sdist's top, and contents of every file that a build needs."""
    if sdist.is_dir():
        for path in sorted(sdist.rglob("*")):
            name = path.relative_to(sdist).as_posix()
            if path.is_file() and is_needed(name):
                yield name, path.read_bytes()
        return
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and is_needed(name):
                contents = archive.extractfile(member)
                assert contents is not None
                yield name, contents.read()


def pack_llama(sdist: Path, target: Path) -> None:
    """Write the trimmed source of llama.cpp, and llama-cpp-python's modules, to ``target``."""
    size = 0
    names = set()
    with tarfile.open(target, "w:xz") as archive:
        for name, contents in [*entries(sdist), (f"{LLAMA}/tools/CMakeLists.txt", TOOLS.encode())]:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
            size += len(contents)
            names.add(name)
    if f"{LLAMA}/CMakeLists.txt" not in names:
        sys.exit(f"{sdist} holds no {LLAMA}/CMakeLists.txt: give llama-cpp-python's sdist")
    packed = target.stat().st_size
    print(f"{target.name}: {len(names):,} files of {size / 1e6:.1f} MB in {packed / 1e6:.1f} MB")


def download_llama(folder: Path) -> Path:
    """Return llama-cpp-python's sdist of the version of constraints.txt, from pip's index."""
    pip(
        "download",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
        "-d",
        str(folder),
        "llama-cpp-python",
    )
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def pip(*arguments: str) -> None:
    """Run pip under the versions of constraints.txt."""
    verb, *others = arguments
    command = [sys.executable, "-m", "pip", verb, "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *others], check=True)


def pack_wheels(folder: Path, python: str) -> None:
    """Download the wheels for that version of Python on 64-bit Linux."""
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    pip(
        "download", "--no-deps", "--only-binary=:all:", "--implementation=cp",
        f"--python-version={python}", *platforms, "--platform=manylinux2014_x86_64",
        "-d", str(folder), *WHEELS,
    )  # fmt: skip


def pack_project(target: Path) -> None:
    """Write the code that runs over there to ``target``, as it stands in this folder."""
    with tarfile.open(target, "w:xz") as archive:
        for name in PROJECT:
            archive.add(ROOT / name, name, filter=_without_caches)


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def pack_workloads(target: Path) -> None:
    """Write the prompts of prefix_sharing.py: their data and dspy stay at home."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import prefix_sharing

    found = {}
    for size in ("whole", "quick"):
        for name in prefix_sharing.WORKLOADS:
            work = prefix_sharing.workload(name, size == "quick")
            found[f"{name} {size}"] = {
                "batches": work.batches,
                "tokens": work.tokens,
                "temperature": work.temperature,
            }
    target.write_text(json.dumps(found))


def main() -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama", type=Path, help="llama-cpp-python's sdist, packed or unpacked")
    parser.add_argument("--python", default="3.12", help="version of Python over there")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sdist = arguments.llama or download_llama(Path(scratch))
        pack_llama(sdist, folder / "llama.tar.xz")
    pack_wheels(folder / "wheels", arguments.python)
    pack_project(folder / "project.tar.xz")
    pack_workloads(folder / "workloads.json")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
