from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, strategies as st

from promptflow import errors
from promptflow.engine.request import (
    Alternative,
    Beam,
    Choice,
    Completion,
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
from promptflow.engine.wire import (
    completion_from_wire,
    error_from_wire,
    outcome_from_wire,
    request_from_wire,
    submission,
    texts,
    to_wire,
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
    assert outcome_from_wire(through_json(completion)) == completion
    assert outcome_from_wire(through_json(scores)) == scores


def test_texts_are_sent_with_their_trust_and_slots_as_gaps():
    assert texts([Text("a", True), Slot("s"), Text("b")]) == [["a", True], None, ["b", False]]


def test_a_submission_says_whether_it_streams():
    request = Request((Text("a"), Slot("s")))
    message = json.loads(json.dumps(submission(request, stream=True)))
    assert message["stream"] is True
    assert request_from_wire(message["job"]) == request
    assert submission(request)["stream"] is False


@given(requests)
def test_requests_cross_the_wire_unchanged(request):
    data = through_json(request)
    assert request_from_wire(data) == request
    assert request_from_wire(data) == request, "reading must not alter what was sent"


@given(completions)
def test_completions_cross_the_wire_unchanged(completion):
    assert completion_from_wire(through_json(completion)) == completion


@pytest.mark.parametrize("name", sorted(errors.ENGINE_ERRORS))
def test_errors_cross_the_wire_by_class_and_message(name):
    error = errors.ENGINE_ERRORS[name](f"a message of {name}")
    completion = completion_from_wire(through_json(Completion(error=error)))
    assert type(completion.error) is type(error)
    assert str(completion.error) == str(error)
    with pytest.raises(type(error), match=name):
        completion.text("any slot")


def test_an_error_of_another_kind_becomes_an_engine_error():
    data = through_json(errors.StoreBusy("held by 1"))
    assert type(error_from_wire(data)) is errors.EngineError


def test_infinite_logprobs_cross_the_wire():
    fill = Fill("a", "stop", logprob=-math.inf, logprobs=(TokenLogprob("a", 1, -math.inf),))
    assert completion_from_wire(through_json(Completion({"s": fill}))).fills["s"] == fill
