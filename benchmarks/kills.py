"""What SIGKILL costs: the engine's child is killed again and again while it answers requests.

    python benchmarks/kills.py [--model M] [--kills N] [--requests N] [--parents N] [--json]

One call of ``Engine.generate`` answers all requests, two at a time, while its child is killed: most
times while it runs, now and then while a new one loads. Each request's text has to hold its own
number, so an answer to another request shows. Afterwards a batch is asked again from an empty cache
and must give the texts of before, and one child must be left. Then ``--parents`` processes that use
an engine are killed themselves, and no child may outlive them. Any breach makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from promptflow.engine import Engine, EngineOptions
from promptflow.engine.request import Completion, Regex, Request, Sampling, Slot, Text
from promptflow.errors import EngineLost

SEED = 2026
LATER = 6  # requests that are asked before and after
ROOT = Path(__file__).resolve().parents[1]
OPTIONS = EngineOptions(context=2048, max_running=2)
PARENT = """
import sys
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.request import Request, Slot, Text
print("here", flush=True)
engine = Engine(sys.argv[1], EngineOptions(context=1024))
slot = Slot("a", max_tokens=900, ignore_eos=True)
for _ in range(100):
    engine.generate([Request((Text(f"Count to {n}:"), slot)) for n in range(8)])
"""


@dataclass(frozen=True)
class Result:
    """What the kills did. ``wrong`` counts texts that are not their request's."""

    requests: int
    kills: int
    loading: int
    answered: int
    lost: int
    wrong: int
    later_wrong: int
    children: int
    seconds: float

    @property
    def breaches(self) -> list[str]:
        """Return what should not have happened."""
        checks = {
            "a request is neither answered nor lost": self.answered + self.lost != self.requests,
            "a text is not its request's": self.wrong > 0,
            "later texts differ": self.later_wrong > 0,
            "not one child is left": self.children != 1,
            "more was lost than ran": self.lost > OPTIONS.max_running * self.kills,
        }
        return [breach for breach, found in checks.items() if found]


def request(number: int) -> Request:
    """Return a request whose answer begins with its number."""
    slot = Slot(
        "a",
        Regex(rf"{number}( [a-z]{{2,6}}){{2,4}}"),
        max_tokens=24,
        lead=" ",
        sampling=Sampling(0.8),
    )
    return Request((Text(f"A line of text with the number {number} in front:"), slot), number)


def is_right(number: int, completion: Completion) -> bool:
    """Return whether a completion is the answer of its request."""
    return re.fullmatch(rf"{number}( [a-z]{{2,6}}){{2,4}}", completion.text("a")) is not None


def children(parent: int) -> list[int]:
    """Return the child processes of ``parent``, zombies included."""
    paths = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for path in paths for pid in path.read_text().split()]


class Killer:
    """Kills the child as requests end: evenly over them, and up to ``jitter`` seconds late.

    Every tenth time it takes one that still loads. Called with how many requests have ended.
    """

    def __init__(self, engine: Engine, kills: int, requests: int, jitter: float) -> None:
        self.killed = 0
        self.loading = 0
        self.spared = set(children(os.getpid())) - {engine.child_pid}
        self._engine = engine
        self._kills = kills
        self._spacing = 0.95 * requests / kills
        self._jitter = jitter
        self._random = random.Random(SEED)
        self._doomed = engine.child_pid

    def __call__(self, done: int) -> None:
        pid = self._engine.child_pid
        if self.killed == self._kills:
            return
        if not pid and self.killed % 10 == 9:
            self._kill(self._loading_child(), 0.0)
            self.loading += 1
        elif pid not in (0, self._doomed) and done >= self.killed * self._spacing:
            self._kill(pid, self._random.uniform(0, self._jitter))

    def _loading_child(self) -> int:
        while True:
            found = set(children(os.getpid())) - self.spared - {self._doomed}
            if found:
                return found.pop()
            time.sleep(0.001)

    def _kill(self, pid: int, delay: float) -> None:
        self._doomed = pid
        self.killed += 1
        process = os.pidfd_open(pid)

        def kill() -> None:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)

        if delay:
            threading.Timer(delay, kill).start()
        else:
            kill()


def kill_child(engine: Engine) -> None:
    """Kill the child and wait for its end: the next one starts with an empty cache."""
    pid = engine.child_pid  # once: it is 0 between two children, and that would mean ourselves
    if pid:
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], 30)
        os.close(process)


def run(engine: Engine, kills: int, requests: int, jitter: float = 0.1) -> Result:
    """Kill the child of ``engine``, whose cache is empty, ``kills`` times in one batch."""
    batch = [request(number) for number in range(requests)]
    before = [completion.fills for completion in engine.generate(batch[:LATER])]
    kill_child(engine)
    killer = Killer(engine, kills, requests, jitter)
    begun = time.perf_counter()
    completions = engine.generate(batch, killer)
    seconds = time.perf_counter() - begun
    answered = [(n, c) for n, c in enumerate(completions) if c.error is None]
    kill_child(engine)
    after = [completion.fills for completion in engine.generate(batch[:LATER])]
    return Result(
        requests=requests,
        kills=killer.killed,
        loading=killer.loading,
        answered=len(answered),
        lost=sum(type(completion.error) is EngineLost for completion in completions),
        wrong=sum(not is_right(n, completion) for n, completion in answered),
        later_wrong=sum(one != other for one, other in zip(before, after, strict=True)),
        children=len(set(children(os.getpid())) - killer.spared),
        seconds=seconds,
    )


def orphans(model: str, count: int, report: Callable[[str], object]) -> int:
    """Kill ``count`` parents at random moments; return how many children were left behind."""
    left = 0
    for number in range(count):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, model],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with parent:
            assert parent.stdout is not None
            parent.stdout.readline()
            time.sleep(random.Random(number).uniform(0.2, 5))
            mine = {pid: os.pidfd_open(pid) for pid in children(parent.pid)}
            parent.kill()
        for pid, process in mine.items():
            ended, _, _ = select.select([process], [], [], 30)
            left += not ended
            report(f"parent {number}: child {pid} {'ended' if ended else 'still runs'}")
            os.close(process)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--parents", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Engine(options.model, OPTIONS) as engine:
        result = run(engine, options.kills, options.requests)
    left = orphans(options.model, options.parents, lambda line: print(line, file=sys.stderr))
    breaches = result.breaches + ["a child outlived its parent"] * (left > 0)
    if result.kills < options.kills:
        breaches.append(f"only {result.kills} kills: give more --requests")
    if options.json:
        print(json.dumps({**asdict(result), "orphans": left, "breaches": breaches}, indent=2))
    else:
        r = result
        print(
            f"{options.model}: {r.kills} kills ({r.loading} of a child that loads) in "
            f"{r.seconds:.0f} s\n{r.requests} requests: {r.answered} answered, {r.wrong} wrong; "
            f"{r.lost} EngineLost; {r.later_wrong} of {LATER} later ones wrong; "
            f"{r.children} child left; {left} orphans after {options.parents} killed parents"
        )
    for breach in breaches:
        print(f"BREACH: {breach}", file=sys.stderr)
    sys.exit(bool(breaches))


if __name__ == "__main__":
    main()
