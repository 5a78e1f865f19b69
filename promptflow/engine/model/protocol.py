"""What the engine needs of a model: ``llama.Model`` and ``fake.FakeModel`` have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from promptflow.engine.interface import ModelInfo

if TYPE_CHECKING:
    from promptflow.engine.model.constraint import Constraints


class Model(Protocol):
    """A model with one KV cache of ``cells`` that all sequences share.

    ``batch`` bounds the tokens of one decode call; ``info.context`` what one sequence may hold.
    """

    cells: int
    batch: int
    max_sequences: int
    vocabulary: int
    end_tokens: frozenset[int]
    bos: int | None
    info: ModelInfo

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of ``text``; control tokens are parsed where ``special``."""

    def control_texts(self) -> list[str]:
        """Return the texts that the tokenizer may read as one special token."""

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; none for control tokens."""

    def control_piece(self, token: int) -> bytes:
        """Return how a control token is written."""

    def constraints(self) -> Constraints:
        """Return a compiler of constraints over this vocabulary."""

    def decode(
        self, tokens: list[int], positions: list[int], sequences: list[int], outputs: list[bool]
    ) -> int:
        """Compute a batch; return the code of ``llama_decode``."""

    def logits(self, row: int) -> np.ndarray:
        """Return a view of a row's logits, valid until the next decode."""

    def copy(self, source: int, target: int, end: int) -> bool:
        """Share the first ``end`` cells of ``source`` with ``target``; False where it cannot."""

    def save(self, seq_id: int) -> bytes:
        """Return the state of a sequence's cells."""

    def restore(self, seq_id: int, data: bytes, count: int) -> bool:
        """Give an empty ``seq_id`` the ``count`` cells that ``save`` returned; say if it did."""

    def drop(self, seq_id: int, start: int) -> bool:
        """Free the cells of ``seq_id`` from ``start`` on; False where it cannot be cut there."""

    def reset(self) -> None:
        """Empty the whole cache, after an error that may have damaged it."""

    def close(self) -> None:
        """Free the model."""
