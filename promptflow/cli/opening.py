"""Open the place of a citation: text at its line in a pager or an editor, else with what opens it.

Only files of an index are opened, each with a program that this machine's user has chosen or has
installed; nothing that a model wrote is part of a command but a line or a page, which are numbers.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptflow.errors import MissingDependency
from promptflow.retrieval.location import Location

_VI = {"vi", "vim", "nvim", "view", "gvim", "kak"}
_EDITORS = {"nano", "pico", "emacs", "emacsclient", "joe", "ne", "mg", "micro"}
PLUS = frozenset({*_VI, *_EDITORS, "less", "more", "most"})
"""Programs that go to a line by ``+LINE``."""

COLON = frozenset({"subl", "hx", "helix", "zed"})
GOTO = frozenset({"code", "code-insiders", "codium", "vscodium", "cursor"})
AT_PAGE = {
    "okular": ("--page", "{page}"),
    "zathura": ("--page={page}",),
    "evince": ("--page-index={page}",),
    "atril": ("--page-index={page}",),
    "xreader": ("--page-index={page}",),
}
"""Viewers of PDF, and how they are told a page."""

OPENERS = {"darwin": ("open",), "win32": ("explorer",), "linux": ("xdg-open", "wslview")}


def _run(command: Sequence[str], wait: bool) -> None:
    if wait:
        subprocess.run(command, check=False)
    else:
        quiet = subprocess.DEVNULL
        subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens places with the programs of a machine; each part can be another one in a test."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    platform: str = sys.platform
    which: Callable[[str], str | None] = shutil.which
    run: Callable[[Sequence[str], bool], None] = _run

    def open(self, place: Location) -> list[str]:
        """Open a place, and return the command. Raises MissingDependency where nothing can."""
        command, wait = self._reader(place) if place.is_text else self._viewer(place)
        self.run(command, wait)
        return command

    def _reader(self, place: Location) -> tuple[list[str], bool]:
        """Return what shows text at its line: a pager that can, the editor, else ``less``."""
        chosen = [self.environment.get(name, "") for name in ("PAGER", "VISUAL", "EDITOR")]
        pager, *editors = [shlex.split(text) for text in chosen]
        own = [one for one in (pager if _name(pager) in PLUS else [], *editors) if one]
        usual = {"darwin": [["open", "-t"]], "win32": [["notepad"]]}.get(self.platform, [])
        for program in [*own, ["less"], ["more"], *usual]:
            if self.which(program[0]):
                return _at_line(program, place), True
        raise MissingDependency(
            f"nothing here shows {place.path}: install less, or set $EDITOR or $PAGER"
        )

    def _viewer(self, place: Location) -> tuple[list[str], bool]:
        if place.kind == "pdf" and place.page is not None and self.platform == "linux":
            for name, options in AT_PAGE.items():
                if self.which(name):
                    told = [option.format(page=place.page) for option in options]
                    return [name, *told, str(place.path)], False
        for name in OPENERS.get(self.platform, OPENERS["linux"]):
            if self.which(name):
                return [name, str(place.path)], False
        raise MissingDependency(
            f"nothing here opens {place.path}: install xdg-utils, or open it yourself"
        )


def _name(program: Sequence[str]) -> str:
    return Path(program[0]).stem.lower() if program else ""


def _at_line(program: Sequence[str], place: Location) -> list[str]:
    """Return the command that shows a file at its line, where the program can be told it."""
    name, path = _name(program), str(place.path)
    if place.line is None:
        return [*program, path]
    if name in PLUS:
        return [*program, f"+{place.line}", path]
    if name in COLON:
        return [*program, f"{path}:{place.line}"]
    if name in GOTO:
        return [*program, "-g", f"{path}:{place.line}"]
    return [*program, path]
