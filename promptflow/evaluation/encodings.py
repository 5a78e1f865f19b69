"""Text of files whose encoding nobody told: from their marks, as UTF-8, or in what they must be.

East Asian encodings are told apart by how far a decoding looks like text. Those of single bytes
(cp1252, cp1250, cp1251, ...) cannot be: such a file is refused with what it would say in each.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from charset_normalizer import CharsetMatch, from_bytes

from promptflow.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's mark does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EAST_ASIAN = ("cp949", "cp932", "gb18030", "big5", "euc_jp")
_SINGLE_BYTE = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "koi8_r", "mac_roman", "cp850")
_MARGIN = 0.09
"""By how much the next decoding must look worse. Of 1,500 short tables in 8 encodings at this
margin none was misread; the shortest were refused."""
_SAMPLE = 100_000


def decoded(data: bytes, path: Path, encoding: str | None = None) -> str:
    """Return the text of a file. Raises DataError where its encoding is wrong or in doubt."""
    if encoding is not None:
        return _as_told(data, path, encoding)
    told = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    told = told or (_wide(data) if b"\0" in data[:_SAMPLE] else None)
    told = told or ("iso2022_jp" if b"\x1b$" in data else None)
    if told is not None:
        return _as_told(data, path, told)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _guessed(data, path, error)


def _as_told(data: bytes, path: Path, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise DataError(
            f"{path}: no encoding is called {encoding!r}; there are utf-8, utf-16, cp949, cp1252 "
            "and the others that Python knows"
        ) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: cannot be read as {encoding}: the bytes "
            f"{data[error.start : error.start + 8].hex(' ')} are none of its characters"
        ) from error


def _wide(data: bytes) -> str | None:
    """Return the form of UTF-16 without a mark: its ASCII has a zero in every other byte."""
    sample = data[: _SAMPLE & ~1]
    for name, zeros, others in (
        ("utf-16-le", sample[1::2], sample[::2]),
        ("utf-16-be", sample[::2], sample[1::2]),
    ):
        if zeros.count(0) > max(3, len(zeros) / 8) and others.count(0) == 0 and len(data) % 2 == 0:
            return name
    return None


def _guessed(data: bytes, path: Path, fault: UnicodeDecodeError) -> str:
    lines = [line for line in data.splitlines(keepends=True) if not line.isascii()]
    sample = b"".join(lines)[:_SAMPLE]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    isolated = [*_EAST_ASIAN, *_SINGLE_BYTE]
    found = list(from_bytes(sample, cp_isolation=isolated, threshold=0.5, chunk_size=_SAMPLE))
    found.sort(key=lambda match: match.chaos)
    if found and found[0].encoding in _EAST_ASIAN:
        best, text = found[0], str(found[0])
        others = [match for match in found if str(match) != text]
        if all(other.chaos > best.chaos + _MARGIN for other in others):
            return _as_told(data, path, best.encoding)
    line = data[: fault.start].count(b"\n") + 1
    seen = {_name(match): _seen(match) for match in found[:6]}
    shown = "; ".join(f"{name}: {words!r}" for name, words in seen.items())
    first = next(iter(seen), "cp1252")
    raise DataError(
        f"{path}, line {line}: not UTF-8, and its encoding is in doubt. It may say "
        f"{shown or repr(data[fault.start : fault.start + 20])}. Name it: encoding={first!r}, "
        f"or --encoding {first}"
    ) from fault


def _name(match: CharsetMatch) -> str:
    """Return the name of a decoding, the commonest of those that say the same."""
    same = {match.encoding, *match.could_be_from_charset}
    return next((name for name in (*_EAST_ASIAN, *_SINGLE_BYTE) if name in same), match.encoding)


def _seen(match: CharsetMatch) -> str:
    """Return the first words of a decoding that are not ASCII."""
    words = [word for word in str(match).split() if not word.isascii()]
    return " ".join(words)[:40]
