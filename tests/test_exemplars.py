from __future__ import annotations

import copy
import random
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ProgramError, UnknownOption
from promptflow.flow import run, run_many
from promptflow.modules.exemplars import Balanced, Nearest, in_turns

POOL = [
    {"text": "aab", "label": "up"},
    {"text": "abb", "label": "up"},
    {"text": "ccd", "label": "up"},
    {"text": "cdd", "label": "down"},
    {"text": "aaa", "label": "down"},
]


def letters(texts: list[str]) -> np.ndarray:
    """Any function of texts is an embedder: here, how often each letter occurs."""
    return np.array([[text.count(c) for c in "abcd"] for text in texts], np.float32)


class Encoder:
    def encode(self, texts: list[str]) -> np.ndarray:
        return letters(texts)


def texts(demos: Any) -> list[str]:
    return [demo["text"] for demo in demos]


@pytest.mark.parametrize("embedder", [letters, Encoder(), dspy.Embedder(letters)])
def test_the_nearest_come_last(embedder: Any) -> None:
    assert texts(Nearest(POOL, 2, embedder)({"text": "aaab"})) == ["aaa", "aab"]
    assert texts(Nearest(POOL, 2, embedder)({"text": "cd"})) == ["cdd", "ccd"]
    assert len(Nearest(POOL, 99, embedder)({"text": "cd"})) == len(POOL)


def test_the_nearest_are_those_of_the_slow_truth() -> None:
    rng = random.Random(0)
    for _ in range(60):
        pool = [{"text": "".join(rng.choices("abcd", k=5)), "label": "x"} for _ in range(12)]
        asked = "".join(rng.choices("abcd", k=4))
        found = texts(Nearest(pool, 3, letters)({"text": asked}))

        def cosine(text: str, to: str = asked) -> float:
            a, b = letters([text, to])
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        best = sorted((round(cosine(d["text"]), 5) for d in pool), reverse=True)[:3]
        assert [round(cosine(t), 5) for t in reversed(found)] == best


def test_a_demo_that_tells_the_answer_is_left_out() -> None:
    assert "aab" not in texts(Nearest(POOL, 5, letters)({"text": "aab"}))
    assert "aab" not in texts(Balanced(POOL, 5, label="label")({"text": "aab"}))


def test_labels_take_turns() -> None:
    demos = Nearest(POOL, 2, letters, label="label")({"text": "aaab"})
    assert Counter(demo["label"] for demo in demos) == {"up": 1, "down": 1}
    assert texts(demos) == ["aaa", "aab"]
    even = Balanced(POOL, 4, label="label")({"text": "zzz"})
    assert texts(even) == ["aab", "cdd", "abb", "aaa"]


def test_turns_are_as_even_as_labels_allow() -> None:
    rng = random.Random(1)
    for _ in range(200):
        labels = [rng.choice("xyz") for _ in range(rng.randint(1, 12))]
        k = rng.randint(1, 12)
        places = in_turns(labels, k)
        assert len(places) == len(set(places)) == min(k, len(labels))
        counts = Counter(labels[place] for place in places)
        for label, there in Counter(labels).items():
            assert counts[label] == there or counts[label] >= max(counts.values()) - 1


def prompts(module: Any, *inputs: dict[str, Any]) -> list[str]:
    engine = ScriptedEngine(lambda text, slot: "up" if slot.constraint else "so")
    run_many(module, inputs, lm=pf.load("shots", engine=engine))
    return engine.prompts


SPEC = "text -> label: Literal['up', 'down']"


@pytest.mark.parametrize("made", [pf.Predict, pf.ChainOfThought, pf.ZeroShotCoT, pf.StepBack])
def test_each_input_gets_its_own_demos(made: Any) -> None:
    module = made(SPEC, demos="nearest", pool=POOL, k=1, embedder=letters)
    asked = prompts(module, {"text": "aaab"}, {"text": "dc"})
    shown = [{t for t in ("aab", "cdd", "ccd") if f"Text: {t}<" in p} for p in asked]
    assert shown[0] == {"aab"}
    assert shown[1] in ({"cdd"}, {"ccd"})
    even = made(SPEC, demos="balanced", pool=POOL, k=2)
    for prompt in prompts(even, {"text": "aaab"}):
        assert "Text: aab<" in prompt
        assert "Text: cdd<" in prompt


def test_a_function_of_the_inputs_chooses_too() -> None:
    def same(inputs: Any) -> Any:
        return [{"text": inputs["text"] * 2, "label": "down"}]

    [prompt] = prompts(pf.Predict(SPEC, demos=same), {"text": "xy"})
    assert "Text: xyxy<" in prompt


def test_demos_of_a_document_are_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "shots.toml"
    path.write_text(
        "[inputs]\ntext = 'str'\n[outputs]\nlabel = \"Literal['up', 'down']\"\n"
        + "".join(f"[[demos]]\ntext = '{d['text']}'\nlabel = '{d['label']}'\n" for d in POOL)
    )
    module = pf.Predict(str(path), demos="nearest", k=1, embedder=letters)
    [prompt] = prompts(module, {"text": "aaab"})
    assert ("Text: aab<" in prompt, "Text: cdd<" in prompt) == (True, False)


def test_demos_of_one_call_come_first_and_copies_share_the_pool() -> None:
    module = pf.Predict(SPEC, demos="nearest", pool=POOL, k=1, embedder=letters)
    own = [dspy.Example(text="mine", label="up")]
    [prompt] = prompts(module, {"text": "aaab", "demos": own})
    assert ("Text: mine<" in prompt, "Text: aab<" in prompt) == (True, False)
    assert copy.deepcopy(module).chooser is module.chooser


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"demos": "nearst", "pool": POOL}, ValueError, "give demos, a function"),
        ({"demos": "nearest"}, ProgramError, "the pool is empty"),
        ({"demos": "nearest", "pool": POOL, "k": 0}, ValueError, "whole number from 1"),
        ({"k": 3}, UnknownOption, "k belong to demos='nearest'"),
        ({"demos": "nearest", "pol": POOL}, UnknownOption, "did you mean 'pool'"),
        ({"demos": "balanced", "pool": [{"text": "a"}]}, ProgramError, "has no 'label'"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        pf.Predict(SPEC, **options)


def test_a_wrong_embedder_is_refused() -> None:
    with pytest.raises(ProgramError, match="expected a vector each"):
        Nearest(POOL, 2, lambda texts: np.zeros(3))({"text": "a"})
    with pytest.raises(ProgramError, match="has any of the inputs"):
        Nearest(POOL, 2, letters)({"question": "a"})


def test_a_program_whose_demos_are_chosen_is_loaded_into_another(tmp_path: Path) -> None:
    module = pf.Predict(SPEC, demos="nearest", pool=POOL, k=1, embedder=letters)
    pf.save_program(module, tmp_path)
    with pytest.raises(ProgramError, match="which is not saved; load it"):
        pf.load_program(tmp_path)
    again = pf.Predict(SPEC, demos="nearest", pool=POOL, k=1, embedder=letters)
    assert pf.load_program(tmp_path, into=again).chooser is again.chooser
    assert run(again, lm=pf.load("x", engine=ScriptedEngine(lambda t, s: "up")), text="a").label


def test_samples_of_one_input_share_its_demos() -> None:
    module = pf.Predict(SPEC, demos="nearest", pool=POOL, k=1, embedder=letters)
    asked = prompts(pf.SelfConsistency(module, n=3, field="label", sure="all"), {"text": "aaab"})
    assert len(set(asked)) == 1
