from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, strategies as st

from promptflow.engine.interface import ModelInfo, Stats
from promptflow.engine.request import (
    Choice,
    Completion,
    Dependent,
    Fill,
    Request,
    Sampling,
    Slot,
    Text,
    Usage,
)
from promptflow.errors import ConstraintError

counts = st.integers(0, 1 << 40)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 1.1},
        {"min_p": -1.0},
        {"typical_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 11.0},
        {"presence_penalty": -11.0},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, math.inf),)},
        {"logit_bias": ((1, math.nan),)},
    ],
)
def test_sampling_outside_its_ranges_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"stop": ("a", "")}, "empty stop string"),
        ({"logprobs": -1}, "logprobs"),
        ({"fits": True, "least": 0}, "least=0 is outside 1 to max_tokens=512"),
        ({"fits": True, "least": 9, "max_tokens": 8}, "least=9 is outside 1 to max_tokens=8"),
        ({"least": 2}, "add fits=True"),
    ],
)
def test_a_slot_that_could_not_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Slot("answer", **settings)


def test_a_slot_that_fits_needs_its_least_and_another_its_bound():
    assert Slot("a", max_tokens=9).need == 9
    assert Slot("a", max_tokens=9, fits=True).need == 1
    assert Slot("a", max_tokens=9, fits=True, least=4).need == 4


def test_requests_need_slots_of_different_names_and_a_deadline_to_come():
    with pytest.raises(ValueError, match="at least one Slot"):
        Request((Text("a"),))
    with pytest.raises(ValueError, match="slot names repeat"):
        Request((Slot("a"), Slot("a")))
    with pytest.raises(ValueError, match="deadline"):
        Request((Slot("a"),), deadline=-1.0)
    with pytest.raises(ValueError, match="deadline"):
        Request((Slot("a"),), deadline=math.nan)


def test_text_gives_a_slot_or_raises_the_error():
    completion = Completion({"a": Fill("one", "stop")})
    assert completion.text("a") == "one"
    with pytest.raises(KeyError):
        completion.text("b")


@given(st.lists(st.builds(Usage, counts, counts, counts, counts, counts)))
def test_usages_add_up(usages):
    total = sum(usages, Usage())
    for name in ("prompt", "prefilled", "reused", "generated", "forced"):
        assert getattr(total, name) == sum(getattr(usage, name) for usage in usages)


def test_stats_add_up_and_weigh_occupancy_by_decodes():
    total = Stats(requests=1, decodes=10, occupancy=2.0) + Stats(requests=2, decodes=30, restarts=1)
    assert (total.requests, total.decodes, total.restarts) == (3, 40, 1)
    assert total.occupancy == 0.5
    assert Stats() + Stats() == Stats()


def test_the_identity_of_a_model_names_weights_and_build():
    info = ModelInfo("m", "/m.gguf", "0123456789abcdef", "llama", 10, 10, "", "build 7", "default")
    assert info.identity == "m@0123456789ab/build 7"
    quick = dataclasses.replace(info, numerics="flash attention")
    assert quick.identity == "m@0123456789ab/build 7 (flash attention)"


def test_a_constraint_depends_on_a_slot_before_it():
    options = (("add", Choice(("1",))), ("say", Choice(("x", "y"))))
    name, more = Slot("name"), Slot("more", Dependent("name", options))
    Request((name, Text(": "), more))
    for parts in ((more, name), (more,), (Slot("other"), more)):
        with pytest.raises(ValueError, match="none of the slots before it"):
            Request(parts)
    assert Dependent("name", options).on("say") == Choice(("x", "y"))
    with pytest.raises(ConstraintError, match="among 'add', 'say'"):
        Dependent("name", options).on("sa")
