"""Constraints over the byte tokenizer: what they let through is checked by others' parsers."""

from __future__ import annotations

import datetime
import json
import re
import runpy

import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings, strategies as st

from promptflow.engine.model.constraint import (
    MAX_BYTES,
    Constraints,
    Matcher,
    Walks,
    WalkTooLong,
    byte_tokenizer,
    ended,
)
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Choice, Constraint, Json, Lark, Regex, Substring
from promptflow.engine.sequence import common
from promptflow.errors import ConstraintDeadEnd, ConstraintError

END = 256
BYTES = Constraints(byte_tokenizer(), 257)


def start(constraint: Constraint, lead: str = "", constraints: Constraints = BYTES) -> Matcher:
    return constraints.start(constraint, lead, "s")


def can(matcher: Matcher, data: bytes) -> bool:
    """Feed ``data``, forced tokens or not; False where a byte is not allowed."""
    for byte in data:
        try:
            if not matcher.allowed()[byte]:
                return False
        except ConstraintDeadEnd:
            return False
        matcher.consume(byte)
    return True


def accepts(constraint: Constraint, text: str, lead: str = "") -> bool:
    matcher = start(constraint, lead)
    data = (lead + text).encode()
    return can(matcher, data) and matcher.can_end(len(data))


def written(constraint: Constraint, seed: int, limit: int = 120, lead: str = "") -> str | None:
    """What a model of random taste would write: follow forced tokens, then draw from the rest.

    None where ``limit`` comes first.
    """
    rng = np.random.default_rng(seed)
    matcher = start(constraint, lead)
    data = b""
    while len(data) < limit:
        for token in matcher.forced():
            if token == END:
                break
            matcher.consume(token)
            data += bytes([token])
        if matcher.must_end():
            return data.decode()
        allowed = matcher.allowed()
        allowed[END] = False
        ids = np.flatnonzero(allowed)
        if matcher.can_end(len(data)) and (not ids.size or rng.random() < 0.3):
            return data.decode()
        # Mostly what ends strings and lists soon.
        short = [i for i in ids if i in b'"]},0123a']
        token = int(rng.choice(short if short and rng.random() < 0.9 else ids))
        matcher.consume(token)
        data += bytes([token])
    return None


SCHEMAS = [
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "number", "minimum": 0.25, "maximum": 0.5},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    {"type": "string", "maxLength": 3},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^a/b[0-9]{2}$"},
    {"type": "string", "pattern": "[0-3]{2}", "maxLength": 6},
    {"enum": ["low", "high", 3, None, True, 'a/b\n"c\\']},
    {"const": {"a": [1, "é"]}},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"enum": ["a"]}], "items": False},
    {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "v": {"enum": [0, 1]},
                    "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "null"}]},
    {"type": "string", "format": "date"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_whatever_json_lets_through_is_valid(schema):
    constraint = Json(json.dumps(schema))
    texts = [written(constraint, seed) for seed in range(25)]
    assert sum(text is not None for text in texts) > 5
    for text in texts:
        if text is not None:
            jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        ({"type": "integer", "minimum": 10, "maximum": 200}, "200", True),
        ({"type": "integer", "minimum": 10, "maximum": 200}, "201", False),
        ({"type": "integer", "minimum": 10, "maximum": 200}, "9", False),
        ({"type": "string", "maxLength": 3}, '"éé€"', True),
        ({"type": "string", "maxLength": 3}, '"abcd"', False),
        ({"type": "string", "pattern": "^a/b$"}, '"a/b"', True),
        ({"type": "string", "pattern": "^a/b$"}, '"a/bc"', False),
        ({"enum": ["low", "lower"]}, '"lower"', True),
        ({"enum": ["low", "lower"]}, '"lowe"', False),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[1, 2]", True),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[1, 2, 3]", False),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[1,2]", False),
        (True, '{"any": ["thing"]}', True),
        ({}, "null", True),
    ],
)
def test_json_limits_hold_at_their_edges(schema, text, fits):
    assert accepts(Json(json.dumps(schema)), text) is fits


def is_day(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("year", ["0000", "0001", "0400", "1900", "2000", "2023", "2024", "9996"])
def test_dates_are_days_that_there_are(year):
    days = [f"{year}-{month:02}-{day:02}" for month in (1, 2, 4, 12, 13) for day in (1, 28, 29, 31)]
    date, moment = ({"anyOf": [{"type": "string", "format": f}]} for f in ("date", "date-time"))
    for day in days:
        assert accepts(Json(json.dumps(date)), f'"{day}"') is is_day(day)
        assert accepts(Json(json.dumps(moment)), f'"{day}T01:02:03Z"') is is_day(day)


@pytest.mark.parametrize("day", ["", "2024-02-29T"])
def test_times_have_nine_digits_of_a_second_at_most(day):
    schema = Json(json.dumps({"type": "string", "format": "date-time" if day else "time"}))
    for fraction, fits in (("", True), (".1", True), (".123456789", True), (".1234567890", False)):
        for zone in ("Z", "z", "+01:00", "-23:59"):
            assert accepts(schema, f'"{day}23:59:59{fraction}{zone}"') is fits
    assert not accepts(schema, f'"{day}23:59:59."')
    assert not accepts(schema, f'"{day}23:59:59"')


def test_numbers_between_limits_have_at_most_nine_decimals():
    share = {"type": "number", "minimum": 0, "maximum": 1}
    price = {"type": ["number", "null"], "exclusiveMinimum": -2.5}
    for schema in (share, price, {"anyOf": [share, {"type": "null"}]}):
        assert accepts(Json(json.dumps(schema)), "0.123456789")
        assert not accepts(Json(json.dumps(schema)), "0.1234567891")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-7}, "0.00000000001"),
        ({"type": "number", "minimum": 0.12345678912, "maximum": 0.12345678914}, "0.12345678913"),
        ({"type": "number"}, "1.602e-19"),
        ({"type": "number", "minimum": 0, "multipleOf": 2.5}, "7.5"),
        ({"allOf": [{"type": "number", "minimum": 0}, {"multipleOf": 1000}]}, "3000"),
        ({"type": "object", "properties": {"type": {"const": 1}}}, '{"type": 1}'),
    ],
)
def test_what_nine_decimals_do_not_fit_is_left_alone(schema, text):
    assert accepts(Json(json.dumps(schema)), text)


def test_a_date_that_is_data_is_left_alone():
    schema = {"enum": [{"format": "date"}, {"format": {"format": "date"}}]}
    for seed in range(6):
        jsonschema.validate(json.loads(written(Json(json.dumps(schema)), seed)), schema)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\d{1,3}", ["7", "123"], ["", "1234", "a"]),
        ("a/b", ["a/b"], ["a\\/b", "ab"]),
        (r"a\/b", ["a/b"], ["a\\/b"]),
        (r"[/\\]+", ["/\\/"], ["a", ""]),
        ("x\ny", ["x\ny"], ["x\\ny", "xy"]),
        (r"x\ny", ["x\ny"], ["xny"]),
        ("[^\\n]*", ["", "any text"], ["two\nlines"]),
        ("(?s:.*)", ["two\nlines", ""], []),
        ("(?i)yes", ["YES", "yEs"], ["no"]),
        ("a|bc|", ["a", "bc", ""], ["ab"]),
        ("^ab$", ["ab"], ["^ab$", "abc"]),
        ('"quoted"', ['"quoted"'], ["quoted"]),
        ("é[à-ü]", ["éü"], ["e", "éa"]),
        ("", [""], ["a"]),
    ],
)
def test_regex_is_matched_as_a_whole(pattern, good, bad):
    for lead in ("", " ", "=> "):
        assert all(accepts(Regex(pattern), text, lead) for text in good)
        assert not any(accepts(Regex(pattern), text, lead) for text in bad)


@settings(deadline=None, max_examples=60)
@given(st.from_regex(r"[a-c/\\ .\n\"*+?()\[\]{}|^$-]{1,6}", fullmatch=True), st.integers(0, 5))
def test_an_escaped_pattern_is_that_text(text, seed):
    assert written(Regex(re.escape(text)), seed) == text
    assert written(Choice((text,)), seed, lead=" ") == " " + text


def test_a_choice_may_hold_options_that_begin_others():
    choice = Choice(("a", "ab", "abc", "b c\nd", 'q"\\/'))
    assert all(accepts(choice, option) for option in choice.options)
    assert not any(accepts(choice, text) for text in ("", "abcd", "b", "b c\n", "c"))
    assert {written(choice, seed) for seed in range(60)} == set(choice.options)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text('ab\n"é\\/ ', min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_choice_lets_through_its_options_alone(options):
    choice = Choice(tuple(options))
    assert all(accepts(choice, option) for option in options)
    for seed in range(3):
        assert written(choice, seed) in options


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text('abé\n "/', max_size=12), min_size=1, max_size=3),
    st.text("abé\n ", max_size=3),
)
def test_a_quotation_is_a_span_of_one_of_its_texts(texts, probe):
    if not any(texts):
        return
    quotation = Substring(tuple(texts))
    assert accepts(quotation, probe) is (probe != "" and any(probe in text for text in texts))
    assert accepts(quotation, probe, " ") is (probe != "" and any(probe in t for t in texts))
    for seed in range(3):
        text = written(quotation, seed)
        assert text
        assert any(text in whole for whole in texts)


def test_a_quotation_from_a_long_text_may_start_anywhere():
    text = "".join(f"Sentence {number}. " for number in range(2_000))
    quotation = Substring((text, "another"))
    assert accepts(quotation, text[20_000:20_050])
    assert not accepts(quotation, text[20_000:20_050] + "x")


def test_lark_writes_its_own_grammar():
    grammar = Lark('start: greeting ", " NAME\ngreeting: "hi" | "hello"\nNAME: /[A-Z][a-z]+/')
    assert accepts(grammar, "hello, Ada")
    assert not accepts(grammar, "hey, Ada")
    assert accepts(Lark('start: "n=" num\nnum: %json {"type": "integer", "maximum": 9}'), "n=7")


def test_forced_text_comes_at_once():
    schema = {"type": "object", "properties": {"name": {"const": "Ada"}}, "required": ["name"]}
    matcher = start(Json(json.dumps(schema)), " ")
    assert bytes(matcher.forced()).startswith(b' {"name": "Ada"')


def test_a_lead_is_no_content():
    matcher = start(Substring(("hello",)), "ab")
    assert can(matcher, b"ab")
    assert not matcher.can_end(2)
    assert can(matcher, b"h")
    assert matcher.can_end(3)


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_fork_goes_on_where_its_original_stood(schema):
    """And so does the original, whatever its forks have written."""
    constraint = Json(json.dumps(schema))
    texts = [text for seed in range(8) if (text := written(constraint, seed)) is not None]
    for number, text in enumerate(texts):
        data, other = text.encode(), texts[number - 1].encode()
        shared = common(data, other, len(data))
        for at in (shared // 2, shared):
            original = start(constraint)
            assert can(original, data[:at])
            for rest in (data, other):
                fork, straight = original.fork(), start(constraint)
                assert can(fork, rest[at:])
                assert can(straight, rest)
                assert fork.can_end(len(rest))
                assert fork.must_end() is straight.must_end()
            assert can(original, data[at:])
            assert original.can_end(len(data))


def test_matchers_of_one_constraint_are_independent():
    first, second = (start(Choice(("ab", "cd")), "") for _ in range(2))
    first.consume(ord("a"))
    assert np.flatnonzero(second.allowed()).tolist() == [ord("a"), ord("c")]
    assert first.forced() == [ord("b")]


def test_a_token_that_may_not_follow_is_an_error_of_its_matcher_alone():
    wrong, other = (start(Choice(("ab", "cd")), "") for _ in range(2))
    with pytest.raises(ConstraintError, match=r"^slot 's': its constraint failed"):
        wrong.consume(ord("x"))
    assert can(other, b"cd")


def test_only_the_last_grammars_stay_compiled():
    constraints = Constraints(byte_tokenizer(), 257)
    for number in range(600):
        start(Choice((f"option {number}",)), "", constraints)
    assert constraints.clock.seconds > 0
    assert len(constraints) == 256


DEEP = '{"items":' * 40 + "{}" + "}" * 40


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Regex("("), "Regex constraint cannot be compiled"),
        (Regex("(?=a)b"), "look-around"),
        (Regex(r"\bword\b"), "Regex constraint cannot be compiled"),
        (Regex("a" * (MAX_BYTES + 1)), "over the limit"),
        (Regex("(" * 2_000 + "a" + ")" * 2_000), "Regex constraint cannot be compiled"),
        (Regex("\ud800"), "half a character"),
        (Choice(()), "non-empty options"),
        (Choice(("a", "")), "non-empty options"),
        (Choice(("\udfff",)), "half a character"),
        (Choice(("a" * MAX_BYTES, "b")), "over the limit"),
        (Json("{"), "not JSON"),
        (Json("[" * 100_000), "over the limit"),
        (Json("[" * 60_000), "not JSON"),
        (Json("[1]"), "a JSON Schema is an object, got list"),
        (Json("false"), "a JSON Schema is an object, got bool"),
        (Json('{"type": "strong"}'), "Json constraint cannot be compiled"),
        (Json('{"$ref": "http://example.com/schema"}'), "only references within"),
        (Json('{"$ref": "#/$defs/none"}'), "Json constraint cannot be compiled"),
        (Json(DEEP), "32 levels"),
        (Json(json.dumps({"enum": list(range(2_000))})), "1,000 nodes"),
        (Lark("start: missing"), "Lark constraint cannot be compiled"),
        (Lark("no grammar"), "Lark constraint cannot be compiled"),
        (Lark("start: " + "(" * 3_000 + '"a"' + ")" * 3_000), "cannot be compiled"),
        (Lark("#" * (MAX_BYTES + 1)), "over the limit"),
        (Substring(()), "at least one text"),
        (Substring(("", "")), "at least one text"),
        (Substring(("a" * (1 << 20), "b")), "over the limit"),
        (
            Json('{"not": {}}'),
            "replace that part of the schema. llguidance says: Unimplemented keys",
        ),
        (Json('{"x-guidance": 3}'), "x-guidance in a JSON Schema is an object of options, got 3"),
        (Json('{"format": "date", "allOf": 3}'), "Json constraint cannot be compiled"),
        (Json('{"format": {}, "pattern": 1}'), "Json constraint cannot be compiled"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_compiled_is_an_error_that_says_why_and_where(constraint, message):
    with pytest.raises(ConstraintError, match=re.escape(message)) as caught:
        BYTES.start(constraint, "", "answer")
    assert str(caught.value).startswith("slot 'answer': ")


def test_a_lark_grammar_follows_its_lead():
    grammar = Lark('start: T ("," start)?\nT: /[a-z]+/ & /.{2}/')
    matcher = start(grammar, " ")
    for number, byte in enumerate(b" ab,cd"):
        assert matcher.allowed()[byte]
        assert not matcher.can_end(number) or number == 3
        matcher.consume(byte)
    assert not matcher.allowed()[ord("e")]


def test_walks_write_whole_texts_of_a_constraint():
    walks = Walks(seed=1)
    texts = {walks.text(Regex("(é|b){2,3}")) for _ in range(40)}
    assert len(texts) > 4
    assert all(re.fullmatch("(é|b){2,3}", text) for text in texts)
    with pytest.raises(WalkTooLong, match="no end"):
        walks.text(Regex("a{4000}b"), 20)


@pytest.mark.parametrize(
    "schema", ['{"$ref": "#"}', '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}']
)
def test_a_schema_that_nothing_fits_is_a_dead_end(schema):
    with pytest.raises(ConstraintDeadEnd, match=r"^slot 's': .* no token .* some finite text fits"):
        start(Json(schema), "").allowed()


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("(a{1,1000}b){1,1000}"),
        Regex("(x+x+)+y"),
        Regex("(.*a.{20})|b{1,400}"),
        Json('{"type": "string", "minLength": 1000000}'),
        Json('{"type": "array", "items": {"type": "integer"}, "minItems": 100000}'),
    ],
    ids=repr,
)
def test_costly_constraints_begin_to_decode(constraint):
    matcher = start(constraint, "")
    for _ in range(50):
        if matcher.must_end():
            break
        matcher.consume(int(np.flatnonzero(matcher.allowed())[0]))


def test_words_of_several_bytes_are_forced_as_the_tokenizer_would_write_them():
    fake = FakeModel(words=["ab", "abc", "ef"])
    constraints = fake.constraints()
    open_ended = start(Choice(("abc", "abd")), "", constraints)
    assert np.flatnonzero(open_ended.allowed()).tolist() == [ord("a"), 257, 258]
    forced = start(Choice(("abcdefg",)), "", constraints).forced()
    assert forced == fake.tokenize("abcdefg", special=False) == [258, ord("d"), 259, ord("g")]


def test_a_model_writes_valid_text_under_every_constraint(smollm):
    """A slice of benchmarks/schemas.py, whose 20 schemas have 50 answers each."""
    schemas = runpy.run_path(str(ROOT / "benchmarks" / "schemas.py"))
    *results, sums = schemas["run"](smollm, 2)
    assert [(r.name, r.invalid, r.cut) for r in results if r.valid != 2] == []
    assert len(results) == 24
    assert sums.distinct > 40
    assert sums.forced > 500


SCHEMAS = {
    "object": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "pattern": {"a": {"type": "string", "pattern": "^[a-c]{3}$"}, "b": {"enum": ["fast", "slow"]}},
    "numbers": {"a": {"type": "array", "items": {"type": "number"}, "minItems": 3}},
    "nested": {
        "a": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    },
    "optional": {"a": {"type": ["string", "null"]}, "b": {"type": "string", "minLength": 5}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_cut_at_any_place_is_ended(name: str):
    properties = SCHEMAS[name]
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    constraint = Json(json.dumps(schema))
    text = Walks(7).text(constraint, 60)
    for at in range(len(text.encode()) + 1):
        cut = text.encode()[:at].decode(errors="ignore")
        whole = ended(constraint, cut)
        assert whole.startswith(cut)
        jsonschema.validate(json.loads(whole), schema)


def test_what_is_cut_within_a_text_ends_there():
    constraint = Json('{"type": "object", "properties": {"a": {"type": "string"}}}')
    assert ended(constraint, '{"a": "to be \\') == '{"a": "to be \\""}'
    assert ended(constraint, '{"a": "to be or') == '{"a": "to be or"}'


def test_what_has_no_end_says_so():
    with pytest.raises(ConstraintError):
        ended(Regex("[0-9]+"), "x")
    with pytest.raises(WalkTooLong):
        ended(Regex("a{9000}"), "a")
