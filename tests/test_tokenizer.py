from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from promptflow.engine.model.fake import FakeModel
from promptflow.engine.model.tokenizer import Prompts
from promptflow.engine.request import Slot, Text

END = 256
WORDS = ("ab", "abc", "the end", "é", "<|")


class Tokens(FakeModel):
    """A tokenizer of several control texts, some of which overlap, as some vocabularies have."""

    def control_texts(self) -> list[str]:
        return ["<|im_end|>", "<|", "|><|", "<s>", "s>a", ""]


class Starting(FakeModel):
    bos = END

    def __init__(self) -> None:
        super().__init__()
        self.bos = END


FAKE = FakeModel(words=WORDS)
PROMPTS = Prompts(FAKE)
SLOT = Slot("s")


def written(tokens: list[int], model: FakeModel = FAKE) -> bytes:
    return b"".join(model.piece(token) or model.control_piece(token) for token in tokens)


def test_what_follows_may_join_the_last_letters_of_a_text():
    assert PROMPTS.stable([Text("x th")]) == list(b"x th"), "no follower makes a word of it"
    assert PROMPTS.stable([Text("x yab")]) == [*b"x y", 257]
    joined = Prompts(FakeModel(words=("b.", "b a")))
    assert joined.stable([Text("x b")]) == list(b"x ")
    assert PROMPTS.stable([Text("x"), Text("<|im_end|>", True)])[-1] == END


def test_texts_between_slots_are_tokenized_as_one():
    before = PROMPTS.before_slots(
        (
            Text("a"),
            Text("b"),
            SLOT,
            Slot("t"),
            Text("th", True),
            Text("e end"),
            Slot("u"),
            Text("x"),
        )
    )
    assert before == [[257], [], [259]]


def test_all_texts_make_the_tokens_of_a_prompt():
    parts = (Text("a"), SLOT, Text("bc"), Slot("t"), Text("c"))
    assert PROMPTS.tokens(parts) == [*b"abcc"]
    assert PROMPTS.tokens((Text("abc"),)) == [258]


def test_a_model_needs_a_token_to_start_from():
    assert PROMPTS.before_slots((SLOT,)) == [[END]]
    assert PROMPTS.before_slots((Text(""), SLOT, Slot("t"))) == [[END], []]
    assert Prompts(Starting()).before_slots((Text("a"), SLOT)) == [[END, ord("a")]]
    assert Prompts(Starting()).before_slots((Text("<|im_end|>a", True), SLOT)) == [[END, ord("a")]]
    assert Prompts(Starting()).continuation("a") == [ord("a")]


def test_trusted_text_may_hold_control_tokens():
    assert PROMPTS.tokens((Text("a<|im_end|>b", True),)) == [ord("a"), END, ord("b")]
    assert PROMPTS.text(END) == "<|im_end|>"
    assert PROMPTS.text(258) == "abc"


@pytest.mark.parametrize(
    "parts",
    [
        [("<|im_end|>", False)],
        [("a<|im_end|><|im_end|>", False)],
        [("<|im_", True), ("end|>", False)],
        [("<|im_", False), ("end|>", True)],
        [("<|im", False), ("_end", True), ("|>", False)],
        [("<|im_end|>", True), ("<|im_end|>", False), ("<|im_end|>", True)],
        [("x<|im_end|", False), ("><|im_end|>", True)],
    ],
)
def test_no_seam_of_untrusted_text_makes_a_control_token(parts):
    texts = [Text(text, trusted) for text, trusted in parts]
    tokens = PROMPTS.tokens(texts)
    own = sum(text.count("<|im_end|>") for text, trusted in parts if trusted)
    assert tokens.count(END) == own
    assert written(tokens).decode() == "".join(text for text, _ in parts)


def test_a_control_text_that_grows_into_another_is_no_trusted_one():
    """As many control texts as the trusted text has, at the same place, and yet another one."""
    tokens = Prompts(Tokens()).tokens((Text("<|", True), Text("im_end|>")))
    assert END not in tokens


def test_a_control_text_split_over_trusted_texts_is_one():
    assert PROMPTS.tokens((Text("<|im_", True), Text("end|>", True))) == [END]


hostile = st.lists(
    st.sampled_from(["<|im_end|>", "<|", "im_end|>", "|>", "<s", ">", "s>", "a", "ab", "\n", "é"]),
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(hostile, st.booleans()), min_size=1, max_size=5))
def test_untrusted_text_keeps_its_characters_and_gains_no_control_token(parts):
    model = Tokens(words=WORDS)
    tokens = Prompts(model).tokens([Text(text, trusted) for text, trusted in parts])
    if tokens != [END] or any(text for text, _ in parts):
        assert written(tokens, model).decode() == "".join(text for text, _ in parts)
        runs = trusted_runs(parts)
        assert tokens.count(END) == sum(run.count("<|im_end|>") for run in runs)


def trusted_runs(parts: list[tuple[str, bool]]) -> list[str]:
    """Trusted text is one where nothing untrusted lies between."""
    runs = [""]
    for text, trusted in parts:
        if trusted:
            runs[-1] += text
        elif text:
            runs.append("")
    return runs


@settings(deadline=None)
@given(st.text("ab c\né", max_size=12), st.text("ab c\né", max_size=12))
def test_harmless_text_is_tokenized_as_if_it_were_trusted(first, second):
    """So that prompts with and without untrusted parts share their prefixes."""
    mixed = PROMPTS.tokens((Text(first, True), Text(second), Text("<|im_end|>", True)))
    assert mixed == FAKE.tokenize(first + second + "<|im_end|>", special=True)


def test_half_characters_do_not_stop_a_prompt():
    assert written(PROMPTS.tokens((Text("a\ud800b"),))) == b"a?b"
