"""What the README and the guide say: the folders, the files, the code, the commands, the links."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from conftest import ROOT
from test_architecture import LAYERS

import promptflow as pf
from promptflow.cli import app

README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120


def folders() -> dict[str, str]:
    """The README's folders: path -> what is in it; two spaces a level, several names by commas."""
    every = [text for _, text in BLOCK.findall(README.read_text(encoding="utf-8"))]
    maps = [text for text in every if re.search(r"^promptflow/\s", text, re.M)]
    assert len(maps) == 1, "the README has one list of folders"
    entries: dict[str, str] = {}
    for line in maps[0].splitlines():
        names, _, about = line.strip().partition("  ")
        for name in names.split(", "):
            entries[("promptflow/" if line.startswith("  ") else "") + name] = about.strip()
    return entries


def test_the_folders_of_the_readme_are_there():
    entries = folders()
    assert 10 <= len(entries) <= 20
    for name, about in entries.items():
        assert name.endswith("/")
        assert (ROOT / name).is_dir(), name
        assert about, name


def test_every_folder_at_the_top_is_in_the_readme():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tops = {n.partition("/")[0] + "/" for n in listed.split("\0") if "/" in n and n[0] != "."}
    assert tops - set(folders()) <= {"tools/"}


def test_the_map_of_files_is_what_the_files_say():
    """``make map`` writes it."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "tools/architecture.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = tool.PAGE.read_text(encoding="utf-8")
    assert page == tool.rewritten(page), "run `make map`"
    for path in tool.sources():
        line = tool.first_line(path)
        assert line, f"{path}: its first line says nothing"
        assert line in page


def test_the_drawing_names_files_that_are_there():
    """In docs/architecture.md: every path of the drawing and of the layers."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing, layers, *_ = blocks(ROOT / "docs" / "architecture.md", "text")
    assert drawing in page
    named = set(re.findall(r"[\w/]+\.py", drawing))
    assert len(named) > 15
    for name in named:
        assert (ROOT / "promptflow" / name).is_file(), name
    drawn = [set(line.strip().split("  ")[0].split(", ")) for line in layers.splitlines()]
    assert drawn[::-1] == LAYERS[:-1]


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
