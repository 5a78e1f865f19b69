from __future__ import annotations

import pytest

from promptflow.engine.loop import admission
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Sampling, Slot
from promptflow.errors import CapacityError, ContextOverflow, EngineError

MODEL = FakeModel(context=100, sequences=4)


def test_what_just_fits_is_admitted():
    admission.check_length(MODEL, 60, 40)
    admission.check_cells(MODEL, 40, 3, 20)
    admission.check_ids(MODEL, [Slot("s", stop_tokens=(0, 256))])


def test_a_sequence_that_is_too_long_is_refused_with_the_numbers():
    with pytest.raises(
        ContextOverflow, match=r"has 60 tokens .* 41 more: 1 over the context of 100"
    ):
        admission.check_length(MODEL, 60, 41)


def test_a_beam_that_the_cache_cannot_hold_is_refused_with_the_numbers():
    with pytest.raises(CapacityError, match=r"103 cells for a beam of width 4, .* has 100"):
        admission.check_cells(MODEL, 40, 3, 21)
    with pytest.raises(CapacityError, match=r"width 5 needs as many sequences, .* has 4"):
        admission.check_cells(MODEL, 40, 4, 1)


def test_ids_that_the_model_does_not_have_are_refused():
    slots = [Slot("a"), Slot("b", sampling=Sampling(logit_bias=((257, 1.0),)))]
    with pytest.raises(EngineError, match=r"slot 'b' names token 257, .* are 0 to 256"):
        admission.check_ids(MODEL, slots)
