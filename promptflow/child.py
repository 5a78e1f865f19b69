"""How a module of this package is run in a process of its own, on how many cores, after a fork."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


def command(module: str) -> tuple[str, ...]:
    """Return the command that runs ``module``; -P keeps what lies in the current folder out."""
    return (sys.executable, "-P", "-m", module)


def environment() -> dict[str, str]:
    """Return this process's environment, with the package importable in a clone too."""
    root = Path(__file__).parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *path])}


def usable_cores() -> int:
    """Return how many physical cores this process may use; ggml's workers spin, one on each."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    siblings: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.exists() else str(cpu))
    return min(len(siblings), _quota())


def _quota() -> int:
    """Return the cores that the control group allows, rounded up."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if path.exists():
        quota, _, period = path.read_text().strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            return max(1, -(-int(quota) // int(period)))
    return 1 << 20


class ForkLock:
    """A lock that is free in a forked child, though a thread of the parent held it at the fork."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), threading.Lock()).acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[os.getpid()].release()
