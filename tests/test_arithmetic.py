from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest

from promptflow.engine.model.constraint import Walks
from promptflow.engine.request import Regex
from promptflow.modules.arithmetic import WRITTEN, ArithmeticFault, number_text, value_of

TABLE = {
    "1 + 2 * 3": "7",
    "(1 + 2) * 3": "9",
    "0.1 + 0.2": "0.3",
    "-2 ** 2": "-4",
    "2 ** 3 ** 2": "512",
    "2 ** -2": "0.25",
    "7 // 2": "3",
    "-7 // 2": "-4",
    "-7 % 3": "2",
    "10 % 4": "2",
    "12 % ": "0.12",
    "200 * 15%": "30",
    "(5%) + 1": "1.05",
    "1,250,000 / 4": "312500",
    "3e6 / 2": "1500000",
    "6 × 7": "42",
    "8 ÷ 3": "2.66666666666666666667 (rounded; exactly 8/3)",
    "9 − 12": "-3",
    "1/3 * 3": "1",
    "12345678901234567890 * 10": "123456789012345678900",
    ".5 + .25": "0.75",
    "- - 3": "3",
    "4 ^ 2": "16",
    "１２＋３": "15",
    "-1/3": "-0.33333333333333333333 (rounded; exactly -1/3)",
}

WRONG = (
    "",
    "1 +",
    "(1",
    "1)",
    "1 2",
    "1/0",
    "5 % 0",
    "0 ** -1",
    "2 ** 0.5",
    "9 ** 9 ** 9",
    "10 ** 100000",
    "1e99999",
    "1,5",
    "abc",
    "__import__('os').system('ls')",
    "open('/etc/passwd')",
    "{{ 7*7 }}",
    "(" * 60 + "1" + ")" * 60,
    "1 + " * 300 + "1",
    "2 ** 2 ** 2 ** 2 ** 2 ** 2",
    "٣ +",
)


@pytest.mark.parametrize("expression", TABLE)
def test_value(expression: str):
    assert number_text(value_of(expression)) == TABLE[expression]


@pytest.mark.parametrize("expression", WRONG)
def test_what_is_no_expression_is_refused(expression: str):
    with pytest.raises(ArithmeticFault):
        value_of(expression)


def test_agrees_with_fractions_on_random_expressions():
    """Against slow obvious code: a tree of Fractions, written with all its parentheses."""
    draw = random.Random(7)

    def grown(depth: int) -> tuple[str, Fraction]:
        if depth == 0 or draw.random() < 0.2:
            number = draw.choice(
                [str(draw.randint(0, 99)), f"{draw.randint(0, 9)}.{draw.randint(0, 99):02d}"]
            )
            return number, Fraction(number)
        (a, left), (b, right) = grown(depth - 1), grown(depth - 1)
        sign = draw.choice("+-*/")
        if sign == "/" and right == 0:
            sign = "+"
        value = {"+": left + right, "-": left - right, "*": left * right}.get(sign)
        return f"({a} {sign} {b})", left / right if value is None else value

    for _ in range(2000):
        text, value = grown(4)
        assert value_of(text) == value


def test_products_come_before_sums():
    draw = random.Random(11)
    for _ in range(2000):
        products = []
        texts = []
        for _ in range(draw.randint(1, 4)):
            value, text = draw.randint(1, 9), ""
            text = str(value)
            for _ in range(draw.randint(0, 3)):
                sign, number = draw.choice(["*", "//", "%"]), draw.randint(1, 9)
                text += f" {sign} {number}"
                value = {"*": value * number, "//": value // number, "%": value % number}[sign]
            products.append(value)
            texts.append(text)
        signs = [draw.choice("+-") for _ in texts[1:]]
        total = products[0]
        for sign, product in zip(signs, products[1:], strict=True):
            total += product if sign == "+" else -product
        whole = texts[0] + "".join(f" {s} {t}" for s, t in zip(signs, texts[1:], strict=True))
        assert value_of(whole) == total


def test_what_a_model_may_write_has_a_value_where_one_exists():
    """Faults that are left are of values: a division by zero, a power that is too large."""
    walks, faults = Walks(3), []
    for _ in range(60):
        try:
            value_of(walks.text(Regex(WRITTEN), 60))
        except ArithmeticFault as error:
            faults.append(str(error))
    assert len(faults) < 30
    assert {re.sub(r"the exponent \S+ is ", "", fault) for fault in faults} <= {
        "a division by zero",
        "the power is too large to be written",
        "the number is too large to be written",
        "no whole number",
    }


@pytest.mark.parametrize(
    "text", ["12.5 * 8", "(3 + 4) * 2", "((3 + 4) * 2 - 1) / -3", "2**10 % 7", "17//5"]
)
def test_what_people_write_may_be_written(text: str):
    assert re.fullmatch(WRITTEN, text)
    value_of(text)


@pytest.mark.parametrize("text", ["x * 2", "3 +", "(3", "", "__import__('os')", "3 apples"])
def test_what_is_no_expression_may_not(text: str):
    assert not re.fullmatch(WRITTEN, text)
