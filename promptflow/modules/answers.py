"""Answers from readings: spans of quotes with the signals of how sure they are, and written ones.

A span cannot hold a name or a number that no quote holds. Of a written answer each sentence is
checked against the quotes that are nearest to it, and left out where they do not say so.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptflow.engine.request import Beam, Sampling
from promptflow.errors import ParseError
from promptflow.flow import Attempts, Call, Prediction
from promptflow.layout import Decoding
from promptflow.modules.evidence import (
    agreements,
    best_place,
    nearness,
    overlaps,
    ranked,
    repeated,
    strange_numbers,
)
from promptflow.modules.judge import yes
from promptflow.modules.predict import Predict
from promptflow.retrieval import Citation, Reading
from promptflow.retrieval.quotes import shown
from promptflow.retrieval.text import sentence_spans
from promptflow.storage import find_document

UNKNOWN = "unknown"
"""The answer of a program that abstains."""

SUPPORTED = 0.5
"""The probability from which quotes are said to support what is written: the likelier verdict."""

LONGEST = 64
"""Tokens of a span at most."""

NEAR = 3.0
"""Nats by which a span may be less probable than the likeliest of its reading: 20 times."""

NEAREST = 2
"""Quotes that a written sentence is checked against."""

SHORT = 5
"""Words up to which a written answer is no statement without its question."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, the quotes that it rests on, and the probability that these support it.

    ``signals`` are what its calibration takes. ``note`` says what was left out, or why there is no
    answer. ``reading`` is what it is a span of, ``written`` the prediction that holds it otherwise.
    """

    answer: str = ""
    citations: tuple[Citation, ...] = ()
    reading: Reading | None = None
    support: float = 0.0
    signals: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    written: Prediction | None = None


def own(name: str, **settings: Any) -> Predict:
    """Return a predictor of promptflow's own document, greedy, its options weighed."""
    document = find_document("signatures", name, bundled_only=True)
    return Predict(document, sampling=Sampling(), weigh=True, **settings)


def spans(
    read: Predict, question: str, readings: Sequence[Reading], width: int
) -> Generator[list[Call], list[Any], list[Found]]:
    """Return the most probable answers, each a span of a reading, with their signals.

    ``width`` of each reading at most, found by a beam search: it is prefilled once. The text of a
    reading stands before the question, so that a second question prefills its own tokens only.
    """
    search = Decoding(beam=Beam(width, 0.0, within=NEAR), until="answer")
    given = yield Attempts(
        replace(read.call(passage=reading.text, question=question), decoding=search)
        for reading in readings
    )
    scores = overlaps(question, [c for reading in readings for c in reading.quotes()])
    places = [
        _places(scores, reading, searched)
        for reading, searched in zip(readings, given, strict=True)
    ]
    found = [
        _found(question, scores, reading, place, logprob, rank)
        for rank, (reading, known) in enumerate(zip(readings, places, strict=True))
        for place, logprob in known.items()
    ]
    shares = agreements([(one.answer, one.signals["logprob"]) for one in found])
    return [
        replace(one, signals={**one.signals, "agreement": share})
        for one, share in zip(found, shares, strict=True)
    ]


def _places(
    scores: Mapping[Citation, float], reading: Reading, given: Any
) -> dict[tuple[int, int], float]:
    """Return where the spans that were found stand, with their log-probabilities, best first.

    None of them where all were cut; spans that are one after their words were made whole are one.
    """
    if isinstance(given, ParseError):
        return {}
    if isinstance(given, Exception):
        raise given
    fill = given.fills["answer"]
    known = [(one.text, one.logprob) for one in fill.alternatives] or [(fill.text, fill.logprob)]
    places: dict[tuple[int, int], float] = {}
    for text, logprob in known:
        place = best_place(scores, reading, text.strip()) if text.strip() else None
        if place is not None:
            both = (places.get(place, -math.inf), logprob)
            places[place] = max(both) + math.log1p(math.exp(min(both) - max(both)))
    return places


def _found(
    question: str,
    scores: Mapping[Citation, float],
    reading: Reading,
    place: tuple[int, int],
    logprob: float,
    rank: int,
) -> Found:
    """Return a span with what is known of it without another call."""
    cited = reading.cited(*place)
    answer = reading.text[slice(*place)].strip()
    near = nearness(question, answer, [shown(c.quote) for c in cited])
    signals = {
        "words": max(scores.get(c, 0.0) for c in cited),
        "echo": repeated(question, answer),
        "length": math.log(len(answer.split())),
        "logprob": logprob,
        "place": 1.0 / (1 + rank),
        **({} if near is None else {"near": near}),
        **{name: score for name, score in reading.passage.scores.items() if name == "dense"},
    }
    return Found(answer, tuple(cited), reading, signals=signals)


def checked(check: Predict, question: str, found: Found) -> Generator[list[Call], list[Any], Found]:
    """Return a span with the probability that its quotes alone answer the question so."""
    quotes = "\n".join(shown(c.quote) for c in found.citations)
    [verdict] = yield [check.call(passage=quotes, question=question, answer=found.answer)]
    return replace(found, support=yes(verdict, "verdict"))


def written(
    write: Predict, follows: Predict, inputs: Mapping[str, Any], readings: Sequence[Reading]
) -> Generator[list[Call], list[Any], Found]:
    """Return a written answer without the sentences that no quotes support."""
    texts = [reading.text for reading in readings]
    [prediction] = yield [write.call(passages=texts, **inputs)]
    answer = str(prediction.answer).strip()
    if answer.rstrip(".").casefold() in ("", UNKNOWN):
        return Found(note="the model found no answer in the passages", written=prediction)
    question = str(inputs["question"])
    said = [answer[start:end] for start, end in sentence_spans(answer)]
    if len(said) == 1 and len(answer.split()) <= SHORT:
        said = [f"{question} {answer}"]
    nearest = [_nearest(one, readings) for one in said]
    verdicts = yield [
        follows.call(passage="\n".join(shown(c.quote) for c in cited), statement=one)
        for one, cited in zip(said, nearest, strict=True)
    ]
    kept = []
    left_out = []
    for one, cited, verdict in zip(said, nearest, verdicts, strict=True):
        strange = strange_numbers(one, [question, *(shown(c.quote) for c in cited)])
        if strange:
            left_out.append(f"no quote holds {', '.join(strange)}")
        elif (share := yes(verdict, "verdict")) < SUPPORTED:
            left_out.append(f"the quotes support it with probability {share:.2f}")
        else:
            kept.append((one, cited, share))
    note = "; ".join(left_out)
    if not kept:
        return Found(note=f"no sentence of the answer is supported: {note}", written=prediction)
    if left_out:
        note = f"{len(left_out)} of {len(said)} sentences are left out: {note}"
        answer = " ".join(one for one, _, _ in kept)
    citations = dict.fromkeys(c for _, cited, _ in kept for c in cited)
    support = min(share for _, _, share in kept)
    return Found(answer, tuple(citations), support=support, note=note, written=prediction)


def _nearest(sentence: str, readings: Sequence[Reading]) -> list[Citation]:
    """Return the quotes that say most of a sentence; a second one that says half as much."""
    best = ranked(sentence, readings)[:NEAREST]
    return [e.citation for e in best if e.score >= best[0].score / 2]
