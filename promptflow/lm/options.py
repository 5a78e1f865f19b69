"""The options of a call: which ones a local model honours, and why it refuses the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from promptflow.engine.request import Sampling
from promptflow.errors import UnsupportedOption
from promptflow.lm.faults import as_dspys

SAMPLING = tuple(Sampling.__dataclass_fields__)
KNOWN = frozenset(
    {
        *SAMPLING,
        "cache",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "n",
        "response_format",
        "rollout_id",
        "seed",
        "stop",
        "thinking",
        "top_logprobs",
    }
)
"""What DSPy's calls may ask of a local model, by keyword."""

_TOOLS = "declare an input of list[dspy.Tool] and an output of dspy.ToolCalls, or use dspy.ReAct"
_REMOTE = "it is for remote providers"
REFUSED: Mapping[str, str] = {
    "function_call": _TOOLS,
    "functions": _TOOLS,
    "tool_choice": _TOOLS,
    "tools": _TOOLS,
    "parallel_tool_calls": _TOOLS,
    "moderation": _REMOTE,
    "num_generations": "write n=",
    "prediction": "there is no draft to predict from; prompts are looked up by themselves",
    "prompt_cache": "the engine shares prefixes by itself",
    "provider": _REMOTE,
    "reasoning_effort": "give the signature a field reasoning; reasoning_tokens bounds it",
    "safety_identifier": _REMOTE,
    "service_tier": _REMOTE,
    "store": _REMOTE,
    "stream": "use dspy.streamify",
    "thinking": "give True, False or 'auto'; reasoning_tokens bounds it",
    "timeout": "use Request(deadline=...) on the engine",
    "user": _REMOTE,
    "verbosity": "say in the instructions how long the answer is to be",
    "web_search_options": _REMOTE,
}
"""What they may not, with what to do instead."""


def refuse_unknown(
    config: Mapping[str, Any], model: str, *, beside: Iterable[str] = (), typed: bool = False
) -> None:
    """Raise UnsupportedOption, DSPy's LMUnsupportedFeatureError too, for what is not honoured.

    ``beside`` are names that the caller itself takes. ``typed`` answers are held to the types of
    their fields, and take no ``response_format``. Options that are None were not chosen.
    """
    for name, value in config.items():
        if value is None or name in beside:
            continue
        if name == "response_format" and typed:
            reason = "the types of the output fields constrain the answer"
        elif name == "thinking" and not (isinstance(value, bool) or value == "auto"):
            reason = REFUSED[name]
        elif name in KNOWN:
            continue
        elif name in REFUSED:
            reason = REFUSED[name]
        else:
            near = difflib.get_close_matches(name, (*KNOWN, *beside), n=1)
            reason = f"did you mean {near[0]}=?" if near else f"the options are {_listed(beside)}"
            raise as_dspys(UnsupportedOption(f"there is no option {name!r}: {reason}"), model)
        raise as_dspys(UnsupportedOption(f"a local model cannot honour {name!r}: {reason}"), model)


TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")


def calls_tools(signature: Any) -> bool:
    """Say whether an output calls tools: it takes ``TOOL_OPTIONS`` as DSPy's adapters take them."""
    return any(info.annotation is dspy.ToolCalls for info in signature.output_fields.values())


def _listed(beside: Iterable[str]) -> str:
    return ", ".join(sorted({*KNOWN, *beside}))
