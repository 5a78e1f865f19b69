"""The table of kinds, and what each of its functions must do: the contract of a kind."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from office_files import docx, epub, paragraph, pdf, pptx, shape, xlsx

from promptflow.retrieval import kinds
from promptflow.retrieval.kinds import KINDS, Kind, kind_of, register
from promptflow.retrieval.parser import Limits, Request, Unreadable, text_of

SHEET = '<sheetData><row><c t="inlineStr"><is><t>needle</t></is></c></row></sheetData>'
SAMPLES = {
    "text": b"a needle",
    "markdown": b"# T\n\na needle",
    "code": b"x = 'needle'",
    "html": b"<p>a needle",
    "pdf": pdf("a needle", "another"),
    "docx": docx(paragraph("a needle")),
    "pptx": pptx(shape("title", "a needle"), shape("body", "x")),
    "xlsx": xlsx({"Sheet1": SHEET}),
    "epub": epub("<p>a needle</p>", "<p>more</p>"),
    "csv": b"a,b\nneedle,1\n",
    "json": b'{"a": "needle"}',
    "notebook": json.dumps({"cells": [{"cell_type": "markdown", "source": "needle"}]}).encode(),
    "rst": b"Title\n=====\n\nA needle.\n",
}


def reading(kind: Kind, data: bytes) -> kinds.Parsed:
    return text_of(Request(f"a{kind.suffixes[0]}", kind.read, Limits()), data)


@pytest.mark.parametrize("name", KINDS)
def test_the_contract_of_a_kind(name: str) -> None:
    kind, sample = KINDS[name], SAMPLES[name]
    parsed = reading(kind, sample)
    assert "needle" in parsed.text
    assert parsed == reading(kind, sample)
    assert list(parsed.pages) == sorted(parsed.pages)
    assert all(0 <= page <= len(parsed.text) for page in parsed.pages)
    assert kind.suffixes
    assert all(kind_of(f"X{suffix.upper()}") == kind for suffix in kind.suffixes)
    assert not kind.exact or parsed.text.encode() == sample


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused(name: str) -> None:
    """Cut short, overwritten, or another file altogether: a text or a reason, nothing else."""
    chance = random.Random(name)
    kind, sample = KINDS[name], SAMPLES[name]
    others = [*SAMPLES.values(), b"", b"\0" * 100, bytes(range(256)) * 4]
    damaged = [sample[: chance.randrange(len(sample))] for _ in range(8)]
    for _ in range(25):
        data = bytearray(sample)
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        damaged.append(bytes(data))
    reasons: list[str] = []
    for data in [*others, *damaged]:
        try:
            parsed = reading(kind, data)
        except Unreadable as error:
            reasons.append(str(error))
        else:
            assert "\0" not in parsed.text
            parsed.text.encode()
    assert all(reasons)


def test_every_kind_is_known_by_its_own_suffixes() -> None:
    suffixes = [suffix for kind in KINDS.values() for suffix in kind.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert set(SAMPLES) == set(KINDS)
    assert kind_of("a/b.c/README") == KINDS["text"]
    assert kind_of("a.unknown") is None
    assert kind_of("pdf") is None
    taken = set(suffixes)
    assert not [suffix for of in kinds.ELSEWHERE for suffix in of if suffix in taken]


def test_a_kind_of_one_s_own_goes_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "KINDS", dict(KINDS))
    register(Kind("mail", (".eml", ".txt"), "mails:read"))
    assert kind_of("a.EML").name == kind_of("b.txt").name == "mail"
    assert kind_of("a.md").name == "markdown"
    register(Kind("mail", (".eml",), "mails:read_better"))
    assert kind_of("a.eml").read == "mails:read_better"
    assert kind_of("b.txt").name == "text"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kind("x", ("eml",), "a:b"), "'eml' should be like '.eml'"),
        (Kind("x", (".EML",), "a:b"), "should be like"),
        (Kind("x", (".x",), "a.b"), "expected 'module:function'"),
        (Kind("x", (".x",), ":b"), "expected 'module:function'"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(kind: Kind, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(kind)


def test_pages_start_where_their_text_starts() -> None:
    parsed = reading(KINDS["pdf"], pdf("first", "", "third"))
    ends = [*parsed.pages[1:], len(parsed.text)]
    said = [parsed.text[a:b].strip() for a, b in pairwise([*parsed.pages, ends[-1]])]
    assert said == ["first", "", "third"]
