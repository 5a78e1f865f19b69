"""How a search asks its parts: modules sampled, predictors that weigh, and plain functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from promptflow.engine.request import Choice
from promptflow.errors import ProgramError
from promptflow.fields import TypedField
from promptflow.flow import Call, Flow, Prediction, changed, flow_of
from promptflow.modules.options import confined
from promptflow.modules.rounds import sample_of
from promptflow.storage import canonical


def is_function(part: Any) -> bool:
    """Say whether a part is no module but a function of a state."""
    return not isinstance(part, dspy.Module)


def weighs(part: Any) -> bool:
    """Say whether a predictor looks at every option instead of sampling one."""
    return isinstance(part, dspy.Predict) and bool(
        getattr(getattr(part, "decoding", None), "weigh", None)
    )


def check_part(name: str, part: Any, confined: bool, needed: str | None = None) -> None:
    """Raise ValueError for a predictor that lacks an input, or weighs an output without options.

    ``confined`` tells that a call confines the last output to options.
    """
    if not isinstance(part, dspy.Predict):
        return
    if needed is not None and needed not in part.signature.input_fields:
        raise ValueError(f"{name}={_shown(part)} has no input {needed!r}, which it is asked about")
    if weighs(part) and not confined and not isinstance(_last(part).constraint({}), Choice):
        raise ValueError(
            f"{name}={_shown(part)} has weigh=True, but its last output has no options to weigh: "
            "make it a Literal, or leave weigh out"
        )


def check_goal(part: Any) -> None:
    """Raise ValueError for a predictor whose last output is no bool."""
    if isinstance(part, dspy.Predict) and _last(part).annotation is not bool:
        raise ValueError(f"goal={_shown(part)}: its last output must be a bool")


def _last(part: Any) -> TypedField:
    name, info = list(part.signature.output_fields.items())[-1]
    return TypedField.of(name, info)


def _shown(part: Any) -> str:
    return repr(part.signature.signature)


def asked(
    part: Any, inputs: Mapping[str, Any], times: int, temperature: float | None, **more: Any
) -> list[Flow]:
    """Return the flows that ask a part of the search: so many samples of a module.

    A function and a predictor that weighs say all in one; without a temperature so does any. The
    last of ``inputs``, the state or states, is a function's argument; the others go in by name.
    """
    if is_function(part):
        return [_called(part, {**more, **inputs})]
    given = {**known_inputs(part, inputs), **more}
    if temperature is None or weighs(part):
        return [changed(flow_of(part, given), _sampled, quiet=True)]
    return [sample_of(part, given, k, temperature) for k in range(times)]


def _sampled(call: Call, step: int, position: int) -> Call:
    return replace(call, sampled=True)


def _called(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Flow:
    """Return a function's value as a prediction, without a call."""
    _, *others = inspect.signature(function).parameters
    named = {name: inputs[name] for name in others if name in inputs}
    value = function(inputs[list(inputs)[-1]], **named)
    if value is None:
        raise ProgramError(f"{function!r} returned None: a search cannot go on from that")
    if not isinstance(value, str) and isinstance(value, Sequence):
        value = list(value)
    return value if isinstance(value, dspy.Prediction) else Prediction(value=value)
    yield  # what makes this a generator


def question(part: Any, inputs: Mapping[str, Any]) -> str:
    """Return what makes two valuations the same: the inputs that a predictor is shown."""
    return inputs["state"] if is_function(part) else canonical(known_inputs(part, inputs))


def reached(prediction: Prediction) -> bool:
    """Return whether a goal is reached: the last output, which is True or False."""
    value = prediction[list(prediction.keys())[-1]]
    if not isinstance(value, bool):
        raise ProgramError(f"goal= said {value!r}: its last output must be a bool")
    return value


def ballot(prediction: Prediction) -> dict[str, float]:
    """Return the share of each state's number in a vote: 1 for one, or as they were weighed."""
    last = list(prediction.keys())[-1]
    return dict(prediction.weighed.get(last) or {str(prediction[last]): 1.0})


def known_inputs(module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that a predictor's signature names; all of them for any other module."""
    if not isinstance(module, dspy.Predict):
        return dict(inputs)
    return {name: inputs[name] for name in module.signature.input_fields if name in inputs}


def confined_to(module: Any, options: tuple[str, ...]) -> dict[str, Any]:
    """Return the input that confines a predictor's last output to ``options``.

    Any other module is told them as its input ``options``.
    """
    if not isinstance(module, dspy.Predict):
        return {"options": list(options)}
    last = list(module.signature.output_fields)[-1]
    return {"signature": confined(module.signature, last, options)}
