"""What of a call is written as a prompt: past turns apart, and tools as the only ones to call.

A ``dspy.History`` is no field but the turns before this one. A ``dspy.ToolCalls`` output calls the
tools that stand in the inputs, each with its own arguments; what ``dspy.ReAct`` writes after the
name of a tool is that tool's arguments. Others cannot be written.
"""

from __future__ import annotations

import functools
import json
import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union

import dspy
from pydantic import Field

from promptflow import layout
from promptflow.engine.request import Completion, Dependent, Fill
from promptflow.errors import ParseError
from promptflow.fields import DependsOn, TypedField, call_of
from promptflow.lm.arguments import of_tool, typed_dict

logger = logging.getLogger(__name__)

NAME, ARGUMENTS = "next_tool_name", "next_tool_args"  # the outputs of ``dspy.ReAct``'s steps


@dataclass(frozen=True, slots=True)
class Shown:
    """A signature and inputs as a prompt shows them, and the turns before.

    ``tools`` are those that each output may call, by its name.
    """

    signature: Any
    inputs: Mapping[str, Any]
    turns: Sequence[Mapping[str, Any]] = ()
    tools: Mapping[str, Mapping[str, dspy.Tool]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, signature: Any, inputs: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> Shown:
        """Return what is shown of a call; ``options`` may hold DSPy's ``tool_choice``.

        Inputs that are not given are left out, as DSPy's adapters leave them out. Raises
        ProgramError for a tool that a model cannot call.
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
        signature, tools = _offering(signature, values, options or {})
        signature, own = _stepping(signature)
        return cls(signature, values, turns, {**tools, **own})

    def read(self, completion: Completion) -> dict[str, Any]:
        """Return the values of the outputs. Raises ParseError."""
        plain = self.signature
        for name in self.tools:
            plain = plain.delete(name)
        values = layout.read(plain, completion)
        for name in self.tools:
            if (fill := completion.fills.get(name)) is not None:
                values[name] = self._called(name, fill, completion)
        return {name: values[name] for name in self.signature.output_fields if name in values}

    def _called(self, name: str, fill: Fill, completion: Completion) -> Any:
        """Return what an output calls, as plain JSON: a tool reads its arguments itself."""
        info = self.signature.output_fields[name]
        constraint = TypedField.of(name, info).constraint(self.inputs)
        tool = ""
        if isinstance(constraint, Dependent):
            tool = completion.fills[constraint.slot].text
            constraint = constraint.on(tool)
        assert constraint is not None, "calls are always held"
        made = call_of(fill, constraint)
        if fill.finish == "length":
            logger.warning("%s was cut at its token limit and ended there; raise max_tokens", name)
        if name == ARGUMENTS:
            tool = tool or str(self.inputs[NAME])
            return plain_arguments(self.tools[name].get(tool), made)
        calls = made["tool_calls"]
        if fill.finish == "length" and not _is_whole(fill.text):
            if len(calls) == 1 and len(self.tools[name]) > 1 and '"args"' not in fill.text:
                raise ParseError(
                    f"output {name!r} was cut before it named a tool; raise max_tokens"
                )
            calls = calls[:-1] or calls
        found = [
            {**call, "args": plain_arguments(self.tools[name].get(call["name"]), call["args"])}
            for call in calls
        ]
        return dspy.ToolCalls.from_dict_list(found)


def _is_whole(text: str) -> bool:
    """Say whether calls that were cut end after one of them."""
    try:
        json.loads(f"{text}]}}")
    except ValueError:
        return False
    return True


def _offering(
    signature: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Any, dict[str, Mapping[str, dspy.Tool]]]:
    """Return the signature with its tool calls confined to the tools of the inputs."""
    tools = [tool for value in inputs.values() for tool in _tools(value)]
    chosen = options.get("tool_choice")
    least, most = 0, None
    if isinstance(chosen, Mapping):
        name = (chosen.get("function") or chosen).get("name")
        tools = [tool for tool in tools if tool.name == name] or tools
        least, most = 1, 1
    elif chosen == "required":
        least = 1
    if options.get("parallel_tool_calls") is False:
        most = 1
    found: dict[str, Mapping[str, dspy.Tool]] = {}
    if not tools:
        return signature, found
    for name, info in signature.output_fields.items():
        if info.annotation is dspy.ToolCalls:
            call: Any = Union[tuple(_call(tool) for tool in tools)]  # noqa: UP007
            calls: Any = Annotated[list[call], _counted(least, most)]
            signature = signature.with_updated_fields(name, type_=typed_dict({"tool_calls": calls}))
            found[name] = {str(tool.name): tool for tool in tools}
    return signature, found


@functools.cache  # one mark for each: a type with another is another type
def _counted(least: int, most: int | None) -> Any:
    return Field(min_length=least or None, max_length=most)


def _tools(value: Any) -> list[dspy.Tool]:
    if isinstance(value, dspy.Tool):
        return [value]
    return (
        [tool for tool in value if isinstance(tool, dspy.Tool)] if isinstance(value, list) else []
    )


def _call(tool: dspy.Tool) -> Any:
    """Return the type of one tool's call."""
    named: Any = Literal[tool.name]
    return typed_dict({"name": named, "args": of_tool(tool).kind()})


def _stepping(signature: Any) -> tuple[Any, dict[str, Mapping[str, dspy.Tool]]]:
    """Return the signature of a step of ``dspy.ReAct`` with arguments of the tool named before.

    The tools are those of the agent that is running: the signature has their names alone.
    """
    outputs = signature.output_fields
    if NAME not in outputs or ARGUMENTS not in outputs:
        return signature, {}
    names = typing.get_args(outputs[NAME].annotation)
    for module in reversed(dspy.settings.caller_modules or []):
        tools = getattr(module, "tools", None)
        if isinstance(tools, Mapping) and names and set(names) <= set(tools):
            kinds = tuple((name, of_tool(tools[name]).kind()) for name in names)
            kind: Any = Annotated[dict[str, Any], DependsOn(NAME, kinds)]
            return signature.with_updated_fields(ARGUMENTS, type_=kind), {ARGUMENTS: tools}
    return signature, {}


def plain_arguments(tool: dspy.Tool | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments without what a set would drop, which DSPy would refuse."""
    schemas = {} if tool is None else tool.args or {}
    return {name: _distinct(value, schemas.get(name)) for name, value in given.items()}


def _distinct(value: Any, schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        first, rest = schema.get("prefixItems", []), schema.get("items")
        items = [_distinct(v, first[n] if n < len(first) else rest) for n, v in enumerate(value)]
        if schema.get("uniqueItems"):
            return list({json.dumps(item, sort_keys=True): item for item in items}.values())
        return items
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties")
        return {n: _distinct(v, known.get(n, rest)) for n, v in value.items()}
    return value
