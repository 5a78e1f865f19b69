"""The languages of texts: normal forms, words and sentences, traced to their characters.

The only import of regex, Stemmer and sentencex. Offsets count characters of the text that was
given, whatever its normal form.
"""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import regex
import Stemmer
from sentencex import get_sentence_boundaries

from promptflow.storage import read_text, toml_loads

Span = tuple[int, int]

SAMPLE = 20_000
"""Characters that are looked at to tell a language."""

SCRIPTS = {
    "ARMENIAN": "hy", "BENGALI": "bn", "DEVANAGARI": "hi", "ETHIOPIC": "am", "GEORGIAN": "ka",
    "GREEK": "el", "GUJARATI": "gu", "GURMUKHI": "pa", "HANGUL": "ko", "HEBREW": "he",
    "KANNADA": "kn", "KHMER": "km", "LAO": "lo", "MALAYALAM": "ml", "MYANMAR": "my",
    "SINHALA": "si", "TAMIL": "ta", "TELUGU": "te", "THAI": "th", "TIBETAN": "bo",
}  # fmt: skip
"""Scripts that one language stands for, by the first word of their characters' names."""

LETTERS = {
    "ar": "", "fa": "پچژگ", "ur": "ٹڈڑےں",
    "ru": "ыэё", "uk": "іїєґ", "be": "ў", "sr": "ђјљњћџ",
    "cs": "řěů", "da": "æø", "de": "ß", "es": "ñ¿", "fi": "", "hu": "őű", "no": "æø", "pl": "łąęś",
    "pt": "ãõ", "ro": "țșăţ", "sv": "å", "tr": "ğış", "vi": "đơưạảấầẩậắằặẹẻếềểệịọỏốồổộớờợụủứừữự",
}  # fmt: skip
"""Letters that tell a language from others of its alphabet."""


STEMMERS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek",
    "en": "english", "es": "spanish", "fa": "persian", "fi": "finnish", "fr": "french",
    "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian",
    "nl": "dutch", "no": "norwegian", "pl": "polish", "pt": "portuguese", "ro": "romanian",
    "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish",
}  # fmt: skip

LATIN = (
    "en", "es", "fr", "de", "pt", "it", "nl", "pl", "tr", "id", "vi", "sv", "cs", "ro", "hu", "da",
    "fi", "no", "ca",
)  # fmt: skip
"""Languages of the Latin alphabet; of two that fit equally, the first is taken."""

ALPHABETS = {
    "LATIN": LATIN,
    "ARABIC": ("ar", "fa", "ur"),
    "CYRILLIC": ("ru", "uk", "be", "sr"),
}
"""Scripts that several languages share."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
"""Scripts whose words are not, or not only, told by spaces: they are searched by pairs."""

_TOKEN = regex.compile(
    rf"(?V1)(?P<run>[{_UNSPACED}]+)"
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|(?<![.\d])\d+\.\d+(?![.\d])"
    rf"|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+"
)
_CLUSTER = regex.compile(r"\s+|(?s:.)[\p{M}\u1160-\u11ff\uff9e-\uffdc]*")
"""What normal forms compose at most, or a run of blanks."""

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


@dataclass(frozen=True, slots=True)
class Normal:
    """A text in a normal form. ``span`` leads back to the text that it was made of."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def span(self, start: int, end: int) -> Span:
        """Return the span of the original text that characters [start, end) were made of."""
        if start >= end:
            at = self.starts[start] if start < len(self.starts) else (*self.ends, 0)[-1]
            return at, at
        return self.starts[start], self.ends[end - 1]


def normal(text: str) -> str:
    """Return ``text`` in NFC, in which the same letters are the same characters."""
    return unicodedata.normalize("NFC", text)


@lru_cache(4096)
def _searchable(cluster: str) -> str:
    return " " if cluster.isspace() else _folded(cluster)


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
    return unicodedata.normalize("NFKC", text)


def _traced(text: str, change: Callable[[str], str]) -> Normal:
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for cluster in _CLUSTER.finditer(text):
        made = change(cluster.group())
        parts.append(made)
        starts += [cluster.start()] * len(made)
        ends += [cluster.end()] * len(made)
    return Normal("".join(parts), starts, ends)


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of the language that most of ``text`` is in, "en" if unknown.

    The script decides; languages of one alphabet are told apart by their function words.
    """
    text = normal(text[:SAMPLE])
    scripts = _scripts(text)
    han = scripts["CJK"] + scripts["HIRAGANA"] + scripts["KATAKANA"]
    # A syllable or an ideograph says what two or three letters of an alphabet say.
    weights: dict[str, float] = {name: scripts[name] for name in (*SCRIPTS, *ALPHABETS)}
    weights["HANGUL"] = 2.5 * scripts["HANGUL"]
    weights["CJK"] = 2.5 * han
    name = max(weights, key=lambda key: weights[key])
    if not weights[name]:
        return "en"
    if name == "CJK":
        if 10 * scripts["HANGUL"] > han:
            return "ko"
        return "ja" if 20 * (han - scripts["CJK"]) > han else "zh"
    if name in SCRIPTS:
        return SCRIPTS[name]
    return _by_words(text.casefold(), ALPHABETS[name])


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script, by the first word of their names."""
    found: Counter[str] = Counter()
    for letter, number in Counter(text).items():
        if letter.isalpha():
            name = unicodedata.name(letter, "").removeprefix("HALFWIDTH ")
            found[name.removeprefix("FULLWIDTH ").partition(" ")[0]] += number
    return found


def _by_words(text: str, languages: Sequence[str]) -> str:
    # One letter is a word in too many languages, and a name in all of them. Words are counted once:
    # a text says its own few often.
    held = {token.group() for token in _TOKEN.finditer(text) if len(token.group()) > 1}
    letters = set(text)
    scores = {
        code: len(held & function_words(code)) + 2 * len(letters & set(LETTERS.get(code, "")))
        for code in languages
    }
    return max(languages, key=lambda code: scores[code])


@cache
def _function_words() -> dict[str, frozenset[str]]:
    table = toml_loads(read_text(Path(__file__).with_name("function_words.toml")))
    return {code: frozenset(words.split()) for code, words in table.items()}


def function_words(language: str) -> frozenset[str]:
    """Return the words of a language that carry grammar, case-folded; none where unknown."""
    return _function_words().get(language, frozenset())


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a query: characters [start, end), and the terms by which texts may hold it."""

    start: int
    end: int
    terms: tuple[str, ...]


def words(text: str, language: str | None = None) -> list[str]:
    """Return the terms of ``text`` in order: stems, and pairs of characters where no spaces are.

    ``language`` is that of the text; of another alphabet's words, the commonest language is taken.
    """
    language = language or language_of(text)
    terms: list[str] = []
    for token in _TOKEN.finditer(_folded(text)):
        if token["run"]:
            terms += _pairs(token.group())
        else:
            terms.append(_term(token.group(), language))
    return terms


def content_words(text: str, language: str | None = None) -> list[str]:
    """Return the terms of ``text`` without its function words."""
    language = language or language_of(text)
    return [word.terms[0] for word in query_words(text, (language,), language)]


def query_words(
    query: str, languages: Collection[str], language: str | None = None, *, grammar: bool = False
) -> list[Word]:
    """Return the words of a query, with their terms in texts of each of these ``languages``.

    Function words of the query's own language are left out, unless they are all that there is, are
    written as an acronym, or are asked for as ``grammar``.
    """
    own = frozenset() if grammar else function_words(language or language_of(query))
    changed = _traced(query, _searchable)
    shouted = not any(c.islower() for c in query)
    found: list[Word] = []
    weak: list[Word] = []
    for token in _TOKEN.finditer(changed.text):
        if token["run"]:
            found += _pair_words(token, changed)
            continue
        start, end = changed.span(*token.span())
        terms = dict.fromkeys(_term(token.group(), code) for code in languages or ("en",))
        acronym = end - start > 1 and query[start:end].isupper() and not shouted
        kept = weak if token.group() in own and not acronym else found
        kept.append(Word(start, end, tuple(terms)))
    return found or weak


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)] or [run]


def _pair_words(token: regex.Match[str], changed: Normal) -> Iterator[Word]:
    for at, pair in enumerate(_pairs(token.group()), token.start()):
        yield Word(*changed.span(at, at + len(pair)), (pair,))


@lru_cache(1 << 14)
def _term(token: str, language: str) -> str:
    """Return the stem of a case-folded word in a text of ``language``."""
    if token[0].isdigit():
        return token.replace(",", "")
    script = "LATIN" if token.isascii() else unicodedata.name(token[0], "").partition(" ")[0]
    near = ALPHABETS.get(script) or (SCRIPTS.get(script, ""),)
    code = language if language in near else near[0]
    stem = _stemmer(code).stemWord(token) if code in STEMMERS else token
    if not stem.isascii() and code in LATIN and code != "vi":
        # People type cafe for café; in Vietnamese the marks are the word.
        bare = "".join(
            c for c in unicodedata.normalize("NFD", stem) if not unicodedata.combining(c)
        )
        stem = bare.replace("ı", "i") or stem
    return stem or token


_local = threading.local()


def _stemmer(language: str) -> Stemmer.Stemmer:
    """Return this thread's stemmer: one must not be used by two threads at once."""
    made: dict[str, Stemmer.Stemmer] = _local.__dict__.setdefault("stemmers", {})
    if language not in made:
        made[language] = Stemmer.Stemmer(STEMMERS[language])
    return made[language]


_PARAGRAPH = regex.compile(r"(?:(?!\n[^\S\n]*\n).)+", regex.DOTALL)
_SAME_LENGTH = str.maketrans("｡．", "。.")
_AFTER_BRACKET = regex.compile(r"[.!?。！？][)\]）]+\s+(?=[\"'“(\[]*[\p{Lu}\p{Lo}])")
_MARKER = regex.compile(
    r"(?:\s*[(\[]?(?:\p{N}{1,4}|[A-Za-z]|[ivxIVX]+|[가나다라마바사아자차카타파하])[.)\]]+\s*)+"
    r"|[^\p{L}\p{N}]*"
)
"""A piece that is no sentence of its own: the number of one, or marks alone."""

_TITLE = {"fr": regex.compile(r"(?:^|[\s(])(?:MM?|Mmes?|Mlles?)\.\s*$")}
_QUOTED = regex.compile(r"[\"'”’」』]\s*$")
_SAID = regex.compile(r"\s*(?:이?라[고며는]|하[고며는여였]|했)")
_NUMBERED = regex.compile(r"\p{N}\s?\.\s*$")
"""What ends in a number: in Korean no sentence does, but a date, as in 2024. 3. 15."""
_DATED = regex.compile(r"\p{N}{4}\.(?:\s?\p{N}{1,2}\.)?\s*$")
_DAY = regex.compile(r"\s*\p{N}{1,2}\s?\.")
_KOREAN_ENDS = (
    regex.compile(r"(?<=[가-힣])(?:\s?[\^~ㅋㅎㅠㅜ]){2,}\s+(?=[가-힣])"),
    regex.compile(
        r"(?<=[한된린난킨진온간]다|[있없않였했었았겠렸졌됐왔갔이니]다|[세네해어에여아]요|습니까)[^\S\n]*\n\s*"
        r"(?=[^\s])(?!고|는|며|면|라|지만|가 |니|거나|기|로 |에 )"
    ),
)
"""Ends without a full stop: after a face, and a verb's last syllables at a line's end."""
_PARTICLE = regex.compile(r"\p{Hangul}|(?:と|って|という|とか|など|の|は|が|を|に|へ|で)")
_LOOSE = frozenset(("th", "lo", "my", "km"))
LONG, ENOUGH = 300, 100
"""Characters above which text without full stops is cut at a space, and below which it is not."""


def sentence_spans(text: str, language: str | None = None) -> list[Span]:
    """Return the spans [start, end) of the sentences of ``text``, in order, without outer blanks.

    No sentence crosses a blank line, every character that is not blank lies in one. ``language`` is
    told from each paragraph where it is not given. Lists, tables and headings are not looked for.
    """
    spans: list[Span] = []
    for paragraph in _PARAGRAPH.finditer(text):
        body, first = paragraph.group(), paragraph.start()
        code = language or language_of(body)
        start = 0
        for end in _ends(body, code):
            piece = body[start:end]
            left = start + len(piece) - len(piece.lstrip())
            right = start + len(piece.rstrip())
            if left < right:
                spans.append((first + left, first + right))
            start = end
    return spans


def _ends(body: str, language: str) -> list[int]:
    """Return the offsets at which the sentences of a paragraph end, the last one its length."""
    found = get_sentence_boundaries(language, body.translate(_SAME_LENGTH))
    ends = {int(boundary["end_index"]) for boundary in found} | {len(body)}
    ends |= {match.end() for match in _AFTER_BRACKET.finditer(body)}
    if language == "ko":
        ends |= _korean_ends(body)
    kept: list[int] = []
    start = 0
    for end in sorted(ends):
        if end < len(body) and _goes_on(body, start, end, language):
            continue
        kept += [*_breaths(body, start, end), end] if language in _LOOSE else [end]
        start = end
    if len(kept) > 1 and not any(c.isalnum() for c in body[kept[-2] :]):
        del kept[-2]
    return kept


def _goes_on(body: str, start: int, end: int, language: str) -> bool:
    """Tell whether the sentence that begins at ``start`` goes on after ``end``."""
    piece = normal(body[start:end])
    if _MARKER.fullmatch(piece):
        return True
    if language in _TITLE and _TITLE[language].search(piece):
        return True
    after = normal(body[end : end + 16])
    if language == "ko" and _NUMBERED.search(piece):
        # On the next line a number may begin an item, but hardly one right after a year.
        return "\n" not in piece[-3:] or bool(_DATED.search(piece) and _DAY.match(after))
    if language not in ("ko", "ja") or not _QUOTED.search(piece):
        return False
    spaced = piece[-1].isspace()
    return bool(_SAID.match(after) if spaced else _PARTICLE.match(after))


def _korean_ends(body: str) -> set[int]:
    """Return the offsets at which Korean sentences end without a full stop."""
    made = None if unicodedata.is_normalized("NFC", body) else _traced(body, normal)
    text = body if made is None else made.text
    ends = {found.end() for pattern in _KOREAN_ENDS for found in pattern.finditer(text)}
    return ends if made is None else {made.span(0, end)[1] for end in ends}


def _breaths(body: str, start: int, end: int) -> Iterator[int]:
    """Give the spaces at which a long stretch of a script without full stops is cut."""
    while end - start > LONG:
        space = body.find(" ", start + ENOUGH, end - 1)
        if space < 0:
            return
        yield (start := space + 1)
