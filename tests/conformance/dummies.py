"""A pytest plugin for DSPy's own suite: its ``DummyLM`` becomes our LM over a scripted engine.

Loaded with ``-p dummies`` in a process of its own. ``$PROMPTFLOW_PATH`` says what else is ours:
``chat`` (nothing), ``slot`` (SlotAdapter is the default adapter) or ``modules`` (our Predict and
ChainOfThought too), and ``dspy`` leaves all as it is. The outcomes, and which tests made a
``DummyLM``, go to ``$PROMPTFLOW_OUTCOMES`` as JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import dspy.utils.dummies
import pytest
from dspy.adapters.chat_adapter import FieldInfoWithName
from dspy.dsp.utils.settings import DEFAULT_CONFIG

import promptflow as pf
from promptflow.engine.model.fake import END
from promptflow.engine.request import Choice, Completion, Json, Lark, Request, Slot
from promptflow.engine.scripted import ScriptedEngine
from promptflow.fields import to_text

WAY = os.environ["PROMPTFLOW_PATH"]
NOTHING = {"answer": "No more responses"}  # what DSPy's dummy says when it has run out


class Answers:
    """What a ``DummyLM`` was given, as the answer to one prompt after the other."""

    def __init__(self, given: Any, follow_examples: bool, adapter: Any) -> None:
        self.given = iter(given) if isinstance(given, list) else given
        self.follow_examples = follow_examples
        self.adapter = adapter

    def next(self, prompt: str) -> Mapping[str, Any] | str:
        """Return the fields of the next answer, or a text as it stands."""
        turns = [turn.split("\n", 1) for turn in prompt.split("<|im_start|>")[1:]]
        texts = [(role, text.split(f"{END}\n")[0]) for role, text in turns]
        asked = [text for role, text in texts if role == "user"][-1]
        if self.follow_examples:
            return _example(texts, asked)
        if isinstance(self.given, dict):
            found = [fields for key, fields in self.given.items() if key in asked]
            return found[0] if found else NOTHING["answer"]
        return next(self.given, NOTHING)

    def text(self, prompt: str) -> str:
        """Return the next answer with the marks of the adapter that it was made for."""
        fields = self.next(prompt)
        if isinstance(fields, str):
            return fields
        values = {FieldInfoWithName(n, dspy.OutputField()): v for n, v in fields.items()}
        try:
            return str(self.adapter.format_field_with_value(values, role="assistant"))
        except TypeError:
            return str(self.adapter.format_field_with_value(values))


def _example(turns: Sequence[tuple[str, str]], asked: str) -> str:
    """Return the answer of the last example with the same first paragraph."""
    first = asked.split("\n\n")[0]
    for (_, question), (role, answer) in zip(turns[-3::-1], turns[-2::-1], strict=False):
        if role == "assistant" and first in question:
            return answer
    return NOTHING["answer"]


class Dummy(ScriptedEngine):
    """Answers a plain call with one text, and each slot with its field."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(self._slot)
        self.answers = answers

    def _complete(self, request: Request) -> Completion:
        self._fields: Any = None
        return super()._complete(request)

    def _slot(self, prompt: str, slot: Slot) -> str:
        if slot.name == "text":
            return self.answers.text(prompt)
        if self._fields is None:
            self._fields = self.answers.next(prompt)
        if isinstance(self._fields, str):
            return _labelled(self._fields, prompt.rsplit("\n", 1)[-1])
        return written(self._fields.get(slot.name), slot)


def _is_json(value: Any) -> bool:
    try:
        return isinstance(value, str) and json.loads(value) is not Ellipsis
    except ValueError:
        return False


def as_json(value: Any) -> Any:
    """Return a model's data."""
    return value.model_dump(mode="json")


def _labelled(answer: str, label: str) -> str:
    """Return what follows a label in an example's answer."""
    found = re.search(f"^{re.escape(label.strip())}(.*)", answer, re.MULTILINE)
    return found[1].strip() if found else answer


def written(value: Any, slot: Slot) -> str:
    """Return a value as a model would write it under the slot's constraint."""
    if isinstance(slot.constraint, Json | Lark):
        return value if _is_json(value) else json.dumps(value, default=as_json)
    text = "" if value is None else to_text(value)
    if isinstance(slot.constraint, Choice):
        spoken = {"true": "yes", "false": "no"}.get(text.casefold(), text)
        options = slot.constraint.options
        return next((o for o in options if o.casefold() in (text.casefold(), spoken)), text)
    return text


class DummyLM(pf.LocalLM):
    """Takes what DSPy's ``DummyLM`` takes."""

    def __init__(
        self,
        answers: Any,
        follow_examples: bool = False,
        reasoning: bool = False,
        adapter: Any = None,
    ) -> None:
        made_a_dummy()
        given = Answers(answers, follow_examples, adapter or dspy.ChatAdapter())
        super().__init__(Dummy(given), source="dummy", temperature=0.0, max_tokens=1000)
        self.answers = given.given
        self.follow_examples = follow_examples
        self.reasoning = reasoning
        self.adapter = given.adapter

    def get_convo(self, index: int) -> tuple[Any, Any]:
        """Return messages and outputs of a call."""
        return self.history[index]["messages"], self.history[index]["outputs"]


class Record:
    """The outcome of each test, and whether it made a dummy."""

    def __init__(self) -> None:
        self.running = ""
        self.made: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.running = item.nodeid
        return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                self.reasons[report.nodeid] = str(crash.message if crash else report.longrepr)

    def pytest_sessionfinish(self) -> None:
        made = {test: self.outcomes.get(test, "lost") for test in sorted(self.made - {""})}
        reasons = {test: self.reasons.get(test, "")[:2000] for test in made}
        told = {"dspy": dspy.__version__, "outcomes": made, "reasons": reasons}
        Path(os.environ["PROMPTFLOW_OUTCOMES"]).write_text(json.dumps(told), encoding="utf-8")


RECORD = Record()


def made_a_dummy() -> None:
    """Note that the running test uses a dummy."""
    RECORD.made.add(RECORD.running)


def pytest_configure(config: pytest.Config) -> None:
    """Put ours in place before any test is imported."""
    config.pluginmanager.register(RECORD)
    if WAY == "dspy":
        _noting(dspy.utils.dummies.DummyLM)
        return
    dspy.utils.DummyLM = dspy.utils.dummies.DummyLM = DummyLM  # type: ignore[misc]
    if WAY in ("slot", "modules"):
        DEFAULT_CONFIG["adapter"] = pf.SlotAdapter()
        dspy.configure(adapter=pf.SlotAdapter())
    if WAY == "modules":
        for name in ("Predict", "ChainOfThought"):
            for owner in (dspy, dspy.predict):
                setattr(owner, name, getattr(pf, name))


def _noting(kind: type[Any]) -> None:
    init: Callable[..., None] = kind.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        made_a_dummy()
        init(self, *args, **kwargs)

    kind.__init__ = noted  # type: ignore[method-assign]
