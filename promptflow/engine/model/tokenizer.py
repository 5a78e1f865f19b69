"""Texts to tokens: untrusted text can spell a control token and never becomes one.

All texts between two slots are tokenized as one, so that tokens may span trusted and untrusted
text, unless a control text lies in untrusted text or reaches into it. Then each text is tokenized
apart, with those in untrusted text cut after their first character. No token spans a boundary: what
stands before it makes the same tokens whatever follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from promptflow.engine.model.protocol import Model
from promptflow.engine.request import Part, Slot, Text
from promptflow.engine.sequence import common

FOLLOWERS = ("a", "A", " a", "1", "\n", ".", ",", '"')
"""Beginnings of text that tokenizers treat in different ways."""


class Prompts:
    """Tokenize the texts of requests for one model."""

    def __init__(self, model: Model) -> None:
        """Gather the model's control texts."""
        self._model = model
        # Some tokenizers put a space before every text; where one goes on, it is there already.
        self._adds_space = model.piece(next(iter(model.tokenize("a", False)), 0))[:1] == b" "
        # By their first character, longest first: some vocabularies have thousands of them.
        self._controls: dict[str, tuple[list[int], set[str]]] = {}
        # Those of white space alone do nothing: Gemma's line breaks are among them.
        named = sorted({text for text in model.control_texts() if text.strip()})
        for first, some in groupby(named, lambda text: text[0]):
            held = set(some)
            self._controls[first] = (sorted({len(text) for text in held}, reverse=True), held)
        self._firsts = re.compile(f"[{re.escape(''.join(self._controls) or chr(0))}]")

    def before_slots(self, parts: Sequence[Part]) -> list[list[int]]:
        """Return the tokens before each slot; what follows the last one is left out.

        The first list is never empty: a model needs a token to start from.
        """
        before: list[list[int]] = []
        run: list[Text] = []
        for part in parts:
            if isinstance(part, Text):
                run.append(part)
            else:
                before.append(self._tokenize(run))
                run = []
        before[0] = self._with_start(before[0])
        return before

    def tokens(self, parts: Sequence[Part]) -> list[int]:
        """Return the tokens of all texts among ``parts``, each run between slots as one."""
        whole = self.before_slots([*parts, Slot("end")])
        return [token for tokens in whole for token in tokens]

    def stable(self, parts: Sequence[Part]) -> list[int]:
        """Return the tokens of texts that stay as they are whatever text follows.

        A tokenizer may join the last letters with what comes next.
        """
        ends = [self.tokens([*parts, Text(text)]) for text in ("", *FOLLOWERS)]
        length = min(common(ends[0], other, len(ends[0])) for other in ends)
        return ends[0][:length]

    def boundaries(self, parts: Sequence[Part]) -> tuple[int, ...]:
        """Return how many tokens stand before each boundary that a text marks in the first run."""
        found: list[int] = []
        for number, part in enumerate(parts):
            if isinstance(part, Slot):
                break
            if part.boundary:
                found.append(len(self.stable(parts[: number + 1])))
        return tuple(found)

    def continuation(self, text: str) -> list[int]:
        """Return the tokens of untrusted text that goes on in a sequence."""
        return self._tokenize([Text(text)])

    def text(self, token: int) -> str:
        """Return a token as text; a control token by its name."""
        return self.piece(token).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; of a control token, those of its name."""
        return self._model.piece(token) or self._model.control_piece(token)

    def _with_start(self, tokens: list[int]) -> list[int]:
        bos = self._model.bos
        if bos is not None and tokens[:1] != [bos]:
            return [bos, *tokens]
        return tokens or [min(self._model.end_tokens)]

    def _tokenize(self, run: Sequence[Text]) -> list[int]:
        tokens: list[int] = []
        since: list[Text] = []
        for text in run:
            since.append(text)
            if text.boundary:
                tokens += self._stretch(since, follows=bool(tokens))
                since = []
        return tokens + self._stretch(since, follows=bool(tokens))

    def _stretch(self, run: Sequence[Text], follows: bool) -> list[int]:
        """Return the tokens of texts without a boundary between them."""
        run = [text for text in run if text.text != ""]  # an empty one parts nothing
        if not run:
            return []
        if follows and self._adds_space and run[0].text[0] == " ":
            run = [replace(run[0], text=run[0].text[1:]), *run[1:]]
        merged = [
            ("".join(text.text for text in texts), trusted)
            for trusted, texts in groupby(run, key=lambda text: text.trusted)
        ]
        whole = "".join(text for text, _ in merged)
        if self._found(whole) == self._found_in_trusted(merged):
            return self._model.tokenize(whole, special=True)
        tokens: list[int] = []
        for text, trusted in merged:
            if trusted:
                tokens += self._model.tokenize(text, special=True)
            else:
                for piece in self._disarmed(text):
                    tokens += self._model.tokenize(piece, special=False)
        return tokens

    def _found(self, text: str) -> list[tuple[int, str]]:
        """Return where control texts are, and which: the longest at each place, overlaps too."""
        if not self._controls:
            return []
        found = []
        for match in self._firsts.finditer(text):
            at = match.start()
            lengths, held = self._controls[text[at]]
            known = (text[at : at + n] for n in lengths)
            if (control := next((one for one in known if one in held), None)) is not None:
                found.append((at, control))
        return found

    def _found_in_trusted(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        offset = 0
        for text, trusted in texts:
            if trusted:
                found += [(offset + at, control) for at, control in self._found(text)]
            offset += len(text)
        return found

    def _disarmed(self, text: str) -> list[str]:
        cuts = [0, *(at + 1 for at, _ in self._found(text)), len(text)]
        return [text[a:b] for a, b in pairwise(cuts) if a < b]
