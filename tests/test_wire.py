from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, strategies as st

from promptflow import errors
from promptflow.engine.interface import ModelInfo, Stats
from promptflow.engine.process.wire import Outcome, from_wire, submission, texts, to_wire
from promptflow.engine.request import (
    Alternative,
    Beam,
    Choice,
    Completion,
    Dependent,
    Fill,
    Json,
    Lark,
    Regex,
    Request,
    Sampling,
    Slot,
    Substring,
    Text,
    TokenLogprob,
    Usage,
)

anything = st.text(st.characters(), max_size=20)  # lone surrogates too
floats = st.floats(allow_nan=False)
counts = st.integers(0, 1 << 40)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 1000),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    frequency_penalty=st.floats(-10, 10),
    presence_penalty=st.floats(-10, 10),
    logit_bias=st.lists(st.tuples(st.integers(0, 1 << 20), st.floats(-99, 99))).map(tuple),
)
constraints = st.one_of(
    st.none(),
    st.builds(Json, anything),
    st.builds(Regex, anything),
    st.builds(Lark, anything),
    st.builds(Choice, st.lists(anything).map(tuple), st.just(False)),
    st.builds(Substring, st.lists(anything).map(tuple)),
)
slots = st.builds(
    Slot,
    name=anything,
    constraint=constraints,
    max_tokens=st.integers(1, 1 << 20),
    stop=st.lists(anything.filter(bool)).map(tuple),
    stop_tokens=st.lists(st.integers(0, 1 << 20)).map(tuple),
    lead=anything,
    sampling=samplings,
    logprobs=st.none() | st.integers(0, 1000),
    ignore_eos=st.booleans(),
)
slots |= st.builds(
    Slot, anything, max_tokens=st.integers(9, 99), fits=st.just(True), least=st.integers(1, 9)
)
searched = st.builds(
    Slot, st.just("searched"), beam=st.builds(Beam, st.integers(1, 9), st.floats(-1, 1))
)
weighed = st.builds(
    Slot, st.just("weighed"), st.builds(Choice, st.lists(anything).map(tuple), st.just(True))
)
requests = st.builds(
    Request,
    st.tuples(
        st.builds(Text, anything, st.booleans()),
        slots | searched | weighed,
        st.builds(Text, anything),
    ),
    seed=st.integers(-(1 << 70), 1 << 70),
    deadline=st.none() | st.floats(0, 1e9),
)
logprobs = st.builds(
    TokenLogprob, anything, counts, floats, st.lists(st.tuples(anything, floats)).map(tuple)
)
fills = st.builds(
    Fill,
    anything,
    st.sampled_from(["stop", "length", "constraint"]),
    counts,
    counts,
    floats,
    st.lists(logprobs, max_size=3).map(tuple),
    st.lists(st.builds(Alternative, anything, floats, floats), max_size=3).map(tuple),
)
completions = st.builds(
    Completion,
    st.dictionaries(anything, fills, max_size=3),
    st.builds(Usage, counts, counts, counts, counts, counts),
    floats,
)


def through_json(value):
    return json.loads(json.dumps(to_wire(value)))


@given(completions, st.lists(logprobs, max_size=3).map(tuple))
def test_outcomes_are_completions_or_scores(completion, scores):
    assert from_wire(Outcome, through_json(completion)) == completion
    assert from_wire(Outcome, through_json(scores)) == scores


def test_texts_are_sent_with_their_trust_and_slots_as_gaps():
    assert texts([Text("a", True), Slot("s"), Text("b", boundary=True)]) == [
        ["a", True, False],
        None,
        ["b", False, True],
    ]


def test_a_submission_says_whether_it_streams():
    request = Request((Text("a"), Slot("s")))
    message = json.loads(json.dumps(submission(request, stream=True)))
    assert message["stream"] is True
    assert from_wire(Request, message["job"]) == request
    assert submission(request)["stream"] is False


@given(requests)
def test_requests_cross_the_wire_unchanged(request):
    data = through_json(request)
    assert from_wire(Request, data) == request
    assert from_wire(Request, data) == request, "reading must not alter what was sent"


@given(completions)
def test_completions_cross_the_wire_unchanged(completion):
    assert from_wire(Completion, through_json(completion)) == completion


@pytest.mark.parametrize("name", sorted(errors.ENGINE_ERRORS))
def test_errors_cross_the_wire_by_class_and_message(name):
    error = errors.ENGINE_ERRORS[name](f"a message of {name}")
    completion = from_wire(Completion, through_json(Completion(error=error)))
    assert type(completion.error) is type(error)
    assert str(completion.error) == str(error)
    with pytest.raises(type(error), match=name):
        completion.text("any slot")


def test_an_error_of_another_kind_becomes_an_engine_error():
    data = through_json(errors.StoreBusy("held by 1"))
    assert type(from_wire(errors.PromptflowError, data)) is errors.EngineError


def test_infinite_logprobs_cross_the_wire():
    fill = Fill("a", "stop", logprob=-math.inf, logprobs=(TokenLogprob("a", 1, -math.inf),))
    assert from_wire(Completion, through_json(Completion({"s": fill}))).fills["s"] == fill


@given(st.builds(Stats) | st.builds(ModelInfo))
def test_every_dataclass_of_plain_values_crosses_the_wire(value):
    assert from_wire(type(value), through_json(value)) == value


REQUEST = Request((Text("a"), Slot("s", Choice(("x", "y")), beam=Beam(2)), Text("b")))
FILL = Fill("a", "stop", logprobs=(TokenLogprob("a", 1, -1.0, (("b", -2.0),)),))
COMPLETION = Completion({"s": FILL}, error=errors.EngineLost("gone"))


def places(data, path=()):
    """Every place in JSON data: the keys that lead to it."""
    yield path
    if not isinstance(data, dict | list):
        return
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield from places(value, (*path, key))


def changed(data, path, change):
    """The data with ``change`` made to what is at ``path`` in its holder."""
    data = json.loads(json.dumps(data))
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return data


CHANGES = {
    "another type": lambda holder, key: holder.__setitem__(key, object()),
    "a list": lambda holder, key: holder.__setitem__(key, [[[]]]),
    "a mapping": lambda holder, key: holder.__setitem__(key, {"x": 1}),
    "missing": lambda holder, key: holder.__delitem__(key),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("value", [REQUEST, COMPLETION], ids=["request", "completion"])
def test_data_of_another_shape_is_an_engine_error_at_every_place(value, change):
    """But for the name of a fill, and for an item too few where any number is right."""
    data = through_json(value)
    for path in list(places(data))[1:]:
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        if change == "missing" and (isinstance(parent, list) or path[-2:-1] == ("fills",)):
            continue
        if path[:1] == ("error",) and len(path) > 1 and change != "missing":
            continue  # whatever it says of itself is shown
        with pytest.raises(errors.EngineError, match="another version of promptflow"):
            from_wire(type(value), changed(data, path, CHANGES[change]))


def test_a_field_that_is_not_known_is_refused_and_not_lost():
    data = through_json(REQUEST)
    data["parts"][1]["speed"] = 3
    with pytest.raises(errors.EngineError, match=r"holds _, name, .*, speed is no Slot"):
        from_wire(Request, data)
    with pytest.raises(errors.EngineError, match="'7' is no float"):
        from_wire(Completion, {**through_json(COMPLETION), "seconds": "7"})


def test_values_that_a_class_refuses_are_its_own_error():
    data = through_json(REQUEST)
    data["parts"][1]["max_tokens"] = 0
    with pytest.raises(ValueError, match="max_tokens=0 is below 1"):
        from_wire(Request, data)


@given(st.lists(st.tuples(anything, constraints.filter(bool))).map(tuple))
def test_a_constraint_that_depends_on_a_slot_crosses_the_wire(options):
    request = Request((Slot("s"), Slot("t", Dependent("s", options))))
    assert from_wire(Request, through_json(request)) == request
