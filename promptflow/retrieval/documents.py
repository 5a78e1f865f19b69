"""Files to texts: which files of a folder are documents, and what each says.

What a kind of file is and who reads it stands in one table (kinds/). Small plain text is decoded
here; everything else is read in a child with limits. A file that cannot be read is a ``Rejected``
with its reason, never the end of a build. Nothing outside is read. For plain text, Markdown and
source code, a document's text is exactly its file decoded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from promptflow.child import usable_cores
from promptflow.errors import DocumentDelayed, DocumentRejected, EmptyCorpus
from promptflow.retrieval import kinds
from promptflow.retrieval.children import Child, Gate, in_children
from promptflow.retrieval.chunk import BLANK
from promptflow.retrieval.kinds import Kind, Parsed, Unreadable, kind_of
from promptflow.retrieval.parser import Limits, Request, text_of

GLOBS = ("**/*",)
"""Every file of a kind that can be read."""
PARSER_VERSION = 2
"""Raised when the same bytes give another text than before, so that indexes are built again."""
LIMITS = Limits()
TEXT = Kind("text", (), f"{kinds.HERE}.plaintext:read", exact=True)
"""What a file is that no kind knows and a glob names by its suffix."""
_SMALL = 1 << 20
"""Bytes up to which plain text is decoded in this process."""
_MOST_CHILDREN = 4


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its place: ``path`` is relative to the folder, ``sha256`` is of the file.

    With ``headings``, its lines that begin like Markdown's headings are headings. ``metadata`` has
    its title, and where there are any ``pages`` (the offset of each) and ``warnings``.
    """

    path: str
    kind: str
    text: str
    sha256: str
    metadata: dict[str, Any] = field(default_factory=dict)
    headings: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that is not in the index, and why."""

    path: str
    reason: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files of one suffix that are not read: how many, one of them, and what would include them."""

    suffix: str
    count: int
    example: str
    how: str


def find(root: Path, globs: Sequence[str] = GLOBS) -> list[str | Rejected]:
    """List the documents under ``root`` that match, sorted, as relative POSIX paths.

    They are the files of a kind that is read, and those whose suffix a glob spells out; the case of
    a suffix does not matter. Hidden names are passed over. A symbolic link is followed if it stays
    inside ``root``, and is Rejected if it does not. ``**`` matches any number of folders. Raises
    EmptyCorpus if there is no such folder.
    """
    root = _checked_root(root)
    is_wanted = _wanted(globs)
    found: dict[str, str | Rejected] = {}
    for name in _walk(root):
        if name.endswith("/"):
            checked = _checked_name(root, name)
            if isinstance(checked, Rejected):
                found[name] = checked
        elif is_wanted(name):
            found[name] = _checked_name(root, name)
    return [found[name] for name in sorted(found)]


def left_out(root: Path, globs: Sequence[str] = GLOBS) -> list[LeftOut]:
    """Count the visible files that ``find`` passes over, by suffix, the most first."""
    is_wanted = _wanted(globs)
    names: dict[str, list[str]] = {}
    for name in _walk(_checked_root(root)):
        if not name.endswith("/") and not is_wanted(name):
            names.setdefault(PurePosixPath(name).suffix.lower(), []).append(_shown(name))
    found = [LeftOut(suffix, len(of), min(of), _how(suffix, of[0])) for suffix, of in names.items()]
    return sorted(found, key=lambda entry: (-entry.count, entry.suffix))


def _how(suffix: str, name: str) -> str:
    """Return what a person can do to have files of a suffix read."""
    if kind_of(name) is not None:
        return f'no pattern of globs matches: add "**/*{suffix}"'
    for suffixes, how in kinds.ELSEWHERE.items():
        if suffix in suffixes:
            return how
    if not suffix:
        return "give it a suffix, such as .txt"
    return f'if it is text, add "**/*{suffix}" to globs'


def _checked_root(root: Path) -> Path:
    if not root.is_dir():
        raise EmptyCorpus(f"{root}: no such folder. Give the folder of your documents.")
    return root.resolve()


def _wanted(globs: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a name is a document's by ``globs``."""
    patterns = [(glob_pattern(glob), _spells_suffix(glob)) for glob in globs]

    def is_wanted(name: str) -> bool:
        known = kind_of(name) is not None
        return any(
            (known or spelled) and pattern.fullmatch(name) is not None
            for pattern, spelled in patterns
        )

    return is_wanted


def _spells_suffix(glob: str) -> bool:
    last = glob.rpartition("/")[2]
    return not re.search(r"[*?]", last) or not re.search(r"[*?]|^$", last.rpartition(".")[2])


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
        return Rejected(_shown(name), "its name is not UTF-8: rename it")
    path = root / name
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(root):
            return Rejected(name, f"a symbolic link out of the folder, to {target}")
        if not os.path.exists(path):
            return Rejected(name, f"a symbolic link to nothing, {target}")
    return name


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return the pattern of a glob over relative paths: ``**/`` is any number of folders.

    A suffix at its end matches in any case.
    """
    rest = re.sub(r"\.\w+$", "", glob)
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", rest)
    meaning = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = "".join(meaning.get(part) or re.escape(part) for part in parts)
    return re.compile(f"{pattern}(?i:{re.escape(glob[len(rest) :])})", re.DOTALL)


def read_bytes(root: Path, name: str, limits: Limits = LIMITS) -> bytes:
    """Return the bytes of a regular file inside ``root``. Raises DocumentRejected."""
    with open(_open(root, name, limits), "rb") as file:
        try:
            return file.read(limits.file)
        except OSError as error:
            raise DocumentRejected(f"cannot be read: {error.strerror}") from error


def _open(root: Path, name: str, limits: Limits) -> int:
    """Open a regular file inside ``root`` that is not too large. Raises DocumentRejected."""
    try:
        descriptor = _open_inside(root.resolve(), name)
    except OSError as error:
        raise DocumentRejected(f"cannot be opened: {os.strerror(error.errno or 0)}") from error
    status = os.fstat(descriptor)
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif status.st_size > limits.file:
        reason = f"{status.st_size} bytes, more than the {limits.file} allowed"
    if reason:
        os.close(descriptor)
        raise DocumentRejected(reason)
    return descriptor


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
    """Read one file of ``find``. Raises DocumentRejected with the reason."""
    [item] = load_all(root, [name], limits)
    if isinstance(item, Rejected):
        raise DocumentRejected(item.reason)
    return item


def load_all(
    root: Path, names: Iterable[str | Rejected], limits: Limits = LIMITS
) -> Iterator[Document | Rejected]:
    """Read what ``find`` gave, in order; a file that cannot be read comes as Rejected.

    Several files are read at once, some ahead of what was asked for, in as many children as there
    are cores, and at most four.
    """

    def made(name: str | Rejected, child: Child, gate: Gate) -> Document | Rejected:
        if isinstance(name, Rejected):
            return name
        try:
            return _document(root, name, limits, child, gate)
        except DocumentDelayed as error:
            return Rejected(name, str(error))  # without its hash, every later build takes it up
        except DocumentRejected as error:
            return Rejected(name, str(error), sha256_inside(root, name, limits))

    return in_children(names, made, min(_MOST_CHILDREN, usable_cores()))


def _document(root: Path, name: str, limits: Limits, child: Child, gate: Gate) -> Document:
    kind = kind_of(name) or TEXT
    descriptor = _open(root, name, limits)
    with open(descriptor, "rb") as file:
        if kind.exact and os.fstat(descriptor).st_size <= _SMALL:
            parsed, sha256 = _plain(Request(name, kind.read, limits), file.read())
            gate(len(parsed.text))
        else:
            cpu = min(limits.cpu, 2 + (os.fstat(descriptor).st_size >> 19))
            request = Request(name, kind.read, limits, kinds.places(kind), cpu)
            parsed, sha256 = child.parse(request, descriptor, gate)
    if not parsed.text.strip(BLANK):
        raise DocumentRejected("no text in it")
    heading = _first_heading(parsed.text) if kind.headings or kind.exact else ""
    metadata: dict[str, Any] = {"title": parsed.title or heading or PurePosixPath(name).stem}
    if parsed.pages:
        metadata["pages"] = list(parsed.pages)
    if parsed.warnings:
        metadata["warnings"] = list(parsed.warnings)
    return Document(name, kind.name, parsed.text, sha256, metadata, kind.headings)


def _plain(request: Request, data: bytes) -> tuple[Parsed, str]:
    try:
        return text_of(request, data), hashlib.sha256(data).hexdigest()
    except Unreadable as error:
        raise DocumentRejected(str(error)) from error


def sha256_inside(root: Path, name: str, limits: Limits = LIMITS) -> str:
    """Return the SHA-256 of a file inside ``root``, or nothing if it cannot be read."""
    try:
        with open(_open(root, name, limits), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (DocumentRejected, OSError):
        return ""


def _first_heading(text: str) -> str:
    for line in text[:4000].splitlines():
        if line.startswith("#"):
            return line.strip("# \t")
    return ""
