"""Many branches from one prefill: promptflow's engine against llama-cpp-python in a loop.

    python benchmarks/prefix_sharing.py [--model M] [--quick] [--json]

Each contestant runs in a process of its own on the same GGUF file with the same threads, batch size
and token budgets, and never stops early (ignore_eos). Workloads:

    branches     8 continuations of one cold trunk of about 520 tokens, 24 tokens each
    consistency  20 samples of one 8-shot chain-of-thought prompt, 96 tokens each
    evaluation   64 questions under one 8-shot prompt, 32 tokens each

``lower_bound`` is what a perfect prefix cache prefills, computed from the prompts alone. The loop
reuses the prefix that a prompt shares with the one before it, and decodes one sequence at a time.
Exemplars and questions come from PROMPTFLOW_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from promptflow import catalog

WORKLOADS = ("branches", "consistency", "evaluation")
CONTESTANTS = ("promptflow", "loop")
THREADS = 2
CONTEXT = 8192


@dataclass(frozen=True)
class Workload:
    """Prompts, each sampled once, and how many tokens each is continued by."""

    prompts: tuple[str, ...]
    tokens: int
    temperature: float


@dataclass(frozen=True)
class Result:
    """What one contestant did with one workload."""

    workload: str
    contestant: str
    seconds: float
    prefilled: int
    generated: int
    lower_bound: int = 0


def data() -> Path:
    """Return the folder of evaluation sets."""
    folder = Path(os.environ.get("PROMPTFLOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist: set PROMPTFLOW_DATA to the folder of evaluation sets")
    return folder


def workload(name: str, quick: bool) -> Workload:
    """Return a workload; ``quick`` makes it a quarter of the size."""
    exemplars = yaml.safe_load((data() / "exemplars/lm_eval_gsm8k/gsm8k-cot.yaml").read_text())
    shots = exemplars["fewshot_config"]["samples"]
    prompt = "".join(f"Q: {s['question']}\nA: {s['target']}\n\n" for s in shots)
    lines = (data() / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["question"] for line in lines]
    if name == "branches":
        trunk = prompt[: 520 * 3]  # about three characters a token
        tokens = 8 if quick else 24
        return Workload(tuple(f"{trunk}\n\nQ: {q[:60]}" for q in asked[:8]), tokens, 0.0)
    if name == "consistency":
        count, tokens = (6, 24) if quick else (20, 96)
        return Workload((f"{prompt}Q: {asked[0]}\nA:",) * count, tokens, 0.7)
    count = 16 if quick else 64
    return Workload(tuple(f"{prompt}Q: {q}\nA:" for q in asked[:count]), 32, 0.0)


def run_promptflow(path: Path, work: Workload) -> dict[str, float]:
    """Submit all prompts together."""
    from promptflow import Engine, EngineOptions, Request, Sampling, Slot, Text
    from promptflow.engine.prefix import lower_bound

    sampling = Sampling(temperature=work.temperature)
    slot = Slot("text", max_tokens=work.tokens, sampling=sampling, ignore_eos=True)
    requests = [Request((Text(p), slot), seed) for seed, p in enumerate(work.prompts)]
    with Engine(path, EngineOptions(context=CONTEXT, threads=THREADS)) as engine:
        begun = time.monotonic()
        completions = engine.generate(requests)
        seconds = time.monotonic() - begun
        for completion in completions:
            completion.text("text")
        ids: dict[str, int] = {}
        prompts = [
            [ids.setdefault(piece, len(ids)) for piece in engine.pieces([Text(p)])]
            for p in dict.fromkeys(work.prompts)
        ]
        stats = engine.stats()
    return {
        "seconds": seconds,
        "prefilled": stats.prefilled,
        "generated": stats.generated,
        "lower_bound": lower_bound(prompts),
    }


def run_loop(path: Path, work: Workload) -> dict[str, float]:
    """Call ``llama_cpp.Llama`` once a prompt."""
    from llama_cpp import Llama

    llm = Llama(
        str(path), n_ctx=2048, n_threads=THREADS, n_threads_batch=THREADS, n_batch=512,
        verbose=False,
    )  # fmt: skip
    evaluated = 0
    plain = llm.eval

    def counted(tokens: list[int]) -> None:
        nonlocal evaluated
        evaluated += len(tokens)
        plain(tokens)

    llm.eval = counted
    end = {llm.token_eos(): -100.0, 151645: -100.0} if llm.n_vocab() > 151645 else {}
    begun = time.monotonic()
    generated = 0
    for seed, prompt in enumerate(work.prompts):
        done = llm.create_completion(
            prompt, max_tokens=work.tokens, temperature=work.temperature, top_p=1.0, min_p=0.0,
            top_k=0, repeat_penalty=1.0, seed=seed, logit_bias=end,
        )  # fmt: skip
        generated += done["usage"]["completion_tokens"]
    seconds = time.monotonic() - begun
    return {"seconds": seconds, "prefilled": evaluated - generated, "generated": generated}


def main() -> None:
    """Run every workload on every contestant, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "CONTESTANT"))
    arguments = parser.parse_args()
    if arguments.one:
        name, contestant = arguments.one
        run = run_promptflow if contestant == "promptflow" else run_loop
        print(json.dumps(run(catalog.locate(arguments.model), workload(name, arguments.quick))))
        return
    results: list[Result] = []
    for name in WORKLOADS:
        bound = 0
        for contestant in CONTESTANTS:
            print(f"{name}: {contestant} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--model", arguments.model]
            command += ["--one", name, contestant] + ["--quick"] * arguments.quick
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{contestant} failed on {name}:\n{done.stderr[-2000:]}")
            figures = json.loads(done.stdout.splitlines()[-1])
            bound = int(figures.get("lower_bound", bound))
            results.append(Result(name, contestant, **{**figures, "lower_bound": bound}))
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print(f"{'workload':<12} {'contestant':<11} {'seconds':>8} {'prefilled':>9} {'bound':>6}")
    for r in results:
        counts = f"{r.prefilled:9} {r.lower_bound:6}"
        print(f"{r.workload:<12} {r.contestant:<11} {r.seconds:8.1f} {counts}")


if __name__ == "__main__":
    main()
