"""The exact prompt of a call, by where its parts come from: nothing is sent and nothing generated.

As text (in colours on a terminal), as JSON data, or as an HTML page that loads nothing.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import dspy

from promptflow.engine.request import Part, Slot
from promptflow.errors import ProgramError, UnsupportedOption
from promptflow.flow import Call, prompt_of
from promptflow.layout import Decoding, layout_for
from promptflow.lm import SlotAdapter, is_local, prompt_text
from promptflow.prompt import Origin
from promptflow.terminal import say, say_painted, visible, visible_json

COLOURS: Mapping[Origin, str] = {"template": "2", "demo": "36", "input": "32", "slot": "1;33"}
FORMATS = ("text", "json", "html")
WIDTH = 60
"""Characters of a part that a row of the table shows."""


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A stretch of a prompt: its tokens, those that begin in it, and how many of them are cached.

    ``text`` of a slot is its name in braces, and a slot has no tokens yet.
    """

    origin: Origin
    text: str
    tokens: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt as it would be sent, in the order of its parts; ``pieces`` are its tokens' texts."""

    layout: str
    parts: tuple[ShownPart, ...]
    pieces: tuple[str, ...]
    cached: int

    @property
    def text(self) -> str:
        """Return the whole text, slots as ``{name}``."""
        return "".join(part.text for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        counts = {"tokens": len(self.pieces), "cached": self.cached}
        return {"layout": self.layout, **counts, "parts": [asdict(part) for part in self.parts]}

    def say(self) -> None:
        """Print the text, a row for each part, and the tokens."""
        say_painted((part.text, COLOURS[part.origin]) for part in self.parts)
        say("\n")
        for part in self.parts:
            start = visible(part.text, in_line=True)[:WIDTH]
            say_painted([(f"{part.origin:<9}", COLOURS[part.origin])])
            say(f"{part.tokens:>6} tokens {_share(part.cached, part.tokens):>5} cached  {start}")
        say()
        say("|".join(visible(piece, in_line=True) for piece in self.pieces))
        say(f"{len(self.pieces)} prompt tokens, {_share(self.cached, len(self.pieces))} cached")

    def to_html(self) -> str:
        """Return it as a part of a page: see ``page``."""
        spans = "".join(
            f'<span class="{part.origin}">{html.escape(visible(part.text))}</span>'
            for part in self.parts
        )
        rows = "".join(
            f'<tr class="{part.origin}"><td>{part.origin}<td class="n">{part.tokens}'
            f'<td class="n">{_share(part.cached, part.tokens)}'
            for part in self.parts
        )
        total = f"{len(self.pieces)} prompt tokens, {_share(self.cached, len(self.pieces))} cached"
        head = f"<p>layout {html.escape(self.layout)}: {total}</p>"
        return f"{head}<pre>{spans}</pre><table><tr><th>part<th>tokens<th>cached{rows}</table>"


def said(prompt: ShownPrompt, form: str, name: str = "prompt") -> str:
    """Print a prompt in one of ``FORMATS``, and return what was printed; of text, the prompt's."""
    if form == "text":
        prompt.say()
        return prompt.text
    if form not in FORMATS:
        raise UnsupportedOption(f"format={form!r}: give one of {', '.join(FORMATS)}")
    if form == "html":
        made = page({name: prompt})
    else:
        made = visible_json(json.dumps(prompt.to_json(), ensure_ascii=False, indent=2))
    say(made)
    return made


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def page(prompts: Mapping[str, ShownPrompt]) -> str:
    """Return an HTML page of prompts by their names."""
    template = Template((Path(__file__).parent / "prompt.html").read_text(encoding="utf-8"))
    body = "".join(f"<h2>{html.escape(name)}</h2>{p.to_html()}" for name, p in prompts.items())
    return template.substitute(title=html.escape(", ".join(prompts)), body=body)


def shown(predictor: Any, inputs: Mapping[str, Any], lm: Any = None) -> ShownPrompt:
    """Return the prompt of a predictor, one of DSPy's too, for these inputs.

    Raises ProgramError for a remote model, and what the call may not ask for.
    """
    if hasattr(predictor, "call"):
        return shown_call(predictor.call(**inputs).complete(lm or dspy.settings.lm))
    adapter = dspy.settings.adapter
    layout = adapter.layout if isinstance(adapter, SlotAdapter) else None
    call = Call(predictor, inputs, Decoding(layout=None if layout is None else str(layout)))
    return shown_call(call.complete(lm or dspy.settings.lm))


def shown_call(call: Call) -> ShownPrompt:
    """Return the prompt of a complete call. Raises ProgramError for a remote model."""
    if not is_local(call.lm):
        raise ProgramError(
            f"{call.lm.model}: DSPy's adapter makes a remote model's prompt; call the program, "
            "then dspy.inspect_history()"
        )
    engine, prompt = call.lm.text_engine, prompt_of(call)
    tokens = engine.look(prompt.parts)
    parts = list(_counted(_merged(prompt.spans), tokens.pieces, tokens.held))
    texts = tuple(piece.decode("utf-8", "replace") for piece in tokens.pieces)
    return ShownPrompt(layout_for(engine, call.decoding.layout), tuple(parts), texts, tokens.held)


def _merged(spans: Sequence[tuple[Origin, Part]]) -> Iterator[ShownPart]:
    """Yield stretches of one origin; each slot is one."""
    numbered = enumerate(spans)
    for (origin, _), group in groupby(
        numbered, lambda one: (one[1][0], one[0] if isinstance(one[1][1], Slot) else -1)
    ):
        yield ShownPart(origin, prompt_text([part for _, (_, part) in group]))


def _counted(parts: Iterator[ShownPart], pieces: Sequence[bytes], held: int) -> Iterator[ShownPart]:
    """Give each part the tokens that begin in it: some reach into the next part."""
    at = 0  # the next token
    ahead = 0  # bytes of the last token that lie in the part to come
    for part in parts:
        if part.origin == "slot":
            yield part
            continue
        rest, first = part.text.encode("utf-8", "replace")[ahead:], at
        ahead = max(0, ahead - len(part.text.encode("utf-8", "replace")))
        while at < len(pieces) and rest:
            piece = pieces[at]
            if not (rest.startswith(piece) or piece.startswith(rest)):
                # A token that is no text of the prompt's: its beginning, or a space before it.
                piece = piece.lstrip(b" ") if rest.startswith(piece.lstrip(b" ")) else b""
            ahead = len(piece) - len(rest) if len(piece) > len(rest) else 0
            rest = rest[len(piece) :]
            at += 1
        yield replace(part, tokens=at - first, cached=max(0, min(held, at) - first))
