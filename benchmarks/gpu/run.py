"""What the engine does on a GPU, in one table; with ``--gpu-layers 0`` all of it runs without one.

    python benchmarks/gpu/run.py [--shape tiny|0.5b|8b|32b] [--gpu-layers 99] [--quick] [--json]
                                 [--parts exact,workloads,sizes] [--carried FOLDER]
                                 [--flash-attention] [--bench FILE]

    exact      tiny models of real architectures: the largest difference between log-probabilities
               on the CPU and on the GPU, and on the GPU between a request that takes a prefix from
               the cache and the same one alone
    workloads  the five of prefix_sharing.py on a random model, against ``llama_decode`` alone: the
               same tokens prefilled in whole batches, and as many steps of as many sequences
    sizes      1, 8, 32 and 128 sequences of one prompt: ours, greedy and sampled, against
               ``llama_decode`` alone and llama.cpp's own llama-batched-bench, and where the seconds
               of ours went

Each figure comes from a process of its own. CARRIED is what pack.py made: the prompts are read
from there if it is given, else from the evaluation sets. The random model is written to TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(Path(__file__).parent)]

import decode_limit  # noqa: E402
import shapes  # noqa: E402

from promptflow import Engine, EngineOptions, Request, Sampling, Slot, Text  # noqa: E402

PARTS = ("exact", "workloads", "sizes")
SIZES = (1, 8, 32, 128)
WORKLOADS = ("branches", "consistency", "evaluation", "tree", "candidates")
CELLS = 32_768
SPENT = ("decode", "sample", "constraint", "bookkeeping", "pipe")
PREFIX = "question answer passage the system will be there when people find the first water "
ENDINGS = (
    "long time ago people made red water",
    "no answer",
    "who said that could be blue or green",
)
Row = dict[str, Any]


def options(arguments: argparse.Namespace, **changes: Any) -> EngineOptions:
    """Return how the engines of this run load their models."""
    flash = True if arguments.flash_attention else None
    settings = {"context": CELLS, "gpu_layers": arguments.gpu_layers, "flash_attention": flash}
    return EngineOptions(**settings | changes)


# Exact


def exact(arguments: argparse.Namespace, architecture: str) -> Row:
    """Compare one tiny model with itself on the CPU, and with itself alone."""
    import tiny_models

    def scored(engine: Engine) -> list[float]:
        runs = engine.score([Text(PREFIX * 3)], ENDINGS)
        return [token.logprob for run in runs for token in run]

    with tempfile.TemporaryDirectory() as folder:
        path = tiny_models.write(architecture, Path(folder))
        with Engine(path, options(arguments, context=2048, gpu_layers=0)) as engine:
            cpu, memory = scored(engine), engine.info.memory
        with Engine(path, options(arguments, context=2048, batch_invariant=True)) as engine:
            alone = scored(engine)
        with Engine(path, options(arguments, context=2048)) as engine:
            slot = Slot("a", max_tokens=8, ignore_eos=True)
            texts = [f"{PREFIX * 3}{ending}" for ending in ENDINGS * 2]
            engine.generate([Request((Text(text), slot)) for text in texts])
            before = engine.stats().reused
            shared, reused = scored(engine), engine.stats().reused - before
    return {
        "architecture": architecture,
        "memory": memory,
        "cpu_gpu": difference(cpu, alone),
        "shared_alone": difference(alone, shared),
        "reused": reused,
    }


def difference(one: list[float], other: list[float]) -> float:
    """Return the largest difference between values at the same place."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


# Workloads


def prompts(arguments: argparse.Namespace, name: str) -> Row:
    """Return batches, tokens and temperature of a workload."""
    size = "quick" if arguments.quick else "whole"
    if arguments.carried:
        found = json.loads((arguments.carried / "workloads.json").read_text())
        work: Row = found[f"{name} {size}"]
        return work
    import prefix_sharing

    made = prefix_sharing.workload(name, arguments.quick)
    return {"batches": made.batches, "tokens": made.tokens, "temperature": made.temperature}


def workload(arguments: argparse.Namespace, model: str, name: str) -> Row:
    """Run one workload, then ``llama_decode`` on as many tokens in as many steps."""
    from promptflow.engine.cache.prefix import lower_bound

    work = prompts(arguments, name)
    sampling = Sampling(temperature=work["temperature"])
    slot = Slot("text", max_tokens=work["tokens"], sampling=sampling, ignore_eos=True)
    with Engine(model, options(arguments, max_running=128)) as engine:
        engine.generate([Request((Text("warm up"), Slot("text", max_tokens=1)))])
        before, begun, seed = engine.stats(), time.perf_counter(), 0
        for batch in work["batches"]:
            requests = [Request((Text(text), slot), seed + n) for n, text in enumerate(batch)]
            seed += len(batch)
            for completion in engine.generate(requests):
                completion.text("text")
        seconds, after = time.perf_counter() - begun, engine.stats()
        ids: dict[str, int] = {}
        distinct = [
            [ids.setdefault(piece, len(ids)) for piece in engine.pieces([Text(text)])]
            for text in dict.fromkeys(text for batch in work["batches"] for text in batch)
        ]
    prefilled = after.prefilled - before.prefilled
    generated = after.generated - before.generated
    steps = max(1, (after.decodes - before.decodes) - prefilled // 512)
    return {
        "workload": name,
        "seconds": seconds,
        "prefilled": prefilled,
        "bound": lower_bound(distinct),
        "generated": generated,
        "width": generated / steps,
        "length": sum(map(len, distinct)) // len(distinct),
        **{part: getattr(after, f"{part}_seconds") - getattr(before, f"{part}_seconds")
           for part in SPENT},
    }  # fmt: skip


def bare_workload(arguments: argparse.Namespace, model: str, figures: Row) -> Row:
    """Decode what a workload had to, with nothing between the calls."""
    from promptflow.engine.model import llama

    load = decode_limit.loaded(model, options(arguments, max_running=128))
    bare = llama.Model(Path(model), "bare", "", llama.Load(**load))
    width = max(1, round(figures["width"]))
    left, length = int(figures["prefilled"]), max(1, int(figures["length"]))
    begun = time.perf_counter()
    while left > 0:
        bare.drop(0, 0)
        for start in range(0, min(left, length), bare.batch):
            count = min(bare.batch, min(left, length) - start)
            last = [False] * (count - 1) + [True]
            places = list(range(start, start + count))
            assert bare.decode([100] * count, places, [0] * count, last) == 0
        left -= length
    bare.logits(count - 1)
    prefill, held = time.perf_counter() - begun, start + count
    for branch in range(1, width):
        assert bare.copy(0, branch, held) is not False
    steps, most = -(-int(figures["generated"]) // width), (CELLS - held) // width - 1
    begun = time.perf_counter()
    for step in range(steps):
        at = held + step % most
        if step and at == held:
            for branch in range(width):
                bare.drop(branch, held)
        rows = range(width)
        assert bare.decode([1000 + r for r in rows], [at] * width, list(rows), [True] * width) == 0
        bare.logits(0)
    made = {"bare_prefill": prefill, "bare_decode": time.perf_counter() - begun}
    bare.close()
    return made


# Sizes


def size_of(arguments: argparse.Namespace, model: str, kind: str, size: str) -> Row:
    """Run one contestant at one number of sequences."""
    tokens, chosen = tokens_of(arguments), options(arguments)
    if kind == "bare":
        wide = options(arguments, max_running=int(size))
        return decode_limit.bare(model, int(size), tokens, wide)
    return decode_limit.ours(model, int(size), tokens, kind, chosen)


def tokens_of(arguments: argparse.Namespace) -> int:
    """Return how many tokens each sequence gets."""
    return 16 if arguments.quick else 96


def batched_bench(arguments: argparse.Namespace, model: str) -> dict[int, float]:
    """Return the tokens a second of llama-batched-bench for each size, none where it is missing."""
    import llama_cpp

    folder = os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib"
    bench = arguments.bench or Path(folder) / "llama-batched-bench"
    if not Path(bench).is_file():
        return {}
    load = decode_limit.loaded(model, options(arguments))
    command = [
        str(bench), "-m", model, "-c", str(CELLS), "-b", str(load["batch"]),
        "-ub", str(load["micro_batch"]), "-npp", str(decode_limit.PROMPT),
        "-ntg", str(tokens_of(arguments)), "-npl", ",".join(map(str, SIZES)), "-pps", "-kvu",
        "-ngl", str(arguments.gpu_layers), "-t", str(load["threads"]),
        "-fa", "on" if load["flash_attention"] else "off", "--output-format", "jsonl",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        print(f"llama-batched-bench: {done.stderr.strip()[-500:]}", file=sys.stderr)
    return {row["pl"]: row["speed_tg"] for row in rows}


# All of it


def apart(arguments: argparse.Namespace, *one: str) -> Row:
    """Run one figure in a process of its own; a failure says why."""
    print(f"{' '.join(one)[:60]} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--one", json.dumps(one)]
    for name in ("gpu_layers", "carried"):
        if (value := getattr(arguments, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--quick"] * arguments.quick + ["--flash-attention"] * arguments.flash_attention
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1][:200]}
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def exact_part(arguments: argparse.Namespace, _: str) -> list[Row]:
    import tiny_models

    usable = [name for name in tiny_models.ARCHITECTURES if name not in tiny_models.REFUSED]
    chosen = usable if arguments.architectures == "all" else arguments.architectures.split(",")
    return [{"architecture": name} | apart(arguments, "exact", name) for name in chosen]


def workloads_part(arguments: argparse.Namespace, model: str) -> list[Row]:
    rows = []
    for name in WORKLOADS:
        row = {"workload": name} | apart(arguments, "workload", model, name)
        if "error" not in row:
            row |= apart(arguments, "bare_workload", model, json.dumps(row))
        rows.append(row)
    return rows


def sizes_part(arguments: argparse.Namespace, model: str) -> list[Row]:
    bench = batched_bench(arguments, model)
    rows = []
    for size in SIZES:
        bare = apart(arguments, "size", model, "bare", str(size))
        for kind in ("greedy", "sampled"):
            row = {"sequences": size, "kind": kind, "bare": bare.get("rate")}
            row |= {"bench": bench.get(size), **apart(arguments, "size", model, kind, str(size))}
            rows.append(row)
    return rows


ONE: dict[str, Callable[..., Row]] = {
    "exact": exact,
    "workload": workload,
    "bare_workload": lambda arguments, model, row: bare_workload(arguments, model, json.loads(row)),
    "size": size_of,
}
ALL = {"exact": exact_part, "workloads": workloads_part, "sizes": sizes_part}


def number(value: object, form: str = ".1f") -> str:
    """Return a figure as text, a dash where there is none."""
    return "-" if value is None else format(value, form)


def exact_row(r: Row) -> str:
    return (
        f"| {r['architecture']} | {r['memory']} | {r['cpu_gpu']:.4f} | {r['shared_alone']:.4f} "
        f"| {r['reused']:.0f} |"
    )


def workloads_row(r: Row) -> str:
    bare = r["bare_prefill"] + r["bare_decode"]
    spent = " | ".join(f"{r[part]:.2f}" for part in SPENT)
    return (
        f"| {r['workload']} | {r['seconds']:.2f} | {bare:.2f} | {bare / r['seconds']:.2f} "
        f"| {r['prefilled']:,.0f} | {r['bound']:,.0f} | {r['generated']:,.0f} | {r['width']:.1f} "
        f"| {spent} |"
    )


def sizes_row(r: Row) -> str:
    spent = " | ".join(f"{100 * r[f'{part}_share']:.1f} %" for part in SPENT)
    ratio = r["rate"] / r["bare"] if r["bare"] else None
    return (
        f"| {r['sequences']} | {r['kind']} | {r['rate']:.1f} | {number(r['bare'])} "
        f"| {number(r['bench'])} | {number(ratio, '.3f')} | {r['occupancy']:.1f} | {spent} |"
    )


HEADS: dict[str, tuple[Callable[[Row], str], str]] = {
    "exact": (exact_row, "architecture | memory | CPU - GPU | shared - alone | reused"),
    "workloads": (
        workloads_row,
        "workload | s | bare, s | ratio | prefilled | bound | generated | width | "
        + " | ".join(f"{part}, s" for part in SPENT),
    ),
    "sizes": (
        sizes_row,
        "sequences | kind | ours, tokens/s | bare | batched-bench | ratio | width | "
        + " | ".join(SPENT),
    ),
}


def table(part: str, rows: list[Row]) -> str:
    """Return the rows of a part as Markdown."""
    line, head = HEADS[part]
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    for row in rows:
        name = next(iter(row.values()))
        lines.append(f"| {name} | failed: {row['error']} |" if "error" in row else line(row))
    return "\n".join(lines)


def main() -> None:
    """Run the parts and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=shapes.SHAPES, default="0.5b")
    parser.add_argument("--gpu-layers", type=int, default=99)
    parser.add_argument("--parts", default=",".join(ALL))
    parser.add_argument("--architectures", default="all", help="of the part exact")
    parser.add_argument("--carried", type=Path, help="what pack.py made")
    parser.add_argument("--bench", help="llama-batched-bench, if not beside the libraries")
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a quarter of the size")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, *others = json.loads(arguments.one)
        print(json.dumps(ONE[name](arguments, *others)))
        return
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in ALL]:
        parser.error(f"{', '.join(unknown)}: the choices are {', '.join(ALL)}")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / f"{arguments.shape}.gguf"
        if parts != ["exact"]:
            shapes.write(shapes.SHAPES[arguments.shape], model)
        found = {part: ALL[part](arguments, str(model)) for part in parts}
    if arguments.json:
        print(json.dumps({"shape": arguments.shape, "gpu_layers": arguments.gpu_layers, **found}))
        return
    print(f"{arguments.shape}, {arguments.gpu_layers} layers on the GPU")
    for part in parts:
        print(f"\n{table(part, found[part])}")


if __name__ == "__main__":
    main()
