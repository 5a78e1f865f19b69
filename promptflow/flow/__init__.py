"""Flows: programs written as generators, and the loop that answers them in batches.

A flow yields a list of calls and is sent the list of their predictions; what it returns is the
result. Many flows advance in lockstep: the calls that all of them wait for go to the engine as one
batch, so the composition of a batch follows from the inputs and the seed alone.
"""

from promptflow.flow.call import (
    Attempts,
    Call,
    Chosen,
    Prediction,
    answer,
    prompt_of,
    request_of,
    usage_of_answer,
)
from promptflow.flow.drive import (
    Flow,
    Module,
    answered,
    changed,
    flow_of,
    run,
    run_flows,
    run_many,
    streamed,
    together,
    within,
)

__all__ = [
    "Attempts",
    "Call",
    "Chosen",
    "Flow",
    "Module",
    "Prediction",
    "answer",
    "answered",
    "changed",
    "flow_of",
    "prompt_of",
    "request_of",
    "run",
    "run_flows",
    "run_many",
    "streamed",
    "together",
    "usage_of_answer",
    "within",
]
