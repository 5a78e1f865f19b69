"""Tools: plain functions that an agent may call, with typed arguments; most read, few may act.

What a tool may do follows from its mark, not from what a model says: a function counts as one that
acts until it is marked ``read_only``. Knows nothing of steps or prompts.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import dspy
from pydantic import Field, WithJsonSchema

from promptflow.errors import ProgramError, SignatureError, names_options
from promptflow.lm.arguments import of_function, of_tool, typed_dict
from promptflow.modules.arithmetic import WRITTEN, number_text, value_of
from promptflow.notation import type_text
from promptflow.retrieval import Passage, Retriever

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__promptflow_read_only__"
_FOUND = "__promptflow_found__"
_Short = Field(min_length=1, max_length=200)
_Written = WithJsonSchema(
    {"x-written": "text", "x-patterns": [WRITTEN], "x-kind": "expression"}, mode="validation"
)
_Offset = Field(ge=0, le=100_000_000)
_Length = Field(ge=1, le=4_000)


def read_only(function: F) -> F:
    """Mark a function as a tool that changes nothing: no file, no message, no order, no payment.

    >>> @read_only
    ... def population(city: str) -> int:
    ...     return {"Seoul": 9_400_000}[city]
    """
    setattr(function, _MARK, True)
    return function


@dataclass(frozen=True, slots=True)
class Handle:
    """The mark of an argument that is one of the documents which this run has found."""


@dataclass(frozen=True, slots=True)
class Found:
    """A passage as a tool returns it: its text, with the place where it stands."""

    passage: Passage

    def prompt_text(self) -> str:
        """Return the place and the text."""
        p = self.passage
        heading = f" {p.heading}" if p.heading else ""
        return f"{p.document} {p.start}-{p.end}{heading}: {p.text}"

    __str__ = prompt_text


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with its name, what it says of itself, and the types of its arguments.

    ``handles`` names the arguments that are documents found before; ``reads`` tells that it is
    marked read-only.
    """

    name: str
    about: str
    types: Mapping[str, Any]
    defaults: Mapping[str, Any]
    handles: frozenset[str]
    reads: bool
    function: Callable[..., Any]

    @classmethod
    def of(cls, given: Callable[..., Any] | dspy.Tool) -> Tool:
        """Return the tool that a function, or a ``dspy.Tool``, is. Raises ProgramError."""
        function = given.func if isinstance(given, dspy.Tool) else given
        name = str(given.name if isinstance(given, dspy.Tool) else _name(function))
        if not name.isidentifier():
            raise ProgramError(f"the tool {name!r} has no name that can be called: use def")
        if inspect.iscoroutinefunction(function):
            raise ProgramError(f"the tool {name} is a coroutine: give a plain function")
        own = of_tool(given) if isinstance(given, dspy.Tool) else of_function(name, function)
        told = given.desc if isinstance(given, dspy.Tool) else inspect.getdoc(function)
        about = " ".join((told or "").split("\n\n")[0].split())
        handles = frozenset(name for name, kind in own.types.items() if _is_handle(kind))
        reads = bool(getattr(function, _MARK, False))
        return cls(name, about, own.types, own.defaults, handles, reads, function)

    def prompt_text(self) -> str:
        """Return what a prompt shows of it: ``name(argument: type): what it does``."""
        arguments = ", ".join(
            f"{name}: {_type_text(kind)}"
            + (f" = {self.defaults[name]!r}" if name in self.defaults else "")
            for name, kind in self.types.items()
        )
        return f"{self.name}({arguments}): {self.about}".removesuffix(": ")

    def arguments(self, documents: Sequence[str] = ()) -> Any:
        """Return the type of its arguments, a ``TypedDict``; a handle is one of ``documents``.

        Its values are plain dicts, which everything can copy, hash and write.
        """
        kinds = {
            name: Literal[tuple(documents)] if name in self.handles else kind
            for name, kind in self.types.items()
        }
        return typed_dict(kinds, self.defaults)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _is_handle(kind: Any) -> bool:
    return any(isinstance(mark, Handle) for mark in getattr(kind, "__metadata__", ()))


def _type_text(kind: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    try:
        return type_text(kind)
    except SignatureError:
        return str(getattr(kind, "__name__", kind))


def offered(
    tools: Iterable[Callable[..., Any] | dspy.Tool], allow: Iterable[str] = ()
) -> dict[str, Tool]:
    """Return tools by name; those that act only where ``allow`` names them. Raises ProgramError."""
    made = [Tool.of(tool) for tool in tools]
    found = {tool.name: tool for tool in made}
    if len(found) < len(made):
        raise ProgramError(f"two tools have one name: {sorted(tool.name for tool in made)}")
    allowed = set(allow)
    if unknown := sorted(allowed - set(found)):
        raise ProgramError(f"allow names {unknown}, which are no tools; tools are {sorted(found)}")
    if acting := [name for name, tool in found.items() if not tool.reads and name not in allowed]:
        raise ProgramError(
            f"the tool {acting[0]} may change something, and a text that the agent reads could "
            f"make it: mark the function with @promptflow.read_only if it changes nothing, or give "
            f"allow=[{acting[0]!r}] to let the model call it unasked"
        )
    return found


@names_options
def search_tool(retriever: Retriever, k: int = 3) -> Callable[[str], list[Found]]:
    """Return the tool ``search(query)``: at most ``k`` passages with the places they stand in."""
    documents: set[str] = set()

    @read_only
    def search(query: Annotated[str, _Short]) -> list[Found]:
        """Search the documents; gives passages with document and place."""
        if not query.strip():
            raise ValueError("the query is blank: write what is looked for")
        passages = retriever.search(query, k=k)
        documents.update(passage.document for passage in passages)
        return [Found(passage) for passage in passages]

    setattr(search, _FOUND, (retriever, documents))
    return search


@names_options
def read_tool(search: Callable[[str], list[Found]]) -> Callable[..., str]:
    """Return the tool ``read(document, start, length)``: a span of a document that was found.

    ``search`` is what ``search_tool`` returned: a document that it did not return is refused before
    any retriever is asked, so that no text makes one open a file or an address. In an ``Agent`` the
    search was of the same run. Raises ProgramError for any other function.
    """
    if not hasattr(search, _FOUND):
        raise ProgramError("read_tool: give the tool that search_tool(index) returned")
    retriever, documents = getattr(search, _FOUND)

    @read_only
    def read(
        document: Annotated[str, Handle()],
        start: Annotated[int, _Offset] = 0,
        length: Annotated[int, _Length] = 1000,
    ) -> str:
        """Read characters of a document from start on."""
        if document not in documents:
            raise ValueError(f"no document {document!r}: give one that search returned")
        if start < 0 or length < 1:
            raise ValueError(f"start={start}, length={length}: start from 0, length from 1")
        text = retriever.text(document)
        span = text[start : start + length]
        left = len(text) - start - len(span)
        if not span:
            return f"(nothing: the document has {len(text)} characters)"
        return f"{span}\n({left} characters follow)" if left > 0 else span

    return read


@read_only
def calculate(expression: Annotated[str, _Written]) -> str:
    """Compute an expression of numbers, + - * / // % ** and parentheses, exactly."""
    return number_text(value_of(expression))
