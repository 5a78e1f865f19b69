"""What of a call is written as a prompt: past turns apart, and tools as the only ones to call.

A ``dspy.History`` is no field but the turns before this one. A ``dspy.ToolCalls`` output calls the
tools that stand in the inputs, each with its own arguments: others cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import dspy
from pydantic import BaseModel, ConfigDict, Field, create_model

from promptflow import layout
from promptflow.engine.request import Completion
from promptflow.errors import UnsupportedType
from promptflow.fields import TypedField


@dataclass(frozen=True, slots=True)
class Shown:
    """A signature and inputs as a prompt shows them, and the turns before."""

    signature: Any
    inputs: Mapping[str, Any]
    turns: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(
        cls, signature: Any, inputs: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> Shown:
        """Return what is shown of a call; ``options`` may hold DSPy's ``tool_choice``.

        Inputs that are not given are left out, as DSPy's adapters leave them out.
        """
        values = {name: inputs[name] for name in signature.fields if name in inputs}
        turns: list[Mapping[str, Any]] = []
        for name, info in signature.input_fields.items():
            if info.annotation is dspy.History:
                past = values.pop(name, None)
                turns += past.messages if past is not None else []
                signature = signature.delete(name)
        if not turns:
            for name in signature.input_fields:
                if name not in values:
                    signature = signature.delete(name)
        return cls(_offering(signature, values, options or {}), values, turns)

    def read(self, completion: Completion) -> dict[str, Any]:
        """Return the values of the outputs. Raises ParseError."""
        return {
            name: _calls(value) if isinstance(value, _ToolCalls) else value
            for name, value in layout.read(self.signature, completion).items()
        }


class _ToolCalls(BaseModel):
    """Calls of the tools that were offered."""

    tool_calls: list[Any]


def _calls(made: _ToolCalls) -> dspy.ToolCalls:
    calls = [call.model_dump(exclude_unset=True) for call in made.tool_calls]
    return dspy.ToolCalls.from_dict_list(calls)


def _offering(signature: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return the signature with its tool calls confined to the tools of the inputs."""
    tools = [tool for value in inputs.values() for tool in _tools(value)]
    chosen = options.get("tool_choice")
    count: dict[str, Any] = {}
    if isinstance(chosen, Mapping):
        name = (chosen.get("function") or chosen).get("name")
        tools = [tool for tool in tools if tool.name == name] or tools
        count = {"min_length": 1, "max_length": 1}
    elif chosen == "required":
        count["min_length"] = 1
    if options.get("parallel_tool_calls") is False:
        count["max_length"] = 1
    if not tools:
        return signature
    for name, info in signature.output_fields.items():
        if info.annotation is dspy.ToolCalls:
            call: Any = Union[tuple(_call(tool) for tool in tools)]  # noqa: UP007
            calls: Any = Annotated[list[call], Field(**count)]
            kind = create_model("ToolCalls", __base__=_ToolCalls, tool_calls=(calls, ...))
            signature = signature.with_updated_fields(name, type_=kind)
    return signature


def _tools(value: Any) -> list[dspy.Tool]:
    if isinstance(value, dspy.Tool):
        return [value]
    return (
        [tool for tool in value if isinstance(tool, dspy.Tool)] if isinstance(value, list) else []
    )


def _call(tool: dspy.Tool) -> type[BaseModel]:
    """Return the model of one tool's call."""
    fields: dict[str, Any] = {}
    for name, schema in (tool.args or {}).items():
        kind = (tool.arg_types or {}).get(name, Any)
        default = schema["default"] if isinstance(schema, Mapping) and "default" in schema else ...
        fields[name] = (kind, default)
    closed = ConfigDict(extra="forbid")
    arguments: Any = dict[str, Any]
    if fields:  # with has_kwargs too: the arguments that it names are those that it wants
        made = create_model("Arguments", __config__=closed, **fields)
        arguments = made if _can_be_written(made) else arguments
    elif not tool.has_kwargs:
        arguments = create_model("Arguments", __config__=closed)
    named: Any = Literal[tool.name]
    call: type[BaseModel] = create_model(
        "Call", __config__=closed, name=(named, ...), args=(arguments, ...)
    )
    return call


def _can_be_written(kind: Any) -> bool:
    try:
        return TypedField("arguments", kind).shape is not None
    except UnsupportedType:
        return False
