"""Arithmetic by value: the exact result of an expression that is parsed here, never evaluated."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LENGTH, DEPTH, POWER, BITS = 500, 40, 1_000, 20_000
"""What is computed at most: characters, brackets in brackets, an exponent, bits of a number."""

DIGITS = 20
"""Digits after the point that a result without an end is shown with."""

_NUMBER, _SIGN = r"-?[0-9]{1,15}(\.[0-9]{1,9})?", r" ?(\+|-|\*\*?|//?|%) ?"
_FLAT = f"{_NUMBER}({_SIGN}{_NUMBER}){{0,9}}"
_ONCE = f"({_NUMBER}|\\({_FLAT}\\))"
_TWICE = f"({_ONCE}|\\({_ONCE}({_SIGN}{_ONCE}){{0,9}}\\))"
WRITTEN = f"{_TWICE}({_SIGN}{_TWICE}){{0,19}}"
"""A pattern of what is computed, in parentheses in parentheses at most: what a model may write."""

_TOKEN = re.compile(r"\s*(?:(\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)|(\*\*|//|[-+*/%^()]))")
_SIGNS = str.maketrans("\u00d7\u00b7\u00f7\u2212\u2013:", "**/--/")  # as people write them


class ArithmeticFault(ValueError):
    """An expression that is none, or whose result has no value or no room."""


def value_of(expression: str) -> Fraction:
    """Return the exact value of numbers joined by ``+ - * / // % ** ^`` and parentheses.

    A comma parts thousands; ``12 %`` is 12/100 where no number follows. Raises ArithmeticFault.

    >>> value_of("0.1 + 0.2")
    Fraction(3, 10)
    """
    text = unicodedata.normalize("NFKC", expression).translate(_SIGNS)
    if len(text) > LENGTH:
        raise ArithmeticFault(f"{len(text)} characters: at most {LENGTH} are computed")
    return _Reader(_tokens(text)).whole()


def number_text(value: Fraction) -> str:
    """Return a number in full; one without an end to 20 digits, marked so, with its fraction.

    >>> number_text(Fraction(1, 8)), number_text(Fraction(2, 3))
    ('0.125', '0.66666666666666666667 (rounded; exactly 2/3)')
    """
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest == 1 and places <= 60:
        return _decimal(value, places)
    return f"{_decimal(value, DIGITS)} (rounded; exactly {value})"


def _decimal(value: Fraction, places: int) -> str:
    scaled = round(value * 10**places)
    digits = f"{abs(scaled):0{places + 1}d}"
    return f"{'-' if scaled < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ArithmeticFault(
                f"{text[at:].strip()[:20]!r} is no number and no sign: write numbers, + - * / // % "
                "** and parentheses"
            )
        found.append(match[1] or match[2])
        at = match.end()
    return found


class _Reader:
    """Reads tokens from left to right; ``power`` binds tightest, then signs, then products."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        """Return the token and go on to the one after it."""
        taken = self.next
        self.at += 1
        return taken

    def whole(self) -> Fraction:
        """Take everything."""
        made = self.sum()
        if self.next:
            raise ArithmeticFault(f"{self.next!r} stands where a sign should")
        return made

    def sum(self) -> Fraction:
        """Take products joined by + and -."""
        made = self.product()
        while self.next in ("+", "-"):
            sign, other = self.take(), self.product()
            made = _bounded(made + other if sign == "+" else made - other)
        return made

    def product(self) -> Fraction:
        """Take signed powers joined by * / // and %."""
        made = self.signed()
        while self.next in ("*", "/", "//", "%"):
            sign, other = self.take(), self.signed()
            if sign != "*" and other == 0:
                raise ArithmeticFault("a division by zero")
            match sign:
                case "*":
                    made = made * other
                case "/":
                    made = made / other
                case "//":
                    made = Fraction(made // other)
                case _:
                    made = made % other
            made = _bounded(made)
        return made

    def signed(self) -> Fraction:
        """Take a power with the signs before it."""
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take() == "-"
        made = self.power()
        return -made if negative else made

    def power(self) -> Fraction:
        """Take a number with its exponent, which binds to the right."""
        made = self.percent()
        if self.next not in ("**", "^"):
            return made
        self.take()
        self.deeper()
        exponent = self.signed()
        self.depth -= 1
        if exponent.denominator != 1:
            raise ArithmeticFault(f"the exponent {exponent} is no whole number")
        if abs(exponent) > POWER or made.numerator.bit_length() * abs(exponent) > BITS:
            raise ArithmeticFault("the power is too large to be written")
        if made == 0 and exponent < 0:
            raise ArithmeticFault("a division by zero")
        return _bounded(made ** int(exponent))

    def percent(self) -> Fraction:
        """Take a number, and the percent sign after it where no number follows."""
        made = self.number()
        after = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ""
        if self.next == "%" and after in ("", "+", "*", "/", ")"):
            self.take()
            return made / 100
        return made

    def number(self) -> Fraction:
        """Take a number, or what stands in parentheses."""
        token = self.take()
        if token == "(":
            self.deeper()
            made = self.sum()
            self.depth -= 1
            if self.take() != ")":
                raise ArithmeticFault("a parenthesis is not closed")
            return made
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise ArithmeticFault(f"{token!r} stands where a number should" if token else "no end")
        return _number(token)

    def deeper(self) -> None:
        """Count a level of brackets or exponents."""
        self.depth += 1
        if self.depth > DEPTH:
            raise ArithmeticFault(f"brackets more than {DEPTH} deep")


def _number(token: str) -> Fraction:
    mantissa, _, exponent = token.lower().partition("e")
    if exponent and abs(int(exponent)) > POWER:
        raise ArithmeticFault(f"{token} is too large to be written")
    whole = mantissa.partition(".")[0]
    if "," in whole and not re.fullmatch(r"\d{1,3}(,\d{3})+", whole):
        raise ArithmeticFault(f"{token}: a comma parts thousands; write 1.5, or 1,500")
    return _bounded(Fraction(token.replace(",", "")))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise ArithmeticFault("the number is too large to be written")
    return value
