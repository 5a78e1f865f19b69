"""The contract of a layout, over ours and a user's own: every kind of field is written, decoded by
a model without any sense, and read back; and demos of every kind read as what they show.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import dspy
import pytest
from pydantic import BaseModel, Field
from tiny_models import TEMPLATE

import promptflow as pf
from promptflow import layout
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Completion, Fill, Slot, Text
from promptflow.errors import UnsupportedType
from promptflow.fields import TypedField
from promptflow.signatures import signature

OWN = (
    "{{ turn('user') }}{% for d in demos %}{% for f in d.inputs %}{{ f.value }}; {% endfor %}"
    "{% for f in d.outputs %}<{{ f.name }}>{{ f.value }}</{{ f.name }}>\n{% endfor %}{% endfor %}"
    "{% for f in inputs %}{{ f.value }}; {% endfor %}{{ turn('assistant') }}"
    "{% for f in outputs %}<{{ f.name }}>{{ f.value }}</{{ f.name }}>\n{% endfor %}"
)
NAMES = (*layout.layouts(), "own")


class Mood(enum.Enum):
    GOOD = "good"
    TWO = 2


class Point(BaseModel):
    x: int = Field(ge=0, le=9)
    name: str | None = Field(default=None, max_length=5)


Digit = Annotated[int, Field(ge=0, le=9)]
KINDS: dict[str, tuple[Any, Any]] = {
    "reasoning": (str, 'First "this",\nthen that.'),
    "text": (str, "two\nlines"),
    "short": (str, "abc"),
    "code": (dspy.Code, "print(1)\nprint(2)"),
    "flag": (bool, True),
    "level": (Mood, Mood.TWO),
    "page": (int, 7),
    "score": (float, 0.5),
    "day": (datetime.date, datetime.date(2024, 2, 29)),
    "maybe": (Annotated[str, Field(max_length=5)] | None, None),
    "items": (list[Digit], [1, 2]),
    "point": (Point, Point(x=3)),
    "quote": (None, "a b"),
}


def kinds() -> Any:
    """A signature with an output of every kind."""
    made = signature("passage: list[str], hint -> quote: Quote[passage]")
    for name, (kind, _) in KINDS.items():
        if kind is not None:
            limits = {"short": {"max_length": 6}, "page": {"ge": 0, "le": 99}}.get(name, {})
            limits |= {"items": {"max_length": 3}, "score": {"ge": 0, "le": 1}}.get(name, {})
            made = made.append(name, dspy.OutputField(**limits), type_=kind)
    return made


INPUTS = {"passage": ['a b "c"\nd', "e"], "hint": "h"}
DEMO = {**INPUTS, **{name: value for name, (_, value) in KINDS.items()}}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param != "own":
        return str(request.param)
    path = tmp_path / "own.jinja"
    path.write_text(OWN)
    return str(path)


@pytest.fixture(scope="module")
def fake() -> Iterator[Any]:
    model = FakeModel(context=8192)
    model.info = dataclasses.replace(model.info, template=TEMPLATE)
    with pf.Engine(model) as engine:
        yield engine


def asked(name: str, **chosen: Any) -> layout.Decoding:
    return layout.Decoding(layout=name, max_tokens=40, reasoning_tokens=20, **chosen)


def scaffold(roles: Any) -> tuple[str, ...]:
    from promptflow.engine.scripted import ScriptedEngine

    return ScriptedEngine(lambda text, slot: "").scaffold(roles)


@pytest.mark.parametrize("demos", [(), (DEMO,)], ids=["bare", "demos"])
def test_every_kind_of_field_is_decoded_and_read(fake: Any, name: str, demos: Any):
    spec = kinds()
    made = layout.render(spec, demos, INPUTS, scaffold, asked(name))
    slots = [part for part in made.parts if isinstance(part, Slot)]
    assert {slot.name for slot in slots} == set(KINDS)
    for seed in range(2):
        [completion] = fake.generate([pf.Request(made.parts, seed=seed)])
        plain = made.plain(completion)
        values = layout.read(spec, plain)
        for field, info in spec.output_fields.items():
            typed = TypedField.of(field, info)
            if field not in ("text", "reasoning", "code", "quote"):  # these read any text
                assert typed.parse(typed.text(values[field])) == values[field]
        assert values["quote"] in "\n".join(INPUTS["passage"])


def test_what_the_model_wrote_in_json_is_one_object(fake: Any):
    made = layout.render(kinds(), (), INPUTS, scaffold, asked("json"))
    [completion] = fake.generate([pf.Request(made.parts)])
    first = next(n for n, part in enumerate(made.parts) if isinstance(part, Slot))
    head = made.parts[first - 1]
    assert isinstance(head, Text)
    written = head.text[head.text.rindex("{") :]
    for part in made.parts[first:]:
        if isinstance(part, Slot):
            fill = completion.fills[part.name]
            ended = fill.text + '"' if fill.finish == "length" else fill.text
            written += part.lead + ended
        else:
            written += part.text if not part.trusted else ""
    assert set(json.loads(written)) == set(KINDS)


def test_a_demo_reads_as_what_it_shows(name: str):
    """Where a demo's output stands, a fill of the same text is read as the demo's value."""
    spec = kinds()
    made = layout.render(spec, (DEMO,), INPUTS, scaffold, asked(name))
    shown = [part.text for origin, part in made.spans if origin == "demo" and part.text]
    values = shown[len(shown) - len([v for v in DEMO.values() if v is not None]) + 2 :]
    outputs = [n for n in spec.output_fields if DEMO[n] is not None]
    fills = {n: Fill(text, "stop") for n, text in zip(outputs, values, strict=True)}
    read = layout.read(spec, made.plain(Completion(fills=fills)))
    assert read == {n: DEMO[n] if n != "code" else read["code"] for n in outputs}
    assert read["code"].code == DEMO["code"]


@pytest.mark.parametrize("architecture", ["qwen2"])
def test_a_real_engine_fills_every_kind(tiny: Callable[[str], Path], architecture: str):
    spec = kinds()
    with pf.Engine(tiny(architecture), pf.EngineOptions(context=2048, threads=1)) as engine:
        requests, made = [], []
        for name in layout.layouts():
            decoding = asked(name, sampling=pf.Sampling(temperature=1.0))
            made.append(layout.render(spec, (), INPUTS, engine.scaffold, decoding))
            requests.append(pf.Request(made[-1].parts, seed=len(made)))
        for one, completion in zip(made, engine.generate(requests), strict=True):
            values = layout.read(spec, one.plain(completion))
            assert set(values) == set(KINDS)


def test_a_choice_is_weighed_by_its_own_texts(fake: Any, name: str):
    spec = signature("q -> level: Literal['low', 'high', 3], sure: bool")
    made = layout.render(spec, (), {"q": "Q"}, scaffold, asked(name, weigh=True))
    [completion] = fake.generate([pf.Request(made.parts)])
    fills = made.plain(completion).fills
    assert {one.text for one in fills["level"].alternatives} == {"low", "high", "3"}
    assert {one.text for one in fills["sure"].alternatives} == {"yes", "no"}
    assert set(layout.read(spec, made.plain(completion))) == {"level", "sure"}


def test_a_prediction_is_alike_in_every_layout(name: str):
    """Programs see plain text: fills, what was weighed, and values."""
    engine = pf.ScriptedEngine(lambda text, slot: '"low"' if "json" in name else "low")
    lm = pf.load("scripted", engine=engine)
    predict = pf.Predict("q -> level: Literal['low', 'high']", layout=name, weigh=True)
    found = predict(q="Q", lm=lm)
    assert found.level == "low"
    assert found.fills["level"].text == "low"
    assert set(found.weighed["level"]) == {"low", "high"}


def test_what_is_no_text_is_refused_in_every_layout(name: str):
    image = dspy.Image("data:image/png;base64,AAAA")
    spec = dspy.Signature("picture: dspy.Image -> answer", custom_types={"dspy.Image": dspy.Image})
    with pytest.raises(UnsupportedType, match="picture"):
        layout.render(spec, (), {"picture": image}, scaffold, asked(name))


def test_optional_inputs_may_be_left_out_in_every_layout(fake: Any, name: str):
    lm = pf.load("fake", engine=fake)
    predict = pf.Predict("a, b: str | None -> c: bool", layout=name)
    assert predict(a="x", lm=lm).c in (True, False)
    assert predict(a="x", b="y", lm=lm).c in (True, False)
