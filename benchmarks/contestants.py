"""Who runs the workloads of prefix_sharing.py: each function loads a model, decodes, and reports.

Each is called in a process of its own. What is reported: ``seconds`` for the workload alone,
``prefilled`` and ``generated`` tokens, and ``prefill_rate``, the tokens a second of one cold
prompt, so that builds of llama.cpp with different kernels can be compared.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 8192
PARALLEL = 8
COLD = " ".join(f"{number * 7919 % 9973}" for number in range(150))
"""A prompt of some 500 tokens that shares nothing with any workload."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Workload:
    """Batches of prompts that are sent one after the other, each prompt continued once."""

    batches: tuple[tuple[str, ...], ...]
    tokens: int
    temperature: float = 0.0

    @property
    def prompts(self) -> list[str]:
        """Return all prompts in order."""
        return [prompt for batch in self.batches for prompt in batch]


def promptflow(path: Path, work: Workload, threads: int) -> Figures:
    """Submit each batch as a whole."""
    from promptflow import Engine, EngineOptions, Request, Sampling, Slot, Text
    from promptflow.engine.cache.prefix import lower_bound

    slot = Slot(
        "text",
        max_tokens=work.tokens,
        sampling=Sampling(temperature=work.temperature),
        ignore_eos=True,
    )
    options = EngineOptions(context=CONTEXT, threads=threads)
    with Engine(path, options) as engine:
        cold = Request((Text(COLD), Slot("text", max_tokens=1, ignore_eos=True)))
        begun = time.perf_counter()
        [first] = engine.generate([cold])
        rate = first.usage.prefilled / (time.perf_counter() - begun)
    # A new one, since what that prompt left in the cache would weigh on the workload for a while.
    with Engine(path, options) as engine:
        before, begun, seed = engine.stats(), time.perf_counter(), 0
        for batch in work.batches:
            requests = [Request((Text(p), slot), seed + n) for n, p in enumerate(batch)]
            seed += len(batch)
            for completion in engine.generate(requests):
                completion.text("text")
        seconds, after = time.perf_counter() - begun, engine.stats()
        ids: dict[str, int] = {}
        distinct = [
            [ids.setdefault(piece, len(ids)) for piece in engine.pieces([Text(prompt)])]
            for prompt in dict.fromkeys(work.prompts)
        ]
    return {
        "seconds": seconds,
        "prefilled": after.prefilled - before.prefilled,
        "generated": after.generated - before.generated,
        "lower_bound": lower_bound(distinct),
        "prefill_rate": rate,
    }


def loop(path: Path, work: Workload, threads: int, cached: bool = False) -> Figures:
    """Call ``llama_cpp.Llama`` once a prompt: it reuses what a prompt shares with the last one."""
    from llama_cpp import Llama, LlamaRAMCache

    llm = Llama(
        str(path), n_ctx=4096, n_threads=threads, n_threads_batch=threads, n_batch=512,
        verbose=False,
    )  # fmt: skip
    evaluated = 0
    plain = llm.eval

    def counted(tokens: list[int]) -> None:
        nonlocal evaluated
        evaluated += len(tokens)
        plain(tokens)

    llm.eval = counted
    begun = time.perf_counter()
    llm.create_completion(COLD, max_tokens=1, temperature=0.0)
    rate = evaluated / (time.perf_counter() - begun)
    if cached:
        llm.set_cache(LlamaRAMCache(capacity_bytes=8 << 30))
    ends = {t: -100.0 for t in range(llm.n_vocab()) if _ends(llm, t)}
    evaluated, generated, begun = 0, 0, time.perf_counter()
    for seed, prompt in enumerate(work.prompts):
        done = llm.create_completion(
            prompt, max_tokens=work.tokens, temperature=work.temperature, top_p=1.0, min_p=0.0,
            top_k=0, repeat_penalty=1.0, seed=seed, logit_bias=ends,
        )  # fmt: skip
        generated += done["usage"]["completion_tokens"]
    seconds = time.perf_counter() - begun
    # The last token of each completion is never evaluated.
    prefilled = evaluated - generated + len(work.prompts)
    return {
        "seconds": seconds,
        "prefilled": prefilled,
        "generated": generated,
        "prefill_rate": rate,
    }


def _ends(llm: Any, token: int) -> bool:
    from llama_cpp import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llm.model), token))


def ram_cache(path: Path, work: Workload, threads: int) -> Figures:
    """Call ``llama_cpp.Llama`` with a LlamaRAMCache of 8 GiB."""
    return loop(path, work, threads, cached=True)


def server(path: Path, work: Workload, threads: int) -> Figures:
    """Call llama.cpp's server in this process from eight threads (``pip install xllamacpp``)."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_batch = CONTEXT, PARALLEL, 512
    params.kv_unified, params.cache_prompt, params.cont_batching = True, True, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity, params.warmup = -1, False
    running = xllamacpp.Server(params)
    lock = threading.Lock()
    totals = {"prompt_n": 0, "predicted_n": 0}

    def ask(prompt: str, tokens: int, seed: int) -> None:
        body = {
            "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "seed": seed,
            "temperature": work.temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
            "cache_prompt": True,
        }  # fmt: skip
        timings = running.handle_completions(body)["timings"]
        with lock:
            for name in totals:
                totals[name] += timings[name]

    begun = time.perf_counter()
    ask(COLD, 1, 0)
    rate = totals["prompt_n"] / (time.perf_counter() - begun)
    totals.update(prompt_n=0, predicted_n=0)
    begun, seed = time.perf_counter(), 0
    with ThreadPoolExecutor(PARALLEL) as pool:
        for batch in work.batches:
            seeds = range(seed, seed + len(batch))
            list(pool.map(lambda prompt, s: ask(prompt, work.tokens, s), batch, seeds))
            seed += len(batch)
    return {
        "seconds": time.perf_counter() - begun,
        "prefilled": totals["prompt_n"],
        "generated": totals["predicted_n"],
        "prefill_rate": rate,
    }


def dspy_over_http(path: Path, work: Workload, threads: int) -> Figures:
    """Call ``llama_cpp.server`` through ``dspy.LM`` (``pip install 'llama-cpp-python[server]'``).

    DSPy reports no evaluated tokens: ``prefilled`` is what it sent.
    """
    import dspy

    with _serving(path, threads) as address:
        lm = dspy.LM(
            "openai/local", api_base=f"{address}/v1", api_key="-", model_type="text",
            temperature=work.temperature, max_tokens=work.tokens, cache=False, num_retries=0,
        )  # fmt: skip
        begun = time.perf_counter()
        lm(COLD, max_tokens=1)
        cold = lm.history[-1]["usage"]["prompt_tokens"] / (time.perf_counter() - begun)
        sent = generated = 0
        begun = time.perf_counter()
        for prompt in work.prompts:
            lm(prompt)
            usage = lm.history[-1]["usage"]
            sent += usage["prompt_tokens"]
            generated += usage["completion_tokens"]
        seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "prefilled": sent,
        "generated": generated,
        "prefill_rate": cold,
    }


@contextmanager
def _serving(path: Path, threads: int) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--port", str(port),
        "--n_ctx", "4096", "--n_threads", str(threads), "--n_threads_batch", str(threads),
    ]  # fmt: skip
    # Not a pipe: nobody reads it, and the server would stop where it is full.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read().strip().splitlines()[-1])
                try:
                    urllib.request.urlopen(f"{address}/v1/models", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait()


CONTESTANTS: dict[str, Callable[[Path, Workload, int], Figures]] = {
    "promptflow": promptflow,
    "loop": loop,
    "ram_cache": ram_cache,
    "server": server,
    "dspy": dspy_over_http,
}
