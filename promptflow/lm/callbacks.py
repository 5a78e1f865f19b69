"""Calls that did not go through DSPy's own, told as DSPy tells its own.

Callbacks hear of each step, histories and the usage tracker get an entry, and the trace a step.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy
from dspy.clients.base_lm import record_history
from dspy.utils import callback_context

from promptflow.engine.request import Completion, Request, Usage
from promptflow.lm.record import written_text

logger = logging.getLogger(__name__)


class Step:
    """A step that DSPy's callbacks hear of: its start when it is made, its end once it has one.

    ``kind`` is module, lm, adapter_format or adapter_parse; ``under`` the step around it, else the
    one that DSPy is in.
    """

    def __init__(
        self, kind: str, instance: Any, inputs: Mapping[str, Any], under: Step | None = None
    ) -> None:
        self.kind = kind
        self.id = uuid.uuid4().hex
        self._listeners = [
            *(dspy.settings.get("callbacks") or []),
            *(getattr(instance, "callbacks", None) or []),
        ]
        with inside(under):
            self._tell("start", instance=instance, inputs=dict(inputs))

    def end(self, outputs: Any = None, exception: BaseException | None = None) -> None:
        """Tell how it ended."""
        self._tell("end", outputs=outputs, exception=exception)

    def _tell(self, moment: str, **told: Any) -> None:
        for listener in self._listeners:
            try:
                getattr(listener, f"on_{self.kind}_{moment}")(call_id=self.id, **told)
            except Exception as error:  # as DSPy does: who listens cannot break the call
                logger.warning("Error when calling callback %s: %s", listener, error)


@contextlib.contextmanager
def inside(step: Step | None) -> Iterator[None]:
    """Have DSPy take ``step`` for the one that it is in."""
    if step is None:
        yield
        return
    token = callback_context.ACTIVE_CALL_ID.set(step.id)
    try:
        yield
    finally:
        callback_context.ACTIVE_CALL_ID.reset(token)


class Told:
    """One predictor's call on a local model, step by step, in the order of DSPy's own.

    The predictor is no step of its own where DSPy is in it already.
    """

    def __init__(self, predictor: Any, lm: Any, inputs: Mapping[str, Any]) -> None:
        self.predictor, self.lm = predictor, lm
        callers = list(dspy.settings.caller_modules or [])
        self._module: Step | None = None
        if not callers or callers[-1] is not predictor:
            self._module = Step("module", predictor, {"kwargs": dict(inputs)})
            callers.append(predictor)
        self._callers = callers
        self._adapter = dspy.settings.adapter or dspy.ChatAdapter()  # as DSPy chooses
        self._call: Step | None = None

    def formatting(self, signature: Any, demos: Sequence[Any], inputs: Mapping[str, Any]) -> Step:
        """Begin the step in which the prompt is made."""
        given = {"signature": signature, "demos": list(demos), "inputs": dict(inputs)}
        return Step("adapter_format", self._adapter, given, self._module)

    def asking(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> None:
        """Begin the step in which the model writes."""
        self._messages, self._options = list(messages), dict(options)
        given = {"prompt": None, "messages": self._messages, "kwargs": self._options}
        self._call = Step("lm", self.lm, given, self._module)

    def answered(self, request: Request, completion: Completion) -> dict[str, Any]:
        """End that step, leave the call in usage and histories, and return its usage by model."""
        usage = usage_entry(completion.usage)
        if dspy.settings.usage_tracker:
            dspy.settings.usage_tracker.add_usage(self.lm.model, usage)
        outputs = [written_text(request, completion)]
        if not dspy.settings.disable_history:
            with dspy.context(caller_modules=self._callers):
                record_history(self.lm, self._entry(completion, outputs, usage))
        if self._call is not None:
            self._call.end(outputs)
        self._call = None
        return {self.lm.model: usage}

    def parsing(self, signature: Any, text: str) -> Step:
        """Begin the step in which the answer is read."""
        given = {"signature": signature, "completion": text}
        return Step("adapter_parse", self._adapter, given, self._module)

    def ended(self, result: Any) -> None:
        """End what is left open with a prediction or an error."""
        failed = result if isinstance(result, BaseException) else None
        if self._call is not None:
            self._call.end(exception=failed)
        if self._module is not None:
            self._module.end(None if failed else result, failed)

    def _entry(self, completion: Completion, outputs: list[str], usage: Any) -> dict[str, Any]:
        return {
            "prompt": None,
            "messages": self._messages,
            "kwargs": self._options,
            "response": completion,
            "outputs": outputs,
            "usage": usage,
            "cost": None,
            "timestamp": datetime.datetime.now().isoformat(),
            "uuid": str(uuid.uuid4()),
            "model": self.lm.model,
            "response_model": self.lm.model,
            "model_type": "chat",
        }


def usage_entry(usage: Usage) -> dict[str, Any]:
    """Return tokens as DSPy's usage tracker counts them."""
    written = usage.generated + usage.forced
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": written,
        "total_tokens": usage.prompt + written,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
        "completion_tokens_details": None,
    }
