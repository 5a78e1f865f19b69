"""The command that converses: with a model, or about the documents of an index."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptflow.cli.answers import (
    answer_record,
    open_citation,
    print_citations,
    verdict_of,
)
from promptflow.cli.open_sources import Sources, open_sources
from promptflow.cli.opening import Opener
from promptflow.cli.options import (
    DEFAULT_MODEL,
    ChatTemplate,
    Chosen,
    Model,
    Passages,
    Reranking,
    SearchMode,
    Thinking,
    Where,
    reranker,
)
from promptflow.errors import DataError, PromptflowError
from promptflow.terminal import listen, say

if TYPE_CHECKING:
    from promptflow.modules.conversation import Conversation, Turn

COMMANDS = {
    "/sources": "the citations of the last cited answer, numbered",
    "/open N": "open the place of citation N",
    "/save [FILE]": "write the conversation to a new file: Markdown, or JSON for .json",
    "/new": "begin anew",
    "/help": "these lines",
    "/quit": "end; so does Ctrl-D. Ctrl-C stops an answer and keeps the conversation.",
}
SPACE = "A line that begins with a space is said as it stands, a slash included."


def chat(
    *,
    index: Annotated[
        list[str],
        typer.Option("--index", help="The index to answer from; again, for another. Else none."),
    ] = [],  # noqa: B006
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    thinking: Thinking = None,
    k: Passages = 5,
    mode: SearchMode = None,
    where: Where = [],  # noqa: B006
    rerank: Reranking = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of a reply, where no index is.")
    ] = 512,
) -> None:
    """Converse with a model, or about the documents of an index.

    With --index, each question is made to stand alone and answered with checked quotes. /help
    lists what else can be typed. Lines of a pipe are questions too.
    """
    from promptflow.modules import Conversation, GroundedQA

    if (mode or where or rerank) and not index:
        raise DataError("--mode, --where and --rerank search an index: name one with --index")
    again = reranker(rerank, model)
    sources = open_sources(index, mode=mode, where=where, rerank=again) if index else None
    program = None if sources is None else GroundedQA(sources.retriever, k=k)
    lm = Chosen(model, chat_template, None, thinking).configured()
    talk = Conversation(program, lm=lm, max_tokens=max_tokens)
    session = Session(talk, sources, opener=Opener())
    session.run()
    if session.failed:
        raise typer.Exit(2)


def _is_live() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


@dataclass(slots=True)
class Session:
    """A conversation as lines: what is typed, and what is shown. ``live`` is at a terminal."""

    talk: Conversation
    sources: Sources | None = None
    live: bool = field(default_factory=_is_live)
    listen: Callable[[str], str] = listen
    opener: Opener = field(default_factory=Opener)
    failed: bool = False

    def run(self) -> None:
        """Take lines until they end or ``/quit`` is typed."""
        if self.live:
            say("/help lists what can be typed; Ctrl-D ends.", error=True)
        while (line := self._next_line()) is not None:
            if line.strip() and not self._take(line):
                return

    def _next_line(self) -> str | None:
        """Return what is typed next, None at the end. Raises DataError for bytes that are no text.

        Away from a terminal it is shown, so that what was asked stands before what was answered.
        """
        while True:
            try:
                line = self.listen("> ")
            except EOFError:
                if self.live:
                    say()
                return None
            except KeyboardInterrupt:
                if not self.live:
                    raise
                say("\n(Ctrl-D or /quit ends)", error=True)
                continue
            except UnicodeDecodeError as error:
                raise DataError("stdin is not UTF-8: convert it, for example with iconv") from error
            if not self.live and line.strip():
                say(f"> {line}")
            return line

    def _take(self, line: str) -> bool:
        """Do what a line asks for; False ends the conversation."""
        try:
            if not line.startswith("/"):
                self._converse(line.strip())
                return True
            name, _, rest = line[1:].partition(" ")
            return self._command(name, rest.strip())
        except PromptflowError as error:
            self.failed = not self.live
            say(f"error: {error}", error=True)
            return True

    def _command(self, name: str, rest: str) -> bool:
        match name:
            case "quit" | "exit":
                return False
            case "help":
                for command, what in COMMANDS.items():
                    say(f"{command:14}{what}")
                say(SPACE)
            case "sources":
                self._print_sources()
            case "open":
                self._open(rest)
            case "save":
                named = rest or f"chat-{datetime.now():%Y%m%d-%H%M%S}.md"
                say(f"saved as {self.talk.save(named)}")
            case "new":
                self.talk.clear()
            case _:
                raise DataError(
                    f"/{name} is no command: /help lists them. To say it, begin with a space"
                )
        return True

    def _cited(self) -> Turn:
        """Return the last turn with citations. Raises DataError where there is none."""
        for turn in reversed(self.talk.turns):
            if turn.citations:
                return turn
        raise DataError("nothing was cited so far")

    def _print_sources(self) -> None:
        cited = self._cited()
        assert cited.result is not None
        assert self.sources is not None
        record = answer_record(cited.question, cited.result, self.sources, 0.0)
        print_citations(record["citations"], several=self.sources.several)

    def _open(self, rest: str) -> None:
        if not rest.isdecimal():
            raise DataError(f"/open {rest}: expected the number of a citation, as in /open 1")
        cited = self._cited()
        assert self.sources is not None
        open_citation(self.sources, cited.citations, int(rest), self.opener)

    def _converse(self, message: str) -> None:
        """Say a message, and show what comes of it while it comes."""
        shown = _Shown(self.sources, self.live)
        try:
            with contextlib.closing(self.talk.stream(message)) as events:
                for event in events:
                    shown.show(event)
        except KeyboardInterrupt:
            if not self.live:
                raise
            shown.end_line()
            say("(stopped)", error=True)


@dataclass(slots=True)
class _Shown:
    """What has been shown of one turn."""

    sources: Sources | None
    live: bool
    draft: str = ""
    begun: float = field(default_factory=time.perf_counter)

    def show(self, event: Any) -> None:
        """Show an event of a conversation."""
        from promptflow.modules import conversation as said

        match event:
            case said.Forgotten():
                say(
                    f"(the oldest turns have left what the model reads: it has room for "
                    f"{event.context:,} tokens)",
                    error=True,
                )
            case said.Rewritten():
                say(f"  (asked as: {event.question})")
            case said.Piece():
                self._write(event.text)
            case said.Turn() if self.sources is None:
                self.end_line()
                if event.cut:
                    say("(cut at its token limit: --max-tokens raises it)", error=True)
            case said.Turn():
                self._end_cited(event)

    def end_line(self) -> None:
        """End a line that was begun."""
        if self.draft and not self.draft.endswith("\n"):
            say()

    def _write(self, text: str) -> None:
        """Write text of a reply; of a cited answer only where what comes after can correct it."""
        if self.sources is not None:
            if not self.live:
                return
            text = text.lstrip() if not self.draft else text
            text = text if self.draft else f"  {text}"
        say(text, end="")
        self.draft += text

    def _end_cited(self, turn: Turn) -> None:
        assert turn.result is not None
        assert self.sources is not None
        seconds = time.perf_counter() - self.begun
        record = answer_record(turn.question, turn.result, self.sources, seconds)
        self.end_line()
        if self.draft.strip() != turn.reply.strip():
            if self.draft:
                say("  (withdrawn: it did not stand the checks)")
            say(f"  {turn.reply}")
        print_citations(record["citations"], several=self.sources.several)
        say(f"  [{verdict_of(record)}; {seconds:.1f} s]")
