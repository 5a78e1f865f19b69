"""Grounded question answering: retrieve, read, quote, check, and answer or abstain.

Three claims are kept apart. The quotes are exact: code cuts them out of their documents. The quotes
support the answer: a name, number, date or phrase is a span of a quote, since nothing else can be
decoded, and of a longer answer every sentence is checked. The question is answerable: a probability
that was fitted on questions with answers, see ``abstention``.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from promptflow.engine.request import Sampling
from promptflow.errors import UnknownField, names_options
from promptflow.flow import Call, Flow, Module, Prediction
from promptflow.lm import is_local
from promptflow.modules.abstention import calibration_for
from promptflow.modules.answers import (
    LONGEST,
    SUPPORTED,
    UNKNOWN,
    Found,
    checked,
    own,
    spans,
    written,
)
from promptflow.modules.evidence import asks_to_explain
from promptflow.modules.hops import follow_up, gathered
from promptflow.modules.orders import gives_orders
from promptflow.modules.predict import Predict
from promptflow.modules.sources import index_name, opened, stale_in
from promptflow.retrieval import Reading, Retriever, distinct, read_passage, verify_quote
from promptflow.retrieval.text import normal

__all__ = ["UNKNOWN", "GroundedQA"]


class GroundedQA(Module):
    """Answer from an index with citations that are checked, or abstain.

    ``index`` is an index, its name, a list of them, or a retriever of one's own: an object with
    ``search`` and ``text`` (see ``Retriever``), of which a saved program keeps the class's name.

    Of ``k`` passages the best ``reads`` are read, each apart, and the ``spans`` likeliest answers
    of each are compared: the answer is one of these, and the quotes around it are cited. Where the
    question asks to explain, or ``signature`` is another than the bundled one (inputs ``passages``
    and ``question``, an output ``answer``), the answer is written, in ``max_tokens`` at most, and
    its sentences are checked one by one. With ``hops`` of 2 the quotes of the first search make
    the query of a second, and so on.

    An answer that is right with a probability below ``threshold`` is not given; left out, the
    threshold of the calibration of this model and embedder.
    """

    @names_options
    def __init__(
        self,
        index: Retriever | str | Path | Sequence[Retriever | str | Path],
        signature: str | Path | type[Any] = "grounded_qa",
        k: int = 5,
        *,
        hops: int = 1,
        reads: int = 2,
        spans: int = 4,
        threshold: float | None = None,
        max_tokens: int = 128,
    ) -> None:
        super().__init__()
        if min(k, hops, reads, spans) < 1 or not 0.0 <= (threshold or 0.0) <= 1.0:
            raise ValueError(
                f"GroundedQA: k={k}, hops={hops}, reads={reads} and spans={spans} must be at "
                f"least 1, threshold={threshold} from 0 to 1"
            )
        self.index = opened("GroundedQA", index)
        self.read = own("answer_quote", max_tokens=LONGEST)
        self.check: Predict | None = own("supports")
        self.follows = own("follows")
        self.answer = Predict(signature, sampling=Sampling(), max_tokens=max_tokens)
        if hops > 1:
            self.follow_up = follow_up()
        self.hops = hops
        self.k = k
        self.reads = reads
        self.spans = spans
        self.threshold = threshold
        self.writes = str(signature) != "grounded_qa"

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings; the index by its name, else by its path."""
        names = ("k", "hops", "reads", "spans", "threshold")
        given = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        given["max_tokens"] = self.answer.decoding.max_tokens
        return {"index": index_name(self.index), **given}

    def __deepcopy__(self, memo: dict[int, Any]) -> GroundedQA:
        """Return a copy that shares the open index: files and vectors are not copied."""
        made = copy.copy(self)
        memo[id(self)] = made
        held = {key: value for key, value in vars(self).items() if key != "index"}
        made.__dict__.update(copy.deepcopy(held, memo))
        return made

    def flow(self, **inputs: Any) -> Flow:
        """Return the answer with what is claimed of it, each claim apart.

        ``citations``, best first, and ``quotes_exact``: each is the text of its span. ``support``:
        the probability that the quotes answer the question so; None where none were checked.
        ``answerable``: the probability that the answer is right, from ``signals``; ``candidates``
        are the answers that were compared, best first, with theirs. ``verified``: all three hold,
        and no cited file has changed. ``abstained`` and ``reason`` say what was decided and why.
        ``flagged``: citations that give orders, see ``orders``. Raises UnknownField without a
        ``question``.
        """
        if "question" not in inputs:
            raise UnknownField("GroundedQA needs 'question'; call it with question=...")
        question = normal(str(inputs["question"]))
        inputs["question"] = question
        readings = yield from self._readings(question)
        if not readings:
            return _abstained(Found(), 0.0, "the search found no passage")
        lm = self.read.lm or dspy.settings.lm
        calibration = calibration_for(self.index, lm)
        limit = calibration.threshold if self.threshold is None else self.threshold
        if not is_local(lm):  # a provider's model is held to no span, and tells no probabilities
            found = yield from written(self.answer, self.follows, inputs, readings)
            return self._answered(found, None, "")
        found_spans = yield from spans(self.read, question, readings, self.spans)
        if not found_spans:
            return _abstained(Found(), 0.0, "no passage that was read holds an answer as a span")
        found_spans.sort(key=lambda found: -calibration.probability(found.signals))
        best = found_spans[0]
        chance = calibration.probability(best.signals)
        why = f"right with probability {chance:.2f}, {limit:.2f} is needed ({calibration.source})"
        if chance < limit:
            return _abstained(best, chance, f"the best answer is {why}", found_spans)
        if self.writes or asks_to_explain(question):
            signals = best.signals
            best = yield from written(self.answer, self.follows, inputs, readings)
            best = replace(best, signals=signals)
            found_spans = [best]
        elif self.check is not None:
            best = yield from checked(self.check, question, best)
        return self._answered(best, chance, why, found_spans)

    def _answered(
        self, found: Found, chance: float | None, why: str, spans: Sequence[Found] = ()
    ) -> Prediction:
        """Return an answer with its claims; an abstention where nothing of it is left."""
        if not found.answer:
            return _abstained(found, chance or 0.0, found.note, spans)
        cited = list(found.citations)
        exact = all(verify_quote(self.index, c.document, c.start, c.end, c.quote) for c in cited)
        stale = stale_in(self.index, [c.document for c in cited])
        parts = [f"{document} {what} since the index was built" for document, what in stale.items()]
        if not exact:
            parts.append("a quote is not the text of its place")
        if found.support < SUPPORTED:
            parts.append(f"the quotes alone support it with probability {found.support:.2f} only")
        if chance is None:
            parts.append("no probability that it is right is known of a remote model")
        result = found.written or Prediction(answer=found.answer)
        return result.extended(
            answer=found.answer,
            citations=cited,
            quotes_exact=exact,
            support=found.support,
            answerable=chance,
            signals=dict(found.signals),
            candidates=_candidates(spans),
            flagged=[c for c in cited if gives_orders(c.quote)],
            verified=not parts,
            abstained=False,
            reason="; ".join(filter(None, [*parts, found.note, why])),
        )

    def _readings(self, question: str) -> Generator[list[Call], list[Any], list[Reading]]:
        """Search, and return what a prompt shows of the best passages that differ."""
        writer = getattr(self, "follow_up", None)
        found = yield from gathered(self.index, writer, question, self.k, self.hops)
        passages = distinct(found.passages)
        if len(passages) < self.reads < len(found.passages):  # copies stand before the others
            more = self.index.search(question, 8 * self.k)
            passages = distinct([*passages, *more])
        best = passages[: self.reads]
        whole = [self.index.text(p.document) if "|" in p.text[:200] else "" for p in best]
        readings = [read_passage(p, text) for p, text in zip(best, whole, strict=True)]
        return [reading for reading in readings if reading.pieces]


def _candidates(spans: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"answer": one.answer, "citations": list(one.citations), "signals": dict(one.signals)}
        for one in spans
    ]


def _abstained(found: Found, chance: float, reason: str, spans: Sequence[Found] = ()) -> Prediction:
    """Return an abstention; ``candidate`` is what would have been answered."""
    return Prediction(
        candidate=found.answer,
        citations=[],
        quotes_exact=True,
        support=None if found.written is None else found.support,
        answerable=chance,
        signals=dict(found.signals),
        candidates=_candidates(spans),
        flagged=[],
        verified=False,
        abstained=True,
        reason=reason,
        answer=UNKNOWN,  # metrics grade the last field
    )
