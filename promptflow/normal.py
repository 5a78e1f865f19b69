"""Text in the form in which answers are compared: Unicode, case, punctuation, articles, words.

SQuAD's rule (Rajpurkar and others, 2016, arXiv 1606.05250) for any script, with two differences.
What stands between two digits stays, and so do the signs of numbers and of grades: 3.5 is not 35,
and A+ is not A-. An answer that is an article or a sign alone, such as the option A, is not empty.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache

_AS = {"\u2212": "-", "\ufe63": "-", "\uff0d": "-", "\u066b": ".", "\u066c": ","}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CURRENCY = "$¢£¤¥฿\u20a0-\u20c0"
# Decompositions that change how a character looks, not what it says: ² is not 2, and ½ is not 12.
_LOOKS = (
    "<wide>",
    "<narrow>",
    "<compat>",
    "<square>",
    "<initial>",
    "<medial>",
    "<final>",
    "<isolated>",
    "<vertical>",
)
_DASHES = "\u2010\u2011\u2012\u2013"
_DASH = rf"{_DASHES}\-"
# A grade or its like (A+, O-, C#, C++), or a number with its sign: their marks are no punctuation.
_MARKED = re.compile(
    rf"(?P<grade>(?<!\w)[a-z]{{1,2}}(?:\+\+|[+#]|[{_DASH}])(?!\w))"
    rf"|(?:(?<![\w.)\]{_DASH}])(?P<sign>[{_DASH}])(?P<unit>[{_CURRENCY}]?))?"
    rf"(?P<digits>\d+(?:\.\d+)?e[-+]?\d+(?!\w)|\d+(?:[.,:/{_DASH}]\d+)*|(?<![\w.])\.\d+)"
)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_KEPT = ".,:/-+#"  # stand in the private use area while other punctuation goes
_HIDE = {ord(mark): 0xE000 + place for place, mark in enumerate(_KEPT)}
_SHOW = {hidden: shown for shown, hidden in _HIDE.items()}

# Scripts whose words no space parts, or, in Korean, parts at will: characters are counted.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff"
    "\u3100-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_HOLDS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_MARKS = "\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0951-\u0957"
_PIECES = re.compile(rf"(?:(?![{_UNSPACED}])[^\W\d_][{_MARKS}]*)+|\S")


def normalize(text: str) -> str:
    """Return ``text`` without case, punctuation, articles, extra spaces and compatibility forms."""
    text = folded(text)
    text = unicodedata.normalize("NFC", text.casefold())
    bare = _MARKED.sub(_kept, text).translate(_UNPUNCTUATED).translate(_SHOW)
    for form in (_ARTICLES.sub(" ", bare), bare, text):
        if shown := " ".join(form.split()):
            return shown
    return ""


def folded(text: str) -> str:
    """Return ``text`` in NFC with digits as 0 to 9, plain minus signs and without wide forms.

    Characters that show nothing, such as zero-width spaces, are gone; superscripts stay.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).translate(_FOLDED))


def is_unspaced(text: str) -> bool:
    """Say whether ``text`` holds Korean, Chinese, Japanese, Thai, Lao, Khmer or Burmese."""
    return _HOLDS_UNSPACED.search(text) is not None


def words(text: str, *, apart: bool = False) -> list[str]:
    """Return the words of normalized ``text``.

    With ``apart`` every character is one, as KorQuAD counts, but for words of letters in other
    scripts.
    """
    text = normalize(text)
    return _PIECES.findall(text) if apart else text.split()


def stands_in(part: str, whole: str) -> bool:
    """Say whether ``part`` stands in ``whole`` as whole words, both normalized.

    Korean words may go on after it, and characters of scripts without spaces stand anywhere.
    """
    start, found = 0, whole.find(part) if part else -1
    while found >= 0:
        end = found + len(part)
        if _parted(whole, found, left=True) and _parted(whole, end, left=False):
            return True
        start = found + 1
        found = whole.find(part, start)
    return False


def _parted(text: str, place: int, *, left: bool) -> bool:
    if place in (0, len(text)) or " " in (text[place - 1], text[place]):
        return True
    inside = text[place] if left else text[place - 1]
    outside = text[place - 1] if left else text[place]
    if _HANGUL.match(inside):
        return not (left and _HANGUL.match(outside))
    return is_unspaced(inside) or is_unspaced(outside)


def _kept(found: re.Match[str]) -> str:
    marked = found["grade"] or found["digits"]
    for dash in _DASHES:
        marked = marked.replace(dash, "-")
    if found["grade"]:
        return marked.translate(_HIDE)
    if _GROUPED.fullmatch(marked):
        marked = marked.replace(",", "")
    if marked.startswith("."):
        marked = f"0{marked}"
    sign = "-" if found["sign"] else ""
    return (found["unit"] or "") + (sign + marked.replace("+", "")).translate(_HIDE)


class _Folded(dict[int, str]):
    def __missing__(self, code: int) -> str:
        return _fold(chr(code))


class _Unpunctuated(dict[int, "str | None"]):
    def __missing__(self, code: int) -> str | None:
        return _unpunctuated(chr(code))


@cache
def _fold(char: str) -> str:
    kind = unicodedata.category(char)
    if kind == "Nd":
        return str(unicodedata.digit(char))
    if char in _AS:
        return _AS[char]
    if kind == "Cf" or "\ufe00" <= char <= "\ufe0f":  # nothing, or how an emoji is drawn
        return ""
    if kind != "Zs" and unicodedata.decomposition(char).startswith(_LOOKS):
        return unicodedata.normalize("NFKC", char)
    return char


@cache
def _unpunctuated(char: str) -> str | None:
    gone = char in string.punctuation or unicodedata.category(char).startswith("P")
    return None if gone else char


_FOLDED, _UNPUNCTUATED = _Folded(), _Unpunctuated()
