from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.modules.hops import Gathered, follow_up, fused, gathered
from promptflow.retrieval import HashingEmbedder, Passage, build_index

TEXTS = {
    "kestrel": "The Kestrel was built at the Haldane yard in 1962.",
    "haldane": "The Haldane yard lies in Port Averly.",
    "heron": "The Heron is a ferry that was built in 1971.",
}


class Shelf:
    """Finds the documents that hold a word of the query, those with more of them first."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, query: str, k: int = 5) -> list[Passage]:
        self.asked.append(query)
        words = [word for word in query.casefold().strip("?").split() if len(word) > 4]
        scored = [(sum(w in t.casefold() for w in words), d, t) for d, t in TEXTS.items()]
        best = sorted(((s, d, t) for s, d, t in scored if s), key=lambda item: -item[0])
        return [Passage(d, 0, 0, len(t), t, 0.5 + s / 10) for s, d, t in best][:k]

    def text(self, document: str) -> str:
        return TEXTS[document]


class Ask(pf.Module):
    def __init__(self, index: Any, k: int, hops: int) -> None:
        super().__init__()
        self.index, self.k, self.hops, self.writer = index, k, hops, follow_up()

    def flow(self, question: str) -> Any:
        found = yield from gathered(self.index, self.writer, question, self.k, self.hops)
        return pf.Prediction(found=found)


def ask(query: str, k: int = 2, hops: int = 2) -> tuple[Gathered, Shelf, list[str]]:
    engine, shelf = ScriptedEngine(lambda text, slot: query), Shelf()
    program = Ask(shelf, k, hops)
    found = pf.run(program, lm=pf.load("s", engine=engine), question="Where was the Kestrel built?")
    return found.found, shelf, engine.prompts


def test_what_was_found_makes_the_second_query():
    found, shelf, prompts = ask("Haldane yard")
    assert shelf.asked == ["Where was the Kestrel built?", "Haldane yard"]
    assert found.queries == tuple(shelf.asked)
    assert "kestrel" in [p.document for p in found.passages]
    assert "haldane" in [p.document for p in found.passages]
    [prompt] = prompts
    assert TEXTS["kestrel"] in prompt.split("<data ")[-1]


def test_one_hop_asks_no_model():
    found, shelf, prompts = ask("Haldane yard", hops=1)
    assert (len(shelf.asked), prompts) == (1, [])
    assert found.passages == tuple(Shelf().search("Where was the Kestrel built?", 2))


@pytest.mark.parametrize("query", ["", "   ", "Where was the Kestrel built?"])
def test_a_query_that_asks_nothing_new_ends_the_hops(query: str):
    found, shelf, _ = ask(query, hops=3)
    assert len(shelf.asked) == 1
    assert found.queries == ("Where was the Kestrel built?",)


def test_rankings_take_turns_and_each_passage_stands_once():
    draw = random.Random(5)
    passages = [Passage(f"d{n}", n, 0, 1, "x", 0.0) for n in range(12)]
    for _ in range(500):
        rankings = [draw.sample(passages, draw.randint(0, 6)) for _ in range(draw.randint(1, 3))]
        k = draw.randint(1, 5)
        names = [[p.document for p in ranking] for ranking in rankings]
        got = [p.document for p in fused(rankings, k)]
        # Slow and obvious: turn by turn, the first of a ranking that is not there yet.
        expected: list[str] = []
        for turn in range(k * len(rankings)):
            fresh = [d for d in names[turn % len(rankings)] if d not in expected]
            expected += fresh[:1]
        assert got == expected[:k]


def test_a_passage_found_twice_has_its_better_score():
    low, high = (Passage("d", 0, 0, 1, "x", score) for score in (0.2, 0.7))
    assert fused([[low], [high]], 5) == [high]


def test_grounded_answers_over_two_hops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "docs").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "docs" / f"{name}.md").write_text(text)
    monkeypatch.chdir(tmp_path)

    def fill(text: str, slot: pf.Slot) -> str:
        if slot.name == "query":
            return "Haldane yard lies in"
        options = getattr(slot.constraint, "options", ("Port Averly",))
        return "Yes" if "Yes" in options else options[0]

    lm = pf.load("s", engine=ScriptedEngine(fill))
    folder = tmp_path / "docs"
    asked = "In which port was the Kestrel built?"
    with build_index("ships", folder, embedder=HashingEmbedder(), progress=False) as index:
        program = pf.GroundedQA(index, k=2, hops=2, threshold=0.0)
        result = pf.run(program, lm=lm, question=asked)
        assert any(TEXTS["haldane"] in prompt for prompt in lm.text_engine.prompts)
        assert result.reason
        pf.save_program(program, tmp_path / "saved")
        loaded = pf.load_program(tmp_path / "saved")
        assert loaded.settings() == program.settings()
        assert loaded.settings()["hops"] == 2
        assert pf.run(loaded, lm=lm, question=asked).answer == result.answer
