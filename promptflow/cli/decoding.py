"""The options of decoding, for every command that answers with a program."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import typer

from promptflow.errors import UnsupportedOption

MANY = 1_000
"""Answers that a command can show which shows more than one."""

_SAMPLERS: Mapping[str, tuple[Any, str]] = {
    "temperature": (float, "0 is greedy; higher varies more."),
    "top_k": (int, "Sample among so many of the likeliest tokens."),
    "top_p": (float, "Sample among the likeliest tokens that hold this share."),
    "min_p": (float, "Sample among tokens this likely beside the likeliest."),
    "typical_p": (float, "Sample among the most typical tokens that hold this share."),
    "repetition_penalty": (float, "Above 1: tokens that stand there already are less likely."),
    "frequency_penalty": (float, "Subtracted for each time that a token was written."),
    "presence_penalty": (float, "Subtracted once a token was written."),
}
_OTHERS: Mapping[str, tuple[Any, str]] = {
    "beam": (int, "Search with so many hypotheses instead of sampling."),
    "max_tokens": (int, "The most tokens of each text, of reasoning too."),
    "n": (int, "How many: answers of run, samples of sc, proposals a state of tot."),
    "technique": (
        Literal["cot", "sc", "tot"],
        "Chain of thought, self-consistency over chains, or tree of thoughts.",
    ),
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a command was told of decoding; None where nothing was said."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    beam: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    technique: Literal["cot", "sc", "tot"] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be honoured together, by name. Raises UnsupportedOption."""
        if self.beam is not None:
            clash = [*self.sampling, *(["n"] if self.n else [])]
            clash += ["technique"] if self.technique in ("sc", "tot") else []
            if clash:
                told = ", ".join(f"--{name.replace('_', '-')}" for name in clash)
                raise UnsupportedOption(
                    f"--beam {self.beam} searches for the one most probable text and samples "
                    f"nothing: leave out {told}"
                )
        for name, least in (("n", 1), ("beam", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                option = f"--{name.replace('_', '-')}"
                raise UnsupportedOption(f"{option} {value}: give a whole number from {least}")
        many = self.n is not None and self.n > 1
        if many and self.technique is None and self.temperature == 0:
            raise UnsupportedOption(
                f"--n {self.n} and --temperature 0: greedy answers are all the same; leave out one"
            )

    @property
    def sampling(self) -> dict[str, Any]:
        """Return what was said of sampling."""
        return {n: v for n in _SAMPLERS if (v := getattr(self, n)) is not None}

    def applied(self, program: Any, *, answers: int = 1) -> Any:
        """Return the program with all of it; ``answers`` is how many the command can show.

        Raises UnsupportedOption for what the program, or the command, cannot honour.
        """
        from promptflow.program import decode, several, with_technique

        n = self.n if self.n is not None and self.n > 1 else None
        if self.technique is not None:
            program = with_technique(program, self.technique, n=n, temperature=self.temperature)
        elif n is not None and answers == 1:
            raise UnsupportedOption(
                f"--n {n}: this command takes one answer; add --technique sc, which votes"
            )
        elif n is not None:
            several(program, n)
        if self.sampling or self.beam is not None or self.max_tokens is not None:
            decode(program, sampling=self.sampling, beam=self.beam, max_tokens=self.max_tokens)
        return program


def decodes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of decoding; it takes them together, as ``decoded``."""
    own = inspect.signature(command, eval_str=True)
    kept = [p for name, p in own.parameters.items() if name != "decoded"]
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(help=help_)],
        )
        for name, (kind, help_) in {**_SAMPLERS, **_OTHERS}.items()
    ]

    @functools.wraps(command)
    def taking(**given: Any) -> None:
        told = {field.name: given.pop(field.name) for field in fields(Decoded)}
        command(**given, decoded=Decoded(**told))

    del taking.__wrapped__
    parameters = [*kept, *shared]
    taking.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    taking.__annotations__ = {p.name: p.annotation for p in parameters}
    return taking
