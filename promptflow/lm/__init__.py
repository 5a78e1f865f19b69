"""Local models as DSPy language models: the only package that knows DSPy's LM contract."""

from promptflow.lm.adapter import SlotAdapter, configure
from promptflow.lm.listeners import audiences, generate
from promptflow.lm.local import LocalLM, load
from promptflow.lm.options import refuse_unknown
from promptflow.lm.record import (
    decoding_of,
    prompt_text,
    record_call,
    sampling_of,
    seed_of,
    trace_call,
    usage_of,
)

__all__ = [
    "LocalLM",
    "SlotAdapter",
    "audiences",
    "configure",
    "decoding_of",
    "generate",
    "load",
    "prompt_text",
    "record_call",
    "refuse_unknown",
    "sampling_of",
    "seed_of",
    "trace_call",
    "usage_of",
]
