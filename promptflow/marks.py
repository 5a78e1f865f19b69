"""Marks around what others wrote, which nothing that they wrote can close (Hines et al. 2024).

A mark holds a nonce. It is made of the marked text and of the program's own wording: equal passages
are marked equally in every process, so that prefixes are shared, caches hit and a resumed run ends
as one that was not interrupted, and who writes a document does not know it beforehand. That it
cannot be forged rests on neither: it is one that no text of the prompt holds. arXiv:2403.14720.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any

from promptflow.notation import Data
from promptflow.plain import to_text

NONCE = 8
"""Hexadecimal digits of a nonce."""

_SPACE = re.compile(r"[^\S\n]+")


def data_of(info: Any) -> Data | None:
    """Return how a field's value is marked; None where the program's user wrote it."""
    return next((item for item in info.metadata if isinstance(item, Data)), None)


def has_data(signature: Any) -> bool:
    """Say whether an input holds what others wrote."""
    return any(data_of(info) is not None for info in signature.input_fields.values())


class Marks:
    """The marks of one prompt: of a signature's inputs in all the ``rows`` that it shows."""

    def __init__(self, signature: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        self.key = (signature.instructions or "").encode()
        self.whole = ""
        if has_data(signature):
            values = (row[name] for row in rows for name in signature.fields if name in row)
            self.whole = "\n".join(map(_shown, values)).casefold()

    def marked(self, info: Any, text: str) -> str:
        """Return a value's text as a prompt shows it: between marks where it is data."""
        data = data_of(info)
        if data is None:
            return text
        nonce = self._nonce(text)
        shown = _SPACE.sub(data.space, text) if data.space else text
        return f"<data {nonce}>\n{shown}\n</data {nonce}>"

    def _nonce(self, text: str) -> str:
        count = 0
        while True:
            made = hmac.new(self.key, f"{count}\n{text}".encode(errors="replace"), hashlib.sha256)
            nonce = made.hexdigest()[:NONCE]
            if nonce not in self.whole:
                return nonce
            count += 1


def marked_inputs(signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with those that are data as marked texts, for prompts that others word."""
    marks = Marks(signature, [inputs])
    infos = signature.input_fields
    return {
        name: marks.marked(infos[name], to_text(value))
        if name in infos and data_of(infos[name]) is not None
        else value
        for name, value in inputs.items()
    }


def _shown(value: Any) -> str:
    try:
        return to_text(value)
    except Exception:  # who shows it says what is wrong with it
        return ""
