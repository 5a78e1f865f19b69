"""What the README and the guide say: the file map, the code, the commands, the links."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from conftest import ROOT

import promptflow as pf
from promptflow.cli import app

README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def file_map() -> dict[str, str]:
    """The README's annotated map: path -> comment; a folder's path ends with a slash.

    It is the fenced block in which ``promptflow/`` stands alone at the start of a line; two spaces
    a level, then a name, then two or more spaces and a comment.
    """
    every = [text for _, text in BLOCK.findall(README.read_text(encoding="utf-8"))]
    maps = [text for text in every if re.search(r"^promptflow/(\s|$)", text, re.M)]
    assert len(maps) == 1, "the README has one file map"
    entries: dict[str, str] = {}
    above: list[str] = []
    for line in maps[0].splitlines():
        if not line.strip():
            continue
        level = (len(line) - len(line.lstrip())) // 2
        name, _, comment = line.strip().partition("  ")
        above[level:] = [name]
        entries["".join(above)] = comment.strip()
    return entries


def tracked() -> list[str]:
    """Every file of the clone that git would keep, without hidden ones."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    return sorted(name for name in names if not name.startswith("."))


def test_file_map_equals_the_tree():
    """Every file is listed, or lies in a folder that is listed as a whole; nothing else is."""
    entries = file_map()
    whole = {
        folder
        for folder in entries
        if folder.endswith("/") and not any(e != folder and e.startswith(folder) for e in entries)
    }
    files = tracked()
    unlisted = [f for f in files if f not in entries and not f.startswith(tuple(whole))]
    assert not unlisted
    absent = [e for e in entries if not (ROOT / e).exists()]
    assert not absent


def test_file_map_lists_every_source_file_with_a_comment():
    entries = file_map()
    sources = [name for name in tracked() if name.startswith("promptflow/")]
    missing = [n for n in sources if n.endswith(".py") and n not in entries]
    assert not missing
    silent = [name for name, comment in entries.items() if not comment]
    assert all(name.endswith("/") for name in silent), silent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages_is_python_and_uses_public_names(page: Path):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "pf"
            ):
                assert node.attr in pf.__all__, f"pf.{node.attr} in {page.name}"


@pytest.mark.model
def test_readme_python_runs(tmp_path: Path):
    """The README's program runs as a user would run it, on the model that it names."""
    [program, *_] = blocks(README, "python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def commands() -> dict[str, tuple[set[str], str]]:
    """Every command with its option names and its help."""
    found: dict[str, tuple[set[str], str]] = {}

    def visit(command: object, name: str) -> None:
        for child, below in getattr(command, "commands", {}).items():
            visit(below, f"{name} {child}".strip())
        if not hasattr(command, "commands"):
            options = {o for p in command.params for o in p.opts if o.startswith("-")}
            found[name] = (options | {"--help"}, command.help or "")

    visit(typer.main.get_command(app), "")
    return found


def command_lines(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks that call promptflow, continued lines joined."""
    for language in ("", "console", "sh", "bash", "shell"):
        for text in blocks(page, language):
            for line in text.replace("\\\n", " ").splitlines():
                call = line.removeprefix("$ ").strip()
                if call.startswith("promptflow "):
                    yield call.split("#")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_in_pages_exist(page: Path):
    known = commands()
    for line in command_lines(page):
        words = re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", line).split()[1:]
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
        if name is None:
            assert words[0] in {"--help", "--version"}, line
            continue
        used = {word.split("=")[0] for word in words if word.startswith("-")}
        assert used <= known[name][0], f"{line}: no option {used - known[name][0]}"


def test_every_command_has_help():
    for name, (_, text) in commands().items():
        assert text.strip().endswith("."), f"promptflow {name} has no help sentence"


def test_every_command_is_in_the_readme_or_the_guide():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in commands():
        assert f"promptflow {name.split()[0]}" in pages, f"promptflow {name} is documented nowhere"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
