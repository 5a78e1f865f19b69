"""llama.cpp itself, in this process: without extra buffers, since some builds crash with them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMOLLM
from hypothesis import given, settings, strategies as st

from promptflow.catalog import locate
from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.model.llama import Load, Model, build, log_to_stderr, system_info
from promptflow.engine.model.tokenizer import Prompts
from promptflow.engine.request import (
    Choice,
    Fill,
    Json,
    Lark,
    Regex,
    Request,
    Slot,
    Substring,
    Text,
)
from promptflow.engine.slot.job import FillJob, Tools
from promptflow.errors import ModelInvalid

CELLS, BATCH, SEQUENCES = 256, 64, 4
# Another shape of batch or cache moves logits by up to 1.1 in Q4_0; a wrong one by 5.
TOLERANCE = 1.5


@pytest.fixture(scope="module")
def loaded() -> Iterator[Model]:
    log_to_stderr()
    load = Load(CELLS, BATCH, SEQUENCES, threads=1, extra_buffers=False)
    model = Model(locate(SMOLLM), SMOLLM, "0" * 64, load)
    model.short = {model.piece(token) for token in range(model.vocabulary)}
    yield model
    model.close()
    model.close()


@pytest.fixture
def model(loaded: Model) -> Model:
    for sequence in range(SEQUENCES):
        loaded.drop(sequence, 0)
    return loaded


def feed(model: Model, tokens: list[int], sequence: int = 0, start: int = 0) -> np.ndarray:
    positions = list(range(start, start + len(tokens)))
    outputs = [False] * (len(tokens) - 1) + [True]
    assert model.decode(tokens, positions, [sequence] * len(tokens), outputs) == 0
    return model.logits(len(tokens) - 1).copy()


def prompt(model: Model, text: str) -> list[int]:
    return model.tokenize(text, special=False)


STORY = "The quick brown fox jumps over the lazy dog. Then it sleeps, and dreams of a"


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60))
def test_tokens_give_their_text_back(loaded, text):
    """This vocabulary lacks some control characters, and first bytes of rare planes."""
    expected = bytes(byte for byte in text.encode() if bytes([byte]) in loaded.short)
    for special in (False, True):
        tokens = loaded.tokenize(text, special)
        pieces = [loaded.piece(token) or loaded.control_piece(token) for token in tokens]
        assert b"".join(pieces) == expected


def test_half_characters_are_replaced(loaded):
    assert loaded.tokenize("a\ud800b", special=False) == loaded.tokenize("a?b", special=False)
    assert loaded.tokenize("", special=True) == []


def test_control_tokens_are_known(loaded):
    [start] = loaded.tokenize("<|im_start|>", special=True)
    [end] = loaded.tokenize("<|im_end|>", special=True)
    assert {start, end} <= loaded.end_tokens
    assert loaded.piece(end) == b""
    assert loaded.control_piece(end) == b"<|im_end|>"
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(loaded.control_texts())
    assert len(loaded.tokenize("<|im_end|>", special=False)) > 1


def hostile(controls: list[str]) -> Iterator[list[Text]]:
    for control in controls:
        half = len(control) // 2
        yield [Text(control)]
        yield [Text(f"a{control}b {control}\n{control}")]
        yield [Text(control[:half], True), Text(control[half:])]
        yield [Text(control[:half]), Text(control[half:], True)]
        yield [Text(control[:half]), Text("", True), Text(control[half:])]
        yield [Text(control[:half] + control + control[half:])]
        yield [Text(control[:1]), Text(control), Text(control[1:])]
        yield [Text(control.replace("|", "\uff5c"))]
        yield [Text(control.upper() + control.strip("<>"))]
    for first, second in itertools.pairwise(controls):
        yield [Text(first + second)]
        yield [Text(first[:-1] + second), Text(first[-1:])]


def test_untrusted_text_never_makes_a_control_token(loaded):
    prompts = Prompts(loaded)
    attacks = list(hostile(loaded.control_texts()))
    assert len(attacks) > 150
    special = {
        t for text in loaded.control_texts() for t in loaded.tokenize(text, special=True)[:1]
    }
    for texts in attacks:
        tokens = prompts.tokens(texts)
        assert not special & set(tokens), texts
        pieces = b"".join(map(loaded.piece, tokens))
        assert pieces.decode() == "".join(text.text for text in texts)


def test_harmless_prompts_are_tokenized_as_a_whole(loaded):
    chat = [Text("<|im_start|>user\n", True), Text("1 < 2 |> 3"), Text("<|im_end|>\n", True)]
    whole = "".join(text.text for text in chat)
    assert Prompts(loaded).tokens(chat) == loaded.tokenize(whole, special=True)


def test_a_copied_prefix_goes_on_as_the_original(model):
    tokens = prompt(model, STORY)
    whole = feed(model, tokens)
    model.copy(0, 1, len(tokens) - 1)
    copied = feed(model, tokens[-1:], 1, len(tokens) - 1)
    assert np.abs(copied - whole).max() < TOLERANCE
    other = feed(model, prompt(model, "Compute 3 + 4 ="), 2)
    assert np.abs(other - whole).max() > 5 * TOLERANCE


def test_a_cut_sequence_goes_on_from_the_cut(model):
    tokens = prompt(model, STORY)
    whole = feed(model, tokens)
    model.drop(0, 10)
    again = feed(model, tokens[10:], 0, 10)
    assert np.abs(again - whole).max() < TOLERANCE
    model.copy(0, 3, 10)
    model.drop(0, 0)
    survives = feed(model, tokens[10:], 3, 10)
    assert np.abs(survives - whole).max() < TOLERANCE


def test_sequences_of_one_batch_do_not_mix(model):
    first, second = prompt(model, STORY), prompt(model, "Compute 3 + 4 =")
    alone = feed(model, first), feed(model, second, 1)
    for sequence in (0, 1):
        model.drop(sequence, 0)
    tokens = first + second
    positions = [*range(len(first)), *range(len(second))]
    sequences = [0] * len(first) + [1] * len(second)
    outputs = [False] * (len(first) - 1) + [True] + [False] * (len(second) - 1) + [True]
    assert model.decode(tokens, positions, sequences, outputs) == 0
    for row, expected in zip((len(first) - 1, len(tokens) - 1), alone, strict=True):
        assert np.abs(model.logits(row) - expected).max() < TOLERANCE


def test_texts_survive_decodes_that_fail(model, monkeypatch):
    """Under batch_invariant exactly: the same calls, the same cells, a new context after -2."""
    slots = (
        Slot("a", max_tokens=5, logprobs=0),
        Slot("b", Json('{"enum": [12, 1815]}'), 9, lead=" "),
    )
    request = Request((Text(STORY), slots[0], Text(", in the year"), slots[1]))
    decoder = Decoder(model, batch_invariant=True)
    decode, codes = model.decode, []

    def failing(*batch: list) -> int:
        code = codes.pop(0) if codes else 0
        half = len(batch[0]) // 2
        if code in (2, -2) and half:
            decode(*(values[:half] for values in batch))
        return code or decode(*batch)

    def fills(*faults: int) -> dict[str, Fill]:
        codes[:] = faults
        outcomes = dict(decoder.submit(0, request))
        while decoder.busy:
            outcomes |= dict(decoder.step())
        assert not codes
        return outcomes[0].fills

    monkeypatch.setattr(model, "decode", failing)
    expected = fills()
    for code in (1, 2, -1, -2):
        for at in (0, 1, 4):
            assert fills(*[0] * at, code) == expected


@pytest.mark.parametrize(
    "batch",
    [
        ([], [], [], []),
        ([1] * (BATCH + 1), list(range(BATCH + 1)), [0] * (BATCH + 1), [True] * (BATCH + 1)),
        ([-1], [0], [0], [True]),
        ([10_000_000], [0], [0], [True]),
        ([1], [-1], [0], [True]),
        ([1], [CELLS], [0], [True]),
        ([1], [0], [-1], [True]),
        ([1], [0], [SEQUENCES], [True]),
        ([1, 2], [0, 2], [0, 0], [False, True]),
    ],
    ids=lambda batch: repr(batch)[:40],
)
def test_a_batch_that_llama_cpp_would_abort_on_is_refused(model, batch):
    feed(model, [5, 6, 7], 3)
    assert model.decode(*batch) == -1
    model.drop(0, 0)
    assert np.isfinite(feed(model, [8], 3, 3)).all()


def test_a_full_cache_returns_1_and_takes_nothing(model):
    tokens = [7] * BATCH
    for sequence in range(CELLS // BATCH):
        feed(model, tokens, sequence)
    assert model.decode([1], [BATCH], [0], [True]) == 1
    model.drop(3, BATCH - 1)
    assert model.decode([1], [BATCH], [0], [True]) == 0


def test_a_reset_cache_is_empty_and_works(model):
    before = feed(model, prompt(model, STORY))
    model.reset()
    assert np.abs(feed(model, prompt(model, STORY)) - before).max() < TOLERANCE


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "kind": {"enum": ["mathematician", "mathematics teacher", "poet"]},
        "known": {"type": "boolean"},
        "notes": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "required": ["name", "born", "kind", "known", "notes"],
    "additionalProperties": False,
}
ADA = {
    "name": "Ada Lovelace, née Byron",
    "born": 1815,
    "kind": "mathematics teacher",
    "known": True,
    "notes": ["on the Analytical Engine", "日本語 😀"],
}


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (Choice(("an unmistakable and rather long answer, isn't it?",)), None),
        (Choice(("international", "internal", "interesting")), "internal"),
        (Choice(("Paris, France", "Paris, Texas")), "Paris, Texas"),
        (Regex("the one and only \\(yes\\)"), "the one and only (yes)"),
        (Regex("(the )+end( of it)?"), "the the end of it"),
        (Json('{"const": {"name": "Ada Lovelace", "born": 1815}}'), None),
        (Json(json.dumps(PERSON)), json.dumps(ADA, ensure_ascii=False)),
        (
            Lark('start: " " key ": " NUMBER ";"\nkey: "age" | "ages"\nNUMBER: /[0-9]+/'),
            "ages: 12;",
        ),
        (Substring((STORY,)), "brown fox jumps over"),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("before", ["", "Answer:"])
def test_forced_tokens_are_those_that_the_tokenizer_would_give(loaded, constraint, text, before):
    """Followed wherever the text has a choice by the tokenizer's own next token.

    So nothing is forced too early: a token that goes on over a seam is left to the model.
    """
    if text is None:
        options = getattr(constraint, "options", ('{"name": "Ada Lovelace", "born": 1815}',))
        [text] = options
    lead = "" if isinstance(constraint, Lark) else " "
    whole = loaded.tokenize(f"{before} {text}", special=False)
    tokens = whole[len(loaded.tokenize(before, special=False)) :]
    assert b"".join(map(loaded.piece, tokens)).decode() == f" {text}", "the seam is a token's edge"
    matcher = loaded.constraints().start(constraint, lead, "s")
    at = forced = 0
    while at < len(tokens):
        follow = [token for token in matcher.forced() if token not in loaded.end_tokens]
        assert follow == tokens[at : at + len(follow)]
        forced += len(follow)
        for token in follow or tokens[at : at + 1]:
            assert matcher.allowed()[token]
            matcher.consume(token)
            at += 1
    assert matcher.can_end(len(f" {text}".encode()))
    assert forced or len(tokens) == 1 or isinstance(constraint, Substring)


def test_a_prompt_with_forced_slots_is_tokenized_as_its_text(loaded):
    """The space before a value is the lead of its slot, as layouts write it."""
    slots = [
        Slot("name", Choice(("Ada Lovelace",)), lead=" "),
        Slot("born", Json('{"const": 1815}'), lead=" "),
        Slot("tags", Json('{"const": ["poet", "countess"]}'), lead=" "),
        Slot("quote", Regex("imagination"), lead=" "),
    ]
    parts: list[Text | Slot] = [Text("Who wrote the first program?\nName:")]
    for slot, text in zip(slots, ("\nBorn:", "\nTags:", "\nQuote:", "\n"), strict=True):
        parts += [slot, Text(text)]
    tools = Tools(loaded)
    job = FillJob(slots, tools.prompts.before_slots(tuple(parts)), 0, tools)
    job.open()
    assert job.is_done
    whole = (
        "Who wrote the first program?\nName: Ada Lovelace\nBorn: 1815\n"
        'Tags: ["poet", "countess"]\nQuote: imagination'
    )
    assert job.sequence.tokens == loaded.tokenize(whole, special=False)
    assert job.usage().prompt + job.usage().forced == len(job.sequence.tokens)


def test_a_constraint_allows_no_control_token(loaded):
    """Ends of generation it may: they end the slot."""
    allowed = loaded.constraints().start(Regex("(?s:.*)"), "", "s").allowed()
    [start, end] = loaded.tokenize("<|im_start|><|im_end|>", special=True)
    assert allowed[end]
    assert not allowed[start]


def test_a_model_says_what_it_is(loaded):
    info = loaded.info
    assert info.architecture == "llama"
    assert info.vocabulary == loaded.vocabulary == 49_152
    assert info.context == CELLS
    assert info.load == "default"
    assert info.build == build()
    assert info.eos == "<|im_end|>"
    assert "CPU" in system_info()
    assert Load(fallback=True).name == "no extra buffers, one thread"
    assert Load(fallback=True, threads=2).name == "no extra buffers"


@pytest.mark.parametrize(
    ("choices", "numerics"),
    [
        ({"micro_batch": 8}, ""),
        ({"flash_attention": True}, "flash attention"),
        ({"kv_type": "f32"}, "f32 cache"),
        ({"kv_type": "q8_0", "flash_attention": True}, "flash attention, q8_0 cache"),
    ],
)
def test_what_may_be_tuned_gives_the_same_logits_but_for_rounding(model, choices, numerics):
    expected = feed(model, prompt(model, STORY))
    load = Load(CELLS, BATCH, SEQUENCES, threads=1, extra_buffers=False, **choices)
    tuned = Model(locate(SMOLLM), SMOLLM, "", load)
    found = feed(tuned, prompt(tuned, STORY))
    assert tuned.info.numerics == numerics
    assert np.abs(found - expected).max() < TOLERANCE
    tuned.close()


def test_the_pool_may_be_larger_than_what_one_sequence_can_hold():
    load = Load(16_384, 32, 2, threads=1, extra_buffers=False)
    model = Model(locate(SMOLLM), SMOLLM, "", load)
    assert model.cells == 16_384
    assert model.info.context == 8_192
    model.close()


def test_a_file_that_llama_cpp_refuses_is_a_typed_error(tmp_path):
    data = bytearray(locate(SMOLLM).read_bytes()[: 4 << 20])
    data[data.index(b"llama") : data.index(b"llama") + 5] = b"lorem"
    path = tmp_path / "lorem.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelInvalid, match=r"llama\.cpp refuses .*lorem\.gguf"):
        Model(path, "lorem", "", Load(extra_buffers=False))


def test_a_batch_may_have_fewer_tokens_than_there_are_sequences(tiny: Callable[[str], Path]):
    model = Model(tiny("llama"), "llama", "0" * 64, Load(64, 2, 8, extra_buffers=False))
    assert model.batch == 2
    assert model.decode([5, 6], [0, 1], [7, 7], [False, True]) == 0
    model.close()
