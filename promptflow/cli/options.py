"""Options that several commands share, and the model that they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = "qwen2.5-coder-0.5b"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="PROMPTFLOW_MODEL",
        help="A name that `promptflow models list` shows, with or without --found; "
        "hf:org/repo:QUANT; or the path of a GGUF file.",
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option("--chat-template", help="A Jinja file in the place of the model's own template."),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="How all prompts are laid out: chat, completion, or the path of a .jinja file."
    ),
]
Passages = Annotated[int, typer.Option("--k", "-k", min=1, help="How many passages are read.")]
SearchMode = Annotated[
    str | None, typer.Option("--mode", help="dense, sparse or hybrid; else what the index does.")
]
Where = Annotated[
    list[str],
    typer.Option(
        "--where",
        help="Only documents with this field=value: kind=pdf, document='2024/*'. Again, for "
        "another field, or another value of the same.",
    ),
]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model of a command, and how its prompts are written."""

    model: str
    chat_template: Path | None
    layout: str | None

    def configured(self) -> Any:
        """Return the configured model; a layout that is not there is told before one is read."""
        from promptflow.layout import find_layout
        from promptflow.lm import configure

        if self.layout is not None:
            find_layout(self.layout)
        if self.chat_template is None:
            return configure(self.model)
        return configure(self.model, options={"chat_template": self.chat_template})

    def lay_out(self, program: Any, lm: Any) -> None:
        """Have a program write its prompts with the layout, where one was chosen."""
        from promptflow.program import lay_out

        if self.layout is not None:
            lay_out(program, self.layout, lm)
