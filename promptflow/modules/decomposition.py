"""Questions taken apart: least-to-most, self-ask and step-back prompting.

Each writes its own outputs before the signature's, in one turn: what was written stays in the
cache, and every call goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from promptflow.flow import Flow, Module
from promptflow.lm.remote import check_options
from promptflow.modules.predict import OWN, Predict
from promptflow.modules.settings import settings_of
from promptflow.modules.stepwise import Stepwise
from promptflow.signatures import Document, read_document

Search = Callable[[str], Any]
"""A question to what was found: a text, passages, or a list of either."""


@dataclass(frozen=True, slots=True)
class _Steps:
    """The document that words a technique's steps, and the name that it was given by."""

    name: str
    document: Document

    @classmethod
    def of(cls, given: str | Path | None, bundled: str) -> _Steps:
        """Read a document of the user's, or the bundled one."""
        name = str(given or bundled)
        return cls(name, read_document(name, bundled_only=name == bundled))

    def predict(
        self, module: Module, signature: str | Path | type[Any], options: Mapping[str, Any]
    ) -> Predict:
        """Return the predictor of a module. Raises UnknownOption."""
        check_options(type(module).__name__, options, (*OWN, *_OPTIONS))
        return Predict(signature, **options)


_OPTIONS = ("most", "search", "steps")


class LeastToMost(Module):
    """Take the question apart, then answer the parts in turn, each with those before it.

    Zhou et al. 2022, arXiv 2205.10625. At most ``most`` subquestions; the prediction has
    ``subquestions`` and ``subanswer_1`` on. ``steps`` is a document with other words; ``options``
    are those of ``Predict``.
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        most: int = 4,
        steps: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.words = _Steps.of(steps, "least_to_most")
        self.predict = self.words.predict(self, signature, options)
        self.most = _at_least_one("LeastToMost", most)

    def flow(self, **inputs: Any) -> Flow:
        """Yield one call for the parts, one for each of them, and one for the outputs."""
        answer = Stepwise(self.predict, self.words.document, inputs)
        part = Annotated[str, Field(min_length=1, max_length=160)]
        parts = Annotated[list[part], Field(min_length=1, max_length=self.most)]
        subquestions = yield from answer.ask(answer.add("subquestions", type_=parts))
        for number, subquestion in enumerate(subquestions, 1):
            answer.tell(answer.add("subquestion", number), subquestion)
            yield from answer.ask(answer.add("subanswer", number))
        return (yield from answer.finish())

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, without the predictor."""
        return {**settings_of(self, ("most",)), "steps": self.words.name}

    def show(self, **inputs: Any) -> str:
        """Print the prompt of the signature alone, token by token, and return its text."""
        return self.predict.show(**inputs)


class SelfAsk(Module):
    """Ask follow-up questions and answer them until none is needed.

    Press et al. 2022, arXiv 2210.03350. At most ``most`` of them, as ``follow_up_1``,
    ``intermediate_answer_1`` and on. ``search`` is a function of the question that finds its
    answer, as the paper has a search engine do; without one the model answers itself.
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        most: int = 3,
        search: Search | None = None,
        steps: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.words = _Steps.of(steps, "self_ask")
        self.predict = self.words.predict(self, signature, options)
        self.most = _at_least_one("SelfAsk", most)
        self.search = search

    def flow(self, **inputs: Any) -> Flow:
        """Yield a call for each decision and each follow-up, and one for the outputs."""
        answer = Stepwise(self.predict, self.words.document, inputs)
        for number in range(1, self.most + 1):
            needed = answer.add("needed", number, options=("yes", "no"))
            follow_up = answer.add("follow_up", number)
            found = answer.add("intermediate_answer", number)
            if (yield from answer.ask(needed)) == "no":
                break
            if self.search is None:
                yield from answer.ask(found)
            else:
                question = yield from answer.ask(follow_up)
                answer.tell(found, found_text(self.search(question)))
        return (yield from answer.finish())

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, a function by its name."""
        return {**settings_of(self, ("most", "search")), "steps": self.words.name}

    def show(self, **inputs: Any) -> str:
        """Print the prompt of the signature alone, token by token, and return its text."""
        return self.predict.show(**inputs)


class StepBack(Module):
    """Ask a more general question first, and answer from what holds in general.

    Zheng et al. 2023, arXiv 2310.06117: ``step_back`` is the general question, ``principles`` what
    answers it, of ``search`` where one is given, else of the model.
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        search: Search | None = None,
        steps: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.words = _Steps.of(steps, "step_back")
        self.predict = self.words.predict(self, signature, options)
        self.search = search

    def flow(self, **inputs: Any) -> Flow:
        """Yield a call for question and principles, and one for the outputs."""
        answer = Stepwise(self.predict, self.words.document, inputs)
        question, principles = answer.add("step_back"), answer.add("principles")
        if self.search is None:
            yield from answer.ask(principles)
        else:
            asked = yield from answer.ask(question)
            answer.tell(principles, found_text(self.search(asked)))
        return (yield from answer.finish())

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, a function by its name."""
        return {**settings_of(self, ("search",)), "steps": self.words.name}

    def show(self, **inputs: Any) -> str:
        """Print the prompt of the signature alone, token by token, and return its text."""
        return self.predict.show(**inputs)


def found_text(found: Any) -> str:
    """Return what a search found as one line: a text, a passage's text, or several of these."""
    text = found if isinstance(found, str) else getattr(found, "text", None)
    if not isinstance(text, str) and isinstance(found, list | tuple):
        return " ".join(map(found_text, found))
    return " ".join((text if isinstance(text, str) else str(found)).split())


def _at_least_one(name: str, most: int) -> int:
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"{name}: most={most!r}: give a whole number from 1")
    return most
