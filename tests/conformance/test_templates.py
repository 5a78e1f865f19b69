"""The chat templates that llama.cpp carries, as a table: each renders or is refused in words.

They come from the source of llama-cpp-python: the folder ``$LLAMA_SRC``, else the source
distribution of the installed version, fetched once from the index that pip uses.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from promptflow.engine.model.chat_template import scaffold, stops_of
from promptflow.errors import NoReasoningBlock, TemplateError

ROOT = Path(__file__).resolve().parents[2]
INSIDE = "vendor/llama.cpp/models/templates"
NAME = "llama_cpp_python"

REFUSED = {"fireworks-ai-llama-3-firefunction-v2": "'functions' is undefined"}
"""Templates that need what no chat has."""

CHANNELS = {
    "openai-gpt-oss-120b": "<|channel|>final<|message|>",
    "upstage-Solar-Open-100B": "<|content|>",
    "muse-glimmer": " to=user<|message|>",
    "meetkai-functionary-medium-v3.2": ">>>all\n",
}
"""What an answer's text stands behind, where that is more than a turn."""


@cache
def folder() -> Path:
    """Return the folder of templates."""
    if given := os.environ.get("LLAMA_SRC"):
        return Path(given).resolve() / INSIDE
    found = ROOT / ".venv" / "llama-src"
    if not found.is_dir():
        with urllib.request.urlopen(sdist()) as reply:
            data = io.BytesIO(reply.read())
        found.mkdir(parents=True)
        with tarfile.open(fileobj=data) as archive:
            for member in archive.getmembers():
                if member.isfile() and f"/{INSIDE}/" in member.name:
                    extracted = archive.extractfile(member)
                    assert extracted is not None
                    (found / Path(member.name).name).write_bytes(extracted.read())
    return found


def sdist() -> str:
    """Return the address of the source distribution, as the index that pip uses names it."""
    index = os.environ.get("PIP_INDEX_URL") or configured() or "https://pypi.org/simple"
    page = f"{index.rstrip('/')}/{NAME.replace('_', '-')}/"
    with urllib.request.urlopen(page) as reply:
        links = re.findall(r'href="([^"]+)"', reply.read().decode())
    wanted = f"{NAME}-{version(NAME)}.tar.gz"
    [link] = {link for link in links if urllib.parse.urlsplit(link).path.endswith(wanted)}
    return urllib.parse.urljoin(page, link.replace("&amp;", "&"))


def configured() -> str:
    """Return the index of pip's settings; empty where there is none."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip()


def templates() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder().glob("*.jinja")}


def given(source: str, *roles: str) -> tuple[str, ...]:
    return scaffold(source, roles, "<BOS>", "<EOS>")


def is_open(text: str) -> bool:
    """Say whether more reasoning blocks begin in a text than end."""
    tags = re.findall(r"<[^<>\n]{1,60}>|\[/?THINK\]", text)
    thinking = [tag for tag in tags if re.search("think|thought", tag, re.IGNORECASE)]
    closes = [tag for tag in thinking if re.search(r"^.[/]|END_", tag)]
    last = thinking[-1] if thinking else ""
    return bool(last) and last not in closes and "<channel|>" not in text.split(last)[-1]


def test_there_are_seventy():
    assert len(templates()) == 70


def test_every_template_renders_or_says_why_not():
    failed = {}
    for name, source in templates().items():
        try:
            texts = given(source, "system", "user", "assistant", "user")
            assert len(texts) == 5
        except TemplateError as error:
            failed[name] = str(error)
    assert failed.keys() == REFUSED.keys()
    for name, reason in REFUSED.items():
        assert reason in failed[name]


def test_no_answer_begins_in_an_open_block():
    for name, source in templates().items():
        if name in REFUSED:
            continue
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
            assert not is_open(given(source, *roles)[-1]), name
        assert given(source, "user")[-1].endswith(CHANNELS.get(name, "")), name


def test_reasoning_has_its_block_for_the_turn_to_come_and_for_past_ones():
    blocks = 0
    for name, source in templates().items():
        if name in REFUSED:
            continue
        try:
            *_, opening, closing = given(source, "system", "user", "reasoning")
        except NoReasoningBlock:
            continue
        blocks += 1
        assert opening.strip(), name
        assert closing.strip(), name
        assert name in CHANNELS or not is_open(opening + closing), name
        assert all(stop in closing for stop in stops_of(closing)), name
        past = given(source, "user", "reasoning", "assistant", "user")
        assert len(past) == 5, name
        assert stops_of(closing)[-1] in past[2], name
    assert blocks == 42


@pytest.mark.parametrize("roles", [("developer", "user"), ("user", "assistant", "tool")])
def test_other_roles_are_laid_out_too(roles: tuple[str, ...]):
    for name, source in templates().items():
        if name not in REFUSED:
            assert len(given(source, *roles)) == len(roles) + 1, name
