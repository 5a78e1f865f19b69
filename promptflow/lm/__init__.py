"""Local models as DSPy language models: the only package that knows DSPy's LM contract."""

from promptflow.lm.adapter import SlotAdapter, as_adapted, configure
from promptflow.lm.callbacks import Told
from promptflow.lm.faults import as_dspys, in_short
from promptflow.lm.listeners import Audience, audiences, generate, tell
from promptflow.lm.local import LocalLM, answers_by_engine, is_local, lm_of, load
from promptflow.lm.options import TOOL_OPTIONS, calls_tools, refuse_unknown
from promptflow.lm.record import (
    AGAIN,
    Seen,
    Turns,
    decoding_of,
    prompt_text,
    sampling_of,
    seed_of,
    trace_call,
    usage_of,
    written_text,
)
from promptflow.lm.remote import fault_of
from promptflow.lm.shown import Shown
from promptflow.lm.waiting import Posted, Waiting

__all__ = [
    "AGAIN",
    "TOOL_OPTIONS",
    "Audience",
    "LocalLM",
    "Posted",
    "Seen",
    "Shown",
    "SlotAdapter",
    "Told",
    "Turns",
    "Waiting",
    "answers_by_engine",
    "as_adapted",
    "as_dspys",
    "audiences",
    "calls_tools",
    "configure",
    "decoding_of",
    "fault_of",
    "generate",
    "in_short",
    "is_local",
    "lm_of",
    "load",
    "prompt_text",
    "refuse_unknown",
    "sampling_of",
    "seed_of",
    "tell",
    "trace_call",
    "usage_of",
    "written_text",
]
