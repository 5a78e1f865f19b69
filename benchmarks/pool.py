"""A KV pool that is smaller than the work: random requests, 16 at a time, on 1,024 cells.

    python benchmarks/pool.py [--model M] [--requests N] [--alone N] [--json]

Prompts of 5 to 400 tokens, many with a beginning in common, one or two slots, some under a
constraint, and some that can never fit. On top, one decode call in ten says that the pool is full
(code 1), so that requests are preempted and resume. Each has to end with texts that fit its
constraints or with a CapacityError or ContextOverflow. Then ``--alone`` of them run under
``batch_invariant``, all in one batch with such calls among them, and each by itself without: the
texts have to be equal. Any breach makes the exit status 1.

The model runs in this process, without the special kernels that crash on some machines.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from promptflow import catalog
from promptflow.child import usable_cores
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.interface import Stats
from promptflow.engine.model import llama
from promptflow.engine.request import (
    Beam,
    Choice,
    Completion,
    Json,
    Regex,
    Request,
    Sampling,
    Slot,
    Substring,
    Text,
)

Check = Callable[[str], bool]
SEED = 2026
CELLS = 1024
RUNNING = 16
FAULTS = 0.1  # of the decode calls
STORY = "The quick brown fox jumps over the lazy dog, then sleeps and dreams of a river. "
STEMS = ("", STORY, STORY * 6, "Numbers, in order: " + ", ".join(map(str, range(90))) + ". ")


class Crowded(llama.Model):
    """A model whose pool is full now and then, though there is room."""

    share = 0.0
    faults = 0
    chance = random.Random(SEED)

    def decode(self, *batch: Any) -> int:
        """Decode, or refuse to: three times in a row, so that evicting prefixes is not enough."""
        if self.faults % 3 or self.chance.random() < self.share / 3:
            self.faults += 1
            return 1
        return super().decode(*batch)


@dataclass(frozen=True)
class Result:
    """What became of the requests; tokens and counts as in ``Stats``."""

    requests: int
    answered: int
    refused: int
    crowded: int
    other: int
    wrong: int
    preempted: int
    evicted: int
    prefilled: int
    reused: int
    generated: int
    alone: int
    alone_preempted: int
    differ: int
    seconds: float


def matches(pattern: str) -> Check:
    return lambda text: re.fullmatch(pattern, text, re.DOTALL) is not None


def slot(name: str, chance: random.Random) -> tuple[Slot, Check]:
    """Return a slot of any kind, and what its text has to fulfil."""
    drawn, any_text = Sampling(1.0), matches(".*")
    digits = Json('{"type": "integer", "maximum": 99, "minimum": 0}')
    kinds = [
        (Slot(name, max_tokens=chance.randint(1, 40), sampling=drawn), any_text),
        (Slot(name, max_tokens=30, stop=("\n", ". ")), matches(r"(?!.*(\n|\. )).*")),
        (Slot(name, Regex("[a-z]{3,8}"), 20, lead=" ", sampling=drawn), matches("[a-z]{3,8}")),
        (Slot(name, digits, 8, lead=" "), matches(r"\d\d?")),
        (Slot(name, Choice(("yes", "no", "none"), weighed=True), 8), matches("yes|no|none")),
        (Slot(name, Substring((STORY,)), 12, sampling=drawn), STORY.__contains__),
        (Slot(name, max_tokens=6, beam=Beam(3)), any_text),
    ]
    return chance.choice(kinds)


def made(number: int) -> tuple[Request, dict[str, Check]]:
    """Return a random request and the checks of its slots."""
    chance = random.Random(SEED + number)
    words = chance.choices(STORY.split(), k=chance.randint(3, 40))
    parts: list[Text | Slot] = [Text(chance.choice(STEMS) + " ".join(words))]
    checks: dict[str, Check] = {}
    for name in "ab" if chance.random() < 0.3 else "a":
        one, checks[name] = slot(name, chance)
        parts += [one, Text("\nThen:")]
    if chance.random() < 0.02:
        parts[1] = Slot("a", max_tokens=CELLS)
    elif chance.random() < 0.02:
        parts[1] = Slot("a", max_tokens=300, beam=Beam(4))
    return Request(tuple(parts), number), checks


def outcomes(
    path: str, batches: list[list[Request]], share: float, batch_invariant: bool = False
) -> tuple[list[Completion], Stats]:
    """Run batches one after the other on a new model that refuses a share of its decode calls."""
    load = llama.Load(CELLS, threads=usable_cores(), extra_buffers=False)
    model = Crowded(catalog.locate(path), path, "", load)
    model.share = share
    options = EngineOptions(max_running=RUNNING, batch_invariant=batch_invariant)
    with Engine(model, options) as engine:
        completions = [completion for batch in batches for completion in engine.generate(batch)]
        return completions, engine.stats()


def run(path: str, requests: int, alone: int, share: float = FAULTS) -> Result:
    """Run the requests on a pool of ``CELLS``, and some of them alone."""
    llama.log_to_stderr()
    every = [made(number) for number in range(requests)]
    begun = time.perf_counter()
    completions, stats = outcomes(path, [[request for request, _ in every]], share)
    seconds = time.perf_counter() - begun
    ended = list(zip(every, completions, strict=True))
    answered = [(one, completion) for one, completion in ended if completion.error is None]
    errors = [completion.error for completion in completions if completion.error is not None]
    refused = [e for e in errors if re.search(r"over the context of 1,024|may need 1,", str(e))]
    crowded = [e for e in errors if "has no room for this request of up to" in str(e)]
    wrong = 0
    for (_, checks), completion in answered:
        fills = completion.fills
        wrong += fills.keys() != checks.keys()
        wrong += not all(checks[name](fill.text) for name, fill in fills.items())
    solo = [request for (request, _), _ in answered][:alone]
    together, crowd = outcomes(path, [solo], share, batch_invariant=True)
    apart, _ = outcomes(path, [[request] for request in solo], 0.0, batch_invariant=True)
    pairs = [(a, b) for a, b in zip(together, apart, strict=True) if a.error is None]
    return Result(
        requests=requests,
        answered=len(answered),
        refused=len(refused),
        crowded=len(crowded),
        other=len(errors) - len(refused) - len(crowded),
        wrong=wrong,
        preempted=stats.preempted,
        evicted=stats.evicted,
        prefilled=stats.prefilled,
        reused=stats.reused,
        generated=stats.generated,
        alone=len(pairs),
        alone_preempted=crowd.preempted,
        differ=sum(a.fills != b.fills for a, b in pairs),
        seconds=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--alone", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    r = run(options.model, options.requests, options.alone)
    if options.json:
        print(json.dumps(asdict(r), indent=2))
    else:
        print(
            f"{options.model}, {CELLS:,} cells, {RUNNING} at a time: {r.requests} requests in "
            f"{r.seconds:.0f} s\n{r.answered} answered, {r.wrong} wrong; {r.refused} refused at "
            f"submission; {r.crowded} lost their place twice; {r.other} other errors\n"
            f"{r.preempted} preemptions, {r.evicted} evictions; {r.prefilled:,} tokens prefilled, "
            f"{r.reused:,} reused, {r.generated:,} generated\nbatch_invariant: {r.differ} of "
            f"{r.alone} differ from their runs alone, after {r.alone_preempted} preemptions"
        )
    sys.exit(bool(r.wrong or r.other or r.differ))


if __name__ == "__main__":
    main()
