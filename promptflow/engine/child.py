"""How a module of this package is run in a Python process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(module: str) -> tuple[str, ...]:
    """Return the command that runs ``module``; -P keeps what lies in the current folder out."""
    return (sys.executable, "-P", "-m", module)


def environment() -> dict[str, str]:
    """Return this process's environment, with the package importable in a clone too."""
    root = Path(__file__).parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *path])}
