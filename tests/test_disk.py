from __future__ import annotations

import os
from pathlib import Path

import pytest

from promptflow.engine import Engine
from promptflow.engine.cache.disk import GAIN, DiskPrefixes
from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Completion, Request, Slot, Text
from promptflow.errors import CapacityError, EngineError

PREFIX = "a prefix of many words, " * 20
LENGTH = len(PREFIX)


def ask(decoder: Decoder, text: str) -> Completion:
    slot = Slot("s", max_tokens=5, ignore_eos=True)
    outcomes = dict(decoder.submit(0, Request((Text(text), slot))))
    while decoder.busy:
        outcomes |= dict(decoder.step())
    assert outcomes[0].error is None
    return outcomes[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that keeps PREFIX."""
    decoder = Decoder(FakeModel(), prefixes=tmp_path / "kept")
    ask(decoder, PREFIX)
    assert decoder.keep([Text(PREFIX)]) > 0
    return tmp_path / "kept"


def test_another_process_takes_up_what_was_kept(folder: Path):
    fresh = Decoder(FakeModel(), prefixes=folder)
    completion = ask(fresh, PREFIX + "and a question")
    assert completion.usage.reused == LENGTH
    assert completion.usage.prefilled == len("and a question")
    assert completion.fills == ask(Decoder(FakeModel()), PREFIX + "and a question").fills


def test_the_prefix_alone_needs_its_last_token(folder: Path):
    usage = ask(Decoder(FakeModel(), prefixes=folder), PREFIX).usage
    assert (usage.reused, usage.prefilled) == (LENGTH - 1, 1)


def test_the_longest_prefix_is_taken_and_read_once(folder: Path):
    decoder = Decoder(FakeModel(), prefixes=folder)
    longer = PREFIX + "with more demonstrations. " * 5
    ask(decoder, longer)
    decoder.keep([Text(longer)])
    fresh = Decoder(FakeModel(), prefixes=folder)
    assert ask(fresh, longer + "?").usage.reused == len(longer)
    assert ask(fresh, longer + "!").usage.reused == len(longer)
    assert fresh._disk.recalled == 1


def test_texts_that_begin_otherwise_take_nothing(folder: Path):
    fresh = Decoder(FakeModel(), prefixes=folder)
    assert ask(fresh, "b" + PREFIX).usage.reused == 0
    assert ask(fresh, PREFIX[:-1] + "!").usage.reused == 0


@pytest.mark.parametrize("at", [0, 31, 32, 40, -1])
def test_a_damaged_file_is_a_miss(folder: Path, at: int):
    [file] = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert ask(Decoder(FakeModel(), prefixes=folder), PREFIX).usage.reused == 0


@pytest.mark.parametrize("size", [0, 10, 32, 100])
def test_a_truncated_file_is_a_miss(folder: Path, size: int):
    [file] = folder.iterdir()
    os.truncate(file, size)
    decoder = Decoder(FakeModel(), prefixes=folder)
    assert ask(decoder, PREFIX).usage.reused == 0
    decoder.keep([Text(PREFIX)])
    assert ask(Decoder(FakeModel(), prefixes=folder), PREFIX).usage.reused > 0


def test_strange_files_in_the_folder_are_passed_over(folder: Path):
    (folder / "notes.txt").write_text("-")
    (folder / "12-x.kv").mkdir()
    (folder / "-9-x.kv").write_text("")
    assert ask(Decoder(FakeModel(), prefixes=folder), PREFIX).usage.reused > 0


def test_a_cache_without_room_computes_as_before(folder: Path):
    small = Decoder(FakeModel(context=LENGTH + 20), prefixes=folder)
    small.submit(1, Request((Text("x" * 30), Slot("s", max_tokens=9, ignore_eos=True))))
    small.step()
    slot = Slot("s", max_tokens=5, ignore_eos=True)
    outcomes = dict(small.submit(0, Request((Text(PREFIX), slot))))
    while small.busy:
        outcomes |= dict(small.step())
    assert outcomes[0].error is None
    assert small._disk.recalled == 0


def test_a_short_prefix_is_not_worth_reading(tmp_path: Path):
    text = "x" * (GAIN - 1)
    decoder = Decoder(FakeModel(), prefixes=tmp_path)
    ask(decoder, text)
    decoder.keep([Text(text)])
    assert ask(Decoder(FakeModel(), prefixes=tmp_path), text + "?").usage.reused == 0


def test_the_least_recently_used_go_first(tmp_path: Path):
    model = FakeModel()
    decoder = Decoder(model)
    kept = DiskPrefixes(model, decoder.cache, tmp_path, max_bytes=6_000)
    texts = [f"{number}{PREFIX}" for number in range(3)]
    for age, text in enumerate(texts[:2]):
        ask(decoder, text)
        kept.keep(list(text.encode()))
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (age, age))
    assert kept._read(next(tmp_path.glob(f"*{_hash(texts[0])}.kv")).name) is not None
    ask(decoder, texts[2])
    kept.keep(list(texts[2].encode()))
    left = {path.name for path in tmp_path.iterdir()}
    assert any(_hash(texts[2]) in name for name in left), "the one just written stays"
    assert not any(_hash(texts[1]) in name for name in left)


def _hash(text: str) -> str:
    from promptflow.engine.cache.disk import _name

    return _name(list(text.encode())).partition("-")[2].removesuffix(".kv")


def test_what_has_left_the_cache_cannot_be_kept(tmp_path: Path):
    decoder = Decoder(FakeModel(), prefixes=tmp_path)
    with pytest.raises(EngineError, match="has left the cache"):
        decoder.keep([Text(PREFIX)])
    with pytest.raises(EngineError, match="keeps no prefixes"):
        Decoder(FakeModel()).keep([Text(PREFIX)])
    full = Decoder(FakeModel(sequences=1), prefixes=tmp_path)
    ask(full, PREFIX)
    with pytest.raises(CapacityError, match="every sequence"):
        full.keep([Text(PREFIX)])


def test_a_real_prefix_comes_back_with_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm: Engine
):
    """A second process on the same file reads the state instead of computing it."""
    path = smollm.info.path
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path))
    prefix = Text("One, two, three, four, five, six, seven. " * 12)
    request = Request((prefix, Text("One, two, three,"), Slot("s", max_tokens=8, ignore_eos=True)))
    with Engine(path) as first:
        assert first.keep([prefix]) > 100_000
        [computed] = first.generate([request])
    with Engine(path) as second:
        [recalled] = second.generate([request])
    assert recalled.usage.reused > 100
    assert recalled.usage.prefilled < 20
    assert recalled.fills["s"].text == computed.fills["s"].text
