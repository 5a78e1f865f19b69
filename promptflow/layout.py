"""Signature, demos and inputs to the parts of a request, and filled slots back to fields.

The wording of prompts lives in layouts/*.jinja: the program writes labels, the model fills slots. A
template sees turns, values and slots as markers drawn afresh for each prompt, so that no content
can become a control token or pass for a slot. Knows neither engines nor DSPy's LMs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from promptflow.engine.interface import TextEngine
from promptflow.engine.model.chat_template import stops_of
from promptflow.engine.request import Beam, Choice, Completion, Fill, Part, Sampling, Slot, Text
from promptflow.errors import (
    NoReasoningBlock,
    TemplateError,
    UnknownField,
    UnsupportedType,
    names_options,
)
from promptflow.fields import Shape, TypedField, to_text
from promptflow.marks import Marks, has_data
from promptflow.sandbox import (
    MAX_SOURCE,
    Job,
    Rendered,
    RenderFailed,
    render_here,
    render_limited,
)
from promptflow.signatures import (
    begins_with_default,
    description_of,
    label_of,
    own_instructions,
    plain_label,
)

CHAT, COMPLETION = "chat", "completion"
FOLDER = Path(__file__).resolve().parent / "layouts"
REASONING = frozenset({"reasoning", "rationale"})
"""Outputs with a budget of their own, ``reasoning_tokens``."""

MAX_TOKENS = 4096
"""Tokens of an output that nothing limits where nobody chose, as far as the context goes."""

LEAST = 32
"""Tokens that such a text must have room for, so that reasoning does not leave it without any."""

BLOCK = "reasoning"
"""The role of what stands in the reasoning block of a turn: see ``TextEngine.scaffold``."""

Scaffold = Callable[[Sequence[str]], tuple[str, ...]]


@names_options
@dataclass(frozen=True, slots=True)
class Decoding:
    """How a predictor's outputs are decoded; None where nobody chose.

    Tokens are per slot; a constrained slot takes what its type needs. ``beam`` searches for the
    most probable text of each output that is not weighed, and takes no ``sampling`` beside it.
    ``weigh`` has every option of a Literal weighed (``Choice.weighed``). Outputs after ``until``
    are not written. ``layout`` is a bundled name or the path of a .jinja file. A text without a
    limit ends before any of ``stop`` too. ``thinking`` is whether reasoning stands in the reasoning
    block of the model's own chat template: ``auto`` where there is one and the first output is
    called reasoning, True in any case (without such an output it is in the fill ``thinking``
    alone), False never. Where it does not, the block is closed.
    """

    sampling: Sampling | None = None
    beam: Beam | None = None
    max_tokens: int | None = None
    reasoning_tokens: int | None = None
    logprobs: int | None = None
    weigh: bool | None = None
    until: str | None = None
    layout: str | None = None
    stop: tuple[str, ...] | None = None
    thinking: bool | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be decoded by."""
        for name, least in (("max_tokens", 1), ("reasoning_tokens", 1), ("logprobs", 0)):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number from {least}")
        if not (
            self.thinking is None or isinstance(self.thinking, bool) or self.thinking == "auto"
        ):
            raise ValueError(f"thinking={self.thinking!r}: give True, False or 'auto'")
        stops = () if self.stop is None else self.stop
        if not isinstance(stops, tuple) or not all(isinstance(s, str) and s for s in stops):
            raise ValueError(f"stop={self.stop!r}: give texts that are not empty")
        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling={self.sampling!r}: give Sampling(temperature=...)")
        if self.beam is not None and not isinstance(self.beam, Beam):
            raise ValueError(f"beam={self.beam!r}: give Beam(width=...)")

    def over(self, below: Decoding) -> Decoding:
        """Return this, with what nobody chose here taken from ``below``."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return replace(below, **{name: value for name, value in own.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """Return what was chosen as JSON data."""
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        if self.sampling is not None:
            bias = [list(pair) for pair in self.sampling.logit_bias]
            chosen["sampling"] = {**chosen["sampling"], "logit_bias": bias}
        if self.stop is not None:
            chosen["stop"] = list(self.stop)
        return chosen

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decoding:
        """Return what ``to_json`` gave. Raises TypeError for an unknown name."""
        given = dict(data)
        if (sampling := given.get("sampling")) is not None:
            bias = tuple((int(i), float(b)) for i, b in sampling.get("logit_bias", ()))
            given["sampling"] = Sampling(**{**sampling, "logit_bias": bias})
        if (beam := given.get("beam")) is not None:
            given["beam"] = Beam(**beam)
        if (stop := given.get("stop")) is not None:
            given["stop"] = tuple(stop)
        return cls(**given)


_UNCHOSEN = Decoding()


@dataclass(frozen=True, slots=True)
class Field:
    """What a template sees of a field; ``value`` is a marker for its text or its slot.

    ``long`` tells that the text has more than one line. For the rest see ``fields.Shape``.
    """

    name: str
    label: str
    description: str
    value: str
    long: bool
    kind: str = "text"
    options: tuple[str, ...] = ()
    low: float | str | None = None
    high: float | str | None = None
    sketch: str = ""
    quotes: str = ""


@dataclass(frozen=True, slots=True)
class Demo:
    """What a template sees of a demo: the fields that it has."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str


class _Boundary:
    """Where requests that begin alike are likely to differ: see ``Text``."""


@dataclass(frozen=True, slots=True)
class _Reasoned:
    """The value of a demo's first output, with the reasoning that led to it."""

    text: str
    reasoning: str


_Meaning = str | Slot | _Reasoned


@dataclass(slots=True)
class _Markers:
    """Markers and what each stands for; that of a turn names its role. ``marks`` are of data."""

    marks: Marks
    secret: str = field(default_factory=lambda: secrets.token_hex(8))
    meanings: list[_Meaning] = field(default_factory=list)

    def mark(self, meaning: _Meaning) -> str:
        """Return a fresh marker."""
        self.meanings.append(meaning)
        return f"\x00{self.secret}.{len(self.meanings) - 1}\x00"

    @property
    def boundary(self) -> str:
        """Return the marker of a boundary."""
        return f"\x00{self.secret}.boundary\x00"

    def split(self, text: str, layout: str) -> Iterator[_Turn | _Boundary | _Meaning]:
        """Return the text with what its markers mean. Raises TemplateError for a wrong use."""
        counts = [0] * len(self.meanings)
        for number, piece in enumerate(re.split(f"\x00{self.secret}\\.([^\x00]*)\x00", text)):
            if number % 2 and piece.startswith("turn:"):
                yield _Turn(piece.removeprefix("turn:"))
            elif number % 2 and piece == "boundary":
                yield _Boundary()
            elif number % 2 and piece.isdecimal() and int(piece) < len(counts):
                counts[int(piece)] += 1
                yield self.meanings[int(piece)]
            elif number % 2 or self.secret in piece:
                raise TemplateError(
                    f"layout {layout!r} changes a value; write {{{{ field.value }}}}"
                )
            else:
                yield piece
        for meaning, count in zip(self.meanings, counts, strict=True):
            if isinstance(meaning, Slot) and count != 1:
                raise TemplateError(
                    f"layout {layout!r} writes the slot of output {meaning.name!r} {count} times; "
                    "write {{ field.value }} once for each field of outputs"
                )
            if not isinstance(meaning, Slot) and not count:
                text = meaning.text if isinstance(meaning, _Reasoned) else meaning
                raise TemplateError(
                    f"layout {layout!r} leaves out or changes the value {text[:40]!r}"
                )


def render(
    signature: Any,
    demos: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
    scaffold: Scaffold,
    decoding: Decoding = _UNCHOSEN,
    turns: Sequence[Mapping[str, Any]] = (),
) -> tuple[Part, ...]:
    """Return a prompt with slots for the outputs that ``inputs`` does not hold.

    The layout is chat and the sampling greedy where nobody chose. ``turns`` are what was said
    before, after the demos; each holds some of the fields, and then inputs may be missing. Raises
    UnsupportedType, UnknownField and TemplateError.
    """
    asked = _Asked(signature, demos, inputs, scaffold, decoding, turns)
    thought = asked.thought()
    if thought is not None:
        try:
            return asked.parts(thought)
        except NoReasoningBlock:
            if decoding.thinking is True:
                raise
    return asked.parts(None)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What ``render`` was given."""

    signature: Any
    demos: Sequence[Mapping[str, Any]]
    inputs: Mapping[str, Any]
    scaffold: Scaffold
    decoding: Decoding
    turns: Sequence[Mapping[str, Any]]

    def written(self) -> list[tuple[str, Any]]:
        """Return the outputs up to the last that is wanted. Raises UnknownField."""
        outputs, until = list(self.signature.output_fields.items()), self.decoding.until
        names = [name for name, _ in outputs]
        if until is not None and until not in names:
            raise UnknownField(
                f"there is no output {until!r} to stop after; the outputs are {names}"
            )
        return outputs if until is None else outputs[: names.index(until) + 1]

    def thought(self) -> str | None:
        """Return the name of what is to stand in the model's reasoning block, if anything is.

        Raises NoReasoningBlock where thinking was asked for and the chat template has no block.
        """
        if self.decoding.thinking is False:
            return None
        name, info = self.written()[0]
        own = name if reasons(name, info) else None
        if own is None and self.decoding.thinking is not True:
            return None
        try:
            self.scaffold(("user", BLOCK))
        except TemplateError:
            if self.decoding.thinking is True:
                raise
            return None
        return own or next(
            n for n in ("thinking", "own_thinking") if n not in self.signature.fields
        )

    def parts(self, thought: str | None) -> tuple[Part, ...]:
        """Return the prompt; NoReasoningBlock where the layout has no place for ``thought``."""
        signature, inputs = self.signature, self.inputs
        layout = self.decoding.layout or CHAT
        markers = _Markers(marks=Marks(signature, [*self.demos, *self.turns, inputs]))
        shown = signature.delete(thought) if thought in signature.output_fields else signature
        written = [(name, info) for name, info in self.written() if name != thought]
        slots = _Slots(dict(written), inputs, self.decoding, markers)
        past, open_fields = _turns(signature, self.turns, markers, thought)
        asked = {n: f for n, f in signature.input_fields.items() if n in inputs or not self.turns}
        demos = [_demo(signature, demo, markers, thought) for demo in self.demos]
        examples = [demo for demo in demos if demo is not None]
        outputs = signature.output_fields
        made = {
            "instructions": own_instructions(signature),
            "standard": begins_with_default(signature),
            "inputs": (*open_fields, *_shown_fields(asked, inputs, markers)),
            "demos": [*examples, *past],
            "examples": len(examples),
            "outputs": tuple(slots.field(name, info) for name, info in written),
            "fields": tuple(_described(name, info) for name, info in outputs.items()),
            "data": data_note() if needs_note(signature) else "",
            "reasons": bool(REASONING & set(shown.output_fields)),
            "thought": thought or "",
            "boundary": markers.boundary,
        }
        done = _rendered(layout, made, markers.secret)
        pieces = list(markers.split(done.text, layout))
        opened = () if thought is None else slots.thought(thought, signature)
        return _assembled(pieces, opened, self.scaffold, done.stop, layout)


@functools.cache
def data_note() -> str:
    """Return what a prompt says of text between marks: see ``marks``."""
    return (FOLDER / "data.txt").read_text(encoding="utf-8").strip()


def needs_note(signature: Any) -> bool:
    """Say whether a prompt has to say what marks are: there are some, and nobody has said it."""
    return has_data(signature) and data_note() not in (signature.instructions or "")


def reasons(name: str, info: Any) -> bool:
    """Say whether an output is reasoning: by its name, or by the type ``dspy.Reasoning``."""
    typed = TypedField.of(name, info)
    known = name in REASONING or getattr(typed.annotation, "__name__", "") == "Reasoning"
    return known and typed.shape.written == "free" and typed.shape.kind == "text"


def read(signature: Any, completion: Completion) -> dict[str, Any]:
    """Return the values of the outputs that were filled. Raises ParseError or its error."""
    if completion.error is not None:
        raise completion.error
    values = {}
    for name, info in signature.output_fields.items():
        if (fill := completion.fills.get(name)) is not None:
            typed = TypedField.of(name, info)
            if typed.shape.written == "free":
                fill = _without_label(fill, label_of(info))
            values[name] = typed.read(fill)
    return values


def _without_label(fill: Fill, label: str) -> Fill:
    """Return free text without its own label, which models repeat."""
    text = fill.text.lstrip()
    return replace(fill, text=text.removeprefix(label)) if text.startswith(label) else fill


def layout_for(engine: TextEngine, chosen: str | Path | None = None) -> str:
    """Return ``chosen``, or the layout of a model: chat, or completion without a chat template."""
    if chosen:
        return str(chosen)
    if engine.info.template:
        return CHAT
    try:
        engine.scaffold(("user",))
    except TemplateError:
        return COMPLETION
    return CHAT


def find_layout(layout: str | Path) -> Path:
    """Return the file of a layout. Raises TemplateError naming the bundled ones."""
    name = str(layout)
    path = Path(name) if "/" in name or name.endswith(".jinja") else FOLDER / f"{name}.jinja"
    if not path.is_file():
        bundled = ", ".join(sorted(known.stem for known in FOLDER.glob("*.jinja")))
        raise TemplateError(f"no layout {name!r}; use {bundled}, or the path of a .jinja file")
    return path


@dataclass(frozen=True, slots=True)
class _Slots:
    """Makes the output fields of one prompt."""

    written: Mapping[str, Any]
    inputs: Mapping[str, Any]
    decoding: Decoding
    markers: _Markers

    def field(self, name: str, info: Any) -> Field:
        """Return an output with its slot, or with its text where the inputs hold it."""
        typed = TypedField.of(name, info)
        shape = typed.shape
        if name in self.inputs:
            return _field(name, info, typed.text(self.inputs[name]), self.markers, shape)
        constraint = typed.constraint(self.inputs)
        chosen = self.decoding
        if chosen.weigh and isinstance(constraint, Choice):
            constraint = replace(constraint, weighed=True)
        free = shape.written == "free"
        own = chosen.reasoning_tokens if reasons(name, info) else chosen.max_tokens
        tokens = self._tokens(shape, own)
        slot = Slot(
            name,
            constraint,
            max_tokens=tokens,
            stop=() if constraint else (*self._stops(name, shape), *(chosen.stop or ())),
            sampling=chosen.sampling or Sampling(),
            logprobs=chosen.logprobs,
            beam=None if isinstance(constraint, Choice) and constraint.weighed else chosen.beam,
            fits=not shape.is_small,
            least=min(LEAST, tokens) if free else 1,
            needs_text=constraint is None,
        )
        return _field(name, info, slot, self.markers, shape)

    def thought(self, name: str, signature: Any) -> tuple[str | Slot, ...]:
        """Return what stands in the reasoning block: a label that somebody chose, and the slot."""
        info = signature.output_fields.get(name)
        label = "" if info is None else label_of(info)
        lead = f"{label} " if label and label != plain_label(name) else ""
        if name in self.inputs:
            return (lead + TypedField.of(name, info).text(self.inputs[name]),)
        chosen = self.decoding
        tokens = chosen.reasoning_tokens or MAX_TOKENS
        slot = Slot(
            name,
            max_tokens=tokens,
            stop=chosen.stop or (),
            sampling=chosen.sampling or Sampling(),
            logprobs=chosen.logprobs,
            fits=True,
            least=min(LEAST, tokens),
        )
        return (lead, slot)

    def _tokens(self, shape: Shape, own: int | None) -> int:
        """Return the bound of a slot: a small value has its own, others take what was chosen."""
        if shape.tokens is not None and shape.is_small:
            return shape.tokens
        if shape.written == "free":
            return own or MAX_TOKENS
        return min(own or MAX_TOKENS, shape.tokens or MAX_TOKENS)

    def _stops(self, name: str, shape: Shape) -> tuple[str, ...]:
        """Return what ends free text: the label of an output that follows, or code's fence."""
        names = list(self.written)
        later = (label_of(self.written[other]) for other in names[names.index(name) + 1 :])
        fence = ("\n```",) if shape.kind == "code" else ()
        return (*fence, *(f"\n{label}" for label in later if label))


def _described(name: str, info: Any) -> Field:
    """Return an output without a value, for the part of a prompt that says what is wanted."""
    return _field(name, info, "", None, TypedField.of(name, info).shape)


def _field(
    name: str, info: Any, value: str | Slot, markers: _Markers | None, shape: Shape
) -> Field:
    return Field(
        name,
        label_of(info),
        description_of(name, info),
        markers.mark(value) if markers else "",
        isinstance(value, str) and "\n" in value,
        shape.kind,
        shape.options,
        shape.low,
        shape.high,
        shape.sketch,
        shape.quotes,
    )


_PLAIN = Shape()


def _shown_fields(
    infos: Mapping[str, Any], values: Mapping[str, Any], markers: _Markers
) -> tuple[Field, ...]:
    if missing := [name for name in infos if name not in values]:
        raise UnknownField(f"the inputs {missing} are missing; give each of {list(infos)}")
    return tuple(
        _field(
            name, info, markers.marks.marked(info, _input_text(name, values[name])), markers, _PLAIN
        )
        for name, info in infos.items()
    )


def _input_text(name: str, value: Any) -> str:
    try:
        return to_text(value)
    except UnsupportedType as error:
        raise UnsupportedType(f"input {name!r}: {error}") from error


def _demo(
    signature: Any, demo: Mapping[str, Any], markers: _Markers, thought: str | None
) -> Demo | None:
    """Return what a demo has of the signature; None where it lacks all inputs or all outputs."""
    held = {name: demo[name] for name in demo.keys() if demo[name] is not None}  # noqa: SIM118
    inputs = {n: info for n, info in signature.input_fields.items() if n in held}
    outputs = {n: info for n, info in signature.output_fields.items() if n in held}
    if not inputs or not outputs:
        return None
    return Demo(_shown_fields(inputs, held, markers), _told_fields(outputs, held, markers, thought))


def _told_fields(
    infos: Mapping[str, Any], values: Mapping[str, Any], markers: _Markers, thought: str | None
) -> tuple[Field, ...]:
    """Return outputs that were given, with their texts; ``thought`` apart, in the block."""
    texts = {name: TypedField.of(name, info).text(values[name]) for name, info in infos.items()}
    reasoning = ""
    if thought in texts and len(texts) > 1:
        reasoning = texts.pop(thought)
        label = label_of(infos[thought])
        reasoning = reasoning if label == plain_label(thought) else f"{label} {reasoning}"
    fields = []
    for number, (name, text) in enumerate(texts.items()):
        meaning = _Reasoned(text, reasoning) if reasoning and not number else text
        made = _field(name, infos[name], text, None, _PLAIN)
        fields.append(replace(made, value=markers.mark(meaning)))
    return tuple(fields)


RESULTS = "tool_call_results"
"""What the outputs of a past turn may carry beside their value: it is said to the model next."""


def _turns(
    signature: Any,
    turns: Sequence[Mapping[str, Any]],
    markers: _Markers,
    thought: str | None,
) -> tuple[list[Demo], tuple[Field, ...]]:
    """Return past turns as demos, and what was said to the model after the last of them."""
    past: list[Demo] = []
    said: tuple[Field, ...] = ()
    for turn in turns:
        held = {name: value for name, value in turn.items() if value is not None}
        inputs = {n: info for n, info in signature.input_fields.items() if n in held}
        outputs = {n: info for n, info in signature.output_fields.items() if n in held}
        said += _shown_fields(inputs, held, markers)
        if outputs:
            results = [r for n in outputs if (r := getattr(held[n], RESULTS, None)) is not None]
            plain = {n: _without_results(held[n]) for n in outputs}
            past.append(Demo(said, _told_fields(outputs, plain, markers, thought)))
            said = tuple(
                Field(RESULTS, "Results:", "", markers.mark(text), "\n" in text)
                for text in map(to_text, results)
            )
    return past, said


def _without_results(value: Any) -> Any:
    if getattr(value, RESULTS, None) is None:
        return value
    return value.model_copy(update={RESULTS: None})


@functools.lru_cache(maxsize=64)
def _source(path: Path, mtime_ns: int, size: int) -> str:
    if size > MAX_SOURCE:
        raise TemplateError(f"layout {path}: {size:,} bytes are over {MAX_SOURCE:,}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"layout {path}: it cannot be read as UTF-8: {error}") from error


def _rendered(layout: str, seen: Mapping[str, Any], secret: str) -> Rendered:
    """Return the text of a layout and the stops that it sets.

    A layout that is not of this package is a program from a stranger: it runs under limits.
    """
    path = find_layout(layout)
    status = path.stat()
    source = _source(path, status.st_mtime_ns, status.st_size)
    try:
        if path.resolve().parent == FOLDER:
            return render_here(Job("layout", source, seen, secret))
        return render_limited(Job("layout", source, _as_data(seen), secret))
    except RenderFailed as error:
        where = f"{path}:{error.line}" if error.line else str(path)
        raise TemplateError(f"layout {where}: {error}") from error


def _as_data(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a template sees as JSON data."""
    shown = {}
    for name, value in seen.items():
        several = isinstance(value, list | tuple)
        shown[name] = [asdict(one) for one in value] if several else value
    return shown


def _assembled(
    pieces: Sequence[_Turn | _Boundary | _Meaning],
    thought: Sequence[str | Slot],
    scaffold: Scaffold,
    stop: tuple[str, ...],
    layout: str,
) -> tuple[Part, ...]:
    """Join content with the chat template's own texts around it."""
    pieces = _with_reasoning(pieces, thought, layout)
    roles = [piece.role for piece in pieces if isinstance(piece, _Turn)]
    # The model speaks next: the texts of the template end where its turn opens.
    roles = roles[:-1] if roles[-1:] == ["assistant"] else roles
    made = scaffold(roles) if roles else ()
    texts = iter(made)
    last = len(roles) - (roles[-1:] == [BLOCK])  # the text before what the model is asked
    parts: list[Part] = []
    turns = 0
    for number, piece in enumerate(pieces):
        if isinstance(piece, _Turn):
            turns += 1
            # What comes before the turn that is asked about is alike for all inputs.
            _append(parts, Text(next(texts), trusted=True, boundary=turns == last))
        elif isinstance(piece, _Boundary):
            if parts and isinstance(before := parts[-1], Text):
                parts[-1] = replace(before, boundary=True)
        elif isinstance(piece, Slot):
            closing = made[-1] if thought and turns == last + 1 else ""
            parts.append(_led(parts, piece, stop, closing))
        elif piece:
            if roles and number == 0:
                raise TemplateError(f"layout {layout!r}: the text {piece[:40]!r} is in no turn")
            _append(parts, Text(piece))
    for text in texts:
        _append(parts, Text(text, trusted=True))
    return tuple(parts)


def _with_reasoning(
    pieces: Sequence[_Turn | _Boundary | _Meaning], thought: Sequence[str | Slot], layout: str
) -> list[_Turn | _Boundary | str | Slot]:
    """Return pieces with reasoning as turns of their own, before the answers that it led to.

    Raises NoReasoningBlock where an answer does not stand in a turn of the assistant of its own.
    """
    found: list[_Turn | _Boundary | str | Slot] = []
    answer: int | None = None  # where the assistant's turn begins, until its reasoning is known
    for piece in pieces:
        if isinstance(piece, _Reasoned):
            if answer is None:
                raise NoReasoningBlock(_no_place(layout))
            found[answer:answer] = [_Turn(BLOCK), piece.reasoning]
            answer = None
            found.append(piece.text)
            continue
        if isinstance(piece, _Turn):
            answer = len(found) if piece.role == "assistant" else None
        found.append(piece)
    if thought:
        if answer is None:
            raise NoReasoningBlock(_no_place(layout))
        found[answer:answer] = [_Turn(BLOCK), *thought]
    return found


def _no_place(layout: str) -> str:
    return (
        f"layout {layout!r} has no turn('assistant') of its own for each answer, so that reasoning "
        "has no block to stand in: leave out thinking=True, or use layout='chat'"
    )


def _append(parts: list[Part], text: Text) -> None:
    last = parts[-1] if parts else None
    if isinstance(last, Text) and last.trusted == text.trusted and not last.boundary:
        parts[-1] = replace(text, text=last.text + text.text)
    elif text.text:
        parts.append(text)


def _led(parts: list[Part], slot: Slot, stop: tuple[str, ...], closing: str) -> Slot:
    """Return the slot with the spaces before it as its lead, and take them from the text.

    Tokenizers join a space with the word that follows it.
    """
    lead = ""
    last = parts[-1] if parts else None
    if isinstance(last, Text) and not last.trusted:
        text = last.text.rstrip(" ")
        lead = last.text[len(text) :]
        if text:
            parts[-1] = replace(last, text=text)
        elif lead:
            parts.pop()
    if closing:
        # A block that the model closes ends there; what a layout stops at is for answers.
        stops = (*stops_of(closing), *slot.stop)
    else:
        stops = slot.stop if slot.constraint else (*slot.stop, *stop)
    return replace(slot, stop=stops, lead=lead)
