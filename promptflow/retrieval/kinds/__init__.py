"""The table of document kinds: which suffixes each has, and the function that reads it.

A new kind is one file beside this one and one line in ``KINDS``; a kind of your own is a ``Kind``
given to ``register``. Its function takes the bytes of a file and its name and returns a ``Parsed``;
it runs in a child with limits (``parser.py``), imports there what it needs, and raises
``Unreadable`` with the reason that a person should see.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

HERE = __name__


class Unreadable(ValueError):
    """A file's content cannot be read; the message says why and what to do about it."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a file says: its text, its title if it states one, where its pages start.

    ``pages`` are ascending offsets into ``text``, the first 0. ``warnings`` say what a reader
    should not trust, such as the order of columns on a page.
    """

    text: str
    title: str = ""
    pages: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of document: its name, its suffixes in lower case, its function as ``module:name``.

    With ``headings``, lines that begin as Markdown's headings do are headings. ``names`` are whole
    file names without a suffix. ``exact`` kinds are text already: what they say is the file.
    """

    name: str
    suffixes: tuple[str, ...]
    read: str
    headings: bool = False
    names: tuple[str, ...] = ()
    exact: bool = False


CODE = (
    ".py", ".pyi", ".pyx", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".java", ".kt", ".kts",
    ".scala", ".groovy", ".gradle", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu",
    ".cuh", ".m", ".mm", ".cs", ".fs", ".vb", ".go", ".rs", ".zig", ".swift", ".dart", ".rb",
    ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".hs", ".ml", ".mli", ".clj", ".cljs", ".ex",
    ".exs", ".erl", ".lisp", ".el", ".scm", ".f", ".f90", ".pas", ".asm", ".s", ".v", ".sv",
    ".vhd", ".sql", ".sh", ".bash", ".zsh", ".fish", ".ps1", ".bat", ".cmd", ".cmake", ".mk",
    ".proto", ".graphql", ".thrift", ".tf", ".hcl", ".vue", ".svelte", ".css", ".scss", ".less",
    ".tex", ".bib", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".conf", ".properties", ".xml",
    ".xsd", ".xsl", ".dtd", ".diff", ".patch",
)  # fmt: skip

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "text",
            (".txt", ".text", ".log", ".asc", ".srt", ".vtt", ".org", ".adoc", ".asciidoc"),
            f"{HERE}.plaintext:read",
            names=("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS", "CHANGELOG"),
            exact=True,
        ),
        Kind(
            "markdown",
            (".md", ".markdown", ".mdown", ".mkd", ".mdx", ".rmd", ".qmd"),
            f"{HERE}.plaintext:read",
            headings=True,
            exact=True,
        ),
        Kind(
            "code",
            CODE,
            f"{HERE}.plaintext:read",
            names=("Makefile", "Dockerfile", "Justfile"),
            exact=True,
        ),
        Kind("html", (".html", ".htm", ".xhtml", ".xht"), f"{HERE}.web:read", headings=True),
        Kind("pdf", (".pdf",), f"{HERE}.pdf:read"),
        Kind("docx", (".docx", ".docm", ".dotx"), f"{HERE}.docx:read", headings=True),
        Kind("pptx", (".pptx", ".pptm", ".ppsx"), f"{HERE}.pptx:read", headings=True),
        Kind("xlsx", (".xlsx", ".xlsm"), f"{HERE}.xlsx:read", headings=True),
        Kind("epub", (".epub",), f"{HERE}.epub:read", headings=True),
        Kind("csv", (".csv", ".tsv", ".tab"), f"{HERE}.delimited:read"),
        Kind("json", (".json", ".jsonl", ".ndjson"), f"{HERE}.jsonlines:read"),
        Kind("notebook", (".ipynb",), f"{HERE}.notebook:read", headings=True),
        Kind("rst", (".rst", ".rest"), f"{HERE}.rst:read", headings=True),
    )
}

ELSEWHERE = {
    (".doc", ".dot", ".rtf", ".odt", ".pages", ".wpd"): "save it as .docx or .pdf",
    (".ppt", ".odp", ".key"): "save it as .pptx or .pdf",
    (".xls", ".ods", ".numbers", ".parquet"): "save it as .xlsx or .csv",
    (".hwp", ".hwpx"): "save it as .docx or .pdf in Hangul",
    (".eml", ".msg", ".mbox", ".mht", ".mhtml"): "save it as .html or .txt",
    (".azw", ".azw3", ".mobi", ".fb2"): "convert it to .epub",
    (".djvu", ".ps", ".eps", ".xps"): "convert it to .pdf",
    (".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".heic"): (
        "a picture: recognise its text first (for example with ocrmypdf)"
    ),
    (".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar"): "unpack it",
}
"""What to do about files that no kind reads."""


def kind_of(name: str) -> Kind | None:
    """Return the kind of a file by its name, or None; the case of the suffix does not matter."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    for kind in KINDS.values():
        if suffix in kind.suffixes or (not suffix and path.name in kind.names):
            return kind
    return None


def places(kind: Kind) -> tuple[str, ...]:
    """Return where a child finds the module of a kind: nowhere else, if the kind is our own."""
    return () if kind.read.startswith(f"{HERE}.") else tuple(os.path.abspath(p) for p in sys.path)


def register(kind: Kind) -> None:
    """Add a kind of your own, before the suffixes that promptflow's own kinds have.

    ``kind.read`` is ``"module:function"`` of a module that this process can import; the function
    takes ``(data: bytes, name: str)`` and returns a ``Parsed``. Raises ValueError for a suffix
    without its dot, one in upper case, or a function that has no such form.
    """
    for suffix in kind.suffixes:
        if not suffix.startswith(".") or suffix != suffix.lower():
            raise ValueError(f"{kind.name}: the suffix {suffix!r} should be like '.eml'")
    module, _, function = kind.read.partition(":")
    if not module or not function.isidentifier():
        raise ValueError(f"{kind.name}: read is {kind.read!r}, expected 'module:function'")
    others = {name: other for name, other in KINDS.items() if name != kind.name}
    KINDS.clear()
    KINDS[kind.name] = kind
    KINDS.update(others)
