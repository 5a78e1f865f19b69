"""What programs need of an engine: the seam at which another one may stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from promptflow.engine.request import (
    Completion,
    ModelInfo,
    Part,
    Request,
    Stats,
    Text,
    TokenLogprob,
)
from promptflow.engine.stream import Stream


class TextEngine(Protocol):
    """What programs need of an engine: ``engine.Engine`` and ``fake.ScriptedEngine`` have it."""

    info: ModelInfo

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Fill every slot of every request, in order; an error is a value in its place."""

    def submit(self, request: Request) -> Future[Completion]:
        """Queue one request; from any thread."""

    async def agenerate(self, requests: Sequence[Request]) -> list[Completion]:
        """Do what ``generate`` does without blocking the event loop."""

    def stream(self, request: Request) -> Stream:
        """Queue one request and return its text while it is written."""

    def score(
        self, prefix: Sequence[Text], continuations: Sequence[str]
    ) -> list[tuple[TokenLogprob, ...]]:
        """Return the log-probability of each token of each continuation after ``prefix``."""

    def scaffold(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Return the chat template's trusted texts around contents: one more than ``roles``.

        The last one opens the assistant's turn, unless the last role is ``assistant``.
        """

    def count(self, parts: Sequence[Part]) -> int:
        """Return how many prompt tokens the texts of ``parts`` make."""

    def pieces(self, parts: Sequence[Part]) -> list[str]:
        """Return the text of each prompt token of ``parts``."""

    def stats(self) -> Stats:
        """Return the totals so far."""

    def renew(self, *, exact: bool = False) -> bool:
        """Forget all that was seen, so that answers depend on what follows; False while busy.

        ``exact``: what follows is answered from the requests alone, in any process.
        """

    def close(self) -> None:
        """Stop the engine; idempotent."""
