"""Grounded question answering: retrieve, quote, answer from the quotes, check, or abstain.

The model reads only sentences that are cited, and code decides what code can: how near the passages
are, whether what the question names occurs in them, whether each quote is the text of its span and
whether the numbers of the answer stand in the quotes. The model is asked the rest: whether the
quotes answer the question, by the probability of its verdict.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptflow.engine.request import Sampling
from promptflow.errors import UnknownField, names_options
from promptflow.flow import Flow, Module, Prediction
from promptflow.modules.evidence import Evidence, missing_numbers, missing_terms, rank
from promptflow.modules.hops import follow_up, gathered
from promptflow.modules.judge import shares
from promptflow.modules.orders import gives_orders
from promptflow.modules.predict import Predict
from promptflow.modules.sources import index_name, opened
from promptflow.retrieval import Passage, Retriever, verify_quote
from promptflow.storage import find_document

UNKNOWN = "unknown"
"""The answer of a program that abstains."""


class GroundedQA(Module):
    """Answer from an index with citations that are checked, or abstain.

    ``index`` is an index, its name, or a retriever of one's own: an object with ``search`` and
    ``text`` (see ``Retriever``), of which a saved program keeps the class's name alone.
    ``signature`` has the inputs ``passages`` and ``question`` and the output ``answer``. Of ``k``
    retrieved passages whose cosine reaches ``min_score``, the ``quotes`` sentences that speak most
    of the question are asked about, one by one: those whose probability of answering it reaches
    ``min_support`` are read and cited. The program abstains where there are none, where the
    passages lack what the question names, and where the answer has a number that the quotes lack.
    With ``hops`` of 2 the quotes of the first search make the query of a second, and so on.
    ``max_tokens`` bounds the answer.
    """

    @names_options
    def __init__(
        self,
        index: Retriever | str | Path,
        signature: str | Path | type[Any] = "grounded_qa",
        k: int = 5,
        *,
        hops: int = 1,
        quotes: int = 3,
        min_score: float = 0.3,
        min_support: float = 0.5,
        max_tokens: int = 128,
    ) -> None:
        super().__init__()
        if min(k, quotes, hops) < 1:
            raise ValueError(
                f"GroundedQA: k={k}, quotes={quotes} and hops={hops} must be at least 1"
            )
        self.index = opened("GroundedQA", index)
        own = find_document("signatures", "supports", bundled_only=True)
        self.check = Predict(own, sampling=Sampling(), weigh=True)
        self.answer = Predict(signature, sampling=Sampling(), max_tokens=max_tokens)
        if hops > 1:
            self.follow_up = follow_up()
        self.hops = hops
        self.k = k
        self.quotes = quotes
        self.min_score = min_score
        self.min_support = min_support

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings; the index by its name, else by its path."""
        names = ("k", "hops", "quotes", "min_score", "min_support")
        given = {name: getattr(self, name) for name in names}
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
        """Return ``answer``, ``citations``, ``verified``, ``abstained`` and ``reason``.

        ``citations`` are best first; ``verified`` tells that each is the text of its span, and
        ``flagged`` are those that give orders: see ``orders``.
        ``support`` is the highest probability that a quote answers the question, and ``reason``
        says why the program abstained. Raises UnknownField without a ``question``.
        """
        if "question" not in inputs:
            raise UnknownField("GroundedQA needs 'question'; call it with question=...")
        question = str(inputs["question"])
        writer = getattr(self, "follow_up", None)
        found = yield from gathered(self.index, writer, question, self.k, self.hops)
        passages = found.passages
        near = [passage for passage in passages if _nearness(passage) >= self.min_score]
        evidence = rank(found.wanted, near, self.quotes)
        if not evidence:
            best = max(map(_nearness, passages), default=0.0)
            return _abstained(f"no passage is near enough: {best:.2f} is below {self.min_score:g}")
        if lacking := missing_terms(question, _chunks(evidence, near)):
            return _abstained(f"the passages do not speak of {', '.join(sorted(lacking))}")
        checks = yield [self.check.call(text=e.text, question=question) for e in evidence]
        supports = [_support(check) for check in checks]
        support = max(supports)
        chosen = [e for e, s in zip(evidence, supports, strict=True) if s >= self.min_support]
        if not chosen:
            return _abstained(f"the quotes do not answer it: support {support:.2f}", support)
        texts = [e.text for e in chosen]
        [prediction] = yield [self.answer.call(passages=texts, **inputs)]
        answer = str(prediction.answer).strip()
        if answer.rstrip(".").casefold() in ("", UNKNOWN):
            return _abstained("the model found no answer in the quotes", support)
        if strange := missing_numbers(answer, [*texts, question]):
            return _abstained(f"the quotes do not hold {', '.join(sorted(strange))}", support)
        citations = [e.citation for e in chosen]
        spans = [verify_quote(self.index, c.document, c.start, c.end, c.quote) for c in citations]
        return prediction.extended(
            answer=answer,
            citations=citations,
            quotes_exact=all(spans),
            support=support,
            answerable=support,
            flagged=[c for c in citations if gives_orders(c.quote)],
            verified=all(spans),
            abstained=False,
            reason=f"the quotes answer it: support {support:.2f}",
        )


def _nearness(passage: Passage) -> float:
    """Return the cosine of a passage, the score of a retriever that knows none."""
    return passage.scores.get("dense", passage.score)


def _support(check: Prediction) -> float:
    return shares(check, "verdict", ("Yes", "No"))["Yes"]


def _abstained(reason: str, support: float = 0.0) -> Prediction:
    return Prediction(
        answer=UNKNOWN,
        citations=[],
        quotes_exact=True,
        support=support,
        answerable=support,
        flagged=[],
        verified=False,
        abstained=True,
        reason=reason,
    )


def _chunks(evidence: Sequence[Evidence], passages: Sequence[Passage]) -> list[str]:
    """Return the whole chunks that the evidence comes from, with their headings and documents."""
    cited = {(e.citation.document, e.citation.chunk) for e in evidence}
    chunks = [p for p in passages if (p.document, p.chunk) in cited]
    return [f"{p.document}\n{p.heading}\n{p.text}" for p in chunks]
