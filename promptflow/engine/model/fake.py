"""A model without a file, for tests of the engine.

``FakeModel`` has the methods of ``llama.Model`` over a byte vocabulary and computes logits from the
cells that a sequence really holds: a wrong copy, drop or position changes the text that follows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from promptflow.engine.interface import ModelInfo

if TYPE_CHECKING:
    from promptflow.engine.model.constraint import Constraints

END = "<|im_end|>"


def fake_info(name: str, context: int, vocabulary: int) -> ModelInfo:
    """Return what is known of a model that has no file."""
    return ModelInfo(name, "", "0" * 64, name, context, vocabulary, "", name, "default")


class FakeModel:
    """A model of 256 byte tokens and an end token, with logits drawn from a hash of its history.

    ``words`` adds tokens of several bytes. ``fail`` maps the number of a decode call (from 1) to
    the code that it returns instead; as in llama.cpp, one that tells of a call which broke off (2
    and below -1) leaves a part of the batch in the cache. ``spoil`` maps such a number to which of
    the call's rows of logits (from 0) is NaN. So are rows of sequences with the token ``poison``.

    ``memory`` and ``window`` are as in ``ModelInfo``: a recurrent state is copied as it is,
    whatever part was asked for, and cells out of the window are used again at once, so that logits
    are wrong where a sequence was shared or cut as it must not be. ``refused`` counts such moves.
    """

    def __init__(
        self,
        context: int = 4096,
        batch: int = 64,
        sequences: int = 32,
        seed: int = 0,
        words: Sequence[str] = (),
        *,
        fail: dict[int, int] | None = None,
        poison: int | None = None,
        spoil: dict[int, int] | None = None,
        memory: str = "dense",
        window: int = 0,
    ) -> None:
        """Make an empty cache of ``context`` cells shared by ``sequences`` sequences."""
        self.cells = context
        self.batch = batch
        self.max_sequences = sequences
        self.words = [word.encode() for word in words]
        self.vocabulary = 257 + len(words)
        self.end_tokens = frozenset({256})
        self.bos: int | None = None
        self.decodes = 0
        self.decoded_tokens = 0
        info = fake_info("fake", context, self.vocabulary)
        self.info = replace(info, memory=memory, window=window)
        self.refused = 0
        self._states: list[list[int]] = [[] for _ in range(sequences)]
        self._lost: set[int] = set()  # cells whose windowed part holds something else
        self._seed = seed
        self.fail = fail or {}
        self.spoil = spoil or {}
        self._poison = poison
        self._held: list[dict[int, tuple[int, int]]] = [{} for _ in range(sequences)]
        self._next_cell = 0
        self._rows: dict[int, np.ndarray] = {}
        either = b"|".join(re.escape(word) for word in sorted(self.words, key=len, reverse=True))
        self._word = re.compile(either) if words else None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return words and bytes; ``<|im_end|>`` is the end token where ``special``."""
        data = text.encode("utf-8", "replace")
        pieces = data.split(END.encode()) if special else [data]
        tokens: list[int] = []
        for number, piece in enumerate(pieces):
            tokens += [256] * (number > 0)
            tokens += self._plain(piece)
        return tokens

    def _plain(self, data: bytes) -> list[int]:
        if self._word is None:
            return list(data)
        tokens: list[int] = []
        at = 0
        for match in self._word.finditer(data):
            tokens += data[at : match.start()]
            tokens.append(257 + self.words.index(match[0]))
            at = match.end()
        return [*tokens, *data[at:]]

    def control_texts(self) -> list[str]:
        """Return the one control text."""
        return [END]

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for; nothing for the end token."""
        if token > 256:
            return self.words[token - 257]
        return bytes([token]) if token < 256 else b""

    def control_piece(self, token: int) -> bytes:
        """Return how the end token is written."""
        return END.encode()

    def constraints(self) -> Constraints:
        """Return a compiler of constraints over this vocabulary."""
        # Here only: llguidance takes time to load, and ScriptedEngine does without.
        from promptflow.engine.model.constraint import Constraints, byte_tokenizer

        return Constraints(byte_tokenizer(self.words, self._plain), self.vocabulary)

    def decode(
        self, tokens: list[int], positions: list[int], sequences: list[int], outputs: list[bool]
    ) -> int:
        """Store cells and compute logits at ``outputs``; 0, or 1 where the cache is full."""
        self.decodes += 1
        code = self.fail.get(self.decodes, 0)
        if code in (1, -1):
            return code
        if self.used_cells() + len(tokens) > self.cells:
            return 1
        assert 1 <= len(tokens) <= self.batch
        self._rows.clear()
        self._use_again()
        taken = len(tokens) if code == 0 else len(tokens) // 2
        self.decoded_tokens += taken
        for row, (token, position, seq_id) in enumerate(
            zip(tokens[:taken], positions[:taken], sequences[:taken], strict=True)
        ):
            held = self._held[seq_id]
            assert position == len(held), f"sequence {seq_id}: {position} after {len(held)}"
            held[position] = (token, self._next_cell)
            self._next_cell += 1
            self._states[seq_id].append(token)
            if outputs[row]:
                self._rows[row] = self._logits(self._seen(seq_id, position))
        if code == 0 and self.decodes in self.spoil:
            self._rows[sorted(self._rows)[self.spoil[self.decodes]]][:] = np.nan
        return code

    def _seen(self, seq_id: int, position: int) -> list[int]:
        """Return what the logits at a position depend on: its history, where all is well."""
        held = self._held[seq_id]
        history = [held[p][0] for p in range(position + 1)]
        is_lost = not self._has_window(seq_id, position)
        if self.info.memory in ("recurrent", "hybrid"):
            is_lost = self._states[seq_id] != history
        return [*history, -1] if is_lost else history

    def _has_window(self, seq_id: int, position: int) -> bool:
        first = max(0, position - self.info.window + 1)
        held = self._held[seq_id]
        return not any(held[p][1] in self._lost for p in range(first, position) if p in held)

    def _use_again(self) -> None:
        """Lose the cells that one sequence alone holds, out of its window."""
        if self.info.memory != "windowed":
            return
        holders = Counter(cell for held in self._held for _, cell in held.values())
        for held in self._held:
            for position, (_, cell) in held.items():
                if holders[cell] == 1 and len(held) - position >= self.info.window:
                    self._lost.add(cell)

    def _logits(self, history: list[int]) -> np.ndarray:
        digest = hashlib.sha256(repr((self._seed, history)).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        logits = rng.normal(0.0, 3.0, self.vocabulary).astype(np.float32)
        logits[128:256] -= 12.0
        logits[:32] -= 6.0
        if self._poison in history:
            logits[:] = np.nan
        return logits

    def logits(self, row: int) -> np.ndarray:
        """Return the logits of a row of the last decode."""
        return self._rows[row]

    def copy(self, source: int, target: int, end: int) -> bool:
        """Share the first ``end`` cells of ``source`` with the empty sequence ``target``."""
        assert not self._held[target], f"sequence {target} is not empty"
        self._held[target] = {p: self._held[source][p] for p in range(end)}
        self._states[target] = list(self._states[source])
        return self._told(self._is_sound(target, end))

    def _is_sound(self, seq_id: int, length: int) -> bool:
        if self.info.memory in ("recurrent", "hybrid"):
            return len(self._states[seq_id]) == length
        return self._has_window(seq_id, length)

    def _told(self, done: bool) -> bool:
        self.refused += not done
        return done

    def save(self, seq_id: int) -> bytes:
        """Return the tokens of a sequence."""
        return repr(self.held_tokens(seq_id)).encode()

    def restore(self, seq_id: int, data: bytes, count: int) -> bool:
        """Give an empty ``seq_id`` new cells with the tokens that ``save`` returned."""
        tokens = [int(token) for token in data.decode().strip("[]").split(",")]
        assert not self._held[seq_id], f"sequence {seq_id} is not empty"
        if len(tokens) != count or self.used_cells() + count > self.cells:
            return False
        for position, token in enumerate(tokens):
            self._held[seq_id][position] = (token, self._next_cell)
            self._next_cell += 1
        self._states[seq_id] = tokens
        return True

    def drop(self, seq_id: int, start: int) -> bool:
        """Forget the cells of ``seq_id`` from ``start`` on."""
        before = len(self._held[seq_id])
        self._held[seq_id] = {p: c for p, c in self._held[seq_id].items() if p < start}
        if start == 0:
            self._states[seq_id] = []
        return self._told(start in (0, before) or self._is_sound(seq_id, start))

    def reset(self) -> None:
        """Forget all cells."""
        self._held = [{} for _ in self._held]
        self._states = [[] for _ in self._states]

    def used_cells(self) -> int:
        """Return how many distinct cells are held."""
        return len({cell for held in self._held for _, cell in held.values()})

    def held_tokens(self, seq_id: int) -> list[int]:
        """Return the tokens in a sequence's cells."""
        return [token for _, (token, _) in sorted(self._held[seq_id].items())]

    def close(self) -> None:
        """Do nothing."""
