"""Chunks are exact spans, cover the text, keep to their size and know their headings."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings, strategies as st

from promptflow.retrieval.chunk import BLANK, Chunk, chunk_text

TEXTS = st.one_of(
    st.text(max_size=400),
    st.text(alphabet="ab .,;\n\t#`~-\r\u00a0\ufeff\u2028\u4e2d\U0001f600()", max_size=400),
    st.lists(
        st.sampled_from(
            ["# A\n", "## B\n", "###### C ##\n", "#no\n", "```\n", "~~~\n", "words here. And\n",
             "\n", "\r\n", "    # code\n", "a" * 60, " ", "x,y;z"]
        ),
        max_size=40,
    ).map("".join),
    st.lists(
        st.sampled_from(
            ["本社は東京。", "売上は", "3.5億円だ！", "\n", "\n\n", "「はい。」と", "あ" * 40, "a."]
        ),
        max_size=30,
    ).map("".join),
)  # fmt: skip


def words(text: str) -> int:
    return max(len(re.findall(r"\w+|[^\w\s]", text)), -(-len(text) // 12))


@given(TEXTS, st.integers(1, 30), st.booleans())
@settings(max_examples=400, deadline=None)
def test_chunks_are_ordered_spans_that_cover_the_text(text: str, size: int, markdown: bool) -> None:
    chunks = chunk_text(text, size, words, markdown=markdown)
    covered = [False] * len(text)
    last = 0
    for chunk in chunks:
        assert last <= chunk.start < chunk.end <= len(text)
        span = text[chunk.start : chunk.end]
        assert span == span.strip(BLANK)
        assert words(span) <= size
        covered[chunk.start : chunk.end] = [True] * len(span)
        last = chunk.end
    assert not [at for at, done in enumerate(covered) if not done and text[at] not in BLANK]


@given(TEXTS, st.integers(4, 30), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_overlapping_chunks_are_spans_that_cover_the_text(
    text: str, size: int, overlap: int
) -> None:
    chunks = chunk_text(text, size, words, overlap=overlap)
    covered: set[int] = set()
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.end <= len(text)
        covered.update(range(chunk.start, chunk.end))
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)
    assert all(at in covered for at in range(len(text)) if text[at] not in BLANK)


def test_overlap_repeats_the_end_of_the_passage_before() -> None:
    text = " ".join(f"word{at}" for at in range(100))
    plain = chunk_text(text, 20, words)
    shared = chunk_text(text, 20, words, overlap=5)
    assert all(a.end <= b.start for a, b in itertools.pairwise(plain))
    assert all(a.end > b.start for a, b in itertools.pairwise(shared))


@pytest.mark.parametrize(
    "sentences",
    [
        ["本社は東京にある。", "工場は大阪にある。", "売上は三億円だ！", "「行く。」と言った。"],
        ["总部在北京。", "工厂在上海！", "增长3.5%。", "我们还有其他办公室吗？"],
    ],
)
@pytest.mark.parametrize("overlap", [0, 15])
def test_sentences_that_no_space_parts_stay_whole(sentences: list[str], overlap: int) -> None:
    text = "".join(sentences * 6)
    chunks = chunk_text(text, 50, len, overlap=overlap)
    ends = {0, *itertools.accumulate(len(sentence) for sentence in sentences * 6)}
    assert len(chunks) > 3
    assert {edge for chunk in chunks for edge in (chunk.start, chunk.end)} <= ends
    assert all(chunk.end - chunk.start <= 50 for chunk in chunks)
    for one, two in itertools.pairwise(chunks):
        assert (two.start < one.end) == bool(overlap)
        assert one.end - two.start <= overlap


GUIDE = """Before any heading.

# Guide

## Chain of thought
Ask for steps.

```python
# not a heading
```

### Source ###
Wei et al.

## Decoding

# Last
The end.
"""


def test_each_passage_stands_under_its_headings() -> None:
    chunks = chunk_text(GUIDE, 50, words, markdown=True)
    assert [chunk.heading for chunk in chunks] == [
        "",
        "Guide > Chain of thought",
        "Guide > Chain of thought > Source",
        "Last",
    ]
    assert GUIDE[chunks[1].start :].startswith("# Guide\n\n## Chain")
    assert GUIDE[chunks[3].start :].startswith("## Decoding\n\n# Last")
    assert "# not a heading" in GUIDE[chunks[1].start : chunks[1].end]


def test_plain_text_has_no_headings() -> None:
    assert [chunk.heading for chunk in chunk_text(GUIDE, 500, words)] == [""]


@pytest.mark.parametrize("text", ["", " \n\t ", "\ufeff\n"])
def test_blank_text_has_no_chunks(text: str) -> None:
    assert chunk_text(text, 10, words, markdown=True) == []


def test_a_headline_alone_is_a_chunk() -> None:
    assert chunk_text("# Only\n", 10, words, markdown=True) == [Chunk(0, 6, "Only")]


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, " " * 100_000 + "b", "#" * 100_000, "\n" * 100_000 + "x", "`" * 100_000,
     "(" * 50_000 + ")" * 50_000, "# x\n" * 20_000],
    ids=["letters", "blanks", "marks", "lines", "ticks", "brackets", "headings"],
)  # fmt: skip
def test_extreme_texts_are_cut_too(text: str) -> None:
    chunks = chunk_text(text, 200, words, markdown=True)
    assert chunks
    assert all(words(text[chunk.start : chunk.end]) <= 200 for chunk in chunks)
