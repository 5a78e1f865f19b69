"""Signature, demos and inputs to the parts of a request, and filled slots back to fields.

The wording of prompts lives in layouts/*.jinja: the program writes labels, the model fills slots.
Each sees values and slots as markers, as text or as JSON: see ``prompt``. Knows neither engines nor
DSPy's LMs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from promptflow.engine.interface import TextEngine
from promptflow.engine.request import Beam, Choice, Completion, Fill, Sampling, Slot
from promptflow.errors import (
    NoReasoningBlock,
    TemplateError,
    UnknownField,
    UnsupportedType,
    names_options,
)
from promptflow.fields import Shape, TypedField, to_text
from promptflow.json_fields import as_json, json_constraint
from promptflow.marks import Marks, data_of, has_data
from promptflow.prompt import BLOCK, Given, Markers, Open, Origin, Prompt, Scaffold, assembled
from promptflow.sandbox import (
    LAYOUTS,
    MAX_SOURCE,
    Job,
    Rendered,
    RenderFailed,
    imports_of,
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
from promptflow.storage import sha256_bytes

CHAT, COMPLETION = "chat", "completion"
FOLDER = LAYOUTS
REASONING = frozenset({"reasoning", "rationale"})
"""Outputs with a budget of their own, ``reasoning_tokens``."""

MAX_TOKENS = 4096
"""Tokens of an output that nothing limits where nobody chose, as far as the context goes."""

LEAST = 32
"""Tokens that such a text must have room for, so that reasoning does not leave it without any."""


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

    ``json`` is a marker for the same as a JSON value: a layout writes the one or the other. ``gap``
    is what may stand before it: a space, or a line break where the text has several lines.
    ``heading`` is the name, or the label that somebody chose (``own``) without its colon. ``long``
    tells that the text has more than one line. For the rest see ``fields.Shape``.
    """

    name: str
    label: str
    description: str
    value: str
    json: str
    gap: str
    heading: str
    own: bool
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


def render(
    signature: Any,
    demos: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
    scaffold: Scaffold,
    decoding: Decoding = _UNCHOSEN,
    turns: Sequence[Mapping[str, Any]] = (),
) -> Prompt:
    """Return a prompt with slots for the outputs that ``inputs`` does not hold.

    The layout is chat and the sampling greedy where nobody chose. ``turns`` are what was said
    before, after the demos; each holds some of the fields, and then inputs may be missing. Raises
    UnsupportedType, UnknownField and TemplateError.
    """
    asked = _Asked(signature, demos, inputs, scaffold, decoding, turns)
    thought = asked.thought()
    if thought is not None:
        try:
            return asked.prompt(thought)
        except NoReasoningBlock:
            if decoding.thinking is True:
                raise
    return asked.prompt(None)


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

    def prompt(self, thought: str | None) -> Prompt:
        """Return the prompt; NoReasoningBlock where the layout has no place for ``thought``."""
        signature, inputs = self.signature, self.inputs
        layout = self.decoding.layout or CHAT
        marks = Marks(signature, [*self.demos, *self.turns, inputs])
        making = _Making(Markers(), marks, thought)
        shown = signature.delete(thought) if thought in signature.output_fields else signature
        written = [(name, info) for name, info in self.written() if name != thought]
        slots = _Slots(inputs, self.decoding, making)
        past, said = making.turns(signature, self.turns)
        asked = {n: f for n, f in signature.input_fields.items() if n in inputs or not self.turns}
        demos = [making.demo(signature, demo) for demo in self.demos]
        examples = [demo for demo in demos if demo is not None]
        shown_inputs = (*said, *making.inputs(asked, inputs))
        making.markers.ask([one.value for one in shown_inputs])
        outputs = signature.output_fields
        made = {
            "instructions": own_instructions(signature),
            "standard": begins_with_default(signature),
            "inputs": shown_inputs,
            "demos": [*examples, *past],
            "examples": len(examples),
            "outputs": tuple(slots.field(name, info) for name, info in written),
            "fields": tuple(_described(name, info) for name, info in outputs.items()),
            "data": data_note() if needs_note(signature) else "",
            "reasons": bool(REASONING & set(shown.output_fields)),
            "thought": thought or "",
            "boundary": making.markers.boundary,
        }
        done = _rendered(layout, made, making.markers.secret)
        pieces = list(making.markers.split(done.text, layout))
        opened = () if thought is None else slots.thought(thought, signature)
        return assembled(pieces, opened, self.scaffold, done.stop, layout)


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


def layout_identity(layout: str | Path) -> str:
    """Return what a layout is: a hash of its text and of the bundled ones that it imports."""
    source = find_layout(layout).read_text(encoding="utf-8", errors="replace")
    imported = [(FOLDER / name).read_text(encoding="utf-8") for name in imports_of(source)]
    return sha256_bytes("\0".join([source, *imported]).encode())


def layouts() -> tuple[str, ...]:
    """Return the names of the bundled layouts."""
    return tuple(sorted(known.stem for known in FOLDER.glob("*.jinja")))


def find_layout(layout: str | Path) -> Path:
    """Return the file of a layout. Raises TemplateError naming the bundled ones."""
    name = str(layout)
    path = Path(name) if "/" in name or name.endswith(".jinja") else FOLDER / f"{name}.jinja"
    if not path.is_file():
        bundled = ", ".join(layouts())
        raise TemplateError(f"no layout {name!r}; use {bundled}, or the path of a .jinja file")
    return path


@dataclass(frozen=True, slots=True)
class _Slots:
    """Makes the output fields of one prompt."""

    inputs: Mapping[str, Any]
    decoding: Decoding
    making: _Making

    def field(self, name: str, info: Any) -> Field:
        """Return an output with its slot, or with its text where the inputs hold it."""
        typed = TypedField.of(name, info)
        if name in self.inputs:
            return self.making.output(name, info, typed.text(self.inputs[name]), "input")
        label = label_of(info)
        meaning = Open(
            self.slot(typed, info, as_json=False),
            lambda: self.slot(typed, info, as_json=True),
            typed,
            label,
            _heading(name, label),
        )
        return _field(name, info, typed.shape, self.making.markers.mark(meaning))

    def slot(self, typed: TypedField, info: Any, *, as_json: bool) -> Slot:
        """Return the slot of an output, for its plain text or for a JSON value."""
        shape, chosen, stops = typed.shape, self.decoding, self.decoding.stop or ()
        constraint = (
            json_constraint(typed, self.inputs, stops) if as_json else typed.constraint(self.inputs)
        )
        if chosen.weigh and isinstance(constraint, Choice):
            constraint = replace(constraint, weighed=True)
        free = shape.written == "free"
        own = chosen.reasoning_tokens if reasons(typed.name, info) else chosen.max_tokens
        tokens = self._tokens(shape, own)
        if constraint and not as_json:
            stops = ()
        elif not as_json and shape.kind == "code":
            stops = ("\n```", *stops)
        return Slot(
            typed.name,
            constraint,
            # Escapes may double a text, and marks stand around it.
            max_tokens=2 * tokens + 2 if as_json and shape.is_small else tokens,
            stop=stops,
            sampling=chosen.sampling or Sampling(),
            logprobs=chosen.logprobs,
            beam=None if isinstance(constraint, Choice) and constraint.weighed else chosen.beam,
            fits=not shape.is_small,
            least=min(LEAST, tokens) if free else 1,
            needs_text=constraint is None,
        )

    def thought(self, name: str, signature: Any) -> tuple[Given | Open, ...]:
        """Return what stands in the reasoning block: a label that somebody chose, and the slot."""
        info = signature.output_fields.get(name)
        label = "" if info is None else label_of(info)
        lead = f"{label} " if label and label != plain_label(name) else ""
        if name in self.inputs:
            text = lead + TypedField.of(name, info).text(self.inputs[name])
            return (Given(text, "input", lambda: text),)
        chosen = self.decoding
        tokens = chosen.reasoning_tokens or MAX_TOKENS
        slot = Slot(
            name,
            max_tokens=tokens,
            stop=chosen.stop or (),
            sampling=chosen.sampling or Sampling(),
            logprobs=chosen.logprobs,
            beam=chosen.beam,
            fits=True,
            least=min(LEAST, tokens),
        )
        opened = Open(slot, lambda: slot, TypedField(name, str))
        return (Given(lead, "template", lambda: lead), opened) if lead else (opened,)

    def _tokens(self, shape: Shape, own: int | None) -> int:
        """Return the bound of a slot: a small value has its own, others take what was chosen."""
        if shape.tokens is not None and shape.is_small:
            return shape.tokens
        if shape.written == "free":
            return own or MAX_TOKENS
        return min(own or MAX_TOKENS, shape.tokens or MAX_TOKENS)


def _described(name: str, info: Any) -> Field:
    """Return an output without a value, for the part of a prompt that says what is wanted."""
    return _field(name, info, TypedField.of(name, info).shape, ("", "", ""))


def _field(
    name: str, info: Any, shape: Shape, markers: tuple[str, str, str], long: bool = False
) -> Field:
    label = label_of(info)
    return Field(
        name,
        label,
        description_of(name, info),
        *markers,
        _heading(name, label),
        label != plain_label(name),
        long,
        shape.kind,
        shape.options,
        shape.low,
        shape.high,
        shape.sketch,
        shape.quotes,
    )


def _heading(name: str, label: str) -> str:
    return name if label == plain_label(name) else label.strip().removesuffix(":") or name


_PLAIN = Shape()


@dataclass(frozen=True, slots=True)
class _Making:
    """Makes the fields of one prompt whose values are known; ``thought`` stands in its block."""

    markers: Markers
    marks: Marks
    thought: str | None

    def inputs(
        self, infos: Mapping[str, Any], values: Mapping[str, Any], origin: Origin = "input"
    ) -> tuple[Field, ...]:
        """Return inputs with their texts. Raises UnknownField and UnsupportedType."""
        if missing := [name for name in infos if name not in values]:
            raise UnknownField(f"the inputs {missing} are missing; give each of {list(infos)}")
        return tuple(self._input(name, info, values[name], origin) for name, info in infos.items())

    def _input(self, name: str, info: Any, value: Any, origin: Origin) -> Field:
        text = self.marks.marked(info, _input_text(name, value))
        marked = data_of(info) is not None
        meaning = Given(text, origin, lambda: _quoted(text), marked=marked)
        return _field(name, info, _PLAIN, self.markers.mark(meaning), "\n" in text)

    def output(self, name: str, info: Any, text: str, origin: Origin, reasoning: str = "") -> Field:
        """Return an output with its text."""
        typed, label = TypedField.of(name, info), label_of(info)
        meaning = Given(
            text,
            origin,
            lambda: as_json(typed, text),
            reasoning,
            label=label,
            heading=_heading(name, label),
        )
        return _field(name, info, typed.shape, self.markers.mark(meaning), "\n" in text)

    def outputs(
        self, infos: Mapping[str, Any], values: Mapping[str, Any], origin: Origin
    ) -> tuple[Field, ...]:
        """Return outputs that were given, with their texts; ``thought`` apart, in the block."""
        texts = {name: TypedField.of(name, info).text(values[name]) for name, info in infos.items()}
        reasoning, thought = "", self.thought
        if thought in texts and len(texts) > 1:
            reasoning = texts.pop(thought)
            label = label_of(infos[thought])
            reasoning = reasoning if label == plain_label(thought) else f"{label} {reasoning}"
        return tuple(
            self.output(name, infos[name], text, origin, "" if number else reasoning)
            for number, (name, text) in enumerate(texts.items())
        )

    def demo(self, signature: Any, demo: Mapping[str, Any]) -> Demo | None:
        """Return what a demo has of the signature; None where it lacks all inputs or outputs."""
        held = {name: demo[name] for name in demo.keys() if demo[name] is not None}  # noqa: SIM118
        inputs = {n: info for n, info in signature.input_fields.items() if n in held}
        outputs = {n: info for n, info in signature.output_fields.items() if n in held}
        if not inputs or not outputs:
            return None
        return Demo(self.inputs(inputs, held, "demo"), self.outputs(outputs, held, "demo"))

    def turns(
        self, signature: Any, turns: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Demo], tuple[Field, ...]]:
        """Return past turns as demos, and what was said to the model after the last of them."""
        past: list[Demo] = []
        said: tuple[Field, ...] = ()
        for turn in turns:
            held = {name: value for name, value in turn.items() if value is not None}
            inputs = {n: info for n, info in signature.input_fields.items() if n in held}
            outputs = {n: info for n, info in signature.output_fields.items() if n in held}
            said += self.inputs(inputs, held)
            if outputs:
                results = [r for n in outputs if (r := getattr(held[n], RESULTS, None)) is not None]
                plain = {n: _without_results(held[n]) for n in outputs}
                past.append(Demo(said, self.outputs(outputs, plain, "input")))
                said = tuple(self._results(text) for text in map(to_text, results))
        return past, said

    def _results(self, text: str) -> Field:
        meaning = Given(text, "input", lambda: _quoted(text))
        heading = RESULTS.replace("_", " ")
        markers = self.markers.mark(meaning)
        return Field(RESULTS, "Results:", "", *markers, heading, False, "\n" in text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _input_text(name: str, value: Any) -> str:
    try:
        return to_text(value)
    except UnsupportedType as error:
        raise UnsupportedType(f"input {name!r}: {error}") from error


RESULTS = "tool_call_results"
"""What the outputs of a past turn may carry beside their value: it is said to the model next."""


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
