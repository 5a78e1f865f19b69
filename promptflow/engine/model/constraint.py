"""Constraints as token masks, by llguidance: the only file that imports it.

A constraint becomes one Lark grammar: the slot's lead, then the body. Limits are checked before
anything native sees the text. Matchers never raise for what a user wrote; their error state becomes
ConstraintError here.
"""

from __future__ import annotations

import copy
import json
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from promptflow.engine.request import Choice, Constraint, Json, Lark, Regex, Substring
from promptflow.errors import ConstraintDeadEnd, ConstraintError, EngineError

MAX_BYTES = 64 * 1024
MAX_SUBSTRING_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 1_000
_COMPILED = 256

# Compact JSON with one space after separators: what models write, and most of it is forced.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# llguidance's own dates take the year 0, and the 29th of February in every year.
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_REAL_DAY = f"^({_YEAR}-(0[13-9]|1[0-2])-|{_YEAR}-02-([01]|2[0-8])|{_LEAP_YEAR}-02-29)"
_FRACTION = r"^[^.]*(\.[0-9]{1,9})?([zZ]|[+-][^.]*)$"  # of a second; it takes any number of digits
_STEP = 1e-9  # of numbers between limits: a small model may write digits without end
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_BOUNDS = {"date": [_REAL_DAY], "time": [_FRACTION], "date-time": [_REAL_DAY, _FRACTION]}

_REMEDIES: dict[type, str] = {
    Json: "remove or replace that part of the schema",
    Regex: r"write it without look-around, back-references and \b, and escape text by re.escape",
    Lark: "write its rule `start` in llguidance's dialect",
    Choice: "leave out the option at fault",
    Substring: "leave out the text at fault",
}


def grammar(constraint: Constraint, lead: str) -> str:
    """Return the grammar of ``lead`` followed by ``constraint``, as llguidance takes it.

    Raises ConstraintError for a schema, pattern or list of options outside the limits.
    """
    text = _lark(constraint, lead)
    if isinstance(constraint, Lark) and lead:
        body = {"name": "body", "lark_grammar": text}
        return json.dumps({"grammars": [{"lark_grammar": f"start: {_quoted(lead)} @body"}, body]})
    made: str = llguidance.LLMatcher.grammar_from_lark(text)
    return made


def _lark(constraint: Constraint, lead: str) -> str:
    if isinstance(constraint, Lark):
        _check_size(constraint.grammar, MAX_BYTES)
        return constraint.grammar
    start = f"{_quoted(lead)} body" if lead else "body"
    return f"start: {start}\n{_body(constraint)}\n"


def _body(constraint: Constraint) -> str:
    if isinstance(constraint, Choice):
        if not constraint.options or "" in constraint.options:
            raise ConstraintError(
                f"a choice needs non-empty options, got {str(constraint.options)[:80]}: give it at "
                "least one, and leave out ''"
            )
        _check_size("".join(constraint.options), MAX_BYTES)
        return "body: " + " | ".join(_quoted(option) for option in constraint.options)
    if isinstance(constraint, Regex):
        _check_size(constraint.pattern, MAX_BYTES)
        return "body: BODY\nBODY: /" + _lark_pattern(constraint.pattern) + "/"
    if isinstance(constraint, Json):
        return "body: %json " + json.dumps(_styled_schema(constraint.schema))
    assert isinstance(constraint, Substring)
    texts = [text for text in constraint.texts if text]
    if not texts:
        raise ConstraintError(
            "a quotation needs at least one text to quote from, got none: give one that is not ''"
        )
    _check_size("".join(texts), MAX_SUBSTRING_BYTES)
    names = [f"S{number}" for number in range(len(texts))]
    rules = [
        f"{name}: %regex {json.dumps({'substring_chars': text}, ensure_ascii=False)}"
        for name, text in zip(names, texts, strict=True)
    ]
    return "\n".join([f"body: {' | '.join(names)}", *rules])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _lark_pattern(pattern: str) -> str:
    """Escape what would end a Lark pattern: slashes and line breaks."""
    written, escaping = [], False
    for char in pattern:
        if char == "\n":
            written.append("n" if escaping else "\\n")
        elif char == "/" and not escaping:
            written.append("\\/")
        else:
            written.append(char)
        escaping = char == "\\" and not escaping
    return "".join(written)


def _check_size(text: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConstraintError(
            f"a constraint holds half a character: {error}; remove the lone surrogate"
        ) from None
    if size > limit:
        raise ConstraintError(
            f"a constraint of {size:,} bytes is over the limit of {limit:,}: shorten it, or split "
            "the value over several slots"
        )


def _styled_schema(text: str) -> dict[str, Any]:
    """Return the schema with our JSON style, after checking size, depth and references."""
    _check_size(text, MAX_BYTES)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(
            f"the JSON Schema is not JSON: {error}; write it with json.dumps"
        ) from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ConstraintError(
            f"a JSON Schema is an object, got {type(schema).__name__}: write {{}} for any value"
        )
    nodes, stack = 0, [(schema, 1)]
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise ConstraintError(
                f"the JSON Schema is over the limits of {MAX_DEPTH} levels and {MAX_NODES:,} "
                "nodes: move what repeats to $defs, or split the value over several slots"
            )
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise ConstraintError(
                    f"$ref {reference!r}: only references within the schema are followed; copy its "
                    "target to $defs"
                )
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)
    # Two steps multiply where they meet, and an automaton of their product may not fit.
    meet = "multipleOf" in text and any(word in text for word in _COMBINING)
    schema = _with_bounds(schema, ranges=not meet)
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        raise ConstraintError(
            f"x-guidance in a JSON Schema is an object of options, got {own!s:.80}"
        )
    return {**schema, "x-guidance": {**_JSON_STYLE, **own}}


def _with_bounds(schema: Any, ranges: bool) -> Any:
    """Return the schema with patterns beside dates and times, and a step beside ``ranges``."""
    if isinstance(schema, list):
        return [_with_bounds(item, ranges) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: value if key in ("const", "enum") else _with_bounds(value, ranges)
        for key, value in schema.items()
    }
    form = made.get("format")
    bounds = _BOUNDS.get(form) if isinstance(form, str) else None
    others = made.get("allOf", [])
    if bounds and isinstance(others, list):
        made["allOf"] = [*others, *({"pattern": bound} for bound in bounds)]
    if ranges and _is_range(made):
        made["multipleOf"] = _STEP
    return made


def _is_range(schema: dict[str, Any]) -> bool:
    """Return whether it is of numbers between limits that the step is far smaller than."""
    kinds = schema.get("type")
    if "multipleOf" in schema or "number" not in (kinds if isinstance(kinds, list) else [kinds]):
        return False
    found = [schema.get(name) for name in _LIMITS]
    limits = [n for n in found if isinstance(n, int | float) and not isinstance(n, bool)]
    apart = [abs(n) for n in limits if n] + [b - a for a, b in pairwise(sorted(limits))]
    return bool(limits) and all(distance > 1000 * _STEP for distance in apart)


def _refusal(kind: type, reason: str) -> str:
    """Return what to say where llguidance refuses a constraint for ``reason``."""
    if kind is not Lark:
        # Where in the grammar that we wrote around it, and that grammar, say nothing to its author.
        reason = reason.partition("\n   1 | ")[0].rpartition("compile JSON schema: ")[2]
        reason = re.sub(r"^at \d+\(\d+\): ", "", reason)
    return (
        f"the {kind.__name__} constraint cannot be compiled; {_REMEDIES[kind]}. "
        f"llguidance says: {reason.strip()[:500]}"
    )


class Clock:
    """Seconds spent in matchers and in compiling constraints: ``with clock: ...`` adds to them.

    Where several threads are at it, each second counts once.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.seconds = 0.0
        self._begun = 0.0
        self._at_work = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Start measuring."""
        with self._lock:
            if not self._at_work:
                self._begun = time.perf_counter()
            self._at_work += 1

    def __exit__(self, *_: object) -> None:
        """Add what has passed."""
        with self._lock:
            self._at_work -= 1
            if not self._at_work:
                self.seconds += time.perf_counter() - self._begun


class Matcher:
    """Where a slot stands in its constraint: what may follow, what must."""

    def __init__(
        self,
        matcher: Any,
        vocabulary: int,
        *,
        slot: str,
        lead: int,
        needs_content: bool,
        clock: Clock,
    ) -> None:
        """Follow ``matcher``; content starts after ``lead`` bytes. Errors name ``slot``."""
        self.clock = clock
        self._slot = slot
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = np.zeros((vocabulary + 31) // 32, dtype=np.int32)
        self._lead = lead
        self._needs_content = needs_content

    def allowed(self) -> NDArray[np.bool_]:
        """Return a flag for each id that may follow; raise ConstraintDeadEnd where none may."""
        with self.clock:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            self._check()
            bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
            return bits[: self._vocabulary].view(np.bool_)

    def consume(self, token: int) -> None:
        """Move past ``token``; raise ConstraintError where it may not follow."""
        with self.clock:
            self._matcher.consume_token(token)
            self._check()

    def fork(self) -> Matcher:
        """Return a copy that goes on by itself."""
        twin = copy.copy(self)
        with self.clock:
            twin._matcher = self._matcher.deep_copy()
        twin._bits = self._bits.copy()
        return twin

    def forced(self) -> list[int]:
        """Return the tokens that must follow, without moving."""
        with self.clock:
            tokens: list[int] = self._matcher.compute_ff_tokens()
            return tokens

    def can_end(self, length: int) -> bool:
        """Return whether text of ``length`` bytes so far, its lead included, is complete."""
        if self._needs_content and length <= self._lead:
            return False
        with self.clock:
            return bool(self._matcher.is_accepting())

    def must_end(self) -> bool:
        """Return whether nothing can follow."""
        with self.clock:
            return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        """Raise what llguidance holds against what was done; it never raises by itself."""
        if not self._matcher.is_error():
            return
        reason = self._matcher.get_error().partition("<state>")[0].strip()[:300]
        if reason.startswith("NoExtension"):
            raise ConstraintDeadEnd(
                f"slot {self._slot!r}: its constraint is not complete and allows no token here "
                f"({reason}); check that some finite text fits it"
            )
        raise ConstraintError(
            f"slot {self._slot!r}: its constraint failed: {reason}; simplify it, or split the "
            "value over several slots"
        )


class Constraints:
    """Compile constraints for one tokenizer; the last 256 grammars stay compiled."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """Use an ``llguidance.LLTokenizer``."""
        self.clock = Clock()
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[tuple[Constraint, str], Any] = OrderedDict()

    def __len__(self) -> int:
        """Return how many grammars are compiled."""
        return len(self._compiled)

    def start(self, constraint: Constraint, lead: str, slot: str) -> Matcher:
        """Return a fresh matcher for ``slot``.

        Raises ConstraintError, naming the slot, for what is outside the limits and for what
        llguidance refuses.
        """
        try:
            with self.clock:
                matcher = self._compile(constraint, lead).deep_copy()
        except ConstraintError as error:
            raise ConstraintError(f"slot {slot!r}: {error}") from None
        return Matcher(
            matcher,
            self._vocabulary,
            slot=slot,
            lead=len(lead.encode()),
            needs_content=isinstance(constraint, Substring),
            clock=self.clock,
        )

    def _compile(self, constraint: Constraint, lead: str) -> Any:
        key = (constraint, lead)
        compiled = self._compiled.get(key)
        if compiled is None:
            text = grammar(constraint, lead)
            compiled = llguidance.LLMatcher(self._tokenizer, text, log_level=0)
            if compiled.is_error():
                raise ConstraintError(_refusal(type(constraint), compiled.get_error()))
            self._compiled[key] = compiled
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return compiled


class WalkTooLong(EngineError):
    """A walk that found no end in many bytes."""


class Walks:
    """Random walks through constraints, byte by byte: what a model without any sense writes."""

    def __init__(self, seed: int = 0) -> None:
        """Start from ``seed``."""
        self._random = random.Random(seed)
        self._constraints = Constraints(byte_tokenizer(), 257)

    def text(self, constraint: Constraint, most: int = 400) -> str:
        """Return a text of the constraint; after ``most`` bytes it ends as soon as it can.

        Raises ConstraintError, ConstraintDeadEnd, and WalkTooLong where it finds no end.
        """
        matcher = self._constraints.start(constraint, "", "walk")
        written = bytearray()
        while not matcher.must_end() and len(written) < 10 * most + 3_000:
            ending = len(written) >= most
            done = matcher.can_end(len(written))
            allowed = matcher.allowed()
            if done and (ending or self._random.random() < 0.3 or not allowed[:256].any()):
                break
            matcher.consume(step := self._step(allowed, ending))
            written.append(step)
        if not matcher.can_end(len(written)):
            raise WalkTooLong(f"no end after {len(written):,} bytes")
        return written.decode()

    def _step(self, allowed: NDArray[np.bool_], ending: bool) -> int:
        """Return a byte: often one that closes something, seldom one beyond ASCII."""
        choices = np.flatnonzero(allowed[:256])
        closing = [byte for byte in choices if byte in b'"]} ']
        if closing and self._random.random() < (0.9 if ending else 0.25):
            return int(self._random.choice(closing))
        plain = [byte for byte in choices if 32 <= byte < 127]
        if plain and self._random.random() < 0.9:
            return int(self._random.choice(plain))
        return int(self._random.choice(choices))


def ended(constraint: Constraint, text: str, most: int = 4_000) -> str:
    """Return ``text``, which was cut, with the end of a JSON value that ``constraint`` allows.

    What is open is closed; what is missing and needed gets the first value that fits. Raises
    ConstraintError, ConstraintDeadEnd, and WalkTooLong where no end is found in ``most`` bytes.
    """
    matcher = Constraints(byte_tokenizer(), 257).start(constraint, "", "cut")
    written, state = bytearray(), _Json()
    for byte in text.encode():
        matcher.consume(byte)
        written.append(byte)
        state.read(byte)
    chance = random.Random(0)
    while not matcher.can_end(len(written)):
        if len(written) - len(text.encode()) > most:
            raise WalkTooLong(f"no end after {most:,} bytes")
        choices = np.flatnonzero(matcher.allowed()[:256])
        wanted = [byte for byte in state.closing if byte in choices]
        plain = [int(byte) for byte in choices if 32 <= byte < 127 and byte not in b'",\\']
        byte = wanted[0] if wanted else chance.choice(plain or [int(byte) for byte in choices])
        matcher.consume(byte)
        written.append(byte)
        state.read(byte)
    return written.decode()


@dataclass(slots=True)
class _Json:
    """Where JSON stands: within a text, after a backslash, or outside."""

    within: bool = False
    escaped: bool = False

    @property
    def closing(self) -> bytes:
        """Return what closes something here, the best first."""
        return b'"' if self.within else b"}],"

    def read(self, byte: int) -> None:
        """Go on."""
        if self.escaped:
            self.escaped = False
        elif self.within and byte == ord("\\"):
            self.escaped = True
        elif byte == ord('"'):
            self.within = not self.within


class _ByteVocabulary:
    """The tokenizer object that llguidance expects: bytes, an end token, then ``words``."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)

    def __init__(self, words: Sequence[bytes], tokenize: Callable[[bytes], list[int]]) -> None:
        end = b"\xff<|im_end|>"
        self.tokens = [*(bytes([byte]) for byte in range(256)), end, *words]
        self._tokenize = tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenize(text if isinstance(text, bytes) else text.encode())


def byte_tokenizer(
    words: Sequence[bytes] = (), tokenize: Callable[[bytes], list[int]] = list
) -> Any:
    """Return the tokenizer of ``fake.FakeModel``: bytes, an end token, then ``words``."""
    wrapper = llguidance.TokenizerWrapper(_ByteVocabulary(words, tokenize))
    return llguidance.LLTokenizer(wrapper, n_vocab=257 + len(words), eos_token=256)


def llama_tokenizer(pieces: list[bytes], vocab: int, tokenize: int, end_tokens: list[int]) -> Any:
    """Return a tokenizer over llama.cpp's vocabulary.

    ``pieces`` are the bytes of every token, control tokens with a leading ``0xff``; ``vocab`` and
    ``tokenize`` are the addresses of the ``llama_vocab`` and of ``llama_tokenize``.
    """
    make: Any = llguidance.LLTokenizer  # its stub lacks from_llamacpp
    return make.from_llamacpp(
        tokens=pieces, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=end_tokens
    )
