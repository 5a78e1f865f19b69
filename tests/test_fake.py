from __future__ import annotations

import asyncio

import numpy as np
import pytest

from promptflow.engine.model.fake import END, FakeModel
from promptflow.engine.request import Completion, Request, Slot, Text
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost


def feed(model: FakeModel, text: str, seq_id: int = 0, start: int = 0) -> int:
    tokens = model.tokenize(text, special=True)
    positions = list(range(start, start + len(tokens)))
    outputs = [False] * (len(tokens) - 1) + [True]
    return model.decode(tokens, positions, [seq_id] * len(tokens), outputs)


def last(model: FakeModel, text: str, seq_id: int = 0, start: int = 0) -> np.ndarray:
    assert feed(model, text, seq_id, start) == 0
    return model.logits(len(model.tokenize(text, special=True)) - 1).copy()


def test_logits_follow_from_the_cells_that_a_sequence_holds():
    whole = last(FakeModel(), "abcd")
    model = FakeModel()
    feed(model, "abx")
    model.drop(0, 2)
    model.copy(0, 3, 2)
    assert (last(model, "cd", seq_id=3, start=2) == whole).all()
    assert (last(model, "c", start=2) != whole).any()
    assert (last(FakeModel(seed=1), "abcd") != whole).any()


def test_cells_are_shared_by_copies_and_freed_by_the_last_holder():
    model = FakeModel()
    feed(model, "abcd")
    model.copy(0, 1, 3)
    assert model.used_cells() == 4
    model.drop(0, 0)
    assert model.used_cells() == 3
    assert model.held_tokens(1) == [*b"abc"]
    model.reset()
    assert model.used_cells() == 0


def test_a_full_cache_returns_1_and_takes_nothing():
    model = FakeModel(context=5)
    assert feed(model, "abc") == 0
    assert feed(model, "def", seq_id=1) == 1
    assert model.used_cells() == 3


def test_wrong_positions_and_batches_are_refused():
    with pytest.raises(AssertionError, match="sequence 0: 2 after 0"):
        feed(FakeModel(), "a", start=2)
    with pytest.raises(AssertionError):
        feed(FakeModel(batch=2), "abc")


def test_faults_come_at_the_calls_that_were_named():
    model = FakeModel(fail={2: -2})
    assert [feed(model, "a", seq_id) for seq_id in range(3)] == [0, -2, 0]
    poisoned = FakeModel(poison=ord("x"))
    assert np.isnan(last(poisoned, "axb")).all()
    assert not np.isnan(last(poisoned, "ab", seq_id=1)).any()


def test_words_are_tokens():
    model = FakeModel(words=["ab", "abc"])
    assert model.tokenize("xabcab", special=False) == [ord("x"), 258, 257]
    assert b"".join(map(model.piece, [ord("x"), 258, 257])) == b"xabcab"
    assert model.tokenize(f"a{END}", special=True) == [ord("a"), 256]
    assert model.tokenize(END, special=False) == [*END.encode()]
    assert model.piece(256) == b""
    assert model.control_piece(256).decode() == END


def echo(text: str, slot: Slot) -> str:
    if "fail" in text:
        raise EngineLost("as asked")
    return f"{slot.name} after {text.split()[-1]}"


def test_a_scripted_engine_answers_by_its_function():
    engine = ScriptedEngine(echo)
    request = Request((Text("one two"), Slot("a", lead=" "), Text(" three"), Slot("b")))
    seen = []
    ok, failed = engine.generate([request, Request((Text("fail"), Slot("a")))], seen.append)
    assert {name: fill.text for name, fill in ok.fills.items()} == {
        "a": "a after two",
        "b": "b after three",
    }
    assert ok.usage.prompt == 3
    assert ok.usage.generated == 6
    assert isinstance(failed.error, EngineLost)
    assert seen == [1, 2]
    assert engine.prompts == ["one two a after two threeb after three"]
    assert engine.batches == [2]
    assert engine.stats().requests == 1


def test_a_scripted_engine_has_the_methods_of_an_engine():
    engine = ScriptedEngine(echo)
    completion = engine.submit(Request((Text("x"), Slot("a")))).result()
    assert isinstance(completion, Completion)
    request = Request((Text("x"), Slot("a"), Slot("b")))
    assert asyncio.run(engine.agenerate([request])) == engine.generate([request])
    *deltas, last = engine.stream(request)
    assert [(delta.slot, delta.text) for delta in deltas[:4]] == [
        ("a", "a"),
        ("a", " after"),
        ("a", " x"),
        ("b", "b"),
    ]
    assert last.completion == engine.generate([request])[0]
    texts = engine.scaffold(["system", "user"])
    assert len(texts) == 3
    assert texts[0].endswith("system\n")
    assert texts[-1].endswith("assistant\n")
    assert engine.scaffold(["user", "assistant"])[-1] == f"{END}\n"
    assert [len(scores) for scores in engine.score([], ["a b", "c"])] == [2, 1]
    assert engine.pieces([Text("a b"), Slot("s"), Text("c")]) == ["a", " b", "c"]
    assert engine.count([Text("a b")]) == 2
    engine.close()
