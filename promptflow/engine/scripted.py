"""An engine without a model file, for users' tests and ours: it answers slots by a function."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from promptflow.engine.interface import ModelInfo, PromptTokens, Stats
from promptflow.engine.model import chat_template
from promptflow.engine.model.fake import END, fake_info
from promptflow.engine.request import (
    Alternative,
    Choice,
    Completion,
    Dependent,
    Fill,
    Part,
    Request,
    Slot,
    Text,
    TokenLogprob,
    Usage,
)
from promptflow.engine.stream import Feed, Stream
from promptflow.errors import NoReasoningBlock, PromptflowError

Answer = Callable[[str, Slot], str]
_OPEN = "<|im_start|>"


@dataclass
class ScriptedEngine:
    """Answer each slot with ``answer(text so far, slot)``; an error it raises ends that request.

    Words count as tokens. Prompts are kept in ``prompts``, batch sizes in ``batches``.
    """

    answer: Answer
    info: ModelInfo = field(default_factory=lambda: fake_info("scripted", 1 << 20, 0))
    prompts: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    _stats: Stats = field(default_factory=Stats)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Answer each request in turn."""
        with self._lock:
            self.batches.append(len(requests))
            completions = []
            for number, request in enumerate(requests):
                completions.append(self._complete(request))
                if on_done is not None:
                    on_done(number + 1)
            return completions

    def _complete(self, request: Request) -> Completion:
        text = ""
        fills: dict[str, Fill] = {}
        usage = Usage()
        for part in request.parts:
            if isinstance(part, Text):
                text += part.text
                words = len(part.text.split())
                usage += Usage(prompt=words, prefilled=words)
                continue
            try:
                if isinstance(part.constraint, Dependent):
                    chosen = part.constraint.on(fills[part.constraint.slot].text)
                    part = replace(part, constraint=chosen)
                filled = self.answer(text, part)
            except PromptflowError as error:
                return Completion(fills, usage, 0.0, error)
            words = len(filled.split())
            usage += Usage(generated=words)
            fills[part.name] = Fill(
                filled, "stop", generated=words, alternatives=_certain(part, filled)
            )
            text += part.lead + filled
        self.prompts.append(text)
        self._stats = replace(
            self._stats,
            requests=self._stats.requests + 1,
            prefilled=self._stats.prefilled + usage.prefilled,
            generated=self._stats.generated + usage.generated,
        )
        return Completion(fills, usage)

    def renew(self, *, exact: bool = False) -> bool:
        """Do nothing: answers follow from the requests."""
        return True

    def submit(self, request: Request) -> Future[Completion]:
        """Answer at once."""
        future: Future[Completion] = Future()
        future.set_result(self.generate([request])[0])
        return future

    async def agenerate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer each request in turn."""
        return self.generate(requests)

    def stream(self, request: Request) -> Stream:
        """Answer at once, and tell the answer word by word."""
        feed = Feed()
        [completion] = self.generate([request])
        for slot, fill in completion.fills.items():
            for word in re.findall(r"\s*\S+|\s+", fill.text):
                feed.tell(slot, word)
        feed.end(completion)
        return Stream(feed, lambda: None, lambda: None)

    def score(
        self, prefix: Sequence[Text], continuations: Sequence[str]
    ) -> list[tuple[TokenLogprob, ...]]:
        """Return a log-probability of -1 for each word."""
        return [tuple(TokenLogprob(word, 0, -1.0) for word in c.split()) for c in continuations]

    def scaffold(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Return the texts of ``info.template``, or ChatML, which has no reasoning block."""
        if self.info.template:
            info = self.info
            return chat_template.scaffold(info.template, roles, info.bos, info.eos)
        if "reasoning" in roles:
            raise NoReasoningBlock(
                "a scripted engine has no reasoning block unless its info.template writes one: "
                "leave out thinking=True"
            )
        texts = [f"{_OPEN}{role}\n" for role in roles]
        texts[1:] = [f"{END}\n{text}" for text in texts[1:]]
        opens = "" if roles[-1] == "assistant" else f"{_OPEN}assistant\n"
        return (*texts, f"{END}\n{opens}")

    def count(self, parts: Sequence[Part]) -> int:
        """Count words."""
        return len(self.pieces(parts))

    def pieces(self, parts: Sequence[Part]) -> list[str]:
        """Return words, each with the space before it."""
        words: list[str] = []
        for part in parts:
            if isinstance(part, Text):
                for number, word in enumerate(part.text.split(" ")):
                    words.append(f" {word}" if number else word)
        return words

    def look(self, parts: Sequence[Part]) -> PromptTokens:
        """Return words as tokens, of which none is computed."""
        return PromptTokens(tuple(word.encode() for word in self.pieces(parts)))

    def stats(self) -> Stats:
        """Return the totals so far."""
        return self._stats

    def close(self) -> None:
        """Do nothing."""


def _certain(slot: Slot, chosen: str) -> tuple[Alternative, ...]:
    """Return the options of a weighed slot, all the weight on the chosen one."""
    if not isinstance(slot.constraint, Choice) or not slot.is_weighed:
        return ()
    weights = {option: 0.0 if option == chosen else -math.inf for option in slot.constraint.options}
    ranked = sorted(weights, key=lambda option: -weights[option])
    return tuple(Alternative(option, weights[option], weights[option]) for option in ranked)
