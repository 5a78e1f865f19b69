"""Files to texts: which files of a folder are documents, and what each says.

Plain text is decoded here; HTML and PDF are parsed in a child with limits. A file that cannot be
read is a ``Rejected`` with its reason, never the end of a build. Nothing outside is read.
For plain text and Markdown, a document's text is exactly its file decoded as UTF-8.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from promptflow.errors import DocumentRejected, EmptyCorpus
from promptflow.retrieval.chunk import BLANK

GLOBS = ("**/*.txt", "**/*.md", "**/*.markdown", "**/*.html", "**/*.htm", "**/*.pdf")
KINDS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
}
PARSER = Path(__file__).with_name("parser.py")
PARSER_VERSION = 1
"""Raised when the same bytes give another text than before, so that indexes are built again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may cost: bytes, characters, memory, seconds, characters a byte."""

    file: int = 100 << 20
    text: int = 20_000_000
    memory: int = 1 << 30
    cpu: int = 30
    wall: int = 45
    expansion: int = 100


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its place: ``path`` is relative to the folder, ``sha256`` is of the file."""

    path: str
    kind: str
    text: str
    sha256: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that is not in the index, and why."""

    path: str
    reason: str
    sha256: str = ""


def find(root: Path, globs: Sequence[str] = GLOBS) -> list[str | Rejected]:
    """List the files under ``root`` that match, sorted, as relative POSIX paths.

    Hidden names are left out. A symbolic link is followed if it stays inside ``root``, and is
    Rejected if it does not. ``**`` matches any number of folders. Raises EmptyCorpus if there is
    no such folder.
    """
    if not root.is_dir():
        raise EmptyCorpus(f"{root}: no such folder. Give the folder of your documents.")
    wanted = [glob_pattern(glob) for glob in globs]
    root = root.resolve()
    found: dict[str, str | Rejected] = {}
    for name in _walk(root):
        if name.endswith("/"):
            checked = _checked_name(root, name)
            if isinstance(checked, Rejected):
                found[name] = checked
        elif any(pattern.fullmatch(name) for pattern in wanted):
            found[name] = _checked_name(root, name)
    return [found[name] for name in sorted(found)]


def _walk(root: Path) -> Iterator[str]:
    """Give every visible file, and with a slash at its end every link to a folder."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        at = Path(folder).relative_to(root)
        yield from ((at / name).as_posix() for name in sorted(files) if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                yield (at / name).as_posix() + "/"


def _checked_name(root: Path, name: str) -> str | Rejected:
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Rejected(shown, "its name is not UTF-8: rename it")
    path = root / name
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(root):
            return Rejected(name, f"a symbolic link out of the folder, to {target}")
        if not os.path.exists(path):
            return Rejected(name, f"a symbolic link to nothing, {target}")
    return name


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return the pattern of a glob over relative paths: ``**/`` is any number of folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    meaning = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts), re.DOTALL)


def read_bytes(root: Path, name: str, limits: Limits = LIMITS) -> bytes:
    """Return the bytes of a regular file inside ``root``. Raises DocumentRejected."""
    try:
        descriptor = _open_inside(root.resolve(), name)
    except OSError as error:
        raise DocumentRejected(f"cannot be opened: {os.strerror(error.errno or 0)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DocumentRejected("not a regular file")
        if status.st_size > limits.file:
            raise DocumentRejected(f"{status.st_size} bytes, more than the {limits.file} allowed")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limits.file)
    except OSError as error:
        raise DocumentRejected(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _open_inside(root: Path, name: str) -> int:
    """Open a file below ``root`` one component at a time, so that no link can lead outside."""
    if "\0" in name:
        raise OSError(errno.EINVAL, "a zero byte in the name")
    resolved = Path(os.path.realpath(root / name))
    if not resolved.is_relative_to(root) or resolved == root:
        raise OSError(errno.EXDEV, "outside the folder")
    *folders, last = resolved.relative_to(root).parts
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)


def load(root: Path, name: str, limits: Limits = LIMITS) -> Document:
    """Read and parse one file of ``find``. Raises DocumentRejected with the reason."""
    data = read_bytes(root, name, limits)
    kind = KINDS.get(Path(name).suffix.lower(), "text")
    if kind in ("html", "pdf"):
        answer = parse_in_child(kind, data, limits)
    else:
        answer = {"text": _decode(data, limits), "title": "", "pages": []}
    text = answer["text"]
    if not text.strip(BLANK):
        raise DocumentRejected("no text in it")
    metadata = {"title": answer["title"] or _first_heading(text) or Path(name).stem}
    if answer["pages"]:
        metadata["pages"] = answer["pages"]
    return Document(name, kind, text, hashlib.sha256(data).hexdigest(), metadata)


def load_all(
    root: Path, names: Iterable[str | Rejected], limits: Limits = LIMITS
) -> Iterator[Document | Rejected]:
    """Read what ``find`` gave, one by one; a file that cannot be read comes as Rejected."""
    for name in names:
        if isinstance(name, Rejected):
            yield name
            continue
        try:
            yield load(root, name, limits)
        except DocumentRejected as error:
            yield Rejected(name, str(error), sha256_inside(root, name, limits))


def sha256_inside(root: Path, name: str, limits: Limits = LIMITS) -> str:
    """Return the SHA-256 of a file inside ``root``, or nothing if it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(root, name, limits)).hexdigest()
    except DocumentRejected:
        return ""


def _decode(data: bytes, limits: Limits) -> str:
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentRejected(
            f"not UTF-8 at byte {error.start}: convert it, for example with "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        raise DocumentRejected(f"not text: a zero character at {text.index(chr(0))}")
    if len(text) > limits.text:
        raise DocumentRejected(f"{len(text)} characters, more than the {limits.text} allowed")
    return text


def _first_heading(text: str) -> str:
    for line in text[:4000].splitlines():
        if line.startswith("#"):
            return line.strip("# \t")
    return ""


def parse_in_child(kind: str, data: bytes, limits: Limits) -> dict[str, Any]:
    """Parse ``data`` in a disposable process. Raises DocumentRejected if it fails or is killed."""
    command = [sys.executable, "-P", str(PARSER), kind, json.dumps(asdict(limits))]
    try:
        done = subprocess.run(
            command,
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.wall,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DocumentRejected(f"took more than {limits.wall} s to read") from error
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        raise DocumentRejected(f"took more than {limits.cpu} s of processor time to read")
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise DocumentRejected(f"its parser died with status {done.returncode}") from error
    if "error" in answer:
        raise DocumentRejected(answer["error"])
    # Lone surrogates from a PDF's own encoding have no UTF-8 form, and SQLite ends text at a zero.
    text = answer["text"].encode("utf-8", "replace").decode().replace("\0", " ")
    title = answer["title"].encode("utf-8", "replace").decode().replace("\0", " ")
    return {"text": text, "title": title, "pages": answer["pages"]}
