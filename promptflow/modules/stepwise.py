"""One answer written in several calls: each prompt is the one before with what was written in it.

Outputs that a technique adds stand before the signature's own. The model writes some and the
program others, so that the next call prefills only what is new.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import dspy

from promptflow.errors import ProgramError
from promptflow.fields import Confined
from promptflow.flow import Call, Prediction
from promptflow.layout import MAX_TOKENS, Decoding
from promptflow.modules.predict import Predict
from promptflow.signatures import Document, label_of

Written = Generator[list[Call], list[Any], Any]


class Stepwise:
    """What has been written so far of the answer to one call of ``predict``.

    ``document`` has the labels of the outputs that are added, by the names of its own.
    """

    def __init__(self, predict: Predict, document: Document, inputs: Mapping[str, Any]) -> None:
        self._call = predict.call(**inputs)
        self._labels = {
            name: label_of(info) for name, info in document.signature.output_fields.items()
        }
        made = self._call.signature or predict.signature
        self._own = tuple(made.output_fields)
        self._signature = instructed(made, document)
        self.given: dict[str, Any] = {}
        self.fills: dict[str, Any] = {}

    def add(
        self, name: str, number: int | None = None, *, options: Sequence[str] = (), type_: Any = str
    ) -> str:
        """Add an output before the signature's own, and return its name.

        It is the document's ``name``, numbered; a text, one of ``options``, or a ``type_``.
        """
        label, made = self._labels[name], name
        if number is not None:
            made = f"{name}_{number}"
            label = f"{label.removesuffix(':')} {number}:" if label.endswith(":") else label
        if made in self._signature.fields:
            raise ProgramError(f"the signature has a field {made!r} already: rename it")
        if options:
            type_ = Annotated[str, Confined(tuple(options))]
        place = len(self._signature.output_fields) - len(self._own)
        signature = self._signature.insert(place, made, dspy.OutputField(), type_)
        self._signature = signature.with_updated_fields(made, prefix=label)
        return made

    def tell(self, name: str, value: Any) -> None:
        """Write an output by the program."""
        self.given[name] = value

    def ask(self, name: str) -> Written:
        """Have the model write on up to an output, each text a line, and return its value."""
        if self._signature.output_fields[name].annotation is str:
            decoding = Decoding(until=name, stop=("\n",))
        else:  # has the limits of its type, not those of a text
            decoding = Decoding(until=name, max_tokens=MAX_TOKENS)
        asked = replace(self._next(), decoding=decoding, continued=True)
        [answer] = yield [asked]
        self._take(answer)
        return answer[name]

    def finish(self) -> Written:
        """Have the model write the signature's own outputs, and return all as a prediction.

        Outputs that were added and that nobody wrote are left out.
        """
        for name in list(self._signature.output_fields):
            if name not in self.given and name not in self._own:
                self._signature = self._signature.delete(name)
        [answer] = yield [self._next()]
        self._take(answer)
        made = Prediction(**self.given)
        made._fills, made._weighed = self.fills, answer._weighed
        return made

    def _take(self, answer: Prediction) -> None:
        self.given |= {k: v for k, v in answer.items() if k in self._signature.output_fields}
        self.fills |= answer._fills

    def _next(self) -> Call:
        inputs = {**self._call.inputs, **self.given}
        return replace(self._call, inputs=inputs, signature=self._signature)


def with_input(signature: Any, name: str, words: Any) -> Any:
    """Return a signature with a last input, of the type and label of the field ``words``."""
    made = signature.append(name, dspy.InputField(), words.annotation)
    return made.with_updated_fields(name, prefix=label_of(words))


def instructed(signature: Any, document: Document) -> Any:
    """Return a signature whose instructions end with those of a document."""
    own = document.signature.instructions
    return signature.with_instructions(f"{signature.instructions}\n{own}".strip())
