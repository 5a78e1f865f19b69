"""Shared equals alone, on the memories that models have: dense, windowed, recurrent, hybrid.

Tiny models of real architectures. The oracle decodes a request by itself in a context that was made
for it; the decoder under test runs many, on one cache that is shared, evicted, cut and refilled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny_models

from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.model.llama import Load, Model, log_to_stderr
from promptflow.engine.request import (
    Beam,
    Choice,
    Completion,
    Fill,
    Regex,
    Request,
    Sampling,
    Slot,
    Text,
    TokenLogprob,
)
from promptflow.errors import ModelInvalid

TOLERANCE = 1e-3
"""What another shape of batch changes in a logprob is 1e-5 on dense models, and what another state
changes 0.1 and more."""
COARSE = {"gemma2": 0.02, "gemma3": 0.02, "gemma3n": 0.1, "gemma4": 0.02}
"""Tolerances where llama.cpp looks GELU up in a table of 16 bits, and layers make more of that."""
ORDINARY = (
    "llama",
    "qwen3moe",
    "deepseek2",
    "gemma3",
    "gemma3n",
    "gpt-oss",
    "cohere2",
    "llama4",
    "lfm2",
    "qwen35",
    "qwen3next",
    "granitehybrid",
    "falcon-h1",
    "nemotron_h",
    "mamba2",
    "rwkv7",
)
WORDS = tiny_models.TEXT.split()


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count)) + " "


STEM = words(1, 70)  # longer than the window and than a batch
BRANCHES = [STEM + words(10 + n, 25) for n in range(3)]


@dataclass(frozen=True)
class Score:
    before: str
    continuation: str


Job = Request | Score
Outcome = Completion | tuple[TokenLogprob, ...]


def ask(*parts: str | Slot, seed: int = 0) -> Request:
    """Make a request; its slots get names, and tell their logprobs."""
    made: list[Text | Slot] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            made.append(Text(part))
        else:
            plain = part.beam is None and not part.is_weighed
            made.append(replace(part, name=f"s{number}", logprobs=2 if plain else None))
    return Request(tuple(made), seed=seed)


GREEDY = Slot("?", max_tokens=12, ignore_eos=True)
# Few options: where many share the draw, rounding moves it from one to the next.
SAMPLED = replace(GREEDY, sampling=Sampling(temperature=1.5, top_k=4))
SEARCHED = Slot("?", max_tokens=5, ignore_eos=True, beam=Beam(3))
WEIGHED = Slot("?", constraint=Choice(("yes", "no", "red", "redder"), weighed=True), max_tokens=9)
STOPPED = Slot("?", max_tokens=16, stop=("e", "o"), ignore_eos=True)
TYPED = Slot("?", constraint=Regex(r" [a-f]{2,9}(, [0-9]{1,4}){1,3}"), max_tokens=12)

KINDS: dict[str, list[Job]] = {
    "scores": [Score(b, words(20 + n, 6)) for b in (STEM, *BRANCHES, STEM[:90]) for n in range(2)],
    "greedy": [ask(text, GREEDY) for text in (*BRANCHES, STEM, STEM[:90], BRANCHES[0])],
    "sampled": [ask(text, SAMPLED, seed=n) for text in BRANCHES[:2] for n in range(4)],
    "chosen": [ask(text, WEIGHED, " so ", TYPED) for text in (*BRANCHES, STEM)],
    "searched": [ask(text, SEARCHED, " then ", GREEDY) for text in (*BRANCHES, STEM)],
    "stopped": [
        ask(text, STOPPED, " and ", STOPPED, " or ", GREEDY) for text in (*BRANCHES, STEM[:90])
    ],
}


class Oracle:
    """Decodes jobs of one model by themselves."""

    def __init__(self, path: Path, **memory: int) -> None:
        self.path = path
        self.model = load(path, **memory)
        self.known: dict[Job, Outcome] = {}

    def outcome(self, job: Job) -> Outcome:
        if job not in self.known:
            self.model.reset()
            decoder = Decoder(self.model, batch_invariant=True)
            send(decoder, 0, job)
            self.known[job] = drain(decoder)[0]
        return self.known[job]


def load(path: Path, cells: int = 1024, batch: int = 48, sequences: int = 24) -> Model:
    options = Load(cells, batch, sequences, extra_buffers=False, kv_type="f32", micro_batch=batch)
    return Model(path, path.stem, "0" * 64, options)


def send(decoder: Decoder, key: int, job: Job) -> dict[int, Outcome]:
    if isinstance(job, Score):
        decoder.score(key, [Text(job.before)], job.continuation)
        return {}
    return dict(decoder.submit(key, job))


def drain(decoder: Decoder, steps: int = 20_000) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    while decoder.busy and steps:
        outcomes |= dict(decoder.step())
        steps -= 1
    return outcomes


@dataclass
class Comparison:
    """How far what was shared is from what was alone."""

    architecture: str
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        return COARSE.get(self.architecture, TOLERANCE)

    def note(self, where: str, one: float, other: float) -> None:
        difference = abs(one - other)
        self.worst = max(self.worst, difference)
        if not difference <= self.tolerance:
            self.wrong.append(f"{where}: {one:.4f} shared, {other:.4f} alone")

    def outcome(self, where: str, shared: Outcome, alone: Outcome) -> None:
        if isinstance(shared, tuple):
            assert isinstance(alone, tuple)
            for one, other in zip(shared, alone, strict=True):
                self.note(f"{where} {one.token!r}", one.logprob, other.logprob)
            return
        assert isinstance(alone, Completion)
        assert shared.error is None, (where, shared.error)
        assert alone.error is None, (where, alone.error)
        for name, fill in alone.fills.items():
            if not self.fill(f"{where} {name}", shared.fills[name], fill):
                return  # what follows another text is another text

    def fill(self, where: str, shared: Fill, alone: Fill) -> bool:
        for one, other in zip(shared.logprobs, alone.logprobs, strict=False):
            if one.token_id != other.token_id:
                self.diverged(where, one, other)
                return False
            self.note(f"{where} {one.token!r}", one.logprob, other.logprob)
        texts = _by_text(alone)
        for text, logprobs in _by_text(shared).items():
            if len(logprobs) == len(texts.get(text, ())) and "\ufffd" not in text:
                for one, other in zip(logprobs, texts[text], strict=True):
                    self.note(f"{where} option {text!r}", one, other)
        if shared.text != alone.text or shared.finish != alone.finish:
            self.wrong.append(f"{where}: {shared.text!r} shared, {alone.text!r} alone")
            return False
        return True

    def diverged(self, where: str, one: TokenLogprob, other: TokenLogprob) -> None:
        """Accept another token where the two are as good as equally likely."""
        best = [logprob for _, logprob in other.top]
        tie = len(best) > 1 and best[0] - best[1] < self.tolerance
        if not tie and not (self.architecture in COARSE and other.logprob < best[0]):
            self.wrong.append(f"{where}: {one.token!r} shared, {other.token!r} alone")

    def check(self) -> None:
        assert not self.wrong, f"{len(self.wrong)} of {self.architecture}: {self.wrong[:4]}"


def _by_text(fill: Fill) -> dict[str, list[float]]:
    """Return the logprobs of each text: tokens may spell one in several ways."""
    found: dict[str, list[float]] = {}
    for one in fill.alternatives:
        found.setdefault(one.text, []).append(one.logprob)
    return {text: sorted(logprobs) for text, logprobs in found.items()}


@dataclass
class Bench:
    """One architecture's model, its oracle, and how far both have been apart."""

    oracle: Oracle
    comparison: Comparison

    def run(
        self, jobs: list[Job], *, at_once: int = 1000, pause: int = 0, **settings: int | Path
    ) -> Decoder:
        """Decode ``jobs`` together, ``at_once`` of them at first, and compare each with itself.

        One more arrives every ``pause`` steps after that; settings are of the model's memory
        (``cells``, ``batch``, ``sequences``) and of the decoder.
        """
        first = settings.pop("first", 0)
        shape = {
            key: settings.pop(key) for key in ("cells", "batch", "sequences") if key in settings
        }
        model = load(self.oracle.path, **shape)
        decoder = Decoder(model, **settings)
        if first:  # tokens that an answer is taken to have, before any has been seen
            decoder.scheduler._lengths = Lengths(first)
        outcomes: dict[int, Outcome] = {}
        for key, job in enumerate(jobs):
            if key >= at_once:
                outcomes |= drain(decoder, pause) if pause else drain(decoder)
            outcomes |= send(decoder, key, job)
        outcomes |= drain(decoder)
        for key, job in enumerate(jobs):
            self.comparison.outcome(f"job {key}", outcomes[key], self.oracle.outcome(job))
        model.close()
        return decoder


@pytest.fixture(scope="module", params=ORDINARY)
def bench(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Iterator[Bench]:
    log_to_stderr()
    oracle = Oracle(tiny(request.param))
    yield Bench(oracle, Comparison(request.param))
    oracle.model.close()


@pytest.fixture
def fresh(bench: Bench) -> Bench:
    return Bench(bench.oracle, Comparison(bench.comparison.architecture))


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_of_a_kind_that_arrive_together(fresh: Bench, kind: str):
    fresh.run(KINDS[kind])
    fresh.comparison.check()


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_of_a_kind_one_after_another(fresh: Bench, kind: str):
    fresh.run(KINDS[kind], at_once=1)
    fresh.comparison.check()


def test_jobs_that_arrive_while_others_run(fresh: Bench):
    jobs = [job for kind in zip(*KINDS.values(), strict=False) for job in kind]
    fresh.run(jobs, at_once=3, pause=4)
    fresh.comparison.check()


def test_prompts_that_begin_with_finished_text(fresh: Bench):
    first = fresh.oracle.outcome(KINDS["greedy"][0])
    assert isinstance(first, Completion)
    longer = BRANCHES[0] + first.text("s1")
    jobs = [KINDS["greedy"][0], ask(longer, GREEDY), ask(longer + " and so", GREEDY)]
    fresh.run([*jobs, ask(longer[:-2], GREEDY), Score(longer, " yes"), jobs[0]], at_once=1)
    fresh.comparison.check()


def test_preempted_jobs(fresh: Bench):
    long = replace(GREEDY, max_tokens=90)
    jobs = [ask(text, replace(long, max_tokens=90 + n), seed=n) for n, text in enumerate(BRANCHES)]
    decoder = fresh.run([*jobs, ask(STEM, SEARCHED), ask(STEM[:90], long)], cells=330, first=1)
    fresh.comparison.check()
    assert decoder.stats().preempted, "it fitted"


def test_cells_that_are_evicted_and_filled_again(fresh: Bench):
    jobs = [ask(STEM + words(30 + n % 7, 40), GREEDY) for n in range(12)]
    jobs[4::4] = [ask(words(40 + n, 100), GREEDY) for n in range(2)]
    decoder = fresh.run(jobs, at_once=1, cells=400)
    fresh.comparison.check()
    assert decoder.stats().evicted, "it fitted"


@pytest.mark.parametrize("cells", [260, 400])
@pytest.mark.parametrize("pause", [2, 6])
def test_prompts_that_part_inside_text_whose_cells_were_used_again(
    fresh: Bench, cells: int, pause: int
):
    """A sequence runs for long; what others leave behind, and what it left, is filled again."""
    short, long = replace(GREEDY, max_tokens=3), words(50, 110)
    jobs = [ask(words(51, 50), short), ask(long, replace(GREEDY, max_tokens=90))]
    for n in range(5):
        jobs.append(ask(words(60 + n, 35 + 5 * n), short))
        jobs.append(ask(long[: len(long) // 2 + 40 * n] + words(90 + n, 10), short))
    fresh.run(jobs, at_once=2, pause=pause, cells=cells, first=4)
    fresh.comparison.check()


def test_drafts_from_the_text(fresh: Bench):
    echo = " ".join(["red green blue question"] * 20)
    jobs = [ask(echo + text, replace(GREEDY, max_tokens=40)) for text in (" ", " red ", " now ")]
    fresh.run(jobs, pass_rows=1000)
    fresh.comparison.check()


def test_prefixes_kept_on_disk(fresh: Bench, tmp_path: Path):
    model = load(fresh.oracle.path)
    decoder = Decoder(model, prefixes=tmp_path)
    send(decoder, 0, KINDS["greedy"][0])
    send(decoder, 1, KINDS["greedy"][3])
    drain(decoder)
    try:
        decoder.keep([Text(STEM)])
    finally:
        model.close()
    fresh.run([*KINDS["greedy"], *KINDS["sampled"]], prefixes=tmp_path)
    fresh.comparison.check()


def walk(bench: Bench, seed: int) -> None:
    """Run random jobs of all kinds, with nested common prefixes, on a memory of random size."""
    draw = random.Random(seed)
    stem = words(seed, draw.randint(5, 60))
    stems = [stem, stem + words(seed + 1, 20), stem[: len(stem) // 2], words(seed + 2, 30)]
    slots = [GREEDY, SAMPLED, SAMPLED, SEARCHED, WEIGHED, STOPPED, TYPED]
    jobs: list[Job] = []
    for number in range(draw.randint(6, 14)):
        before = draw.choice(stems) + words(draw.randint(0, 3), draw.randint(0, 12))
        if draw.random() < 0.2:
            jobs.append(Score(before, words(draw.randint(0, 3), draw.randint(1, 6))))
            continue
        parts: list[str | Slot] = [before]
        for _ in range(draw.randint(1, 3)):
            parts += [draw.choice(slots), words(draw.randint(0, 9), draw.randint(1, 8))]
        jobs.append(ask(*parts, seed=draw.randint(0, number)))
    jobs += draw.sample(jobs, k=2)
    bench.run(
        jobs,
        at_once=draw.choice([1, 3, 100]),
        pause=draw.choice([0, 1, 7]),
        cells=draw.choice([300, 450, 1024]),
        batch=draw.choice([8, 48]),
        sequences=draw.choice([8, 24]),
        max_running=draw.choice([2, 16]),
        pass_rows=draw.choice([0, 1000]),
        first=draw.choice([0, 1]),
    )
    bench.comparison.check()


@pytest.mark.parametrize("seed", range(2))
def test_random_walks(fresh: Bench, seed: int):
    walk(fresh, seed)


KINDS_OF_MEMORY = {
    "dense": tiny_models.DENSE,
    "windowed": tiny_models.WINDOWED,
    "recurrent": tiny_models.RECURRENT,
    "hybrid": tiny_models.HYBRID,
}


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [(kind, name) for kind, names in KINDS_OF_MEMORY.items() for name in names],
)
def test_the_kind_of_a_memory_is_known(tiny: Callable[[str], Path], kind: str, architecture: str):
    model = load(tiny(architecture))
    assert model.info.memory == kind
    if kind == "windowed":
        chunk = 8192 if architecture == "llama4" else tiny_models.WINDOW
        assert model.info.window == chunk
    else:
        assert model.info.window == 0
    model.close()


@pytest.mark.parametrize("architecture", tiny_models.REFUSED)
def test_what_writes_no_text_is_refused_by_name(tiny: Callable[[str], Path], architecture: str):
    with pytest.raises(ModelInvalid, match=architecture):
        load(tiny(architecture))
