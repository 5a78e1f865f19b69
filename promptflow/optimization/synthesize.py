"""Synthetic data from seeds: questions on passages, or more examples like some that a person wrote.

As in Self-Instruct (Wang and others 2022, arXiv 2212.10560) what is too like anything before it is
left out, by ROUGE-L; as in AlpaGasus (Chen and others 2023, arXiv 2307.08701) what a judge scores
below a threshold. A question has to be answered with its passage, and not without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from promptflow.engine.request import Sampling
from promptflow.errors import DataError, names_options
from promptflow.evaluation.meaning import overlap, text_of
from promptflow.evaluation.ngrams import tokens
from promptflow.flow import Flow, run_flows, run_many
from promptflow.modules.predict import Predict
from promptflow.normal import normalize
from promptflow.optimization.synthesis import (
    FILTERS,
    Filters,
    Pool,
    Run,
    Synthesis,
    filled,
    good,
    shown_fields,
)
from promptflow.signatures import description_of, document_of, read_document

LONGEST = 12
"""Words of an answer."""

SEEDS, MADE = 6, 2
"""Examples shown for a new one, of the seeds and of those made before, as in Self-Instruct."""

VARIED = Sampling(temperature=0.9, top_p=0.95)
MOST = 400
"""Tokens of a free text; one that ends there is left out."""

ANSWERED = 0.5
"""The F1 from which on a reader's answer is the one that was meant."""


@names_options
def synthesize(
    passages: Sequence[Any],
    count: int,
    *,
    filters: Filters = FILTERS,
    lm: Any = None,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: bool = True,
) -> Synthesis:
    """Return up to ``count`` examples (question, passage, answer) asked of different passages.

    ``passages`` are texts, or have a ``text`` and perhaps a ``document``, which the example then
    names. The answer is a verbatim span of its passage by constraint. Each round is one batch of
    questions, one of answers with and without the passage, one of the judge; ``journal`` keeps
    what a round gave. Raises DataError for no passages, and the first error if none could be asked.
    """
    if not passages:
        raise DataError("synthesize: there are no passages; give texts, or the chunks of an index")
    order = np.random.default_rng(seed).permutation(len(passages))
    document = read_document("synthesize_question", bundled_only=True)
    asker = Predict(document.path or "", sampling=Sampling(temperature=0.7, top_p=0.95))
    pool = Pool(count, filters)

    def drafts(number: int, size: int) -> list[dspy.Example]:
        start = pool.asked
        chosen = [passages[int(i)] for i in order[start : start + size]]
        texts = [getattr(passage, "text", passage) for passage in chosen]
        given = run_many(asker, [{"passage": t} for t in texts], lm=lm, seed=seed + number)
        pool.asked += len(chosen)
        found = []
        for passage, text, answer in zip(chosen, texts, good(given), strict=True):
            if answer is None or not is_fit(answer.question, answer.answer, text):
                pool.rejected["unfit" if answer is not None else "failed"] += 1
                continue
            fields = {"question": answer.question.strip(), "passage": text, "answer": answer.answer}
            if hasattr(passage, "document"):
                fields["documents"] = [passage.document]
            found.append(dspy.Example(**fields).with_inputs("question", "passage"))
        kept = pool.novel(found, lambda draft: draft.question)
        return _answerable(pool, kept, lm, seed) if filters.answerable else kept

    rubric = str(document.extra["rubric"])
    about = [[getattr(passage, "text", passage) for passage in passages], filters, count, seed]
    return filled(pool, drafts, rubric, Run(lm, seed, journal, about, progress))


@names_options
def synthesize_like(
    signature: Any,
    seeds: Sequence[Mapping[str, Any] | dspy.Example],
    count: int,
    *,
    filters: Filters = FILTERS,
    lm: Any = None,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: bool = True,
) -> Synthesis:
    """Return up to ``count`` new examples of a signature, like ``seeds``, which a person wrote.

    New inputs are written after six seeds and two of those made before, then the signature's own
    outputs for them, typed as it types them, after the seeds as demos. Raises DataError for fewer
    than two seeds or seeds without the signature's fields.
    """
    document = document_of(signature)
    own, names = document.signature, list(document.signature.input_fields)
    _check_seeds(own, seeds)
    example = read_document("synthesize_example", bundled_only=True)
    writer = Predict(_writing(example.signature, own), sampling=VARIED, max_tokens=MOST)
    shots = [dict(one) for one in seeds[:SEEDS]]
    labeller = Predict(own, demos=shots, sampling=Sampling(), max_tokens=MOST)
    pool = Pool(count, filters)
    pool.known = [tokens(shown_fields(one, names)) for one in seeds]

    def drafts(number: int, size: int) -> list[dspy.Example]:
        random = np.random.default_rng([seed, number])
        shown = [_demos(random, seeds, pool, names) for _ in range(size)]
        flows = [_one(writer, own.instructions, demos) for demos in shown]
        given = run_flows(flows, lm=lm, seed=seed + number)
        pool.asked += size
        written = [one for one in good(given) if one is not None]
        pool.rejected["failed"] += size - len(written)
        found = [dspy.Example(**{n: one[n] for n in names}).with_inputs(*names) for one in written]
        full = [
            one
            for one, given in zip(found, written, strict=True)
            if text_of(one[names[0]]).strip() and not given._was_cut()
        ]
        pool.rejected["unfit"] += len(found) - len(full)
        kept = pool.novel(full, lambda draft: shown_fields(draft, names))
        said = good(run_many(labeller, [dict(one) for one in kept], lm=lm, seed=seed))
        said = [None if one is None or one._was_cut() else one for one in said]
        pool.rejected["failed"] += sum(one is None for one in said)
        return [
            _labelled(one, answer, own.output_fields)
            for one, answer in zip(kept, said, strict=True)
            if answer is not None
        ]

    about = [document.sha256 or str(own), [dict(one) for one in seeds], filters, count, seed]
    rubric = str(example.extra["rubric"])
    return filled(pool, drafts, rubric, Run(lm, seed, journal, about, progress))


def _check_seeds(own: Any, seeds: Sequence[Any]) -> None:
    """Raise DataError for too few seeds, or seeds without the signature's fields."""
    missing = [n for n in own.fields if any(n not in one for one in seeds)]
    if len(seeds) < 2 or missing:
        lack = f", and some have no {missing[0]!r}" if missing else ""
        raise DataError(
            f"synthesize_like: needs two seeds or more that have {', '.join(own.fields)}; there "
            f"are {len(seeds)}{lack}"
        )


def _labelled(one: dspy.Example, answer: Any, names: Iterable[str]) -> dspy.Example:
    inputs = list(one.keys())
    return dspy.Example(**dict(one), **{n: answer[n] for n in names}).with_inputs(*inputs)


def _writing(example: Any, own: Any) -> Any:
    """Return the signature that writes the inputs of another one."""
    made = example.delete("example")
    for name, info in own.input_fields.items():
        shown = dspy.OutputField(desc=description_of(name, info))
        made = made.append(name, shown, type_=info.annotation)
    return made


def _demos(random: Any, seeds: Sequence[Any], pool: Pool, names: Sequence[str]) -> list[Any]:
    shown = [seeds[i] for i in random.permutation(len(seeds))[:SEEDS]]
    made = [pool.examples[i] for i in random.permutation(len(pool.examples))[:MADE]]
    return [{name: one[name] for name in names} for one in (*shown, *made)]


def _one(writer: Predict, task: str, demos: Sequence[Mapping[str, Any]]) -> Flow:
    [prediction] = yield [writer.call(task=task, demos=[{"task": task, **one} for one in demos])]
    return prediction


def _answerable(pool: Pool, drafts: list[dspy.Example], lm: Any, seed: int) -> list[dspy.Example]:
    """Return the drafts that a reader answers with the passage, and nobody without it."""
    if not drafts:
        return []
    reader, guesser = (
        Predict(read_document(name, bundled_only=True).path or name, sampling=Sampling())
        for name in ("read_passage", "question_answer")
    )
    read = run_many(
        reader, [{"passage": d.passage, "question": d.question} for d in drafts], lm=lm, seed=seed
    )
    guessed = run_many(guesser, [{"question": d.question} for d in drafts], lm=lm, seed=seed)
    kept = []
    for draft, with_it, without in zip(drafts, good(read), good(guessed), strict=True):
        if with_it is None or without is None:
            pool.rejected["failed"] += 1
        elif overlap(with_it.answer, draft.answer) < ANSWERED:
            pool.rejected["not answered with the passage"] += 1
        elif overlap(without.answer, draft.answer) >= ANSWERED:
            pool.rejected["answered without the passage"] += 1
        else:
            kept.append(draft)
    return kept


def is_fit(question: str, answer: str, passage: str) -> bool:
    """Say whether this is one question that does not hold its own answer, a span of the passage."""
    asked, told = normalize(question), normalize(answer)
    return (
        question.strip().endswith(("?", "\uff1f", "\u061f"))
        and len(tokens(question)) >= 4
        and "passage" not in asked.split()
        and 1 <= len(told.split()) <= LONGEST
        and f" {told} " not in f" {asked} "
        and answer in passage
    )
