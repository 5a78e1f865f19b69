"""What this machine does with a model: versions, load path, threads, speed, folders.

Measured through the public Engine alone. A check that fails becomes a warning with what to type
next; ``diagnose`` itself raises nothing for it.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from promptflow import catalog
from promptflow.download import folder_size
from promptflow.engine.interface import MEMORY, ModelInfo
from promptflow.engine.options import EngineOptions
from promptflow.engine.request import Request, Sampling, Slot, Text
from promptflow.engine.tuned import BRANCHES, Choices, Tuned, recall
from promptflow.errors import PromptflowError, TemplateError
from promptflow.progress import status
from promptflow.storage import cache_dir

if TYPE_CHECKING:
    from promptflow.engine.interface import TextEngine

PREFERRED = ("qwen2.5-coder-0.5b", "smollm2-135m")
EMBEDDER = "all-minilm-l6-v2"
PACKAGES = (
    "promptflow-local",
    "dspy",
    "llama-cpp-python",
    "faiss-cpu",
    "llguidance",
    "sentence-transformers",
    "torch",
)
PROMPT_WORDS, TOKENS = 192, 24


@dataclass(frozen=True, slots=True)
class Load:
    """How a model was loaded: ``survives`` says whether the default way did a probe decode.

    ``path`` is the way that was chosen, ``features`` what this build uses of the processor.
    ``choices`` are what depends on the machine, ``tuned`` what ``--tune`` found, if it was run.
    ``memory`` is the kind of the model's memory, and what of it is shared.
    ``template`` says what lays out turns: the model's own chat template, the one given, or nothing.
    """

    model: str
    sha256: str
    architecture: str
    context: int
    survives: bool
    path: str
    features: list[str]
    seconds: float
    choices: Choices
    tuned: Tuned | None
    template: str = ""
    memory: str = ""


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads that decode, cores of the machine, and its load average over a minute."""

    used: int
    cores: int
    load_average: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second: of a prompt, of one sequence, of ``branches`` sequences together."""

    prefill: float
    alone: float
    together: float
    branches: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the cache and the bytes in it."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """What ``promptflow doctor`` prints. What could not be measured is None and has a warning."""

    python: str
    platform: str
    versions: dict[str, str]
    threads: Threads
    load: Load | None
    speed: Speed | None
    faiss: str | None
    embedder: str | None
    folders: dict[str, Folder]
    warnings: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as rows of a check and its result."""
        rows = [("python", self.python), ("platform", self.platform), *self.versions.items()]
        threads = self.threads
        rows.append(
            (
                "threads",
                f"{threads.used} used, {threads.cores} cores, load {threads.load_average:.1f}",
            )
        )
        if self.load is not None:
            rows += _load_rows(self.load)
        if self.speed is not None:
            speed = self.speed
            rows += [
                ("prefill", f"{speed.prefill:.0f} tokens/s"),
                ("1 branch", f"{speed.alone:.0f} tokens/s"),
                (f"{speed.branches} branches", f"{speed.together:.0f} tokens/s"),
            ]
        rows += [
            ("faiss", self.faiss or "failed"),
            ("embedder", self.embedder or "see the warning"),
        ]
        for name, folder in self.folders.items():
            rows.append((name, f"{folder.path} ({folder.size / 1e6:,.1f} MB)"))
        return rows


def _load_rows(load: Load) -> list[tuple[str, str]]:
    default = "survives the probe decode" if load.survives else "does not survive a probe decode"
    return [
        ("cpu features", " ".join(load.features)),
        ("model", f"{load.model} ({load.architecture}, {load.context:,} tokens of context)"),
        ("default load path", default),
        ("loaded", f"{load.path}, in {load.seconds:.1f} s"),
        ("choices", ", ".join(f"{k}={v}" for k, v in load.choices.as_json().items())),
        ("tuned", _tuned_text(load.tuned)),
        ("memory", load.memory),
        ("chat template", load.template),
    ]


def _tuned_text(tuned: Tuned | None) -> str:
    if tuned is None:
        return "not yet: `promptflow doctor --tune` takes under 3 minutes"
    pairs = [
        f"{what} {tuned.default[name]:.0f} -> {tuned.best[name]:.0f}"
        for name, what in (("prefill", "prefill"), ("together", f"{BRANCHES} branches"))
    ]
    return f"{', '.join(pairs)} tokens/s ({len(tuned.measured)} measurements)"


def diagnose(
    model: str | Path | None = None,
    *,
    chat_template: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Measure this machine on ``model``; the first of ``PREFERRED`` that is here if it is None.

    ``chat_template`` is a file in the place of the model's own template. Takes some ten seconds on
    two cores with a model of half a billion parameters.
    """
    from promptflow.child import usable_cores
    from promptflow.engine import Engine

    report = Report(
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        versions=dict(_versions()),
        threads=Threads(usable_cores(), os.cpu_count() or 1, os.getloadavg()[0]),
        load=None,
        speed=None,
        faiss=None,
        embedder=None,
        folders=_folders(),
    )
    warnings = _load_warnings(report.threads)
    with status(progress) as show:
        show("embedder and FAISS")
        faiss, embedder, faults = check_retrieval()
        warnings += faults
        report = replace(report, faiss=faiss, embedder=embedder)
        try:
            show("loading the model")
            start = perf_counter()
            engine = Engine(model or first_here(), EngineOptions(chat_template=chat_template))
            try:
                load = _load(engine, engine.options, perf_counter() - start)
                threads = replace(report.threads, used=engine.info.threads)
                show(f"prefill, 1 branch, {BRANCHES} branches")
                report = replace(report, load=load, threads=threads, speed=measure(engine))
                if not load.survives:
                    warnings.append(_advice(load))
            finally:
                engine.close()
        except PromptflowError as error:
            warnings.append(str(error))
    return replace(report, warnings=tuple(warnings))


def first_here() -> str:
    """Return the first of ``PREFERRED`` that is on this machine."""
    for name in PREFERRED:
        try:
            catalog.locate(name)
        except PromptflowError:
            continue
        return name
    return PREFERRED[0]  # the engine says how to get it


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def _load_warnings(threads: Threads) -> list[str]:
    """Warn where other processes compete for the cores: ggml's workers spin while they wait."""
    if threads.load_average <= threads.cores - threads.used + 0.5:
        return []
    return [
        f"the load average is {threads.load_average:.1f} on {threads.cores} cores before this "
        "started: decoding beside other work loses up to a factor of ten; stop it, or pass "
        "EngineOptions(threads=...) with fewer threads"
    ]


def _load(engine: TextEngine, options: EngineOptions, seconds: float) -> Load:
    info = engine.info
    return Load(
        model=info.name,
        sha256=info.sha256,
        architecture=info.architecture,
        context=info.context,
        survives=info.load == "default",
        path=info.load,
        features=re.findall(r"(\w+) = 1", info.features),
        seconds=round(seconds, 2),
        choices=options.choices(info.sha256),
        tuned=recall(info.sha256),
        template=_template(engine),
        memory=_memory(info),
    )


def _memory(info: ModelInfo) -> str:
    window = f" ({info.window:,} tokens)" if info.window else ""
    return f"{info.memory}{window}: {MEMORY[info.memory]}"


def _template(engine: TextEngine) -> str:
    """Say which template lays out turns, or why it cannot."""
    if not engine.info.template:
        return "none: prompts are laid out as plain text"
    try:
        engine.scaffold(("system", "user"))
    except TemplateError as error:
        return f"not usable: {error}"
    return "the one given" if engine.info.given_template else "the model's own"


def _advice(load: Load) -> str:
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return (
        f"llama.cpp died in its first decode and was loaded with {load.path!r}, which is slower; "
        f"rebuild it with CMAKE_ARGS=\"-DCMAKE_C_FLAGS='{flags}' -DCMAKE_CXX_FLAGS='{flags}'\""
    )


def measure(engine: TextEngine) -> Speed:
    """Return tokens per second of a cold prompt, and of 1 and ``BRANCHES`` warm continuations."""
    cold = secrets.token_hex(8)  # no earlier prompt starts like this: nothing of it is cached
    prompt = Text(f"{cold} {' '.join(['word'] * PROMPT_WORDS)}")

    def requests(count: int, tokens: int) -> Sequence[Request]:
        slot = Slot("t", max_tokens=tokens, sampling=Sampling(temperature=1.0), ignore_eos=True)
        return [Request((prompt, slot), seed=seed) for seed in range(count)]

    prefilled, _, seconds = _timed(engine, requests(1, 1))
    prefill = prefilled / seconds
    _, generated, seconds = _timed(engine, requests(1, TOKENS))
    alone = generated / seconds
    _, generated, seconds = _timed(engine, requests(BRANCHES, TOKENS))
    return Speed(round(prefill, 1), round(alone, 1), round(generated / seconds, 1), BRANCHES)


def _timed(engine: TextEngine, requests: Sequence[Request]) -> tuple[int, int, float]:
    """Return the tokens prefilled and generated, and the seconds; raise the first error."""
    start = perf_counter()
    completions = engine.generate(requests)
    seconds = perf_counter() - start
    for completion in completions:
        if completion.error is not None:
            raise completion.error
    prefilled = sum(completion.usage.prefilled for completion in completions)
    return prefilled, sum(completion.usage.generated for completion in completions), seconds


def _folders() -> dict[str, Folder]:
    """Return the cache folder and what lies in it, with sizes."""
    root = cache_dir()
    below = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    named = {"cache": root, **{f"cache: {path.name}": path for path in below}}
    return {name: Folder(str(path), folder_size(path)) for name, path in named.items()}


def check_retrieval() -> tuple[str | None, str | None, list[str]]:
    """Return what FAISS and the embedder say of themselves, None for what fails, and warnings."""
    faiss = embedder = None
    warnings = []
    try:
        faiss = f"{version('faiss-cpu')}, a segment of 64 vectors was written and searched"
        if not _faiss_round_trip():
            faiss = None
            warnings.append(
                "FAISS finds another vector than the one it was asked for: reinstall it"
            )
    except (ImportError, OSError, PromptflowError) as error:
        faiss = None
        warnings.append(f"FAISS does not work ({error}): pip install 'faiss-cpu>=1.15.1'")
    try:
        embedder = f"{EMBEDDER} ({catalog.locate(EMBEDDER)})"
    except PromptflowError as error:
        warnings.append(str(error))
    return faiss, embedder, warnings


def _faiss_round_trip() -> bool:
    import numpy as np

    from promptflow.retrieval.dense import Dense, build_dense

    vectors = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    [(found, _)] = Dense(build_dense(vectors, "Flat"), 64, 8).search(vectors[7], 1)
    return found == 7
