"""What programs need of an engine: the seam at which another one may stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from promptflow.engine.request import Completion, Part, Request, Text, TokenLogprob
from promptflow.engine.stream import Stream

MEMORY = {
    "dense": "any prefix is shared and any end taken back",
    "windowed": "prefixes within the window are shared at any token, longer ones where they part",
    "hybrid": "prefixes are shared where they part, or where a turn or a text ended",
    "recurrent": "prefixes are shared where they part, or where a turn or a text ended",
}
"""What the memory of a model can do, by its kind."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine knows of its model file.

    ``context`` counts the tokens that one request may hold. ``identity`` names weights, template,
    build and ``numerics`` in one string; equal identities may share caches.
    """

    name: str
    path: str
    sha256: str
    architecture: str
    context: int
    vocabulary: int
    template: str
    build: str
    load: str  # how it was loaded: "default", or the fall-back that survived the probe decode
    bos: str = ""
    eos: str = ""
    features: str = ""  # CPU features of this build of llama.cpp
    threads: int = 1
    memory: str = "dense"  # what can be shared and cut: see ``MEMORY``
    window: int = 0  # tokens that windowed layers attend to; 0 where there are none
    numerics: str = ""  # flash attention, or a cache of another type: logits differ a little
    given_template: str = ""  # sha256 of a template that was given in the place of the file's own

    @property
    def identity(self) -> str:
        """Return ``name@sha12/build``, and what is not the usual: numerics, a template given."""
        template = f"chat template {self.given_template[:12]}" if self.given_template else ""
        unusual = ", ".join(filter(None, (self.numerics, template)))
        tail = f" ({unusual})" if unusual else ""
        return f"{self.name}@{self.sha256[:12]}/{self.build}{tail}"


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What an engine knows of a GGUF file that embeds texts; ``pooling`` is mean, cls or last."""

    name: str
    path: str
    sha256: str
    dimension: int
    max_tokens: int  # of one text, its marks included
    pooling: str
    build: str
    load: str
    features: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals of an engine since it was made; tokens, decode calls, and seconds by kind of work.

    ``occupancy`` is the mean number of sequences in a decode call. Of ``drafted`` tokens
    ``accepted`` were what the model went on to say. ``pipe_seconds`` is what the
    worker spent on reading and writing messages.
    """

    requests: int = 0
    prefilled: int = 0
    reused: int = 0
    generated: int = 0
    forced: int = 0
    decodes: int = 0
    occupancy: float = 0.0
    preempted: int = 0
    evicted: int = 0
    drafted: int = 0
    accepted: int = 0
    restarts: int = 0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    constraint_seconds: float = 0.0
    bookkeeping_seconds: float = 0.0
    pipe_seconds: float = 0.0

    def __add__(self, other: Stats) -> Stats:
        """Add field by field; occupancies are weighted by decode calls."""
        sums = {
            f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)
        }
        rows = self.occupancy * self.decodes + other.occupancy * other.decodes
        return Stats(**{**sums, "occupancy": rows / sums["decodes"] if sums["decodes"] else 0.0})


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The tokens of a prompt, as the bytes of each; of the first ``held`` the cache has states."""

    pieces: tuple[bytes, ...]
    held: int = 0


class TextEngine(Protocol):
    """What programs need of an engine: ``Engine`` and ``ScriptedEngine`` have it."""

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

        The last one opens the assistant's turn, unless the last role is ``assistant``: where the
        template has a reasoning block, in its closed form. A role ``reasoning`` has its contents in
        the block of the assistant's turn that follows; as the last role, the text before it opens
        the block of the turn to come, and the last text closes it. Raises NoReasoningBlock.
        """

    def count(self, parts: Sequence[Part]) -> int:
        """Return how many prompt tokens the texts of ``parts`` make."""

    def pieces(self, parts: Sequence[Part]) -> list[str]:
        """Return the text of each prompt token of ``parts``."""

    def look(self, parts: Sequence[Part]) -> PromptTokens:
        """Return the prompt tokens of ``parts``, and how many are computed already."""

    def stats(self) -> Stats:
        """Return the totals so far."""

    def renew(self, *, exact: bool = False) -> bool:
        """Forget all that was seen, so that answers depend on what follows; False while busy.

        ``exact``: what follows is answered from the requests alone, in any process.
        """

    def close(self) -> None:
        """Stop the engine; idempotent."""
