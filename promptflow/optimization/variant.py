"""A variant: what a search changes in a program, by predictor name, as JSON data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from promptflow.errors import ProgramError
from promptflow.evaluation.data import plain
from promptflow.program.classes import typed
from promptflow.program.identity import hash_of

Demos = tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """Instructions, demos and layout of each predictor, and in a few words where they come from.

    A predictor without a layout here keeps its own.

    ``key`` is 16 characters of the content's hash; the label is not part of it.
    """

    label: str
    instructions: Mapping[str, str]
    demos: Mapping[str, Demos] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Set the key."""
        content = [dict(self.instructions), dict(self.demos)]
        content += [dict(self.layouts)] if self.layouts else []
        object.__setattr__(self, "key", hash_of(content)[:16])

    @property
    def size(self) -> int:
        """Return the number of demos of all predictors."""
        return sum(len(demos) for demos in self.demos.values())

    def apply(self, program: Any) -> Any:
        """Return a copy of ``program`` with these instructions, demos and layouts.

        Predictors are matched by name; raises ProgramError for one that is missing. What is not a
        module (an index, say) is shared with the original.
        """
        twin = copied(program)
        predictors = dict(twin.named_predictors())
        missing = [name for name in self.instructions if name not in predictors]
        if missing:
            raise ProgramError(
                f"{type(program).__name__} has no predictor {missing[0]!r}; it has "
                f"{', '.join(predictors)}"
            )
        for name, instructions in self.instructions.items():
            predictor = predictors[name]
            if instructions != predictor.signature.instructions:
                predictor.signature = predictor.signature.with_instructions(instructions)
            predictor.demos = [
                dspy.Example(**typed(predictor.signature, demo))
                for demo in self.demos.get(name, ())
            ]
            if (layout := self.layouts.get(name)) is not None:
                predictor.decoding = replace(predictor.decoding, layout=layout)
        return twin


def start_of(program: Any) -> Variant:
    """Return the variant that a program is. Raises ProgramError if it has no predictor."""
    predictors = dict(program.named_predictors())
    if not predictors:
        raise ProgramError(
            f"{type(program).__name__} has no predictor to optimize: keep its pf.Predict modules "
            "in attributes"
        )
    return Variant(
        "start",
        {name: predictor.signature.instructions for name, predictor in predictors.items()},
        {name: tuple(plain(dict(d)) for d in p.demos) for name, p in predictors.items()},
    )


def copied(program: Any) -> Any:
    """Return a copy of a module whose sub-modules are copies too, and whose other parts are shared.

    ``dspy.Module.deepcopy`` would copy an index with every variant.
    """
    return _copied(program, {})


def _copied(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, dspy.Module):
        if id(value) not in seen:
            seen[id(value)] = twin = copy.copy(value)
            for name, item in vars(value).items():
                vars(twin)[name] = _copied(item, seen)
        return seen[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_copied(item, seen) for item in value)
    if type(value) is dict:
        return {key: _copied(item, seen) for key, item in value.items()}
    return value
