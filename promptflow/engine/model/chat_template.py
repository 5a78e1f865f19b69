"""Chat templates of model files: the texts that a template puts around the contents of turns.

A template is a program from a stranger, so that it is rendered under limits: see sandbox.py. What
it does with reasoning is seen in what it writes around marks, with its switches on and off.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptflow.errors import NoReasoningBlock, TemplateError
from promptflow.sandbox import Job, RenderFailed, render_limited

OTHERWISE = "use layout='completion'"
_NO_BLOCK = (
    "the model's chat template shows no reasoning block: leave out thinking=True; an output called "
    "reasoning is then written before the answer"
)
REASONING = "reasoning"
"""What a role is called whose contents stand in the reasoning block of the turn that follows."""

_ON: Mapping[str, Any] = {
    "enable_thinking": True,
    "thinking": True,
    "thinking_mode": "enabled",
    # Whether past turns keep their reasoning.
    "add_thoughts": True,
    "clear_thinking": False,
    "drop_thinking": False,
    "keep_past_thinking": True,
    "preserve_thinking": True,
    "preserved_thinking": True,
    "think_render_option": "all",
    "truncate_history_thinking": False,
}
_OFF: Mapping[str, Any] = {
    "enable_thinking": False,
    "thinking": False,
    "thinking_budget": 0,
    "thinking_mode": "disabled",
}
_TAG = re.compile(r"<[^<>\n]{1,60}>|\[/?[A-Z][A-Z_ ]{1,40}\]")
_THINKS = re.compile("think|thought|reason", re.IGNORECASE)
_SPELLED = re.compile(r"""['"]type['"]: ?['"](text|thinking|thoughts)""")
_FORMS = ("fields", "reasoning_content", "thinking", "reasoning", "parts", "blocks")
"""How messages carry reasoning: under each key that templates read, under one, or in contents."""


def scaffold(template: str, roles: Sequence[str], bos: str, eos: str) -> tuple[str, ...]:
    """Return the texts that ``template`` puts around the contents of turns by ``roles``.

    One more than there are roles. A role ``reasoning`` stands for the contents of the reasoning
    block of the assistant's turn after it; as the last role, of the turn to come: the text before
    it opens the block and the last one closes it. Else the last text opens the assistant's turn,
    with its block closed, unless the last role is ``assistant``. A template that refuses a system
    turn gets its content at the start of the first other turn. Raises TemplateError for a template
    that fails, loops, or alters contents, and NoReasoningBlock.
    """
    if not template:
        raise TemplateError(
            f"the model file has no chat template: {OTHERWISE}, or a model made for chat"
        )
    first: TemplateError | None = None
    for given in _spellings(template, tuple(roles)):
        try:
            return _Template(template, bos, eos).around(given)
        except NoReasoningBlock:
            raise
        except TemplateError as error:
            first = first or error
    assert first is not None
    if len(roles) < 2 or roles[0] not in ("system", "developer"):
        raise first
    texts = scaffold(template, roles[1:], bos, eos)
    return (texts[0], "\n\n", *texts[1:])


_STAND_INS: Mapping[str, str] = {"developer": "system", "tool": "user"}


def _spellings(template: str, roles: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield roles as they are, then as the ones that every template knows.

    What a template never names is written by its stand-in at once: such a template writes any role
    as it stands, and its model has not seen that word in the place of one.
    """
    unnamed = {
        role: other
        for role, other in _STAND_INS.items()
        if not re.search(rf"""['"]{role}['"]""", template)
    }
    tried: set[tuple[str, ...]] = set()
    known: tuple[Mapping[str, str], ...] = ({}, {"developer": "system"}, _STAND_INS)
    for others in (*known, {"developer": "user", "tool": "user"}):
        spelled = {**unnamed, **others}
        given = tuple(spelled.get(role, role) for role in roles)
        if given not in tried:
            tried.add(given)
            yield given


@dataclass(frozen=True, slots=True)
class _Block:
    """The text after the last content that opens a reasoning block, and the one that closes it."""

    opening: str
    closing: str


@dataclass(frozen=True, slots=True)
class _Template:
    source: str
    bos: str
    eos: str

    def around(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """Return the texts around contents, the tail among them."""
        asked = roles[-1] == REASONING
        past = roles[:-1] if asked else roles
        switches = self._switches(on=asked)
        texts = self._past(past, switches)
        if past[-1:] == ("assistant",):
            return texts
        plain = tuple(role for role in past if role != REASONING)
        tails = _Tails.of(self, plain)
        if not asked:
            return (*texts[:-1], tails.closed())
        if (block := tails.block()) is None:
            raise NoReasoningBlock(_NO_BLOCK)
        return (*texts[:-1], block.opening, block.closing)

    def _switches(self, *, on: bool) -> dict[str, Any]:
        chosen = dict(_ON if on else _OFF)
        words = ("no_think", "none", "off") if "reasoning_effort" in self.source else ()
        for word in words:
            if re.search(rf"""reasoning_effort[^%}}]{{0,80}}['"]{word}['"]""", self.source):
                chosen["reasoning_effort"] = "high" if on else word
                break
        return chosen

    def _past(self, roles: tuple[str, ...], switches: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts around past turns, reasoning where the template drops it too."""
        if REASONING not in roles:
            return self.texts(roles, switches)
        keeping = {**switches, **{n: v for n, v in _ON.items() if n not in _OFF}}
        for form in _FORMS:
            try:
                return self.texts(roles, keeping, form)
            except TemplateError:
                continue
        plain = tuple(role for role in roles if role != REASONING)
        without = iter(self.texts(plain, switches))
        texts: list[str] = []
        for number, role in enumerate(roles):
            if role == REASONING:
                before = tuple(r for r in roles[:number] if r != REASONING)
                if (block := _Tails.of(self, before).block()) is None:
                    raise NoReasoningBlock(_NO_BLOCK)
                next(without)
                texts += [block.opening, block.closing]
            elif number == 0 or roles[number - 1] != REASONING:
                texts.append(next(without))
        return (*texts, *without)

    def texts(
        self, roles: tuple[str, ...], switches: Mapping[str, Any], form: str = "fields"
    ) -> tuple[str, ...]:
        """Render turns, their contents as text or else as parts, and return what is around."""
        try:
            return self._texts(roles, switches, form, parts=form == "parts")
        except TemplateError as error:
            if form != "fields":
                raise
            try:
                return self._texts(roles, switches, form, parts=True)
            except TemplateError:
                raise error from None

    def _texts(
        self, roles: tuple[str, ...], switches: Mapping[str, Any], form: str, *, parts: bool
    ) -> tuple[str, ...]:
        # Contents stand for themselves as random words, which no template can tell or forge.
        marks = [secrets.token_hex(16) for _ in roles]
        messages: list[dict[str, Any]] = []
        thought = ""
        for role, mark in zip(roles, marks, strict=True):
            if role == REASONING:
                thought = mark
                continue
            messages.append(_message(role, mark, thought, form, parts=parts))
            thought = ""
        context = {
            "messages": messages,
            "add_generation_prompt": roles[-1] != "assistant",
            "bos_token": self.bos,
            "eos_token": self.eos,
            **switches,
        }
        try:
            text = render_limited(Job("chat", self.source, context)).text
        except RenderFailed as error:
            where = f" (line {error.line})" if error.line else ""
            raise TemplateError(
                f"the model's chat template cannot be rendered{where}: {error}. {OTHERWISE}"
            ) from error
        # Some write a list or a mapping as it stands, which is no form of theirs.
        spelled = (parts or form == "blocks") and _SPELLED.search(text)
        texts = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found or mark in text or spelled:
                raise TemplateError(
                    f"the model's chat template does not keep turns by {roles} in order: "
                    + OTHERWISE
                )
            texts.append(before)
        return (*texts, text)


def _message(role: str, mark: str, thought: str, form: str, *, parts: bool) -> dict[str, Any]:
    text = {"type": "text", "text": mark}
    message: dict[str, Any] = {"role": role, "content": [text] if parts else mark}
    if not thought:
        return message
    if form == "parts":
        message["content"] = [{"type": "thinking", "thinking": thought}, text]
    elif form == "blocks":
        thoughts = {"type": "thoughts", "text": thought}
        message["content"] = {"blocks": [thoughts, {"type": "response", "text": mark}]}
    else:
        keys = ("reasoning_content", "thinking", "reasoning") if form == "fields" else (form,)
        message |= {key: thought for key in keys}
    return message


@dataclass(frozen=True, slots=True)
class _Tails:
    """What a template writes after the last content of some turns.

    ``on`` and ``off`` are its generation prompts with its switches on and off, ``answer`` the text
    before an answer, ``shown`` what stands around the reasoning of an answer.
    """

    on: str
    off: str
    answer: str
    shown: _Block | None

    @classmethod
    def of(cls, template: _Template, roles: tuple[str, ...]) -> _Tails:
        """Render turns that the assistant is to follow. Raises TemplateError."""
        on, off = template._switches(on=True), template._switches(on=False)
        prompts = [template.texts(roles, switches)[-1] for switches in (on, off)]
        try:
            answer = template.texts((*roles, "assistant"), off)[-2]
        except TemplateError:
            answer = prompts[1]
        shown = None
        for form in _FORMS:
            try:
                *_, opening, closing, _ = template.texts((*roles, REASONING, "assistant"), on, form)
            except TemplateError:
                continue
            if closing.strip():
                shown = _Block(opening, closing)
                break
        return cls(prompts[0], prompts[1], answer, shown)

    def block(self) -> _Block | None:
        """Return the reasoning block of the turn to come, None where there is no sign of one."""
        if self.shown is not None:
            if self.on.startswith(self.shown.opening):
                return _Block(self.on, self.shown.closing)
            return self.shown
        header = _rest(self.answer, self.on)
        for closed in (self.off, self.answer):
            rest = _rest(closed, self.on)
            tags = list(_TAG.finditer(rest))
            if _is_open(self.on) and tags:
                return _Block(self.on, _on_its_line(self.on, rest))
            if len(tags) == 2 and _is_pair(*(tag[0] for tag in tags)):
                at = tags[1].start()
                while at and rest[at - 1] == "\n" and rest[at - 2] == "\n":
                    at -= 1
                # A header that answers have beside the block follows it.
                own = "" if closed == self.answer or tags[1][0] in header else header
                return _Block(self.on + rest[:at], rest[at:] + own)
        if _is_open(self.on) and (closer := _closer(_TAG.findall(self.on)[-1])):
            return _Block(self.on, f"\n{closer}\n\n")
        return None

    def closed(self) -> str:
        """Return the text that opens the answer, the reasoning block before it closed.

        Raises TemplateError where the prompt ends inside a block that nothing closes.
        """
        block = self.block()
        if _is_open(self.off) or self._is_open_by_its_text():
            if self.answer.startswith(self.off) and not _is_open(self.answer):
                return self.answer
            if block is None:
                raise TemplateError(
                    "the model's chat template ends inside a reasoning block, and nothing shows "
                    f"how it is closed: {OTHERWISE}"
                )
            opening = block.opening if block.opening.startswith(self.off) else self.off
            return opening + block.closing
        if self.answer != self.off and self.answer.startswith(self.off):
            return self.answer if self.answer.strip() != self.off.strip() else self.off
        if not self.off.startswith(self.answer):
            pairs = enumerate(zip(self.off, self.answer, strict=False))
            head = next((at for at, (a, b) in pairs if a != b), len(self.off))
            if (tag := self.off.rfind("<", 0, head)) > self.off.rfind(">", 0, head):
                head = tag
            own, header = self.off[head:], self.answer[head:]
            apart = not own.endswith(header) and not header.endswith(own)
            # What answers begin with follows the closed block.
            return self.off + header if apart and _THINKS.search(own) else self.off
        if block is not None and self.off == self.on == self.answer:
            return block.opening + block.closing
        return self.off

    def _is_open_by_its_text(self) -> bool:
        """Say whether the prompt goes on where shown reasoning begins, and nothing closes it."""
        if self.shown is None or not self.off.startswith(self.shown.opening):
            return False
        rest = self.off[len(self.shown.opening) :]
        begins_more = bool(rest.strip()) or self.shown.opening not in self.answer
        return begins_more and _stop(self.shown.closing) not in rest


def _rest(text: str, head: str) -> str:
    return text[len(head) :] if text.startswith(head) else ""


def _on_its_line(opening: str, closing: str) -> str:
    return f"\n{closing}" if opening.endswith("\n") and closing[:1] != "\n" else closing


def _is_open(text: str) -> bool:
    """Say whether the last tag of a text opens what is called thinking."""
    tags = _TAG.findall(text)
    return bool(tags) and bool(_THINKS.search(tags[-1])) and not _is_closer(tags[-1])


def _is_closer(tag: str) -> bool:
    return tag.startswith(("</", "[/")) or bool(re.search(r"(?i)\bend|_end\b|\|/", tag))


def _closer(tag: str) -> str | None:
    """Return the tag that closes one, by the ways in which they are written."""
    for begin, end in (("START", "END"), ("start", "end"), ("BEGIN", "END"), ("begin", "end")):
        if begin in tag:
            return tag.replace(begin, end)
    if tag.startswith("<|") and not tag.endswith("|>"):
        return f"<{tag[2:-1]}|>"
    return f"{tag[0]}/{tag[1:]}" if not tag.startswith("<|") else None


def _is_pair(first: str, second: str) -> bool:
    return _closer(first) == second


def _stop(closing: str) -> str:
    """Return the beginning of a closing text by which a model ends its reasoning."""
    text = closing.strip()
    tag = _TAG.match(text)
    return tag[0] if tag else text.partition("\n")[0]


def stops_of(closing: str) -> tuple[str, ...]:
    """Return what ends reasoning that a closing text follows: with its white space, and without."""
    stop = _stop(closing)
    lead = closing[: len(closing) - len(closing.lstrip())]
    return (f"{lead}{stop}", stop) if lead else (stop,)
