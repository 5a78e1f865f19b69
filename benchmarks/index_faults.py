"""What an index survives: kills at random moments, damaged files, and more text than memory.

    python benchmarks/index_faults.py [--kills N] [--mutants N] [--megabytes N] [--json]

A child changes an index (build, update, compact) and is killed at a random moment: the index must
say what it said before, or what it says when nobody interferes. Files of an index are damaged at
random: each is refused by name, or every search says the same. A corpus is indexed by a child whose
memory is watched. Any breach makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptflow.errors import StoreError
from promptflow.retrieval import (
    HashingEmbedder,
    Index,
    build_index,
    compact_index,
    store,
    update_index,
)

ROOT = Path(__file__).resolve().parents[1]
SEED = 2026
WORDS = [
    "osmium",
    "gold",
    "beam",
    "vote",
    "tree",
    "thought",
    "sample",
    "metal",
    "pen",
    "quill",
    "ink",
    "river",
    "stone",
]
EMBEDDER = HashingEmbedder(64)
RECIPE = 'documents = "docs"\nchunk_size = 20\nembedder = "hashing-64"\n'
MEMORY = """
import resource, sys
from promptflow.retrieval import HashingEmbedder, build_index
build_index("small", "small", embedder=HashingEmbedder(64), progress=False).close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index = build_index("k", "docs", embedder=HashingEmbedder(int(sys.argv[1])), progress=False)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, index.manifest.counts["chunks"])
"""


def text(rng: random.Random, words: int) -> str:
    """Return a document of so many words."""
    return " ".join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(words))


def said(folder: Path) -> list[Any]:
    """Return everything that an index says, read through searches and through its store."""
    with Index.open(folder, embedder=EMBEDDER) as index:
        documents = index.store.documents()
        texts = [index.text(entry["path"]) for entry in documents]
        found = [
            [(p.document, p.start, p.text, round(p.score, 5)) for p in passages]
            for mode in ("dense", "sparse")
            for word in WORDS[:4]
            for passages in [index.search(f"{word}7 {word}8", 5, mode=mode)]
        ]
        return [documents, texts, found]


def changed(docs: Path, rng: random.Random) -> None:
    """Write, change or remove a few documents."""
    for _ in range(rng.randint(1, 4)):
        path = docs / f"{rng.randrange(40)}.txt"
        if path.exists() and rng.random() < 0.3 and len(list(docs.iterdir())) > 5:
            path.unlink()
        else:
            path.write_text(text(rng, rng.choice((5, 60, 2000))))


def kills(root: Path, count: int, say: Callable[[str], object]) -> dict[str, int]:
    """Kill a child that changes an index ``count`` times; count what was left behind."""
    rng = random.Random(SEED)
    docs, name = root / "docs", root / "indexes" / "k"
    docs.mkdir()
    name.mkdir(parents=True)
    (name / "index.toml").write_text(RECIPE)
    for number in range(40):
        (docs / f"{number}.txt").write_text(text(rng, 60))
    actions: list[Callable[[], Index]] = [
        lambda: build_index(name, embedder=EMBEDDER, progress=False, force=True),
        lambda: update_index(name, embedder=EMBEDDER, progress=False),
        lambda: compact_index(name, embedder=EMBEDDER, progress=False),
    ]
    actions[0]().close()
    result = {"kills": 0, "ended": 0, "before": 0, "after": 0, "unreadable": 0, "wrong": 0}
    seconds = [0.5] * len(actions)
    while result["kills"] < count:
        changed(docs, rng)
        before = said(name)
        which = rng.randrange(len(actions))
        # Half of them in the last third of the time that it takes, where the commit is.
        share = rng.choice((rng.uniform(0, 1), rng.uniform(0.6, 1.2)))
        killed = kill_after(seconds[which] * share, actions[which])
        result["kills" if killed else "ended"] += 1
        # Longer where it was killed, shorter where it ended first: about half the time each.
        seconds[which] *= 1.1 if killed else 0.9
        result[outcome(name, before, actions[which], say)] += 1
    return result


def kill_after(seconds: float, action: Callable[[], Index]) -> bool:
    """Kill a forked child that does ``action``; tell whether it was killed before it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action().close()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and status:
        raise SystemExit("the child failed without being killed")
    return os.WIFSIGNALED(status)


def outcome(
    name: Path, before: list[Any], action: Callable[[], Index], say: Callable[[str], object]
) -> str:
    """Return what an index is after a kill: as before, as after, or broken."""
    try:
        now = said(name)
    except StoreError as error:
        say(f"unreadable after a kill: {error}")
        return "unreadable"
    if now == before:
        return "before"
    action().close()
    return "after" if now == said(name) else "wrong"


def mutants(root: Path, count: int, say: Callable[[str], object]) -> dict[str, int]:
    """Damage one file of the index at a time; count those refused by name, harmless and silent."""
    rng = random.Random(SEED)
    name = root / "indexes" / "k"
    truth = said(name)
    files = sorted(
        path
        for path in (name / "built").rglob("*")
        if path.is_file() and path.parent.name != "embeddings" and path.name != "lock"
    )
    result = {"mutants": 0, "refused": 0, "same": 0, "silent": 0, "unnamed": 0}
    whole_limit = store.HASHED_WHOLE
    for number in range(count):
        path = rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(damaged(data, rng))
        # Every second time as an index that is too large to be hashed when it is opened.
        store.HASHED_WHOLE = whole_limit if number % 2 else 0
        try:
            kind = "same" if said(name) == truth else "silent"
        except StoreError as error:
            kind = "refused" if "promptflow index build" in str(error) else "unnamed"
        if kind in ("silent", "unnamed"):
            say(f"{kind}: mutant {number} of {path}")
        result[kind] += 1
        result["mutants"] += 1
        path.write_bytes(data)
    store.HASHED_WHOLE = whole_limit
    if said(name) != truth:
        result["silent"] += 1
    return result


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with a bit turned, a piece cut, moved, doubled or zeroed, or its end gone."""
    at = rng.randrange(len(data)) if data else 0
    size = rng.choice((1, 8, 512, 4096))
    kinds: list[Callable[[], bytes]] = [
        lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        lambda: data[:at] + rng.randbytes(size) + data[at + size :],
        lambda: data[:at],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + data[at : at + size] + data[at:],
        lambda: data[:at] + bytes(min(size, len(data) - at)) + data[at + size :],
        lambda: data + rng.randbytes(size),
    ]
    return rng.choice(kinds)() if data else rng.randbytes(size)


def memory(root: Path, megabytes: int, dimension: int = 384) -> dict[str, float]:
    """Return how far the memory of a child rises that indexes so much text, in MB."""
    rng = random.Random(SEED)
    (root / "docs").mkdir(parents=True)
    (root / "small").mkdir()
    (root / "small" / "a.txt").write_text("a few words")
    for number in range(megabytes):
        (root / "docs" / f"{number:04}.txt").write_text(text(rng, 150_000)[:1_000_000])
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(dimension)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    before, after, chunks = map(int, done.stdout.split())
    return {
        "megabytes": megabytes,
        "chunks": chunks,
        "rise": round((after - before) / 1024, 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        (root := Path(folder) / "faults").mkdir()
        result |= {"kills": kills(root, options.kills, say)}
        result |= {"mutants": mutants(root, options.mutants, say)}
        result |= {"memory": memory(Path(folder) / "memory", options.megabytes)}
    bad = {
        "unreadable after a kill": result["kills"]["unreadable"],
        "neither before nor after": result["kills"]["wrong"],
        "silent damage": result["mutants"]["silent"],
        "damage without its remedy": result["mutants"]["unnamed"],
        "over 600 MB": result["memory"]["rise"] > 600,
    }
    breaches = [what for what, found in bad.items() if found]
    if options.json:
        print(json.dumps({**result, "breaches": breaches}, indent=2))
    else:
        for part, values in result.items():
            print(f"{part}: " + ", ".join(f"{value} {what}" for what, value in values.items()))
    for breach in breaches:
        print(f"BREACH: {breach}", file=sys.stderr)
    sys.exit(bool(breaches))


if __name__ == "__main__":
    main()
