"""Which program shows a place, by what a machine has and its user chose. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from promptflow.cli.opening import Opener
from promptflow.errors import MissingDependency
from promptflow.retrieval.location import Location

TEXT = Location(Path("/docs/a.md"), "a.md", "markdown", line=12)
PAGE = Location(Path("/docs/a.pdf"), "a.pdf", "pdf", page=3)
SHEET = Location(Path('/docs/-rf;$(x) ".docx'), "x.docx", "docx")


def opened(
    place: Location,
    here: str,
    environment: Mapping[str, str] | None = None,
    platform: str = "linux",
) -> tuple[list[str], bool]:
    """The command, and whether it is waited for, where the programs of ``here`` are installed."""
    ran: list[tuple[Sequence[str], bool]] = []
    installed = here.split()
    opener = Opener(
        environment or {},
        platform,
        lambda name: f"/bin/{name}" if name in installed else None,
        lambda command, wait: ran.append((command, wait)),
    )
    command = opener.open(place)
    assert [given for given, _ in ran] == [command]
    return command, ran[0][1]


@pytest.mark.parametrize(
    ("here", "environment", "command"),
    [
        ("less vim", {}, ["less", "+12", "/docs/a.md"]),
        ("less vim", {"EDITOR": "vim"}, ["vim", "+12", "/docs/a.md"]),
        ("less vim", {"EDITOR": "vim", "PAGER": "less -R"}, ["less", "-R", "+12", "/docs/a.md"]),
        ("cat vim", {"EDITOR": "vim", "PAGER": "cat"}, ["vim", "+12", "/docs/a.md"]),
        ("less", {"EDITOR": "gone"}, ["less", "+12", "/docs/a.md"]),
        ("ed nano", {"VISUAL": "nano", "EDITOR": "ed"}, ["nano", "+12", "/docs/a.md"]),
        ("code", {"EDITOR": "code --wait"}, ["code", "--wait", "-g", "/docs/a.md:12"]),
        ("/opt/vim.basic", {"EDITOR": "/opt/vim.basic"}, ["/opt/vim.basic", "+12", "/docs/a.md"]),
        ("hx", {"EDITOR": "hx"}, ["hx", "/docs/a.md:12"]),
        ("ted", {"EDITOR": "ted"}, ["ted", "/docs/a.md"]),
        ("more", {}, ["more", "+12", "/docs/a.md"]),
    ],
)
def test_text_is_shown_at_its_line(here: str, environment: dict[str, str], command: list[str]):
    assert opened(TEXT, here, environment) == (command, True)


def test_text_without_a_known_line_is_shown_from_its_start():
    place = Location(Path("/docs/a.csv"), "a.csv", "csv")
    assert opened(place, "less")[0] == ["less", "/docs/a.csv"]


@pytest.mark.parametrize(
    ("here", "platform", "command"),
    [
        ("xdg-open", "linux", ["xdg-open", "/docs/a.pdf"]),
        ("xdg-open evince", "linux", ["evince", "--page-index=3", "/docs/a.pdf"]),
        ("xdg-open okular evince", "linux", ["okular", "--page", "3", "/docs/a.pdf"]),
        ("open okular", "darwin", ["open", "/docs/a.pdf"]),
        ("explorer", "win32", ["explorer", "/docs/a.pdf"]),
    ],
)
def test_what_is_no_text_is_opened_by_what_opens_its_kind(
    here: str, platform: str, command: list[str]
):
    assert opened(PAGE, here, platform=platform) == (command, False)


def test_a_name_is_one_argument_whatever_is_in_it():
    assert opened(SHEET, "xdg-open")[0] == ["xdg-open", str(SHEET.path)]


@pytest.mark.parametrize("place", [TEXT, PAGE])
def test_a_machine_without_a_program_says_what_to_install(place: Any):
    with pytest.raises(MissingDependency, match="install"):
        opened(place, "")


def test_text_is_never_given_to_what_opens_it_by_its_kind():
    """A script among the documents would be run there."""
    script = Location(Path("/docs/a.py"), "a.py", "code", line=1)
    for platform in ("linux", "darwin", "win32"):
        with pytest.raises(MissingDependency):
            opened(script, "xdg-open explorer", platform=platform)
    assert opened(script, "open", platform="darwin")[0] == ["open", "-t", "/docs/a.py"]
