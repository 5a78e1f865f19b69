from __future__ import annotations

import datetime
import enum
import json

import dspy
import pydantic
import pytest

from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError
from promptflow.evaluation import evaluate, input_fields, read_examples
from promptflow.evaluation.inputs import output_types
from promptflow.flow import Module, Prediction
from promptflow.lm import LocalLM
from promptflow.modules import BestOf, ChainOfThought, Predict, SelfConsistency, ZeroShotCoT


class Renaming(Module):
    def __init__(self):
        super().__init__()
        self.ask = Predict("question, hint -> answer")

    def flow(self, query, hint="none"):
        [found] = yield [self.ask.call(question=query, hint=hint)]
        return Prediction(final=found.answer)


class Open(Module):
    def __init__(self):
        super().__init__()
        self.ask = Predict("passage, question -> answer")

    def flow(self, **inputs):
        [found] = yield [self.ask.call(passage="p", **inputs)]
        return Prediction(answer=found.answer)


class Plain(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, text, *, times=1):
        return self.ask(question=text * times)


class Without(dspy.Module):
    def forward(self, **inputs):
        return dspy.Prediction(answer="x")


@pytest.mark.parametrize(
    ("program", "inputs", "outputs"),
    [
        (Predict("a, b -> c"), ["a", "b"], ["c"]),
        (dspy.Predict("a -> c"), ["a"], ["c"]),
        (ChainOfThought("a -> c"), ["a"], ["reasoning", "c"]),
        (dspy.ChainOfThought("a -> c"), ["a"], ["reasoning", "c"]),
        (ZeroShotCoT("a -> c"), ["a"], ["reasoning", "c"]),
        (SelfConsistency(ChainOfThought("a -> c"), n=2), ["a"], ["reasoning", "c"]),
        (Renaming(), ["query", "hint"], None),
        (SelfConsistency(Renaming(), n=2), ["query", "hint"], None),
        (Open(), ["passage", "question"], None),
        (Plain(), ["text", "times"], None),
        (Without(), None, None),
    ],
)
def test_what_a_program_takes_and_puts_out(program, inputs, outputs):
    assert input_fields(program) == inputs
    found = output_types(program)
    assert (None if found is None else sorted(found)) == (outputs and sorted(outputs))


def written(tmp_path, rows, suffix=".jsonl"):
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, default=str) for row in rows))
    else:
        names = list(rows[0])
        cells = [[name, *(row.get(name, "") for row in rows)] for name in names]
        shown = [
            ",".join('"{}"'.format(_cell(c[n]).replace('"', '""')) for c in cells)
            for n in range(len(rows) + 1)
        ]
        path.write_text("\n".join(shown))
    return path


def _cell(value):
    return value if isinstance(value, str) else json.dumps(value, default=str)


def given(path, program, **how):
    return [dict(example.inputs()) for example in read_examples(path, program, **how)]


@pytest.mark.parametrize("present", [0, 1, 2])
def test_an_optional_input_may_be_missing_in_any_row(tmp_path, present):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(3)]
    rows[present]["hint"] = "h"
    path = written(tmp_path, rows)
    program = Predict("question, hint: Optional[str] -> answer")
    expected = [{"question": f"q{n}", **({"hint": "h"} if n == present else {})} for n in range(3)]
    assert given(path, program) == expected
    lm = LocalLM(ScriptedEngine(lambda text, slot: "a"))
    assert evaluate(program, read_examples(path, program), "f1", lm=lm).score == 1.0
    with pytest.raises(DataError, match=r"no field 'hint', which the program needs"):
        read_examples(path, Predict("question, hint -> answer"))


class Asked(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    language: str = dspy.InputField(default="English")
    answer: str = dspy.OutputField()


def test_a_default_and_an_argument_with_one_may_be_missing(tmp_path):
    rows = [{"question": "q", "query": "q", "language": "Korean"}, {"question": "q", "query": "r"}]
    path = written(tmp_path, rows)
    assert given(path, Predict(Asked)) == [
        {"question": "q", "language": "Korean"},
        {"question": "q"},
    ]
    assert given(path, Renaming()) == [{"query": "q"}, {"query": "r"}]


class Kind(enum.Enum):
    A = "a"


class Note(pydantic.BaseModel):
    text: str


class Typed(dspy.Signature):
    """Answer."""

    n: int = dspy.InputField()
    sure: bool = dspy.InputField()
    items: list[str] = dspy.InputField()
    note: Note = dspy.InputField()
    when: datetime.date = dspy.InputField()
    kind: Kind = dspy.InputField()
    maybe: int | None = dspy.InputField()
    text: str = dspy.InputField()
    answer: str = dspy.OutputField()


def test_a_table_gives_what_json_gives(tmp_path):
    rows = [
        {"n": 3, "sure": True, "items": ["a", "b"], "note": {"text": "x"}, "when": "2024-05-01"},
        {"n": -1, "sure": False, "items": [], "note": {"text": ""}, "when": "2024-05-02"},
    ]
    more = {"kind": "a", "maybe": None, "text": "3", "answer": "y"}
    program = Predict(Typed)
    rows = [{**row, **more} for row in rows]
    table = given(written(tmp_path, [{**row, "maybe": ""} for row in rows], ".csv"), program)
    assert table[0] == {
        "n": 3,
        "sure": True,
        "items": ["a", "b"],
        "note": Note(text="x"),
        "when": datetime.date(2024, 5, 1),
        "kind": Kind.A,
        "text": "3",
    }
    asked = []

    def answer(text, slot):
        asked.append(text)
        return "y"

    for suffix in (".jsonl", ".csv"):
        examples = read_examples(written(tmp_path, rows, suffix), program)
        evaluate(program, examples, "f1", lm=LocalLM(ScriptedEngine(answer)))
    assert asked[:2] == asked[2:]


@pytest.mark.parametrize("name", ["Question", "QUESTION", " question", "question "])
def test_a_column_is_found_in_spite_of_its_spelling(tmp_path, name):
    path = written(tmp_path, [{name: "q", "Answer": "a"}], ".csv")
    [example] = read_examples(path, Predict("question -> answer"))
    assert dict(example) == {"question": "q", "answer": "a"}


def test_columns_that_are_spelled_alike_are_not_guessed(tmp_path):
    path = written(tmp_path, [{"Question Text": "q", "question-text": "r", "answer": "a"}])
    program = Predict("question_text -> answer")
    with pytest.raises(DataError, match=r"both 'Question Text' and 'question-text' may be"):
        read_examples(path, program)
    how = {"columns": {"question-text": "question_text"}}
    assert given(path, program, **how) == [{"question_text": "r"}]


def test_data_for_another_program_names_its_columns(tmp_path):
    path = written(tmp_path, [{"prompt": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"no field 'question'.*'prompt', 'answer'.*--column"):
        read_examples(path, Predict("question -> answer"))
    assert given(path, Predict("question -> answer"), columns={"prompt": "question"}) == [
        {"question": "q"}
    ]
    assert given(path, Without()) == [{"prompt": "q"}]
    path = written(tmp_path, [{"question": "q", "answer": "a"}])
    assert given(path, Open()) == [{"question": "q"}]
    assert given(path, BestOf(Open(), n=2, reward=lambda prediction: 1.0)) == [{"question": "q"}]
