"""Write the map of files in docs/architecture.md from the first line of each file: ``make map``."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
MAP = re.compile(r"(?<=<!-- map -->\n).*(?=<!-- end of map -->)", re.S)


def first_line(path: Path) -> str:
    """Return what a Python file says of itself in its first line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "").removesuffix(".")


def sources() -> list[Path]:
    """Return the Python files of the package that git keeps or would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "promptflow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = sorted(ROOT / name for name in listed.split("\0") if name.endswith(".py"))
    return [path for path in paths if path.is_file()]


def drawn_map() -> str:
    """Return the map as a fenced block for each folder, the folders' own files first."""
    blocks = []
    folders = sorted({path.parent for path in sources()})
    for folder in folders:
        files = [path for path in sources() if path.parent == folder]
        about = first_line(folder / "__init__.py")
        lines = [f"### {folder.relative_to(ROOT).as_posix()}/", "", f"{about}.", "", "```text"]
        width = max(len(path.name) for path in files) + 2
        for path in files:
            if path.name != "__init__.py":
                lines.append(f"{path.name:{width}}{first_line(path)}")
        blocks.append("\n".join([*lines, "```"]))
    return "\n\n".join(["", *blocks, "", ""]).replace("\n\n\n", "\n\n")


def rewritten(page: str) -> str:
    """Return the page with its map drawn anew."""
    return MAP.sub(lambda _: drawn_map(), page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
