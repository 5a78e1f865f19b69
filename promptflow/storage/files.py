"""Atomic files and folders, hashes, and the lock of one writer.

A file is written beside its target, flushed to the device, and renamed over it. What a killed
process left beside a target is removed by the next write to the same target.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from promptflow.errors import DiskFull, StoreBusy, StoreCorrupt, StoreError, StoreNotFound

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HOST = "".join(c for c in os.uname().nodename if c.isalnum()) or "host"
RENAME_EXCHANGE = 2
AT_FDCWD = -100

_kill_at = int(os.environ.get("PROMPTFLOW_KILL_AT") or 0)
_fail_at, _fault = (os.environ.get("PROMPTFLOW_FAIL_AT") or "0:EIO").split(":")
_fail_first, _fail_on = int(_fail_at.rstrip("+")), _fail_at.endswith("+")
_operations = 0


def operation() -> None:
    """Count one storage operation, which may be the one that dies or fails.

    PROMPTFLOW_KILL_AT=n kills this process with SIGKILL at its n-th operation,
    PROMPTFLOW_FAIL_AT=n:ENOSPC makes that one fail, and n+:ENOSPC every later one too.
    """
    global _operations
    _operations += 1
    if _operations == _kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if _operations == _fail_first or (_fail_on and _operations > _fail_first):
        code = getattr(errno, _fault)
        raise OSError(code, os.strerror(code))


def cache_dir() -> Path:
    """Return the user's cache folder: $PROMPTFLOW_CACHE, else the platform's."""
    return Path(
        os.environ.get("PROMPTFLOW_CACHE") or platformdirs.user_cache_dir("promptflow")
    ).expanduser()


def config_dir() -> Path:
    """Return the folder of the user's own settings."""
    return Path(platformdirs.user_config_dir("promptflow"))


def free_bytes(path: str | Path) -> int:
    """Return the bytes free on the disk of ``path``, which need not exist yet."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError on ``path`` into DiskFull or StoreError."""
    try:
        yield
    except OSError as error:
        raise _store_error(path, error) from error


def _store_error(path: Path, error: OSError) -> StoreError:
    if error.errno in FULL:
        return DiskFull(
            f"{path}: {error.strerror or 'no space left'}. Nothing was replaced. Free some space, "
            "or set PROMPTFLOW_CACHE to a folder on another disk, and run the same command again."
        )
    return StoreError(
        f"{path}: cannot be written: {error.strerror or error}. "
        "Check that the folder exists on a writable disk and that this user may write there."
    )


class _CountedFile(io.FileIO):
    """A raw file whose writes are storage operations, and whose errors are of its target."""

    target = Path()

    def write(self, data: Any, /) -> int:
        with disk_errors(self.target):
            operation()
            return super().write(data)


def _counted(part: Path, mode: str, target: Path) -> io.BufferedWriter[_CountedFile]:
    raw = _CountedFile(part, mode)
    raw.target = target
    return io.BufferedWriter(raw, 1 << 20)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Give a binary file that replaces ``path`` when the block succeeds and vanishes when not.

    Raises DiskFull when the device has no space left; ``path`` is then as it was.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        operation()
        part = _part(path)
        file = _counted(part, "xb", path)
    try:
        yield file
        with disk_errors(path):
            file.flush()
            operation()
            os.fsync(file.fileno())
            file.close()
            operation()
            os.replace(part, path)
            operation()
            _sync_folder(path.parent)
    except BaseException as error:
        _discard(file)
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise _store_error(path, error) from error
        raise


@contextmanager
def appending(path: str | Path) -> Iterator[BinaryIO]:
    """Give a binary file placed at its end, whose content is kept however the block ends."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        operation()
        file = _counted(path, "ab", path)
    try:
        yield file
        with disk_errors(path):
            file.flush()
            operation()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in FULL:
            raise _store_error(path, error) from error
        raise
    finally:
        _discard(file)


def _discard(file: io.BufferedWriter[_CountedFile]) -> None:
    try:
        file.close()
    except (OSError, StoreError):
        # close() flushes, which fails again on a full disk, but the descriptor must not leak.
        file.raw.close()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, atomically and durably."""
    with writing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8, atomically and durably."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, obj: Any) -> None:
    """Replace the file at ``path`` by ``obj`` as indented JSON, atomically and durably."""
    try:
        data = json.dumps(obj, ensure_ascii=False, indent=2).encode()
    except UnicodeEncodeError:
        # Lone surrogates have no UTF-8 form, but they have a JSON escape.
        data = json.dumps(obj, indent=2).encode()
    write_bytes(path, data + b"\n")


def read_text(path: str | Path, most: int = 1_000_000) -> str:
    """Return the text of a file of any origin, at most ``most`` bytes of UTF-8.

    Raises OSError, and ValueError for what is no regular file (a pipe would be waited for), is
    longer, or holds other bytes.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"longer than {most:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise ValueError(f"{what} ({error.reason}); save it as UTF-8") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises StoreNotFound if it is missing, StoreCorrupt if it is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreNotFound(f"{path}: no such file") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(
            f"{path}: not a JSON file ({error}). Build or save it again with the command that "
            "wrote it."
        ) from error


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``path`` when the block succeeds.

    The swap is one rename where the kernel can exchange two names (Linux); elsewhere a folder that
    exists is missing for the moment between two renames.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        operation()
        part = _part(path)
        part.mkdir()
    try:
        yield part
        with disk_errors(path):
            _sync_tree(part)
            operation()
            old = _swap(part, path)
            operation()
            _sync_folder(path.parent)
            if old is not None:
                operation()
                shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise _store_error(path, error) from error
        raise


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder beside ``path`` that is gone after the block.

    One that a killed process left is removed by the next call with the same ``path``.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        operation()
        folder = _part(path)
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: str | Path, target: str | Path) -> None:
    """Put a file or folder in the place of ``target``, on the same disk, atomically and durably."""
    source, target = Path(source), Path(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync_tree(source)
        operation()
        old = _swap(source, target)
        operation()
        _sync_folder(target.parent)
        if old is not None:
            operation()
            shutil.rmtree(old, ignore_errors=True)


def link(target: str | Path, path: str | Path) -> None:
    """Put a relative symbolic link to ``target`` in the place of ``path``, atomically.

    Where the disk has no links, a copy.
    """
    target, path = Path(target), Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        operation()
        part = _part(path)
        try:
            part.symlink_to(os.path.relpath(target, path.parent))
        except OSError:
            shutil.copyfile(target, part)
        operation()
        os.replace(part, path)
        operation()
        _sync_folder(path.parent)


def _swap(new: Path, target: Path) -> Path | None:
    if not (new.is_dir() and target.exists()):
        os.replace(new, target)
        return None
    exchange: Callable[..., int] | None = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is not None and not exchange(
        AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE
    ):
        return new
    old = _part(target)
    os.rename(target, old)
    os.rename(new, target)
    return old


def remove_folder(path: str | Path) -> None:
    """Remove a folder with all it holds; do nothing if there is none."""
    path = Path(path)
    with disk_errors(path):
        operation()
        if path.exists():
            shutil.rmtree(path)


def remove_file(path: str | Path) -> None:
    """Remove a file; do nothing if there is none."""
    with disk_errors(Path(path)):
        operation()
        Path(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.parent / f".{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.part"


def _sweep(path: Path) -> None:
    """Remove what writers of ``path`` that are dead left beside it."""
    prefix = f".{path.name}.{HOST}-"
    for part in path.parent.iterdir():
        if not (part.name.startswith(prefix) and part.name.endswith(".part")):
            continue
        pid = part.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for name in (*folder.rglob("*"), folder):
        if not name.is_symlink():
            operation()
            _sync_folder(name)


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: str | Path, seen: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal; ``seen`` is told the size of each block."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if seen is not None:
                seen(len(block))
    return digest.hexdigest()


def canonical(obj: Any) -> str:
    """Return the one JSON text of ``obj`` that is hashed: sorted keys, no spaces, ASCII."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"))


@contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold the lock file at ``path``; raise StoreBusy with the holder's process id if it is held.

    The kernel frees the lock when its holder dies. The file stays: removing it would let two
    writers hold two files of one name.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StoreBusy(
                f"{path}: held by process {holder}, which is writing. "
                "Wait for it to finish, or stop it, and run the same command again."
            ) from error
        with disk_errors(path):
            operation()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
