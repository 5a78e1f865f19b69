"""A laid-out text as a prompt: the parts of a request, where each comes from, and fills read back.

A layout sees turns, values and slots as markers drawn afresh for each prompt, so that no content
can become a control token or pass for a slot. Knows neither signatures nor engines.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from promptflow.engine.model.chat_template import stops_of
from promptflow.engine.request import Completion, Fill, Part, Slot, Text
from promptflow.engine.stream import Delta
from promptflow.errors import NoReasoningBlock, TemplateError
from promptflow.fields import TypedField
from promptflow.json_fields import from_json

BLOCK = "reasoning"
"""The role of what stands in the reasoning block of a turn: see ``TextEngine.scaffold``."""

Scaffold = Callable[[Sequence[str]], tuple[str, ...]]
Origin = Literal["template", "demo", "input", "slot"]
"""Where text comes from: layout, instructions and chat template; a demo's values; the call's
inputs and past turns; the model."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value that the program knows: its text, and the same as JSON where a layout wants that.

    ``reasoning`` led to it, in a demo; ``marked`` tells that it stands between marks of data.
    Outputs have a label and a heading.
    """

    text: str
    origin: Origin
    json: Callable[[], str]
    reasoning: str = ""
    marked: bool = False
    label: str = ""
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Open:
    """A slot that the model fills, and the same where its value is written as JSON."""

    slot: Slot
    json: Callable[[], Slot]
    typed: TypedField
    label: str = ""
    heading: str = ""
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str


class _Boundary:
    """Where requests that begin alike are likely to differ: see ``Text``."""


class _Asked(_Boundary):
    """The same, before the first input that is asked about."""


Span = tuple[Origin, Part]
Meaning = Given | Open
Piece = _Turn | _Boundary | str | Meaning


@dataclass(slots=True)
class Markers:
    """Markers and what each stands for; that of a turn names its role."""

    secret: str = field(default_factory=lambda: secrets.token_hex(8))
    meanings: list[Meaning] = field(default_factory=list)
    asked: set[int] = field(default_factory=set)

    def mark(self, meaning: Meaning) -> tuple[str, str, str]:
        """Return fresh markers: of a value, of the same as JSON, and of the gap before it."""
        self.meanings.append(meaning)
        name = f"{self.secret}.{len(self.meanings) - 1}"
        return f"\x00{name}\x00", f"\x00{name}:json\x00", f"\x00{name}:gap\x00"

    def ask(self, markers: Sequence[str]) -> None:
        """Note which values are the inputs that are asked about."""
        self.asked = {int(marker.strip("\x00").rpartition(".")[2]) for marker in markers}

    @property
    def boundary(self) -> str:
        """Return the marker of a boundary."""
        return f"\x00{self.secret}.boundary\x00"

    def split(self, text: str, layout: str) -> Iterator[Piece]:
        """Return the text with what its markers mean. Raises TemplateError for a wrong use."""
        counts = [0] * len(self.meanings)
        asked = False
        for number, piece in enumerate(re.split(f"\x00{self.secret}\\.([^\x00]*)\x00", text)):
            place, _, form = piece.partition(":")
            if number % 2 and piece.startswith("turn:"):
                yield _Turn(piece.removeprefix("turn:"))
            elif number % 2 and piece == "boundary":
                yield _Boundary()
            elif number % 2 and place.isdecimal() and int(place) < len(counts):
                meaning = self.meanings[int(place)]
                counts[int(place)] += form != "gap"
                gap = _gap(meaning) if form == "gap" else ""
                # Before marks of data the gap is always the same.
                apart = form != "gap" or not getattr(meaning, "marked", False)
                if int(place) in self.asked and not asked and apart:
                    asked = True
                    yield _Asked()
                yield gap or _formed(meaning, form)
            elif number % 2 or self.secret in piece:
                raise TemplateError(
                    f"layout {layout!r} changes a value; write {{{{ field.value }}}}"
                )
            elif piece:
                yield piece
        self._check(counts, layout)

    def _check(self, counts: Sequence[int], layout: str) -> None:
        for meaning, count in zip(self.meanings, counts, strict=True):
            if isinstance(meaning, Open) and count != 1:
                raise TemplateError(
                    f"layout {layout!r} writes the slot of output {meaning.slot.name!r} {count} "
                    "times; write {{ field.value }}, or {{ field.json }}, once for each field of "
                    "outputs"
                )
            if isinstance(meaning, Given) and not count:
                raise TemplateError(
                    f"layout {layout!r} leaves out or changes the value {meaning.text[:40]!r}"
                )


def _gap(meaning: Meaning) -> str:
    """Return what stands between a label and a value: texts of several lines begin below it."""
    return "\n" if isinstance(meaning, Given) and "\n" in meaning.text else " "


def _formed(meaning: Meaning, form: str) -> Meaning:
    if not form:
        return meaning
    if isinstance(meaning, Given):
        return replace(meaning, text=meaning.json())
    return replace(meaning, slot=meaning.json(), as_json=True)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a request, and each stretch of them with its origin, a slot as ``{name}``.

    ``in_json`` are the outputs that are written as JSON, each with the texts that end it.
    """

    parts: tuple[Part, ...]
    spans: tuple[Span, ...] = ()
    in_json: Mapping[str, tuple[TypedField, tuple[str, ...]]] = field(default_factory=dict)

    def plain(self, completion: Completion) -> Completion:
        """Return a completion whose texts stand as in a layout that writes no JSON."""
        if not any(name in self.in_json for name in completion.fills):
            return completion
        fills = {
            name: self._plain(name, fill) if name in self.in_json else fill
            for name, fill in completion.fills.items()
        }
        return replace(completion, fills=fills)

    def _plain(self, name: str, fill: Fill) -> Fill:
        alternatives = tuple(
            replace(one, text=self.text(name, one.text)) for one in fill.alternatives
        )
        return replace(fill, text=self.text(name, fill.text), alternatives=alternatives)

    def text(self, name: str, written: str) -> str:
        """Return what was written into a slot, as far as it was, without JSON's marks."""
        if name not in self.in_json:
            return written
        typed, stops = self.in_json[name]
        text = from_json(typed, written)
        ends = [text.removesuffix(stop) for stop in stops if text.endswith(stop)]
        return min(ends, key=len) if ends else text

    def heard(self) -> Callable[[Delta], Iterator[Delta]]:
        """Return what makes plain the deltas of one answer, told in their order."""
        return _Heard(self)


@dataclass(slots=True)
class _Heard:
    """Deltas without JSON's marks: a value of options, and what may end a text, come at its end."""

    prompt: Prompt
    name: str = ""
    written: str = ""
    told: int = 0

    def __call__(self, delta: Delta) -> Iterator[Delta]:
        """Yield the text that a delta adds."""
        if delta.slot != self.name:
            yield from self._rest()
            self.name, self.written, self.told = delta.slot, "", 0
        if self.name not in self.prompt.in_json or delta.completion is not None:
            yield delta
            return
        self.written += delta.text
        typed, stops = self.prompt.in_json[self.name]
        if not typed.shape.options:
            most = max((len(stop) for stop in stops), default=0)
            text = from_json(typed, self.written)
            yield from self._tell(text[: max(self.told, len(text) - most)])

    def _rest(self) -> Iterator[Delta]:
        if self.name in self.prompt.in_json:
            yield from self._tell(self.prompt.text(self.name, self.written))

    def _tell(self, text: str) -> Iterator[Delta]:
        new, self.told = text[self.told :], max(self.told, len(text))
        if new:
            yield Delta(self.name, new)


def assembled(
    pieces: Sequence[Piece],
    thought: Sequence[Given | Open],
    scaffold: Scaffold,
    stop: tuple[str, ...],
    layout: str,
) -> Prompt:
    """Join content with the chat template's own texts around it."""
    pieces = _with_reasoning(pieces, thought, layout)
    roles = [piece.role for piece in pieces if isinstance(piece, _Turn)]
    # The model speaks next: the texts of the template end where its turn opens.
    roles = roles[:-1] if roles[-1:] == ["assistant"] else roles
    made = scaffold(roles) if roles else ()
    if roles and isinstance(first := pieces[0], str | Given):
        text = first if isinstance(first, str) else first.text
        raise TemplateError(f"layout {layout!r}: the text {text[:40]!r} is in no turn")
    spans: list[Span] = []
    last = len(roles) - (roles[-1:] == [BLOCK])  # the text before what the model is asked
    asks = any(isinstance(piece, _Asked) for piece in pieces)
    turns = 0
    for number, piece in enumerate(pieces):
        if isinstance(piece, _Turn):
            turns += 1
            # Without inputs, what comes before the turn that is asked about is alike for all.
            bound = turns == last and not asks
            spans.append(("template", Text(made[turns - 1], trusted=True, boundary=bound)))
        elif isinstance(piece, _Boundary):
            _bound(spans, piece)
        elif isinstance(piece, Open):
            closing = made[-1] if thought and turns == last + 1 else ""
            spans.append(("slot", _led(spans, piece.slot, _ends(pieces, number, stop), closing)))
        else:
            spans.append(_stretch(piece))
    spans += [("template", Text(text, trusted=True)) for text in made[turns:]]
    spans = [(origin, part) for origin, part in spans if isinstance(part, Slot) or part.text]
    in_json = {
        piece.slot.name: (piece.typed, piece.slot.stop)
        for piece in pieces
        if isinstance(piece, Open) and piece.as_json
    }
    return Prompt(_joined(spans), tuple(spans), in_json)


def _stretch(piece: str | Given) -> Span:
    if isinstance(piece, Given):
        return (piece.origin, Text(piece.text))
    return ("template", Text(piece))


def _with_reasoning(
    pieces: Sequence[Piece], thought: Sequence[Given | Open], layout: str
) -> list[Piece]:
    """Return pieces with reasoning as turns of their own, before the answers that it led to.

    Raises NoReasoningBlock where an answer does not stand in a turn of the assistant of its own.
    """
    found: list[Piece] = []
    answer: int | None = None  # where the assistant's turn begins, until its reasoning is known
    for piece in pieces:
        if isinstance(piece, Given) and piece.reasoning:
            if answer is None:
                raise NoReasoningBlock(_no_place(layout))
            found[answer:answer] = [_Turn(BLOCK), replace(piece, text=piece.reasoning)]
            answer = None
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


def _bound(spans: list[Span], boundary: _Boundary) -> None:
    """Set a boundary after the last text; spaces before an input go with it."""
    space = ""
    while spans and isinstance(text := spans[-1][1], Text):
        kept = text.text
        if isinstance(boundary, _Asked) and not text.trusted:
            kept = kept.rstrip(" ")
        space = text.text[len(kept) :] + space
        origin, _ = spans.pop()
        if kept:
            spans.append((origin, replace(text, text=kept, boundary=True)))
            break
    spans.append(("template", Text(space)))


def _ends(pieces: Sequence[Piece], at: int, stop: tuple[str, ...]) -> tuple[str, ...]:
    """Return what ends free text: the beginning of what follows it, and the layout's own stops."""
    found: list[str] = []
    lead = ""
    for piece in pieces[at + 1 :]:
        if isinstance(piece, str):
            lead += piece
        elif isinstance(piece, Given | Open):
            if begun := _beginning(lead.strip(), piece):
                found.append(f"\n{begun}")
            lead = ""
    return (*found, *stop)


def _beginning(lead: str, value: Given | Open) -> str:
    """Return what stands before an output's value, without the note on what it may be."""
    if value.label and lead.startswith(value.label.rstrip(":")):
        return value.label
    line = lead.rpartition("\n")[2]
    at = line.find(value.heading) if value.heading else -1
    return line if at < 0 else line[: at + len(value.heading)]


def _led(spans: list[Span], slot: Slot, ends: tuple[str, ...], closing: str) -> Slot:
    """Return the slot with the spaces before it as its lead, and take them from the text.

    Tokenizers join a space with the word that follows it.
    """
    lead = ""
    if spans and isinstance(last := spans[-1][1], Text) and not last.trusted:
        text = last.text.rstrip(" ")
        lead = last.text[len(text) :]
        spans[-1] = (spans[-1][0], replace(last, text=text))
    if closing:
        # A block that the model closes ends there; what a layout stops at is for answers.
        stops = (*stops_of(closing), *slot.stop)
    else:
        stops = slot.stop if slot.constraint else (*ends, *slot.stop)
    return replace(slot, stop=tuple(dict.fromkeys(stops)), lead=lead)


def _joined(spans: Sequence[Span]) -> tuple[Part, ...]:
    """Return the parts of a request: texts that stand together as one."""
    parts: list[Part] = []
    for _, part in spans:
        last = parts[-1] if parts else None
        if (
            isinstance(last, Text)
            and isinstance(part, Text)
            and last.trusted == part.trusted
            and not last.boundary
        ):
            parts[-1] = replace(part, text=last.text + part.text)
        else:
            parts.append(part)
    return tuple(parts)
