"""The command that answers questions from indexes, and how cited answers are shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptflow.cli.console import Json, print_json_line, tokens_of
from promptflow.cli.decoding import Decoded, decodes
from promptflow.cli.open_sources import Sources, open_sources
from promptflow.cli.opening import Opener
from promptflow.cli.options import (
    DEFAULT_MODEL,
    ChatTemplate,
    Chosen,
    Layout,
    Model,
    Passages,
    Reranking,
    SearchMode,
    Thinking,
    Where,
    reranker,
)
from promptflow.errors import DataError, PromptflowError
from promptflow.terminal import say, visible

if TYPE_CHECKING:
    from promptflow.flow import Prediction

BATCH = 32
"""Questions that are answered side by side; what is answered is printed before the next ones."""


@decodes
def ask(
    questions: Annotated[
        list[str] | None,
        typer.Argument(help="Questions; - reads them from stdin, one a line.", show_default=False),
    ] = None,
    *,
    index: Annotated[
        list[str], typer.Option("--index", help="The index to answer from; again, for another.")
    ] = ["guide"],  # noqa: B006
    file: Annotated[
        Path | None, typer.Option("--file", help="A file of questions, one a line.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    k: Passages = 5,
    mode: SearchMode = None,
    where: Where = [],  # noqa: B006
    rerank: Reranking = None,
    opened: Annotated[
        int | None,
        typer.Option("--open", min=1, help="Open the place of the citation of this number."),
    ] = None,
    as_json: Json = False,
    decoded: Decoded,
) -> None:
    """Answer questions with checked quotes.

    The passages come from an index; each quote is compared with the text that it cites. Without
    questions, they are read from stdin, one a line. --json prints an object a line.
    """
    from promptflow.modules import GroundedQA

    if as_json and opened is not None:
        raise DataError("--open shows a place to a person, --json is for programs: give one")
    asked = questions_of(questions or [], file)
    sources = open_sources(index, mode=mode, where=where, rerank=reranker(rerank, model))
    program = decoded.applied(GroundedQA(sources.retriever, k=k))
    chosen = Chosen(model, chat_template, layout, thinking)
    lm = chosen.configured()
    chosen.lay_out(program, lm)
    citations: list[Any] = []
    failed = False
    for question, answer, seconds in _answered(program, asked, lm):
        if isinstance(answer, PromptflowError):
            failed = True
            _print_failed(question, answer, as_json)
            continue
        record = answer_record(question, answer, sources, seconds)
        if as_json:
            print_json_line(record)
        else:
            print_answer(record, first=len(citations) + 1, several=sources.several)
        citations += answer.citations
    if opened is not None:
        open_citation(sources, citations, opened, Opener())
    if failed:
        raise typer.Exit(2)


def _answered(program: Any, questions: Sequence[str], lm: Any) -> Iterator[tuple[str, Any, float]]:
    """Yield each question with its answer, or its error, and the seconds of its batch."""
    from promptflow.flow import run_many

    for first in range(0, len(questions), BATCH):
        some = questions[first : first + BATCH]
        start = time.perf_counter()
        answers = run_many(program, [{"question": question} for question in some], lm=lm)
        seconds = round(time.perf_counter() - start, 3)
        for question, answer in zip(some, answers, strict=True):
            yield question, answer, seconds


def _print_failed(question: str, error: PromptflowError, as_json: bool) -> None:
    say(f"error: {question}: {error}", error=True)
    if as_json:
        print_json_line({"question": question, "error": str(error)})


def questions_of(given: Sequence[str], file: Path | None) -> list[str]:
    """Return the questions of arguments, of stdin for ``-``, and of a file, blank lines left out.

    Raises DataError where there is none, where one is blank, and for a file that is no text.
    """
    questions: list[str] = []
    piped = not given and file is None and not sys.stdin.isatty()
    for one in ["-"] if piped else given:
        if one == "-":
            questions += _lines(sys.stdin.buffer.read(), Path("stdin"))
        elif one.strip():
            questions.append(one)
        else:
            raise DataError(f"question {given.index(one) + 1} is blank: say what you want to know")
    if file is not None:
        try:
            questions += _lines(file.expanduser().read_bytes(), file)
        except OSError as error:
            raise DataError(f"--file {file}: cannot be read: {error.strerror}") from error
    if not questions:
        raise DataError(
            'no question: write promptflow ask "Who ...?", or give them with --file or on stdin, '
            "one a line"
        )
    return questions


def _lines(data: bytes, path: Path) -> list[str]:
    from promptflow.encodings import Undecodable, decoded

    try:
        text = decoded(data)
    except Undecodable as error:
        raise DataError(f"--file {path}: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def answer_record(
    question: str, answer: Prediction, sources: Sources, seconds: float
) -> dict[str, Any]:
    """Return an answer as JSON data; ``seconds`` is the time of the batch it was answered in."""
    judged = ("support", "answerable", "quotes_exact", "verified", "abstained", "reason")
    return {
        "question": question,
        "answer": answer.answer,
        **{name: answer[name] for name in judged},
        "citations": [
            {**sources.record(citation), "flagged": citation in answer.flagged}
            for citation in answer.citations
        ],
        "tokens": tokens_of(answer.usage),
        "seconds": seconds,
    }


def print_answer(record: Mapping[str, Any], *, first: int = 1, several: bool = False) -> None:
    """Show a question, its answer, its citations numbered from ``first``, and what was found."""
    say(f"\n{record['question']}\n  {record['answer']}")
    print_citations(record["citations"], first=first, several=several)
    counts = ", ".join(f"{n} {name}" for name, n in record["tokens"].items())
    say(f"  [{verdict_of(record)}; tokens: {counts}; {record['seconds']:.1f} s]")


def print_citations(
    citations: Sequence[Mapping[str, Any]], *, first: int = 1, several: bool = False
) -> None:
    """Show where each citation stands, in which of ``several`` indexes too, and its quote."""
    for number, citation in enumerate(citations, first):
        say(f"    [{number}] {', '.join(_place(citation, several))}")
        say(f'        "{" ".join(citation["quote"].split())}"')


def _place(citation: Mapping[str, Any], several: bool) -> Iterator[str]:
    document = visible(citation["document"], in_line=True)
    yield f"{citation['index']}: {document}" if several else document
    if citation["page"] is not None:
        yield f"page {citation['page']}"
    if citation["heading"]:
        yield visible(" ".join(citation["heading"].split()), in_line=True)
    if citation["flagged"]:
        yield "GIVES ORDERS"
    if citation["stale"]:
        yield f"{citation['stale'].upper()} SINCE THE INDEX WAS BUILT"


def verdict_of(record: Mapping[str, Any]) -> str:
    """Return in a line what was found out about an answer."""
    shares = [
        f"{name} {record[name]:.2f}"
        for name in ("support", "answerable")
        if record[name] is not None
    ]
    if record["abstained"]:
        found = f"abstained: {record['reason']}"
    elif record["verified"]:
        found = "verified"
    else:
        found = f"NOT VERIFIED: {record['reason']}"
    return "; ".join([found, *shares])


def open_citation(
    sources: Sources, citations: Sequence[Any], number: int, opener: Opener
) -> list[str]:
    """Open the place of a citation by its number from 1, and return the command that shows it.

    Raises DataError for a number that there is not, StoreNotFound where the file is another now.
    """
    if not citations:
        raise DataError(f"there is no citation {number}: nothing was cited")
    if not 1 <= number <= len(citations):
        known = "is only 1" if len(citations) == 1 else f"are 1 to {len(citations)}"
        raise DataError(f"there is no citation {number}: there {known}")
    place = sources.locate(citations[number - 1])
    at = [f"line {place.line}"] if place.line else []
    at += [f"page {place.page}"] if place.page else []
    say(", ".join([f"opening {visible(place.path, in_line=True)}", *at]), error=True)
    return opener.open(place)
