"""Chat templates of model files: the texts that a template puts around the contents of turns.

A template is a program from a stranger, so that it is rendered under limits: see sandbox.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from promptflow.errors import TemplateError
from promptflow.sandbox import Job, RenderFailed, render_limited

OTHERWISE = "use layout='completion'"


def scaffold(template: str, roles: Sequence[str], bos: str, eos: str) -> tuple[str, ...]:
    """Return the texts that ``template`` puts around the contents of turns by ``roles``.

    One more than there are roles; the last opens the assistant's turn unless the last role is
    ``assistant``. A template that refuses a system turn gets its content at the start of the first
    other turn. Raises TemplateError for a template that fails, loops, or alters contents.
    """
    if not template:
        raise TemplateError(
            f"the model file has no chat template: {OTHERWISE}, or a model made for chat"
        )
    try:
        return _around(template, roles, bos, eos)
    except TemplateError:
        if len(roles) < 2 or roles[0] != "system":
            raise
        texts = _around(template, roles[1:], bos, eos)
        return (texts[0], "\n\n", *texts[1:])


def _around(template: str, roles: Sequence[str], bos: str, eos: str) -> tuple[str, ...]:
    # Contents stand for themselves as random words, which no template can tell or forge.
    marks = [secrets.token_hex(16) for _ in roles]
    context = {
        "messages": [
            {"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)
        ],
        "add_generation_prompt": roles[-1] != "assistant",
        "bos_token": bos,
        "eos_token": eos,
    }
    try:
        text = render_limited(Job("chat", template, context)).text
    except RenderFailed as error:
        where = f" (line {error.line})" if error.line else ""
        raise TemplateError(
            f"the model's chat template cannot be rendered{where}: {error}. {OTHERWISE}"
        ) from error
    texts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise TemplateError(
                f"the model's chat template does not keep turns by {tuple(roles)} in order: "
                + OTHERWISE
            )
        texts.append(before)
    return (*texts, text)
