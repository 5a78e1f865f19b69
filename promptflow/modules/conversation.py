"""Conversations: turn by turn, with a model or with a program that answers questions.

What was said stays the beginning of every prompt, so that a turn costs what is new in it. It leaves
oldest first, and half of the room at a time: each time the beginning changes, all of it is computed
anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from promptflow import storage
from promptflow.engine.request import Text, Usage
from promptflow.errors import ProgramError, StoreError, names_options
from promptflow.flow import Call, Prediction, request_of, streamed
from promptflow.layout import COMPLETION, layout_for
from promptflow.lm import lm_of, seed_of
from promptflow.modules import standalone
from promptflow.modules.predict import Predict
from promptflow.retrieval import Retriever
from promptflow.signatures import document_of, label_of

MESSAGES = "messages"
"""The layout of a conversation where its signature's document names none: turns without labels."""

QUESTION_TOKENS = 128
"""Bound of a question that is made to stand alone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said and what was replied to it.

    ``question`` is what the program was asked: the message, made to stand alone. ``result`` is the
    program's prediction, of a plain conversation the model's. ``stopped`` tells that the reader
    stopped the reply, ``cut`` that it ended at its token limit.
    """

    message: str
    reply: str
    question: str = ""
    result: Prediction | None = None
    stopped: bool = False
    cut: bool = False
    usage: Usage = field(default_factory=Usage)

    @property
    def citations(self) -> Sequence[Any]:
        """Return the citations of a cited answer."""
        found: Sequence[Any] = () if self.result is None else self.result.get("citations", ())
        return found

    def prompt_text(self) -> str:
        """Return what a prompt shows of it."""
        return f"{self.question or self.message}\n{self.reply}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a reply while it is written; of a cited answer a draft, which is checked after."""

    text: str


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The question that the program is asked in the place of a message."""

    question: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The oldest turns have left what the model reads; told once a conversation."""

    turns: int
    context: int


Event = Piece | Rewritten | Forgotten | Turn


class Conversation:
    """Talk with a model; or with ``program``, a module that takes ``question`` and has ``answer``.

    A message to a program is first made to stand alone, from what was said before. ``signature``
    has an input ``message`` and an output ``reply``; its instructions open a plain conversation.
    ``max_tokens`` bounds a plain reply. The configured model is used where ``lm`` is left out.

    >>> talk = Conversation(lm="qwen2.5-coder-0.5b")  # doctest: +SKIP
    >>> talk.say("What is a beam search?").reply  # doctest: +SKIP
    """

    @names_options
    def __init__(
        self,
        program: Any = None,
        *,
        lm: Any = None,
        signature: str | Path | type[Any] = "chat",
        max_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        self.program = program
        self.lm = lm
        self.seed = seed
        self.turns: list[Turn] = []
        self.first = 0  # the oldest turn that the model still reads
        spoken = document_of(signature)
        if missing := {"message", "reply"} - set(spoken.signature.fields):
            raise ProgramError(
                f"a conversation's signature needs the input 'message' and the output 'reply'; "
                f"this one has no {', '.join(sorted(missing))}"
            )
        self._layout = spoken.layout or MESSAGES
        with_past = spoken.signature.prepend("past", dspy.InputField(), type_=dspy.History)
        self._reply = Predict(with_past, demos=spoken.demos, max_tokens=max_tokens)
        own = storage.find_document("signatures", "rewrite_question", bundled_only=True)
        self._rewrite = Predict(own, max_tokens=QUESTION_TOKENS)
        self._rewrite.decoding = replace(self._rewrite.decoding, stop=("\n",))

    def say(self, message: str) -> Turn:
        """Return the turn of a message. Raises what the model or the program raises."""
        turn: Turn | None = None
        for event in self.stream(message):
            turn = event if isinstance(event, Turn) else turn
        assert turn is not None
        return turn

    def stream(self, message: str) -> Generator[Event, None, None]:
        """Yield what comes of a message while it comes, its turn last.

        Leaving early, by ``close`` or Ctrl-C, stops the reply: what was written of it stays.
        """
        if not message.strip():
            raise ProgramError("a message must not be blank: say something")
        lm = lm_of(self.lm or dspy.settings.lm)
        seed = seed_of(self.seed, len(self.turns))
        if self.program is None:
            yield from self._replied(message, lm, seed)
        else:
            yield from self._answered(message, lm, seed)

    def clear(self) -> None:
        """Begin anew: forget every turn."""
        self.turns.clear()
        self.first = 0

    def save(self, path: str | Path) -> Path:
        """Write the conversation to a new file: JSON where its name ends so, else Markdown."""
        path = Path(path).expanduser()
        if path.exists():
            raise StoreError(f"{path} is there already: give the name of a new file")
        if path.suffix.lower() == ".json":
            storage.write_text(path, json.dumps(self.to_json(), ensure_ascii=False, indent=2))
        else:
            storage.write_text(path, "\n".join(map(_as_markdown, self.turns)))
        return path

    def to_json(self) -> list[dict[str, Any]]:
        """Return the turns as JSON data."""
        return [
            {
                "message": turn.message,
                "reply": turn.reply,
                "question": turn.question,
                "stopped": turn.stopped,
                "citations": [_citation_json(c) for c in turn.citations],
            }
            for turn in self.turns
        ]

    def _replied(self, message: str, lm: Any, seed: int) -> Iterator[Event]:
        """Have the model itself reply."""
        engine = getattr(lm, "text_engine", None)
        chosen = self._layout
        if engine is not None and layout_for(engine) == COMPLETION:
            chosen = COMPLETION
        label = label_of(self._reply.signature.input_fields["message"])
        stop = (f"\n{label}",) if chosen == COMPLETION and label else ()
        self._reply.decoding = replace(self._reply.decoding, layout=chosen, stop=stop)

        def ask(turns: Sequence[Turn]) -> Call:
            past = [{"message": turn.message, "reply": turn.reply} for turn in turns]
            call = self._reply.call(past=dspy.History(messages=past), message=message)
            return replace(call, continued=True, seed=seed)

        call = yield from self._fitting(ask, lm)
        written: list[str] = []
        try:
            result = yield from _pieces(_Asking(call), "reply", written, lm, seed)
        except (GeneratorExit, KeyboardInterrupt):
            if written:
                self.turns.append(Turn(message, "".join(written), stopped=True))
            raise
        fill = result.fills.get("reply")
        reply = fill.text if fill is not None else str(result.reply)
        turn = Turn(message, reply, "", result, cut=result.cut, usage=result.usage)
        self.turns.append(turn)
        yield turn

    def _answered(self, message: str, lm: Any, seed: int) -> Iterator[Event]:
        """Have the program answer the message, made to stand alone."""
        question, usage = message, Usage()
        if self.turns:
            question, usage = yield from self._standing_alone(message, lm, seed)
        result = yield from _pieces(self.program, "answer", [], lm, seed, question=question)
        if "answer" not in result:
            raise ProgramError(
                "a conversation's program gives an output 'answer'; this one gives "
                f"{', '.join(result.keys())}"
            )
        total = usage + result.usage
        turn = Turn(message, str(result.answer), question, result, cut=result.cut, usage=total)
        self.turns.append(turn)
        yield turn

    def _standing_alone(
        self, message: str, lm: Any, seed: int
    ) -> Generator[Event, None, tuple[str, Usage]]:
        """Return the message as a question that is clear without what was said before."""

        def ask(turns: Sequence[Turn]) -> Call:
            said = [turn.prompt_text() for turn in turns]
            call = self._rewrite.call(conversation=said, question=message)
            return replace(call, continued=True, seed=seed)

        call = yield from self._fitting(ask, lm)
        rewritten = yield from _pieces(_Asking(call), "", [], lm, seed)
        question = self._meant(message, " ".join(rewritten.standalone.split()))
        if question != message:
            yield Rewritten(question)
        return question, rewritten.usage

    def _meant(self, message: str, rewritten: str) -> str:
        """Return how a message is read: alone, as it was rewritten, or beside what it is about."""
        said = [turn.prompt_text() for turn in self.turns[self.first :]]
        faithful = standalone.is_faithful(rewritten, message, said)
        retriever = getattr(self.program, "index", None)
        if not isinstance(retriever, Retriever):
            return rewritten if faithful else message
        beside = standalone.in_context(message, self._about())
        return standalone.nearer(retriever, message, rewritten if faithful else beside)

    def _about(self) -> tuple[str, ...]:
        """Return what the next message may be about: the last question, after what it is about."""
        last = len(self.turns) - 1
        while last and self.turns[last].question.startswith(f"{self.turns[last].message} ("):
            last -= 1
        first, *more = self.turns[last:]
        return (first.question, more[-1].message) if more else (first.question,)

    def _fitting(
        self, ask: Callable[[Sequence[Turn]], Call], lm: Any
    ) -> Generator[Event, None, Call]:
        """Return the call with the last turns that the model's context has room for."""
        turns = self.turns[self.first :]
        call = ask(turns)
        engine = getattr(lm, "text_engine", None)
        if engine is None or not turns:
            return call
        complete = call.complete(lm)
        context = engine.info.context
        room = context - min(complete.decoding.max_tokens or context, context // 4)
        size = engine.count(request_of(complete).parts)
        if size <= room:
            return call
        sizes = [engine.count([Text(turn.prompt_text())]) for turn in turns]
        held = sum(sizes)
        spare = room - (size - held)
        if spare < 0:
            return call  # the message alone is too long, as the engine will say
        half = spare // 2
        left = 0
        while left < len(turns) and held > half:
            held -= sizes[left]
            left += 1
        if not self.first:
            yield Forgotten(left, context)
        self.first += left
        return ask(turns[left:])


class _Asking:
    """A module that makes one call."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def flow(self) -> Generator[list[Call], list[Any], Any]:
        """Yield the call."""
        [prediction] = yield [self.call]
        return prediction


def _pieces(
    module: Any, field: str, written: list[str], lm: Any, seed: int, **inputs: Any
) -> Generator[Piece, None, Prediction]:
    """Run a module, yield the text of an output while it is written, and return its prediction."""
    with contextlib.closing(streamed(module, lm=lm, seed=seed, **inputs)) as steps:
        while True:
            try:
                _, delta = next(steps)
            except StopIteration as stop:
                result: Prediction = stop.value
                return result
            if delta.slot == field and delta.text:
                written.append(delta.text)
                yield Piece(delta.text)


def _citation_json(citation: Any) -> dict[str, Any]:
    names = ("document", "page", "heading", "start", "end", "quote")
    return {name: getattr(citation, name, None) for name in names}


def _as_markdown(turn: Turn) -> str:
    lines = [f"**{turn.message}**", "", turn.reply, ""]
    for number, c in enumerate(turn.citations, 1):
        page = getattr(c, "page", None)
        place = c.document if page is None else f"{c.document}, page {page}"
        lines += [f"> [{number}] {place}: {' '.join(c.quote.split())}", ""]
    return "\n".join(lines)
