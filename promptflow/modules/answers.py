"""Answers from readings: spans of quotes with the signals of how sure they are, and written ones.

A span cannot hold a name or a number that no quote holds. Of a written answer each sentence is
checked against the quotes that are nearest to it, and left out where they do not say so.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptflow.engine.request import Sampling
from promptflow.errors import ParseError
from promptflow.flow import Attempts, Call, Prediction
from promptflow.layout import Decoding
from promptflow.modules.abstention import logit
from promptflow.modules.evidence import (
    agreement,
    best_place,
    overlaps,
    ranked,
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

HEAT = 1.0
"""The temperature of samples: the model's own probabilities."""

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
    read: Predict, question: str, readings: Sequence[Reading]
) -> Generator[list[Call], list[Any], list[Found]]:
    """Return an answer for each reading that has one: a span of it, with its signals.

    The text of a reading stands before the question, so that whatever is asked of it later prefills
    its own tokens only.
    """
    calls = [read.call(passage=reading.text, question=question) for reading in readings]
    answers = yield Attempts(calls)
    scores = overlaps(question, [c for reading in readings for c in reading.quotes()])
    found = (_span(scores, *pair) for pair in zip(readings, answers, strict=True))
    return [one for one in found if one is not None]


def _span(scores: Mapping[Citation, float], reading: Reading, given: Any) -> Found | None:
    """Return the answer of one reading; None where it was cut, or is of no quote."""
    if isinstance(given, ParseError):
        return None
    if isinstance(given, Exception):
        raise given
    place = best_place(scores, reading, str(given.answer))
    if place is None:
        return None
    fill = given.fills["answer"]
    cited = reading.cited(*place)
    signals = {
        "words": max(scores.get(c, 0.0) for c in cited),
        "right": logit(yes(given, "right")),
        "logprob": fill.logprob / max(1, fill.generated),
        **{name: score for name, score in reading.passage.scores.items() if name == "dense"},
    }
    return Found(reading.text[slice(*place)].strip(), tuple(cited), reading, signals=signals)


def weighed(
    read: Predict, check: Predict, question: str, found: Found, samples: int
) -> Generator[list[Call], list[Any], Found]:
    """Return a span with the probability that its quotes alone say so, and how sure it is.

    One batch: the check of the quotes, and samples of the answer, which share the text that was
    read.
    """
    quotes = "\n".join(shown(c.quote) for c in found.citations)
    assert found.reading is not None
    sampled = replace(
        read.call(passage=found.reading.text, question=question),
        decoding=Decoding(sampling=Sampling(temperature=HEAT), until="answer"),
        sampled=True,
    )
    checked = check.call(passage=quotes, question=question, answer=found.answer)
    verdict, *others = yield Attempts([checked, *[sampled] * samples])
    for given in (verdict, *others):
        if isinstance(given, Exception) and not isinstance(given, ParseError):
            raise given
    if isinstance(verdict, Exception):
        raise verdict
    said = ["" if isinstance(one, Exception) else str(one.answer) for one in others]
    support = yes(verdict, "verdict")
    signals = {"quotes": logit(support), "agreement": agreement(found.answer, said)}
    return replace(found, support=support, signals={**found.signals, **signals})


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
