"""Options that several commands share, and the model that they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from promptflow.retrieval.passages import Rerank

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
        help="How all prompts are laid out: chat, completion, fields, json, or a .jinja file."
    ),
]
Thinking = Annotated[
    Literal["auto", "on", "off"] | None,
    typer.Option(
        help="Whether reasoning is written in the model's own block: auto where an output is "
        "reasoning, on in any case, off never."
    ),
]
_THINKING: dict[str, Any] = {"auto": "auto", "on": True, "off": False}
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

Reranking = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        help="What orders the best passages again: a cross-encoder's name, or 'model' for the "
        "model itself.",
    ),
]


def reranker(name: str | None, model: str) -> Rerank | None:
    """Return what ``--rerank`` names; ``model`` is the one that the command names."""
    if name is None:
        return None
    if name == "model":
        from promptflow.modules.relevance import Relevance

        return Relevance(lm=model)
    from promptflow.retrieval.rerank import CrossEncoderReranker

    return CrossEncoderReranker(name)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model of a command, and how its prompts are written."""

    model: str
    chat_template: Path | None
    layout: str | None
    thinking: str | None = None

    def configured(self) -> Any:
        """Return the configured model; a layout that is not there is told before one is read."""
        from promptflow.layout import find_layout
        from promptflow.lm import configure

        if self.layout is not None:
            find_layout(self.layout)
        settings: dict[str, Any] = {}
        if self.chat_template is not None:
            settings["options"] = {"chat_template": self.chat_template}
        if self.thinking is not None:
            settings["thinking"] = _THINKING[self.thinking]
        return configure(self.model, **settings)

    def lay_out(self, program: Any, lm: Any) -> None:
        """Have a program write its prompts with what was chosen here."""
        from promptflow.program import lay_out, think

        if self.layout is not None:
            lay_out(program, self.layout, lm)
        if self.thinking is not None:
            think(program, _THINKING[self.thinking], lm)
