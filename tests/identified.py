"""A nested program with a knob for each thing that decides its answers."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field as dataclass_field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import dspy
import pydantic
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

import promptflow as pf
from promptflow.flow import Module, Prediction
from promptflow.modules import BestOf, ChainOfThought, Predict, SelfConsistency, TreeOfThoughts
from promptflow.modules.tree import Problem

LAYOUT = "{{ turn('user') }}{{ inputs[0].value }}{{ turn('assistant') }}{{ outputs[0].value }}"


def color_of(members: str = "red green", missing: str = "red") -> type[enum.Enum]:
    class Color(enum.Enum):
        locals().update({name: name.upper() for name in members.split()})

        @classmethod
        def _missing_(cls, value: object) -> Any:
            return cls[missing] if value == "any" else None

    return Color


def model_of(limit: int = 5, least: int = 1, mode: str = "after", extra: str = "allow") -> Any:
    class Inner(pydantic.BaseModel):
        page: int = Field(ge=least)

    class Review(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra=extra)  # type: ignore[typeddict-item]
        stars: int = Field(description="how good")
        inner: list[Inner]

        @pydantic.field_validator("stars", mode=mode)  # type: ignore[arg-type]
        @classmethod
        def within(cls, value: Any) -> Any:
            if value > limit:
                raise ValueError("too many")
            return value

    return Review


def helper(number: int) -> Callable[[Any], Any]:
    def times(value: Any) -> Any:
        return value * number

    return times


SCALE = {"by": 1}


def scaled(inputs: Any, prediction: Any) -> float:
    return len(prediction.answer) * SCALE["by"] + _offset(0)


def _offset(number: int) -> int:
    return number + 1


@dataclass
class Settings:
    depth: int = 2
    words: list[str] = dataclass_field(default_factory=list)


class Retriever:
    def __init__(self, texts: list[str], k: int, where: dict[str, Any]) -> None:
        self.texts, self.k, self.where = texts, k, where

    def search(self, query: str) -> list[str]:
        return self.texts[: self.k]


def part_of(greeting: str, shout: bool) -> type[Module]:
    """A class whose method is another function where ``shout`` says so."""

    class Part(Module):
        prefix = greeting

        def __init__(self, predict: Any) -> None:
            super().__init__()
            self.predict = predict

        if shout:

            def said(self, text: str) -> str:
                return text.upper()
        else:

            def said(self, text: str) -> str:
                return text.lower()

        def flow(self, question: str) -> Any:
            [found] = yield [self.predict.call(question=self.said(self.prefix + question))]
            return Prediction(answer=found.answer)

    return Part


class Base(dspy.Module):
    threshold = 0.5

    def chosen(self, prediction: Any) -> bool:
        return bool(prediction.score > self.threshold)


class Plain(Base):
    """A program without a flow."""

    def __init__(self, steps: Any, **settings: Any) -> None:
        super().__init__()
        self.steps = steps
        self.settings_used = settings

    def forward(self, question: str) -> Any:
        return self.steps["first"](question=question)


class Point(NamedTuple):
    x: int
    y: int = 0


class Row(TypedDict):
    name: str
    note: str


def program(folder: Path | None = None, **knobs: Any) -> Any:
    """Return the program with some knobs turned."""
    k: dict[str, Any] = {
        "instructions": "Answer.",
        "label": "Q:",
        "description": "what is asked",
        "limit": 5,
        "literal": Literal["a", "b"],
        "color": color_of(),
        "model": model_of(),
        "validator": helper(1),
        "demos": [{"question": "1", "answer": "2"}],
        "sampling": pf.Sampling(temperature=0.5),
        "max_tokens": 20,
        "reasoning_tokens": 30,
        "until": None,
        "weigh": False,
        "layout": LAYOUT,
        "config": {},
        "lm": None,
        "n": 3,
        "vote": "count",
        "reward": scaled,
        "worth": lambda state, times=1: len(state) * times,
        "greeting": "Hi ",
        "shout": False,
        "threshold": 1.0,
        "temperature": 0.7,
        "weights": {"a": 1, "b": 2},
        "settings": Settings(),
        "retriever": (["one", "two"], 2, {"year": 2020}),
        "steps": 1,
        "plain_instructions": "Think.",
        "side": Row,
        **knobs,
    }
    signature = dspy.Signature(
        {
            "question": (
                str,
                dspy.InputField(desc=k["description"]),
            ),
            "color": (k["color"], dspy.OutputField()),
            "review": (k["model"], dspy.OutputField()),
            "grade": (k["literal"], dspy.OutputField()),
            "row": (k["side"], dspy.OutputField()),
            "answer": (
                Annotated[int, Field(ge=0, le=k["limit"]), AfterValidator(k["validator"])],
                dspy.OutputField(),
            ),
        },
        k["instructions"],
    )
    signature.fields["question"].json_schema_extra["prefix"] = k["label"]
    options = {name: k[name] for name in ("sampling", "max_tokens", "reasoning_tokens")}
    options |= {name: k[name] for name in ("until", "weigh", "demos")}
    if folder is not None:
        options["layout"] = folder
    inner = Predict(signature, **options, **k["config"])
    inner.lm = k["lm"]
    votes = SelfConsistency(inner, n=k["n"], temperature=k["temperature"], vote=k["vote"])
    best = BestOf(votes, 2, k["reward"], threshold=k["threshold"])
    tree = TreeOfThoughts(problem=Problem(worth=k["worth"]), depth=1)
    part = part_of(k["greeting"], k["shout"])(ChainOfThought("question -> answer"))
    plain = dspy.Predict(dspy.Signature("question -> answer", k["plain_instructions"]))
    made = Plain(
        {"first": best, "rest": [tree, (part,), plain][: 3 * k["steps"]]},
        weights=k["weights"],
        settings=k["settings"],
        retriever=Retriever(*k["retriever"]),
    )
    return made
