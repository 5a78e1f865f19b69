"""A page of words to lines in reading order: columns one after the other, tables by rows.

A page is cut into bands of rows that leave the same gaps free. In a band with gaps, columns of
running text are read each from top to bottom, and columns of short cells are a table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from promptflow.retrieval.kinds.rows import row_lines

HYPHEN = "\x02"
"""Stands for a hyphen at the end of a line: of the word itself, or only of the line."""
_WORD_GAP, _GAP = 0.17, 0.85
"""Gaps between words and between columns, as shares of the height of the type."""
_DEEPEST = 4
_END = tuple(".!?:;\u3002\uff01\uff1f\u2026")
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_HANGUL = r"\uac00-\ud7a3"
_EASTERN = re.compile(f"[{_CJK}{_HANGUL}]")
_HANGUL_WORDS = re.compile(f"[{_HANGUL}]+")
_HYPHENS = (HYPHEN, "-", "\u2010", "\u00ad")
_BROKEN = re.compile(rf"([^\W\d_]+){HYPHEN}\s*([^\W\d_]+)")


class Word(NamedTuple):
    """Text that stands together, with its box in points; y grows upwards."""

    text: str
    left: float
    bottom: float
    right: float
    top: float

    @property
    def height(self) -> float:
        """The height of its type."""
        return max(1.0, self.top - self.bottom)


@dataclass(slots=True)
class Page:
    """The lines of a page in reading order; ``unsafe`` if another order is as likely."""

    lines: list[str]
    unsafe: bool = False


@dataclass(slots=True)
class _Band:
    """Rows that leave the same gaps free, as words and as runs, and what they cover."""

    words: list[list[Word]] = field(default_factory=list)
    runs: list[list[Word]] = field(default_factory=list)
    covered: list[tuple[float, float]] = field(default_factory=list)


def needs_layout(words: Sequence[tuple[str, float, float, float, float]]) -> bool:
    """Say whether a page has lines with wide gaps, or lines that were not drawn from the top."""
    gaps = 0
    _, _, low, end, high = words[0] if words else ("", 0.0, 0.0, 0.0, 0.0)
    for _, left, bottom, right, top in words:
        if bottom > high:
            return True
        height = high - low
        if top - low > 0.5 * height and not -height < left - end < _GAP * height:
            gaps += 1  # in one line, and apart
        low, end, high = bottom, right, top
    return gaps > 1


def laid_out(words: Sequence[Word]) -> Page:
    """Put the words of a page in lines and the lines in the order in which they are read."""
    page = Page([])
    _read(words, page, 0)
    return page


def with_exponents(text: str, boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """Return a word with ^ before small high digits after digits, and _ before low ones."""
    said, line = text[0], boxes[0]
    raised = 0
    for char, box in zip(text[1:], boxes[1:], strict=False):
        height = line[3] - line[1]
        if box[3] - box[1] < 0.85 * height:
            now = 1 if box[1] > line[1] + 0.15 * height else -1 if box[1] < line[1] else 0
        else:
            now, line = 0, box
        if now and now != raised and char.isdigit() and said[-1].isdigit():
            said += "^" if now > 0 else "_"
        raised = now
        said += char
    return said + text[len(boxes) :]


def _overlap(one: Word, other: Word) -> float:
    """Return how far two words stand in one line, as a share of the smaller one's height."""
    both = min(one.top, other.top) - max(one.bottom, other.bottom)
    return both / min(one.height, other.height)


def _with(one: Word, other: Word) -> Word:
    """Return two words of one line as one."""
    apart = other.left - one.right > _WORD_GAP * one.height
    glue = " " if apart and not one.text.endswith(" ") else ""
    small = other.height < 0.85 * one.height
    if small and not glue and other.text[0].isdigit() and one.text[-1].isdigit():
        glue = "^" if other.bottom > one.bottom + 0.15 * one.height else "_"
    return Word(
        one.text + glue + other.text,
        one.left,
        one.bottom if small else min(one.bottom, other.bottom),
        max(one.right, other.right),
        one.top if small else max(one.top, other.top),
    )


def _rows(words: Sequence[Word]) -> list[list[Word]]:
    """Return words in rows from the top, those of a row from the left."""
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda word: (-(word.bottom + word.top), word.left)):
        if rows and _overlap(rows[-1][0], word) > 0.5:
            rows[-1].append(word)
        else:
            rows.append([word])
    for row in rows:
        row.sort(key=lambda word: word.left)
    return rows


def _runs(row: Sequence[Word]) -> list[Word]:
    """Join the words of a row that no wide gap parts."""
    gaps = [other.left - one.right for one, other in pairwise(row)]
    even = _is_even(gaps, row)
    runs = list(row[:1])
    for gap, word in zip(gaps, row[1:], strict=True):
        height = max(runs[-1].height, word.height)
        if even or -0.7 * height < gap < _GAP * height:
            runs[-1] = _with(runs[-1], word)
        else:
            runs.append(word)
    return runs


def _is_even(gaps: Sequence[float], row: Sequence[Word]) -> bool:
    """Say whether a line was stretched to its column's width: all its gaps are about equal."""
    if len(gaps) < 2 or min(gaps) <= 0 or max(gaps) > 3 * row[0].height:
        return False
    return max(gaps) <= (1.3 if len(gaps) > 3 else 1.05) * min(gaps)


def _read(words: Sequence[Word], page: Page, depth: int) -> None:
    rows = _rows(words)
    if not rows:
        return
    leading = median([a[0].bottom - b[0].bottom for a, b in pairwise(rows)] or [0.0])
    bottom: float | None = None
    for band in _bands(rows):
        if bottom is not None and bottom - band.runs[0][0].bottom > 1.6 * leading:
            page.lines.append("")
        bottom = band.runs[-1][0].bottom
        gaps = _gaps(band.covered, _width(band.runs))
        if not gaps or len(band.runs) < (3 if depth else 2) or depth >= _DEEPEST:
            _write(band.runs, leading, page)
            continue
        kind = _judged(band.runs, gaps)
        page.unsafe = page.unsafe or kind == "unsafe"
        if kind == "lines":
            _write(band.runs, leading, page)
        elif kind == "table":
            page.lines += ["", *row_lines(_grid(band.runs, gaps)), ""]
        else:
            for column in _columns(band.words, gaps):
                page.lines.append("")
                _read(column, page, depth + 1)
            page.lines.append("")


def _write(rows: Sequence[Sequence[Word]], leading: float, page: Page) -> None:
    above: float | None = None
    for row in rows:
        if above is not None and above - row[0].bottom > 1.6 * leading > 0:
            page.lines.append("")
        above = row[0].bottom
        page.lines.append(" ".join(run.text for run in row))


def _bands(rows: Sequence[list[Word]]) -> Iterator[_Band]:
    """Part rows where one covers all gaps of those above, or opens a gap that they cover."""
    band = _Band()
    for row in rows:
        runs = _runs(row)
        spans = [(run.left, run.right) for run in runs]
        covered = _union([*band.covered, *spans])
        width = _width([*band.runs[-20:], runs])
        if band.runs:
            had, has = bool(_gaps(band.covered, width)), bool(_gaps(spans, width))
            if (had or has) and not _gaps(covered, width):
                yield band
                band, covered = _Band(), _union(spans)
        band.words.append(row)
        band.runs.append(runs)
        band.covered = covered
    if band.runs:
        yield band


def _width(rows: Sequence[Sequence[Word]]) -> float:
    """Return how wide a gap between columns is at least."""
    return _GAP * median([run.height for row in rows for run in row])


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for left, right in sorted(spans):
        if joined and left <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], right))
        else:
            joined.append((left, right))
    return joined


def _gaps(spans: Sequence[tuple[float, float]], width: float) -> list[float]:
    """Return the middles of the gaps between spans."""
    return [(a[1] + b[0]) / 2 for a, b in pairwise(_union(spans)) if b[0] - a[1] >= width * 0.7]


def _columns(rows: Sequence[Sequence[Word]], gaps: Sequence[float]) -> list[list[Word]]:
    columns: list[list[Word]] = [[] for _ in range(len(gaps) + 1)]
    for row in rows:
        for run in row:
            columns[sum(gap < run.left for gap in gaps)].append(run)
    return [column for column in columns if column]


def _judged(rows: Sequence[Sequence[Word]], gaps: Sequence[float]) -> str:
    """Judge what stands in columns: "columns" of text, a "table", "lines", or "unsafe"."""
    cells = _cells(rows, gaps)
    columns = [list(filter(None, column)) for column in zip(*cells, strict=True)]
    prose = [_is_prose(column) for column in columns]
    level = sum(len(row) > 1 for row in rows)
    if all(prose):
        return "columns"
    if any(above[0].bottom - row[0].bottom < 0.6 * row[0].height for above, row in pairwise(rows)):
        return "columns"  # their lines do not stand level
    if not any(prose):
        return "table" if level * 2 >= len(rows) else "lines"
    if not prose[0]:  # names, and what they mean
        return "table" if level * 3 >= 2 * len(columns[0]) else "lines"
    few = min(map(len, columns)) < 3
    return "lines" if few or level * 3 >= 2 * len(columns[0]) else "unsafe"


def _is_prose(lines: Sequence[str]) -> bool:
    """Say whether a column is running text: its lines are long, and have several words."""
    wide = [len(line) * (2 if _EASTERN.search(line) else 1) for line in lines]
    words = [len(line.split()) for line in lines]
    unspaced = any(re.search(f"[{_CJK}]", line) for line in lines)
    return len(lines) > 1 and median(wide) >= 18 and (unspaced or median(words) >= 3)


def _cells(rows: Sequence[Sequence[Word]], gaps: Sequence[float]) -> list[list[str]]:
    """Return what each row says in each column."""
    cells = []
    for row in rows:
        line = [""] * (len(gaps) + 1)
        for run in row:
            at = sum(gap < run.left for gap in gaps)
            line[at] = f"{line[at]} {run.text.strip()}".strip()
        cells.append(line)
    return cells


def _grid(rows: Sequence[Sequence[Word]], gaps: Sequence[float]) -> list[list[str]]:
    """Return the cells of a table; a row without its first cell goes on with the row above."""
    grid: list[list[str]] = []
    for line in _cells(rows, gaps):
        if len(grid) > 1 and not line[0] and grid[-1][0]:
            grid[-1] = [f"{a} {b}".strip() for a, b in zip(grid[-1], line, strict=True)]
        else:
            grid.append(line)
    return grid


def joined(pages: Sequence[Page]) -> list[str]:
    """Return the text of each page, its words whole: what a line's end broke is joined."""
    lines = [line for page in pages for line in page.lines if line.strip()]
    lengths = sorted(map(len, lines))
    usual = lengths[len(lengths) * 9 // 10] if lengths else 0
    korean = _Korean(lines)
    words: Counter[str] = Counter()
    if any(HYPHEN in line or line.rstrip().endswith(_HYPHENS) for line in lines):
        words.update(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", "\n".join(lines).lower()))

    def whole(broken: re.Match[str]) -> str:
        before, after = broken[1], broken[2]
        apart, one = words[f"{before}-{after}".lower()], words[f"{before}{after}".lower()]
        own = before.isupper() or apart > one
        return f"{before}{'-' if own else ''}{after}"

    texts = []
    for page in pages:
        parts: list[str] = []
        for line in page.lines:
            _add(parts, line, usual, korean)
        text = _BROKEN.sub(whole, "".join(parts)).replace(HYPHEN, "-")
        texts.append(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n\n")
    return texts


class _Korean:
    """Whether a line of Korean ends within a word; some programs break lines anywhere.

    The document's own words tell: those in the middle of lines.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._words: Counter[str] = Counter()
        self._spaced = self._breaks = False
        ends = [line for line in lines if _is_hangul(line.rstrip()[-1])]
        if not ends:
            return
        self._spaced = sum(line[-1].isspace() for line in ends) * 20 > len(ends)
        for line in lines:
            self._words.update(_HANGUL_WORDS.findall(line)[1:-1])
        pairs = [(a, b) for a, b in pairwise(lines) if _is_hangul(a[-1]) and _is_hangul(b[0])]
        known = [self._known(a, b) for a, b in pairs]
        self._breaks = known.count("") > known.count(" ")

    def _known(self, line: str, after: str) -> str | None:
        one, other = _HANGUL_WORDS.findall(line)[-1], _HANGUL_WORDS.findall(after)[0]
        if self._words[one + other]:
            return ""
        return " " if self._words[one] and self._words[other] else None

    def between(self, line: str, after: str) -> str:
        """Return what stands between a line and the next: a space, or nothing within a word."""
        if line[-1].isspace():
            return " "
        known = self._known(line, after)
        if known is not None:
            return known
        return "" if self._spaced or self._breaks else " "


def _add(parts: list[str], line: str, usual: int, korean: _Korean) -> None:
    """Add a line to the parts of a text, joined to the one before if that goes on in it."""
    last = parts[-1] if parts else ""
    bare = line.strip()
    ended, begins = last.rstrip(), bare[:1]
    between = "\n"
    if not ended or not bare or ended.endswith(_END):
        pass
    elif ended.endswith(_HYPHENS) and ended[-2:-1].isalpha() and begins.isalpha():
        if begins.islower() or ended[-1] != "-":
            parts[-1] = ended[:-1] + HYPHEN
            between = ""
    elif _EASTERN.match(ended[-1]) and begins.isalnum():
        if len(ended) >= 0.75 * usual:
            parts[-1] = ended
            both = _is_hangul(ended[-1]) and _is_hangul(begins)
            mixed = _is_hangul(ended[-1]) or _is_hangul(begins)
            between = korean.between(last, bare) if both else " " if mixed else ""
    elif begins.islower() and len(ended) >= 0.5 * usual:
        parts[-1] = ended
        between = " "
    parts += [between, line.lstrip()] if parts else [line.lstrip()]


def _is_hangul(char: str) -> bool:
    return "\uac00" <= char <= "\ud7a3"
