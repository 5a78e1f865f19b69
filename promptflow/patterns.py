"""Python's regular expressions in the dialect of constraints, for text that matches as a whole.

Where Python and Rust read an expression differently (pydantic may check with either), what is
written here is what both accept. ``^`` and ``$`` are taken at the ends; what looks around or back,
and anchors in the middle, are refused by name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

_parser, sre = (vars(re)[name] for name in ("_parser", "_constants"))

# By category: what surely belongs to it, and what surely does not.
_CATEGORIES = {
    sre.CATEGORY_DIGIT: (r"\p{Nd}", "0-9"),
    sre.CATEGORY_SPACE: (r" \t\n\r\f\v", r" \t\n\r\f\v"),
    sre.CATEGORY_WORD: (r"\p{L}\p{Nd}_", "a-zA-Z0-9_"),
}
_WIDER = {
    sre.CATEGORY_DIGIT: r"\p{Nd}",
    sre.CATEGORY_SPACE: r"\s\x1c-\x1f",
    sre.CATEGORY_WORD: r"\w\p{N}",
}
_NEGATED = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}
_STARTS = {sre.AT_BEGINNING, sre.AT_BEGINNING_STRING}
_ENDS = {sre.AT_END, sre.AT_END_STRING}
_REPEATS = {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}


class PatternRefused(ValueError):
    """A pattern that no constraint can hold, with the reason."""


def translated(pattern: str | re.Pattern[str]) -> str:
    """Return ``pattern`` for the engine. Raises PatternRefused."""
    text, flags = (pattern, 0) if isinstance(pattern, str) else (pattern.pattern, pattern.flags)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            tree = _parser.parse(text, flags & ~re.DEBUG)
    except (re.error, FutureWarning, OverflowError, RecursionError):
        # Rust's own syntax, as \p{L} or [a&&b]: the engine reads it as pydantic does.
        return _ends_off(text)
    return _Writer(tree.state.flags).sequence(list(tree), True, True)


def _ends_off(text: str) -> str:
    inner = text.removeprefix("^").removeprefix(r"\A").removesuffix("$").removesuffix(r"\z")
    return text if "|" in inner or inner.endswith("\\") else inner


class _Writer:
    """Writes a parsed expression again; ``flags`` are those of the part that is being written."""

    def __init__(self, flags: int) -> None:
        self.flags = flags

    def sequence(self, items: Sequence[Any], starts: bool, ends: bool) -> str:
        """Return items in order; ``starts`` and ``ends`` tell whether they touch the text's ends.

        An item touches an end where everything between is an anchor.
        """
        written = []
        for number, (op, value) in enumerate(items):
            first = starts and all(o is sre.AT for o, _ in items[:number])
            last = ends and all(o is sre.AT for o, _ in items[number + 1 :])
            written.append(self.item(op, value, first, last))
        return "".join(written)

    def item(self, op: Any, value: Any, starts: bool, ends: bool) -> str:
        """Return one item. Raises PatternRefused."""
        if op is sre.LITERAL:
            return self.cased(char(value))
        if op is sre.NOT_LITERAL:
            return self.cased(f"[^{char(value)}]")
        if op is sre.ANY:
            return "(?s:.)" if self.flags & re.DOTALL else r"[^\n]"
        if op is sre.IN:
            return self.cased(self.members(value))
        if op is sre.BRANCH:
            return f"({'|'.join(self.sequence(arm, starts, ends) for arm in value[1])})"
        if op is sre.SUBPATTERN:
            _, on, off, inner = value
            return f"({_Writer((self.flags | on) & ~off).sequence(inner, starts, ends)})"
        if op in _REPEATS:
            return self.repeat(op, value)
        if op is sre.ATOMIC_GROUP:
            raise PatternRefused("it holds an atomic group (?>...); write (?:...)")
        if op is sre.AT:
            return self.anchor(value, starts, ends)
        raise PatternRefused(_reason(op, value))

    def repeat(self, op: Any, value: Any) -> str:
        """Return a repetition; lazy or greedy, the texts are the same."""
        low, high, inner = value
        if op is sre.POSSESSIVE_REPEAT:
            raise PatternRefused("it holds a possessive repeat such as a*+; write a*")
        top = "" if high is sre.MAXREPEAT else str(high)
        return f"({self.sequence(inner, False, False)}){{{low},{top}}}"

    def anchor(self, value: Any, starts: bool, ends: bool) -> str:
        """Return nothing for an anchor at its end of the text."""
        if (value in _STARTS and starts) or (value in _ENDS and ends):
            return ""
        if value in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
            sign = r"\b" if value is sre.AT_BOUNDARY else r"\B"
            raise PatternRefused(f"it holds {sign}, an edge of a word; write what stands there")
        sign = "^" if value in _STARTS else "$"
        raise PatternRefused(
            f"it holds {sign} in the middle, where no text can match; leave it out"
        )

    def members(self, items: Sequence[Any]) -> str:
        """Return a class. Inside a negated one each part is taken as wide as any dialect has it."""
        negated = items[0][0] is sre.NEGATE
        parts, within = [], []
        for op, value in items[1:] if negated else items:
            if op is sre.LITERAL:
                parts.append(char(value))
            elif op is sre.RANGE:
                parts.append(f"{char(value[0])}-{char(value[1])}")
            elif negated and value in _NEGATED:
                within.append(f"[{self.category(_NEGATED[value], False)}]")
            else:
                parts.append(self.category(value, negated))
        if not negated:
            return f"[{''.join(parts)}]"
        outside = [f"[^{''.join(parts)}]"] if parts else []
        return f"[{'&&'.join([*within, *outside])}]"

    def category(self, value: Any, wide: bool) -> str:
        """Return the members of a class such as \\d, as they stand within brackets."""
        narrow = _CATEGORIES.get(value)
        if narrow is not None:
            if self.flags & re.ASCII:
                return narrow[1]
            return _WIDER[value] if wide else narrow[0]
        return f"[^{_WIDER[_NEGATED[value]]}]"

    def cased(self, text: str) -> str:
        """Return text under the flag that ignores case."""
        return f"(?i:{text})" if self.flags & re.IGNORECASE else text


def char(code: int) -> str:
    """Return a character that no dialect reads otherwise."""
    text = chr(code)
    return text if text.isalnum() or text == " " else f"\\x{{{code:x}}}"


def _reason(op: Any, value: Any) -> str:
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        behind = value[0] < 0
        sign = ("(?<" if behind else "(?") + ("=" if op is sre.ASSERT else "!") + "...)"
        return f"it looks {'behind' if behind else 'ahead'} with {sign}; write it without"
    if op is sre.GROUPREF:
        return f"it looks back to its group {value} with \\{value}; write what may stand there"
    if op is sre.GROUPREF_EXISTS:
        return "it holds a condition (?(1)...); write both cases as alternatives"
    return f"it holds {str(op).lower()}, which a constraint cannot hold; write it without"
