"""Text of bytes whose encoding nobody told: from their marks, as UTF-8, or in what they must be.

East Asian encodings are told apart by how far a decoding looks like text. Those of single bytes
(cp1252, cp1250, cp1251, ...) cannot be: such a text is refused with what it would say in each. Web
pages declare theirs, in the labels of the Encoding Standard (encoding.spec.whatwg.org).
"""

from __future__ import annotations

import codecs
import re

from charset_normalizer import CharsetMatch, from_bytes

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
_WHATWG = {
    "euc-kr": ("cp949",),
    "shift_jis": ("cp932", "shift_jis_2004"),
    "gbk": ("gb18030",),
    "big5": ("big5hkscs", "cp950"),
    "euc-jp": ("euc_jp", "euc_jis_2004"),
    "iso-2022-jp": ("iso2022_jp", "iso2022_jp_ext"),
    "macintosh": ("mac_roman",),
    "x-mac-cyrillic": ("mac_cyrillic",),
    "windows-874": ("cp874",),
    "ibm866": ("cp866",),
    "iso-8859-8-i": ("iso8859_8",),
    "utf-16le": ("utf-8",),  # a declaration that could be read is no UTF-16
    "utf-16be": ("utf-8",),
    "x-user-defined": ("cp1252",),
}
"""Python's codecs for names of the Encoding Standard that Python knows otherwise, or not so wide:
euc-kr is all of cp949 there."""
_TAG = re.compile(
    rb"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1|\Z)"
    rb"|<(meta)([\s/](?:\"[^\"]{0,1000}+\"|'[^']{0,1000}+'|[^>\"']){0,1000}+)>",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(rb"([^\s=/>\"']+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))")
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s;\"']+)", re.IGNORECASE)
_XML = re.compile(rb"\s*<\?xml[^>]*?\sencoding\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)
_HEAD = 100_000
_WESTERN = tuple(
    map(
        set,
        (
            "\u00e0\u00e2\u00e7\u00e8\u00e9\u00ea\u00eb\u00ee\u00ef\u00f4\u0153\u00f9\u00fb\u00fc",
            "\u00e4\u00f6\u00fc\u00df\u00e9",
            "\u00e1\u00e9\u00ed\u00f1\u00f3\u00fa\u00fc",
            "\u00e0\u00e1\u00e2\u00e3\u00e7\u00e9\u00ea\u00ed\u00f3\u00f4\u00f5\u00fa",
            "\u00e5\u00e6\u00f8\u00e9",
            "\u00e5\u00e4\u00f6\u00e9",
            "\u00e9\u00eb\u00ef\u00f6\u00fc",
        ),
    )
)
"""The letters beyond ASCII of French, German, Spanish, Portuguese, Danish, Swedish and Dutch: words
of other languages, misread as windows-1252, have letters of several of them."""
_AT_ENDS = set("\u00e0\u00e8\u00e9\u00ec\u00f2\u00f9")
"""Those of Italian, which stand at the ends of words."""
_SIGNS = set(
    "\u2018\u2019\u201c\u201d\u201e\u2013\u2014\u2026\u2022\u20ac\u2122"
    "\u00a0\u00a1\u00a3\u00a7\u00a9\u00ab\u00ae\u00b0\u00b2\u00b3\u00b4\u00b7\u00bb\u00bd\u00bf\u00d7"
)


class Undecodable(ValueError):
    """Bytes whose text cannot be told; ``likely`` is an encoding that they may be in."""

    def __init__(self, message: str, likely: str = "") -> None:
        super().__init__(message)
        self.likely = likely


def decoded(data: bytes, encoding: str | None = None) -> str:
    """Return the text of bytes. Raises Undecodable where the encoding is wrong or in doubt."""
    if encoding is not None:
        return _as_told(data, encoding)
    told = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    told = told or (_wide(data) if b"\0" in data[:_SAMPLE] else None)
    told = told or ("iso2022_jp" if b"\x1b$" in data and data.isascii() else None)
    if told is not None:
        return _as_told(data, told)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _guessed(data, error)


def decoded_page(data: bytes) -> str:
    """Return the text of a web page, as browsers decode it. Raises Undecodable.

    What declares nothing, and what is not in the encoding that it declares, is read as by
    ``decoded``, and as windows-1252 where that makes Western words.
    """
    label = "" if any(data.startswith(mark) for mark, _ in _MARKS) else _declared(data[:_HEAD])
    names = _codecs(label)
    if not names:
        return _undeclared(data, "")
    if _is_single_byte(names[0]) and (text := _utf8(data)) is not None:
        return text  # such bytes are UTF-8 by chance as good as never
    for name in names:
        try:
            return data.decode(name).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    text = data.decode(names[0], "replace")
    if text.count("\ufffd") <= max(2, len(text) // 2000):
        return text.removeprefix("\ufeff")
    return _undeclared(data, label)


def _undeclared(data: bytes, label: str) -> str:
    try:
        return decoded(data)
    except Undecodable as error:
        text = data.decode("cp1252", "replace")
        if "\ufffd" not in text and _is_western(text):
            return text
        said = f"declares {label}, which it is not; " if label else "declares no encoding; "
        raise Undecodable(said + str(error), error.likely) from error


def _declared(head: bytes) -> str:
    """Return the label that a page declares: in a meta element, or else as XML."""
    for found in _TAG.finditer(head):
        if found[2] is None:
            continue
        said = {
            name.lower(): next(filter(None, values), b"")
            for name, *values in _ATTRIBUTE.findall(found[3])
        }
        if b"charset" in said:
            return said[b"charset"].strip().decode("latin-1")
        if said.get(b"http-equiv", b"").lower() == b"content-type" and (
            inner := _CHARSET.search(said.get(b"content", b""))
        ):
            return inner[1].decode("latin-1")
    xml = _XML.match(head)
    return xml[1].decode("latin-1") if xml else ""


def _codecs(label: str) -> tuple[str, ...]:
    """Return Python's codecs for a label, the first that it stands for; none for unknown ones."""
    import webencodings

    known = webencodings.lookup(label) if label else None
    if known is None:
        return ()
    return _WHATWG.get(known.name, (known.name,))


def _is_single_byte(name: str) -> bool:
    return codecs.lookup(name).name.startswith(("cp125", "iso8859", "koi8", "mac", "cp8"))


def _utf8(data: bytes) -> str | None:
    try:
        return None if data.isascii() else data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_western(text: str) -> bool:
    """Say whether what windows-1252 makes of a page reads as one Western language.

    Its letters beyond ASCII are few, those of one language, and in words of one case; beside them
    stand only the usual signs.
    """
    plain = re.sub(r"<[^>]*>", " ", text)
    words = [word for word in re.findall(r"[^\W\d_]+", plain) if not word.isascii()]
    letters = {char for word in words for char in word.lower() if not char.isascii()}
    signs = {char for char in plain if not char.isascii() and not char.isalpha()}
    beyond = sum(not char.isascii() for word in words for char in word)
    return (
        signs <= _SIGNS
        and all(plain.count(opens) <= plain.count(ends) for opens, ends in ("\u00bf?", "\u00a1!"))
        and re.search(r"[^\W\d_][\u00a1-\u00bf][^\W\d_]", plain) is None
        and re.search(r"\u0153(?![uidst])", plain, re.IGNORECASE) is None
        and beyond * 3 <= sum(map(len, words))
        and all(word[1:].islower() or word.isupper() or len(word) == 1 for word in words)
        and (
            any(letters <= known for known in _WESTERN)
            or (letters <= _AT_ENDS and all(word[:-1].isascii() for word in words))
        )
    )


def _as_told(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise Undecodable(
            f"no encoding is called {encoding!r}; there are utf-8, utf-16, cp949, cp1252 "
            "and the others that Python knows"
        ) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Undecodable(
            f"line {line}: cannot be read as {encoding}: the bytes "
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


def _guessed(data: bytes, fault: UnicodeDecodeError) -> str:
    lines = [line for line in data.splitlines(keepends=True) if not line.isascii()]
    sample = b"".join(lines)[:_SAMPLE]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    isolated = [*_EAST_ASIAN, *_SINGLE_BYTE]
    found = list(from_bytes(sample, cp_isolation=isolated, threshold=0.5, chunk_size=_SAMPLE))
    found.sort(key=lambda match: (match.chaos, isolated.index(_name(match))))
    if found and found[0].encoding in _EAST_ASIAN:
        best, text = found[0], str(found[0])
        others = [match for match in found if str(match) != text]
        if all(other.chaos > best.chaos + _MARGIN for other in others):
            return _as_told(data, best.encoding)
    line = data[: fault.start].count(b"\n") + 1
    seen = {_name(match): _seen(match) for match in found[:6]}
    shown = "; ".join(f"{name}: {words!r}" for name, words in seen.items())
    raise Undecodable(
        f"line {line}: not UTF-8, and its encoding is in doubt. It may say "
        f"{shown or repr(data[fault.start : fault.start + 20])}",
        next(iter(seen), "cp1252"),
    ) from fault


def _name(match: CharsetMatch) -> str:
    """Return the name of a decoding, the commonest of those that say the same."""
    same = {match.encoding, *match.could_be_from_charset}
    return next(name for name in (*_EAST_ASIAN, *_SINGLE_BYTE) if name in same)


def _seen(match: CharsetMatch) -> str:
    """Return the first words of a decoding that are not ASCII."""
    words = [word for word in str(match).split() if not word.isascii()]
    return " ".join(words)[:40]
