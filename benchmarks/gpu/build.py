"""Build the packed llama.cpp where it shall run, without a network, and make it importable.

    python benchmarks/gpu/build.py CARRIED SITE [--cpu] [--architectures native] [--jobs N]
                                   [--targets llama,llama-batched-bench] [--configure-only]

CARRIED is what pack.py made. SITE becomes a folder for PYTHONPATH: the wheels, llama-cpp-python's
modules and, in ``llama_cpp/lib``, llama.cpp's libraries and llama-batched-bench. The wheel of
llama-cpp-python is not built. Where one is installed already, LLAMA_CPP_LIB_PATH=SITE/llama_cpp/lib
has it load these libraries instead of its own.

Needs CMake 3.24, a C++ compiler and, without ``--cpu``, nvcc. One GPU architecture takes about
2,200 seconds of a core; the CPU part and the benchmark take about 400.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

TARGETS = "llama,llama-batched-bench"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
)
CUDA = ("-DGGML_CUDA=ON", "-DGGML_CUDA_NO_VMM=ON", "-DGGML_CUDA_NCCL=OFF")
AMX_OFF = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"  # see the Makefile
LIBRARIES = ("libllama.so*", "libggml*.so*", "libllama-common.so*", "libllama-batched-bench*.so*")


def unpack(carried: Path, site: Path, source: Path) -> None:
    """Put the wheels and modules into ``site``, and llama.cpp's source beside it."""
    wheels = sorted(map(str, (carried / "wheels").glob("*.whl")))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*command, "--upgrade", "--target", str(site), *wheels], check=True)
    with tarfile.open(carried / "llama.tar.xz") as archive:
        archive.extractall(source, filter="data")
    shutil.copytree(source / "llama_cpp", site / "llama_cpp", dirs_exist_ok=True)


def configure(source: Path, build: Path, cpu: bool, architectures: str) -> None:
    """Run CMake; ends the program where it fails."""
    command = ["cmake", "-S", str(source / "vendor/llama.cpp"), "-B", str(build), *FLAGS]
    compiler = os.environ.get("CC", "cc")
    probe = [compiler, *AMX_OFF.split(), "-Werror", "-x", "c", "-c", "-o", os.devnull, os.devnull]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        command += [f"-DCMAKE_C_FLAGS={AMX_OFF}", f"-DCMAKE_CXX_FLAGS={AMX_OFF}"]
    if not cpu:
        command += [*CUDA, f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"]
    timed("configure", command)


def timed(step: str, command: list[str]) -> None:
    """Run a command and say how long it took; ends the program where it fails."""
    begun = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    print(f"{step}: {time.monotonic() - begun:.0f} s", flush=True)
    if code:
        sys.exit(f"{step} failed with exit code {code}: {' '.join(command)}")


def install(build: Path, site: Path) -> None:
    """Put the libraries, with the links between their names, where llama-cpp-python loads them."""
    target = site / "llama_cpp" / "lib"
    target.mkdir(parents=True, exist_ok=True)
    for pattern in (*LIBRARIES, "llama-batched-bench"):
        for path in (build / "bin").glob(pattern):
            (target / path.name).unlink(missing_ok=True)
            shutil.copy2(path, target / path.name, follow_symlinks=False)


def main() -> None:
    """Unpack, configure, build, install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("carried", type=Path)
    parser.add_argument("site", type=Path)
    parser.add_argument("--cpu", action="store_true", help="without CUDA")
    parser.add_argument("--architectures", default="native", help="as CMake names them: 90")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--configure-only", action="store_true")
    arguments = parser.parse_args()
    site: Path = arguments.site.resolve()
    source, build = site.with_name(f"{site.name}-source"), site.with_name(f"{site.name}-build")
    unpack(arguments.carried, site, source)
    configure(source, build, arguments.cpu, arguments.architectures)
    if arguments.configure_only:
        return
    targets = arguments.targets.split(",")
    timed(
        "build",
        ["cmake", "--build", str(build), "-j", str(arguments.jobs), "--target", *targets],
    )
    install(build, site)
    print(f"export PYTHONPATH={Path(__file__).resolve().parents[2]}:{site}")


if __name__ == "__main__":
    main()
