"""Which files of a folder or repository are a sentence-transformers model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from promptflow import storage

MODULES = "modules.json"
NEEDED = ("config.json", MODULES, "tokenizer.json")
BESIDE = (
    "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json",
    "special_tokens_map.json",
)  # fmt: skip
SAFE, INDEX, TORCH = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SHARD = re.compile(r"model-[0-9]{5}-of-([0-9]{5})\.safetensors")
MODULE = re.compile(r"[0-9]+_[A-Za-z]+/(config\.json|model\.safetensors|pytorch_model\.bin)")


def encoder_files(files: Iterable[str]) -> tuple[str, ...]:
    """Return what an encoder needs of these files, modules.json first; none if they are no encoder.

    ``pytorch_model.bin`` only where there are no safetensors.
    """
    there = set(files)
    weights = _weights(there)
    if not weights or not there >= set(NEEDED):
        return ()
    modules = sorted(file for file in there if MODULE.fullmatch(file))
    safe = {file.rpartition("/")[0] for file in modules if file.endswith(SAFE)}
    modules = [f for f in modules if not (f.endswith(TORCH) and f.rpartition("/")[0] in safe)]
    beside = [file for file in BESIDE if file in there]
    needed = [file for file in NEEDED if file != MODULES]
    return (MODULES, *needed, *beside, *modules, *weights)


def missing_of(files: Iterable[str]) -> list[str]:
    """Return what an encoder among these files lacks."""
    there = set(files)
    lacks = [name for name in NEEDED if name not in there]
    return lacks if _weights(there) else [*lacks, SAFE]


def _weights(files: set[str]) -> list[str]:
    if SAFE in files:
        return [SAFE]
    shards = sorted(file for file in files if SHARD.fullmatch(file))
    counts = {SHARD.fullmatch(file)[1] for file in shards}  # type: ignore[index]
    if INDEX in files and len(counts) == 1 and len(shards) == int(counts.pop()):
        return [INDEX, *shards]
    return [TORCH] if TORCH in files else []


def encoder_in(folder: Path) -> tuple[str, ...]:
    """Return the files of the encoder in ``folder``; none if it is not there as a whole."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = encoder_files(names)
    if not files:
        return ()
    try:
        modules = json.loads(storage.read_text(folder / MODULES))
        paths = [one["path"] for one in modules if one["path"]]
        kinds = [str(one["type"]).rpartition(".")[2] for one in modules if one["path"]]
    except (OSError, ValueError, TypeError, KeyError):
        return ()
    # Normalize has no settings, and so no folder on the hub.
    whole = all(
        kind == "Normalize" or f"{path}/config.json" in files
        for path, kind in zip(paths, kinds, strict=True)
    )
    return files if whole else ()
