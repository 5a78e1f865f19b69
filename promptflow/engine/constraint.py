"""Constraints as token masks, by llguidance: the only file that imports it.

A constraint becomes one Lark grammar: the slot's lead, then the body. Limits are checked before
anything native sees the text. Matchers never raise for what a user wrote; their error state becomes
ConstraintError here.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from promptflow.engine.request import Choice, Constraint, Json, Lark, Regex, Substring
from promptflow.errors import ConstraintDeadEnd, ConstraintError

MAX_BYTES = 64 * 1024
MAX_SUBSTRING_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 1_000
_COMPILED = 256

# Compact JSON with one space after separators: what models write, and most of it is forced.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar(constraint: Constraint, lead: str) -> str:
    """Return the Lark grammar of ``lead`` followed by ``constraint``.

    Raises ConstraintError for a schema, pattern or list of options outside the limits.
    """
    start = f"{_quoted(lead)} body" if lead else "body"
    if isinstance(constraint, Lark):
        _check_size(constraint.grammar, MAX_BYTES)
        if lead:
            raise ConstraintError("a Lark constraint writes its own lead: give the slot lead=''")
        return constraint.grammar
    return f"start: {start}\n{_body(constraint)}\n"


def _body(constraint: Constraint) -> str:
    if isinstance(constraint, Choice):
        if not constraint.options or "" in constraint.options:
            raise ConstraintError(f"a choice needs non-empty options, got {constraint.options!r}")
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
        raise ConstraintError("a quotation needs at least one text to quote from, got none")
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
    """Escape the slashes that would end a Lark pattern."""
    escaped, skip = [], False
    for char in pattern:
        if skip:
            skip = False
        elif char == "\\":
            skip = True
        elif char == "/":
            escaped.append("\\")
        escaped.append("\\n" if char == "\n" else char)
    return "".join(escaped)


def _check_size(text: str, limit: int) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise ConstraintError(f"a constraint of {size:,} bytes is over the limit of {limit:,}")


def _styled_schema(text: str) -> dict[str, Any] | bool:
    """Return the schema with our JSON style, after checking size, depth and references."""
    _check_size(text, MAX_BYTES)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the JSON Schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConstraintError(f"a JSON Schema is an object, got {type(schema).__name__}")
    nodes, stack = 0, [(schema, 1)]
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise ConstraintError(
                f"the JSON Schema is over the limits of {MAX_DEPTH} levels and {MAX_NODES:,} nodes"
            )
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise ConstraintError(f"$ref {reference!r}: only references within the schema")
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)
    return {**schema, "x-guidance": {**_JSON_STYLE, **schema.get("x-guidance", {})}}


class Matcher:
    """Where a slot stands in its constraint: what may follow, what must."""

    def __init__(self, matcher: Any, vocabulary: int, lead: int, needs_content: bool) -> None:
        """Follow ``matcher``; content starts after ``lead`` bytes."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = np.zeros((vocabulary + 31) // 32, dtype=np.int32)
        self._lead = lead
        self._needs_content = needs_content

    def allowed(self) -> NDArray[np.bool_]:
        """Return a flag for each id that may follow; raise ConstraintDeadEnd where none may."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise ConstraintError(f"the constraint failed: {self._matcher.get_error()[:300]}")
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        flags = bits.view(np.bool_)
        if not flags.any():
            raise ConstraintDeadEnd("the constraint allows no token here")
        return flags

    def consume(self, token: int) -> None:
        """Move past ``token``."""
        if not self._matcher.consume_token(token):
            raise ConstraintError(f"the constraint failed: {self._matcher.get_error()[:300]}")

    def forced(self) -> list[int]:
        """Return the tokens that must follow, without moving."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def can_end(self, length: int) -> bool:
        """Return whether text of ``length`` bytes so far, its lead included, is complete."""
        if self._needs_content and length <= self._lead:
            return False
        return bool(self._matcher.is_accepting())

    def must_end(self) -> bool:
        """Return whether nothing can follow."""
        return bool(self._matcher.is_stopped())


class Constraints:
    """Compile constraints for one tokenizer; the last 256 grammars stay compiled."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """Use an ``llguidance.LLTokenizer``."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[tuple[Constraint, str], Any] = OrderedDict()

    def start(self, constraint: Constraint, lead: str) -> Matcher:
        """Return a fresh matcher; raises ConstraintError for what llguidance refuses."""
        key = (constraint, lead)
        compiled = self._compiled.get(key)
        if compiled is None:
            text = llguidance.LLMatcher.grammar_from_lark(grammar(constraint, lead))
            compiled = llguidance.LLMatcher(self._tokenizer, text, log_level=0)
            if compiled.is_error():
                name = type(constraint).__name__
                raise ConstraintError(
                    f"the {name} constraint cannot be compiled: {compiled.get_error()[:500]}"
                )
            self._compiled[key] = compiled
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        needs_content = isinstance(constraint, Substring)
        return Matcher(compiled.deep_copy(), self._vocabulary, len(lead.encode()), needs_content)


class _ByteVocabulary:
    """The tokenizer object that llguidance expects, over ``fake.FakeModel``'s bytes."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = [*(bytes([byte]) for byte in range(256)), b"\xff<|im_end|>"]  # noqa: RUF012

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def byte_tokenizer() -> Any:
    """Return the tokenizer of ``fake.FakeModel``."""
    wrapper = llguidance.TokenizerWrapper(_ByteVocabulary())
    return llguidance.LLTokenizer(wrapper, n_vocab=257, eos_token=256)


def llama_tokenizer(pieces: list[bytes], vocab: int, tokenize: int, end_tokens: list[int]) -> Any:
    """Return a tokenizer over llama.cpp's vocabulary.

    ``pieces`` are the bytes of every token, control tokens with a leading ``0xff``; ``vocab`` and
    ``tokenize`` are the addresses of the ``llama_vocab`` and of ``llama_tokenize``.
    """
    make: Any = llguidance.LLTokenizer  # its stub lacks from_llamacpp
    return make.from_llamacpp(
        tokens=pieces, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=end_tokens
    )
