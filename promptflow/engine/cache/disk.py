"""Prefixes whose KV state is kept on disk, so that the next process need not compute them.

A file is named by how many tokens it holds and by their hash; it begins with the hash of its
content, so that a damaged one is a miss. One folder a model, build and way of loading.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptflow import storage
from promptflow.engine.cache.cache import Cache
from promptflow.engine.cache.cells import carry_out
from promptflow.engine.interface import ModelInfo
from promptflow.engine.model.protocol import Model
from promptflow.errors import CapacityError, EngineError, StoreError

MAX_BYTES = 2 << 30  # of all prefixes of a model; those used least recently go first
GAIN = 64  # tokens that a prefix on disk must have more than the cache, to be worth reading
_DIGEST = 32


def folder_of(info: ModelInfo, settings: Mapping[str, Any]) -> Path:
    """Return where the prefixes of a model are kept, for this build and way of loading."""
    way = f"{info.build} {storage.canonical(settings['load'])}"
    name = f"{info.sha256[:16]}-{storage.sha256_bytes(way.encode())[:16]}"
    return storage.cache_dir() / "prefixes" / name


def _name(tokens: Sequence[int]) -> str:
    digest = storage.sha256_bytes(np.asarray(tokens, dtype=np.int32).tobytes())
    return f"{len(tokens)}-{digest[:40]}.kv"


class DiskPrefixes:
    """Reads and writes the KV states of one model's prefixes."""

    def __init__(
        self, model: Model, cache: Cache, folder: Path | None, max_bytes: int = MAX_BYTES
    ) -> None:
        """Use ``folder``, which need not exist; without one nothing is kept or found."""
        self._model = model
        self._cache = cache
        self._folder = folder
        self._max_bytes = max_bytes
        self.recalled = 0

    def _lengths(self) -> list[int]:
        """Return how many tokens the kept prefixes have, longest first."""
        found: set[int] = set()
        if self._folder is None:
            return []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._folder):
                length = entry.name.partition("-")[0]
                if entry.name.endswith(".kv") and length.isdecimal():
                    found.add(int(length))
        return sorted(found, reverse=True)

    def recall(self, tokens: Sequence[int]) -> int:
        """Take the longest kept prefix of ``tokens`` into the cache; return its length, 0 for none.

        Nothing is read where the cache holds nearly as much, or has no room beside what runs.
        """
        lengths = [length for length in self._lengths() if length <= len(tokens)]
        held = self._cache.held(tokens) if lengths else 0
        for length in lengths:
            if length < held + GAIN:
                break
            data = self._read(_name(tokens[:length]))
            if data is not None and self._adopt(list(tokens[:length]), data):
                self.recalled += 1
                return length
        return 0

    def _read(self, name: str) -> bytes | None:
        assert self._folder is not None
        path = self._folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now: the last to be evicted
        return content[_DIGEST:]

    def _adopt(self, tokens: list[int], data: bytes) -> bool:
        seq_id = self._vacate(len(tokens))
        if seq_id < 0:
            return False
        if not self._model.restore(seq_id, data, len(tokens)):
            self._model.drop(seq_id, 0)
            self._cache.give_back(seq_id)
            return False
        self._cache.adopt(seq_id, tokens)
        return True

    def _vacate(self, count: int, spare: int = -1) -> int:
        seq_id, moves = self._cache.vacate(count, spare)
        if carry_out(moves, self._model):
            raise EngineError("the model refused to empty a sequence: make a new Engine")
        return seq_id

    def keep(self, tokens: Sequence[int]) -> int:
        """Write the state of ``tokens``, which the cache must hold; return the bytes written.

        Raises EngineError where it does not hold them any more, and StoreError.
        """
        if self._folder is None:
            raise EngineError(
                "this engine keeps no prefixes: load a GGUF file, without batch_invariant=True"
            )
        tokens = list(tokens)
        source = self._cache.holder_of(tokens)
        if source < 0:
            raise EngineError("the prefix has left the cache before it was kept: keep it again")
        target = self._vacate(0, spare=source)
        if target < 0:
            raise CapacityError(
                "every sequence of the engine is taken: keep prefixes while nothing else runs"
            )
        try:
            if not self._model.copy(source, target, len(tokens)):
                raise EngineError("the model cannot share this prefix: keep it again")
            data = self._model.save(target)
        finally:
            self._model.drop(target, 0)
            self._cache.give_back(target)
        storage.write_bytes(self._folder / _name(tokens), hashlib.sha256(data).digest() + data)
        self._evict(self._folder)
        return len(data)

    def _evict(self, folder: Path) -> None:
        """Delete the prefixes used least recently until the rest fit."""
        files = sorted(folder.glob("*.kv"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if total <= self._max_bytes:
                return
            total -= path.stat().st_size
            with contextlib.suppress(StoreError):
                storage.remove_file(path)
