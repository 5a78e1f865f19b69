from __future__ import annotations

import csv
import datetime
import enum
import io
import json
from typing import Literal

import dspy
import pydantic
import pytest
from conftest import SMOLLM

from promptflow.engine.request import Usage
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ContextOverflow, DataError, EngineLost, MetricError
from promptflow.evaluation import compare, evaluate, exact_match, input_fields, read_examples
from promptflow.evaluation.evaluate import compare_scores
from promptflow.evaluation.inputs import output_types
from promptflow.evaluation.metrics import has_gold
from promptflow.evaluation.registry import METRICS
from promptflow.flow import Module, Prediction
from promptflow.lm import LocalLM
from promptflow.modules.predict import Predict


class Mood(enum.Enum):
    HAPPY = "happy"
    SAD = "very sad"


def doubles(count):
    return [
        dspy.Example(question=f"{i} doubled", answer=str(2 * i)).with_inputs("question")
        for i in range(count)
    ]


def number_in(text):
    return int(text.rsplit("Question:", 1)[1].split()[0])


def right_on(accept):
    """An engine that doubles the numbers that ``accept`` likes."""

    def answer(text, slot):
        n = number_in(text)
        return str(2 * n) if accept(n) else "no"

    return ScriptedEngine(answer)


def scored(accept, count=20, **options):
    lm = LocalLM(right_on(accept))
    return evaluate(Predict("question -> answer"), doubles(count), exact_match, lm=lm, **options)


def test_the_score_is_the_mean_over_all_examples():
    result = scored(lambda n: n % 4 == 0)
    assert (result.score, result.n, result.errors) == (0.25, 20, 0)
    assert result.low < 0.25 < result.high
    record = result.records[3]
    assert (record.inputs, record.gold) == ({"question": "3 doubled"}, {"answer": "6"})
    assert (record.fields, record.score, record.calls) == ({"answer": "no"}, 0.0, 1)
    assert result.usage == sum((r.usage for r in result.records), Usage())
    assert result.usage.prompt > 20
    assert result.to_json(records=True)["records"][3]["fields"] == {"answer": "no"}


def test_the_whole_chunk_is_one_batch():
    engine = right_on(bool)
    evaluate(Predict("question -> answer"), doubles(130), exact_match, lm=LocalLM(engine))
    assert engine.batches == [64, 64, 2]


def test_a_passing_fault_is_tried_again_and_changes_nothing():
    fell = set()

    def answer(text, slot):
        n = number_in(text)
        if n % 20 == 7 and n not in fell:
            fell.add(n)
            raise EngineLost("the engine's process died (SIGKILL)")
        return str(2 * n)

    lm = LocalLM(ScriptedEngine(answer))
    result = evaluate(Predict("question -> answer"), doubles(100), exact_match, lm=lm)
    assert (result.score, result.n, result.errors, len(fell)) == (1.0, 100, 0, 5)


def lost_on(numbers, error=EngineLost):
    def answer(text, slot):
        n = number_in(text)
        if n in numbers:
            raise error(f"no answer for {n}")
        return str(2 * n)

    return LocalLM(ScriptedEngine(answer))


def test_an_engine_error_is_not_a_wrong_answer():
    lm = lost_on({5}, ContextOverflow)
    result = evaluate(Predict("question -> answer"), doubles(100), exact_match, lm=lm)
    assert (result.score, result.n, result.errors) == (1.0, 99, 1)
    assert result.records[5].score is None
    assert result.records[5].error == "ContextOverflow: no answer for 5"


def test_too_many_errors_stop_the_run_and_keep_what_is_done(tmp_path):
    journal = tmp_path / "run.db"
    lm = lost_on(set(range(70, 80)))
    program = Predict("question -> answer")
    with pytest.raises(EngineLost, match="10 of 100 runs have no score") as caught:
        evaluate(program, doubles(100), exact_match, lm=lm, journal=journal)
    assert str(journal) in str(caught.value)
    engine = right_on(bool)
    again = evaluate(program, doubles(100), exact_match, lm=LocalLM(engine), journal=journal)
    assert again.n == 100
    assert engine.batches == [10]


def test_a_metric_that_raises_says_so():
    def metric(example, prediction, trace=None):
        return prediction.nowhere

    lm = lost_on(set())
    with pytest.raises(MetricError, match=r"10 of 10 runs have no score.*nowhere"):
        evaluate(Predict("question -> answer"), doubles(10), metric, lm=lm)


def test_output_that_does_not_fit_is_a_wrong_answer():
    lm = LocalLM(ScriptedEngine(lambda text, slot: "many"))
    result = evaluate(Predict("question -> answer: int"), doubles(5), exact_match, lm=lm)
    assert (result.score, result.n, result.errors) == (0.0, 5, 0)
    assert result.records[0].error.startswith("ParseError")


def missing_every(step, data, **gold):
    """The data with every ``step``-th example's gold value taken out, or put in its place."""
    return [
        dspy.Example(question=e.question, **gold).with_inputs("question") if i % step == 0 else e
        for i, e in enumerate(data)
    ]


@pytest.mark.parametrize("gold", [{}, {"answer": None}, {"id": 3}])
@pytest.mark.parametrize("metric", ["exact_match", "f1:answer"])
def test_examples_without_a_gold_value_are_left_out_and_counted(tmp_path, gold, metric):
    engine, journal = right_on(lambda n: n % 2), tmp_path / "run.db"
    data = missing_every(4, doubles(80), **gold)
    program = Predict("question -> answer")
    result = evaluate(program, data, metric, lm=LocalLM(engine), journal=journal)
    assert (result.score, result.n, result.errors, result.ungraded) == (40 / 60, 60, 0, 20)
    assert sum(engine.batches) == 60
    assert result.to_json()["ungraded"] == 20
    assert [record.index for record in result.records] == list(range(80))
    assert (result.records[4].ungraded, result.records[5].ungraded) == (True, False)
    again = evaluate(program, data, metric, lm=LocalLM(engine), journal=journal)
    assert (again.records, again.ungraded, sum(engine.batches)) == (result.records, 20, 60)


@pytest.mark.parametrize("annotation", [str, int, Literal["2", "4"], list[str], Mood])
def test_an_empty_cell_is_no_gold_value_and_empty_text_is_no_answer(tmp_path, annotation):
    made = dspy.Signature("question -> answer").with_updated_fields("answer", type_=annotation)
    said = {str: "2", int: "2", list[str]: '["2"]', Mood: "happy"}.get(annotation, "2")
    lm = LocalLM(ScriptedEngine(lambda text, slot: said))
    (tmp_path / "data.csv").write_text("question,answer\nq,2\nr,\ns,4\n")
    (tmp_path / "null.json").write_text('[{"question": "q", "answer": null}, {"question": "r"}]')
    result = evaluate(
        Predict(made), read_examples(tmp_path / "data.csv", Predict(made)), "f1", lm=lm
    )
    assert (result.n, result.ungraded) == (2, 1)
    with pytest.raises(DataError, match="none of 2 examples can be graded"):
        evaluate(Predict(made), read_examples(tmp_path / "null.json", Predict(made)), "f1", lm=lm)
    optional = Predict(made.with_updated_fields("answer", type_=annotation | None))
    examples = read_examples(tmp_path / "data.csv", optional)
    assert [has_gold(METRICS["f1"], e, output_types(optional)) for e in examples] == [True] * 3
    text = dspy.Example(question="q", answer="").with_inputs("question")
    assert has_gold(METRICS["f1"], text, {"answer": annotation}) is (annotation in (str, list[str]))


class Renamed(Module):
    def __init__(self):
        super().__init__()
        self.answer = Predict("question -> answer")

    def flow(self, question):
        [found] = yield [self.answer.call(question=question)]
        return Prediction(final=found.answer)


def test_a_gold_value_that_only_the_prediction_shows_to_be_missing():
    data = [
        dspy.Example(question=e.question, final=e.answer, level=1).with_inputs("question")
        for e in doubles(40)
    ]
    data = missing_every(2, data, level=1, final=None)
    result = evaluate(Renamed(), data, exact_match, lm=LocalLM(right_on(bool)))
    assert (result.score, result.n, result.errors, result.ungraded) == (1.0, 20, 0, 20)


@pytest.mark.parametrize(
    ("metric", "message"),
    [("f1", "no single field to grade"), ("f1:other", "no field 'other' .* puts out title, text")],
)
def test_what_is_graded_is_settled_before_the_first_call(metric, message):
    """Not example by example: the first has one gold value, the second another."""
    engine = right_on(bool)
    data = [
        dspy.Example(question="1 ?", title="x").with_inputs("question"),
        dspy.Example(question="2 ?", text="y").with_inputs("question"),
    ]
    with pytest.raises(DataError, match=message):
        evaluate(Predict("question -> title, text"), data, metric, lm=LocalLM(engine))
    assert engine.batches == []
    program = Predict("question -> reasoning, answer")
    data = [
        dspy.Example(question="1 ?", answer="2", reasoning="r").with_inputs("question"),
        dspy.Example(question="2 ?", reasoning="4").with_inputs("question"),
    ]
    result = evaluate(program, data, "f1", lm=LocalLM(engine))
    assert (result.n, result.ungraded, result.about["metric"]) == (1, 1, "f1")


@pytest.mark.parametrize("program", [Predict("question -> answer"), Renamed()])
def test_data_without_any_gold_value_is_refused(program):
    engine = right_on(bool)
    data = missing_every(1, doubles(5), label="x")
    with pytest.raises(DataError, match=r"none of 5 examples.*it has question, label.*--column"):
        evaluate(program, data, "f1", lm=LocalLM(engine))
    assert isinstance(program, Renamed) or engine.batches == []


class Item(pydantic.BaseModel):
    name: str
    count: int = 1


KINDS = {
    "mood": (Mood, ["happy", "SAD", "happy", "sad"], ["happy", "very sad", "happy", "happy"]),
    "item": (Item, [{"name": "a"}, {"name": "b", "count": 2}], ['{"name": "a", "count": 1}'] * 2),
    "tags": (list[str], [["a", "b"], []], ['["a", "b"]', '["a"]']),
    "sure": (bool, [True, False, True], ["yes", "no", "no"]),
    "price": (float, [3, 3.5, 1e-7], ["3.0", "3.5", "0.0000002"]),
    "count": (int, [1000, -5], ["1000", "5"]),
    "when": (datetime.date, ["2024-05-01", "2024-05-02"], ["2024-05-01", "2024-05-01"]),
    "maybe": (int | None, [None, 3], ["null", "null"]),
    "text": (str, ["Caf\u00e9", "35", "x"], ["Cafe\u0301.", "3.5", "X"]),
    "pair": (tuple[int, int], [[1, 2], [3, 4]], ["[1, 2]", "[4, 5]"]),
}


@pytest.mark.parametrize("metric", ["exact_match", "f1"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_the_same_score_from_every_file(tmp_path, kind, metric):
    annotation, golds, said = KINDS[kind]
    made = dspy.Signature("question -> answer")
    program = Predict(made.with_updated_fields("answer", type_=annotation))
    rows = [{"question": f"{number} ?", "answer": gold} for number, gold in enumerate(golds)]
    texts = [
        [g if isinstance(g, str) else "" if g is None else json.dumps(g) for g in (r["answer"],)]
        for r in rows
    ]
    files = {"data.json": json.dumps(rows), "data.jsonl": "\n".join(map(json.dumps, rows))}
    for name, mark in (("data.csv", ","), ("other.csv", ";"), ("data.tsv", "\t")):
        out = io.StringIO()
        writer = csv.writer(out, delimiter=mark)
        writer.writerow(["question", "answer"])
        writer.writerows([row["question"], *text] for row, text in zip(rows, texts, strict=True))
        files[name] = out.getvalue()
    lm = LocalLM(ScriptedEngine(lambda text, slot: said[number_in(text)]))
    scores = {}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        result = evaluate(program, read_examples(tmp_path / name, program), metric, lm=lm)
        assert result.ungraded == result.errors == 0
        scores[name] = [record.score for record in result.records]
    assert len(set(map(tuple, scores.values()))) == 1, scores
    assert scores["data.csv"][0] == 1.0
    assert scores["data.csv"][-1] < 1.0 or kind == "text"


def test_a_journalled_evaluation_asks_nothing_again(tmp_path):
    journal = tmp_path / "run.db"
    program = Predict("question -> answer")
    engines = [right_on(lambda n: n % 2 == 0) for _ in range(3)]
    first, second = (
        evaluate(program, doubles(90), "f1", lm=LocalLM(engine), journal=journal)
        for engine in engines[:2]
    )
    assert engines[1].batches == []
    assert first.records == second.records
    assert (first.score, first.low, first.high) == (second.score, second.low, second.high)
    evaluate(program, doubles(90), "exact_match", lm=LocalLM(engines[2]), journal=journal)
    assert engines[2].batches == [64, 26]


def answering(text):
    """A flow that answers by itself, from a class that is always named the same."""

    class Answering(Module):
        def __init__(self):
            super().__init__()
            self.predict = Predict("question -> answer")

        def flow(self, question):
            [found] = yield [self.predict.call(question=question)]
            return Prediction(answer=text or found.answer)

    return Answering()


def test_two_flows_under_one_journal_have_their_own_scores(tmp_path):
    journal = tmp_path / "run.db"
    engines = [right_on(bool) for _ in range(3)]
    scores = [
        evaluate(answering(text), doubles(10), exact_match, lm=LocalLM(e), journal=journal).score
        for text, e in zip(("", "6", ""), engines, strict=True)
    ]
    assert scores == [0.9, 0.1, 0.9]
    assert [engine.batches for engine in engines] == [[10], [10], []]


def test_a_journal_from_before_is_not_reused(tmp_path, monkeypatch):
    """What an older identity took for this program may be another."""
    journal, program = tmp_path / "run.db", Predict("question -> answer")
    for format_number, batches in ((1, [4]), (2, [4]), (2, [])):
        monkeypatch.setattr("promptflow.program.identity.FORMAT", format_number)
        engine = right_on(bool)
        evaluate(program, doubles(4), exact_match, lm=LocalLM(engine), journal=journal)
        assert engine.batches == batches


def test_a_plain_program_without_a_flow_has_its_own_score_too(tmp_path):
    def plain(text):
        class Plain(dspy.Module):
            def forward(self, question):
                return dspy.Prediction(answer=text)

        return Plain()

    scores = [
        evaluate(plain(text), doubles(4), exact_match, lm=lost_on(()), journal=tmp_path / "j")
        for text in ("0", "none", "0")
    ]
    assert [one.score for one in scores] == [0.25, 0.0, 0.25]


def test_the_settings_of_the_model_are_part_of_what_a_score_belongs_to(tmp_path):
    for temperature, batches in ((None, [4]), (0.5, [4]), (None, [])):
        engine = right_on(bool)
        lm = LocalLM(engine, temperature=temperature)
        program = Predict("question -> answer")
        evaluate(program, doubles(4), exact_match, lm=lm, journal=tmp_path / "j")
        assert engine.batches == batches


class TwoSteps(Module):
    def __init__(self):
        super().__init__()
        self.think = Predict("question -> reasoning")
        self.answer = Predict("question, reasoning -> answer")

    def flow(self, question):
        [thought] = yield [self.think.call(question=question)]
        [final] = yield [self.answer.call(question=question, reasoning=thought.reasoning)]
        return Prediction(answer=final.answer)


def test_flows_of_several_steps_advance_together():
    engine = ScriptedEngine(
        lambda text, slot: "think" if slot.name == "reasoning" else str(2 * number_in(text))
    )
    result = evaluate(TwoSteps(), doubles(10), exact_match, lm=LocalLM(engine))
    assert (result.score, result.records[0].calls) == (1.0, 2)
    assert engine.batches == [10, 10]
    assert input_fields(TwoSteps()) == ["question"]


def test_seeds_follow_the_example_and_not_the_batch():
    seen = []

    class Spy(ScriptedEngine):
        def generate(self, requests, on_done=None):
            seen.append([request.seed for request in requests])
            return super().generate(requests, on_done)

    for journal_order in (doubles(70), doubles(70)[:10]):
        lm = LocalLM(Spy(lambda text, slot: "x"))
        evaluate(Predict("question -> answer"), journal_order, exact_match, lm=lm)
    assert len(set(seen[0] + seen[1])) == 70
    assert seen[0][:10] == seen[2]


def test_a_plain_dspy_module_is_scored_too():
    class Plain(dspy.Module):
        def __init__(self):
            super().__init__()
            self.predict = Predict("question -> answer")

        def forward(self, question):
            return self.predict(question=question)

    result = evaluate(Plain(), doubles(4), exact_match, lm=LocalLM(right_on(bool)))
    assert (result.score, result.n) == (0.75, 4)


def test_comparison_pairs_the_examples():
    a, b = scored(lambda n: n % 4 != 0), scored(lambda n: n % 4 == 1)
    found = compare(a, b)
    assert (found.difference, found.n) == (0.5, 20)
    assert (found.wins, found.losses, found.ties) == (10, 0, 10)
    assert found.low > 0
    assert found.p == pytest.approx(2 / 2**10)
    assert found.better
    assert not compare(b, a).better


def test_comparison_leaves_out_what_one_side_lacks():
    found = compare_scores({1: 1.0, 2: 0.0, 3: 1.0}, {2: 0.0, 3: 0.0, 4: 1.0})
    assert (found.n, found.wins, found.losses) == (2, 1, 0)
    assert not found.better


def test_different_data_cannot_be_compared():
    with pytest.raises(DataError, match="differ in their data"):
        compare(scored(bool, 20), scored(bool, 21))


def test_no_data_is_an_error():
    with pytest.raises(DataError, match="no examples"):
        evaluate(Predict("question -> answer"), [], exact_match, lm=LocalLM(right_on(bool)))


def test_a_file_is_read_with_the_inputs_of_the_program(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("source,question,answer\nweb,1+1?,2\n")
    [example] = read_examples(path, Predict("question -> answer"))
    assert dict(example.inputs()) == {"question": "1+1?"}


def test_a_real_model_is_scored(smollm):
    program = Predict("question -> answer: int(ge=0, le=99)", max_tokens=8)
    result = evaluate(program, doubles(6), "numeric", lm=LocalLM(smollm))
    assert (result.n, result.errors) == (6, 0)
    assert result.usage.generated > 0
    assert result.about["model"].startswith(f"{SMOLLM}@")
