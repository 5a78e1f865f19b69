"""What passes between programs and the engine: requests of text and slots, completions of fills.

Plain frozen dataclasses that know neither llama.cpp nor DSPy.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field

from promptflow.errors import ConstraintError, PromptflowError, names_options


@dataclass(frozen=True, slots=True)
class Text:
    """Text written by the program. Control tokens are parsed only where ``trusted``.

    ``boundary`` tells that requests which begin alike are likely to differ after this text: a model
    whose memory cannot be cut keeps its state there, and no token spans it.
    """

    text: str
    trusted: bool = False
    boundary: bool = False


@names_options
@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen. ``temperature=0`` is greedy; 0 and 1 switch the other reductions off.

    ``repetition_penalty`` divides positive logits, and multiplies negative ones, of tokens seen
    anywhere in the sequence, the prompt included (1 is off). ``frequency_penalty`` and
    ``presence_penalty`` are subtracted for tokens sampled in the slot, as in the OpenAI API
    (0 is off).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, 10_000_000)
        if not isinstance(self.top_k, numbers.Integral):
            raise ValueError(f"top_k={self.top_k!r} is no whole number")
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("typical_p", self.typical_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _within("frequency_penalty", self.frequency_penalty, -10.0, 10.0)
        _within("presence_penalty", self.presence_penalty, -10.0, 10.0)
        for token, bias in self.logit_bias:
            if token < 0 or not math.isfinite(bias):
                raise ValueError(f"logit_bias ({token!r}, {bias!r}): ids from 0, finite biases")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, numbers.Real) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} is outside {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value that fits ``schema`` (a JSON Schema as JSON text).

    Numbers between limits get nine decimals at most.
    """

    schema: str


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that matches ``pattern`` as a whole."""

    pattern: str


@names_options
@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``options``, verbatim.

    ``weighed`` looks at all of them instead of writing one: the fill's ``alternatives`` hold each
    option with its probability, and where no option begins like another nothing is decoded.
    """

    options: tuple[str, ...]
    weighed: bool = False


@dataclass(frozen=True, slots=True)
class Lark:
    """Text of the rule ``start`` of a Lark grammar in llguidance's dialect."""

    grammar: str


@dataclass(frozen=True, slots=True)
class Substring:
    """A verbatim, non-empty span of one of ``texts``, for quotations."""

    texts: tuple[str, ...]


Alone = Json | Regex | Choice | Lark | Substring


@dataclass(frozen=True, slots=True)
class Dependent:
    """What belongs to the text of an earlier slot: arguments, after the name of their tool.

    ``options`` pairs each text that ``slot`` may hold with the constraint that it chooses.
    """

    slot: str
    options: tuple[tuple[str, Alone], ...]

    def on(self, text: str) -> Alone:
        """Return the constraint that ``text`` chooses. Raises ConstraintError for any other."""
        for option, constraint in self.options:
            if option == text:
                return constraint
        raise ConstraintError(
            f"slot {self.slot!r} holds {text[:60]!r}, which chooses no constraint: it chooses "
            f"among {', '.join(repr(option) for option, _ in self.options)[:300]}"
        )


Constraint = Alone | Dependent


@names_options
@dataclass(frozen=True, slots=True)
class Beam:
    """Search for the most probable text with ``width`` hypotheses side by side.

    Hypotheses are ranked by logprob / tokens ** ``length_penalty``, the end counted as a token:
    0 prefers short texts, 1 compares the mean (Wu et al. 2016, arXiv 1609.08144, section 7, without
    the offset of 5).

    ``within`` drops hypotheses that are less probable than the best one that ended by more than so
    many nats, so that a search in which the model is sure costs little more than a greedy one. With
    a penalty of 0 nothing is missed that would have ended within them (Freitag and Al-Onaizan 2017,
    arXiv 1702.01806, absolute threshold pruning).
    """

    width: int = 4
    length_penalty: float = 1.0
    within: float | None = None

    def __post_init__(self) -> None:
        """Refuse a search without hypotheses."""
        if self.within is not None:
            _within("within", self.within, 0.0, math.inf)
        _within("width", self.width, 1, 1_000)
        _within("length_penalty", self.length_penalty, -10.0, 10.0)


@names_options
@dataclass(frozen=True, slots=True)
class Slot:
    """Text written by the model.

    Ends at an end-of-generation token, at a stop string or token, when its constraint is complete,
    or after ``max_tokens``. Under a constraint stops are not looked for: it ends when nothing can
    follow, or at a line break or end of turn where it is complete.

    ``lead`` is text that comes first and is no part of the value (a space after a label: tokenizers
    join it with the word that follows). Under a constraint the lead is forced; without one it is
    removed, once and exactly, where the model wrote it. ``logprobs`` counts the alternatives
    reported for each sampled token: None is off, 0 is the chosen token alone. ``ignore_eos`` keeps
    the model from ending the slot while it could go on. ``beam`` searches instead of sampling.
    Where a slot ``needs_text``, a stop string counts only after something that is not blank.

    ``max_tokens`` is a bound, and no cells are set aside for it. Where the context has no room for
    that many after the request's texts and other slots, the request is refused; unless the slot
    ``fits``: then the bound is lowered to what the context leaves, as long as that is ``least``
    tokens. Later slots keep what they need, the ``least`` of those that fit.
    """

    name: str
    constraint: Constraint | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    lead: str = ""
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    ignore_eos: bool = False
    beam: Beam | None = None
    fits: bool = False
    least: int = 1
    needs_text: bool = False

    def __post_init__(self) -> None:
        """Refuse a slot that could not end, and a search that samples."""
        if self.max_tokens < 1:
            raise ValueError(f"slot {self.name!r}: max_tokens={self.max_tokens} is below 1")
        if not 1 <= self.least <= self.max_tokens:
            raise ValueError(
                f"slot {self.name!r}: least={self.least} is outside 1 to max_tokens="
                f"{self.max_tokens}"
            )
        if self.least > 1 and not self.fits:
            raise ValueError(
                f"slot {self.name!r}: least={self.least} is for a slot that fits: add fits=True, "
                "or leave it out"
            )
        if any(not stop for stop in self.stop):
            raise ValueError(f"slot {self.name!r}: an empty stop string")
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, 1_000)
        if self.beam is not None and self.sampling != Sampling():
            raise ValueError(f"slot {self.name!r}: a beam does not sample; leave out sampling=")
        if self.is_weighed and (self.beam is not None or self.ignore_eos):
            raise ValueError(
                f"slot {self.name!r}: a weighed Choice takes no beam and no ignore_eos"
            )

    @property
    def need(self) -> int:
        """Return the tokens that there must be room for."""
        return self.least if self.fits else self.max_tokens

    @property
    def is_weighed(self) -> bool:
        """Return whether every option of a choice is looked at."""
        return isinstance(self.constraint, Choice) and self.constraint.weighed


Part = Text | Slot


@names_options
@dataclass(frozen=True, slots=True)
class Request:
    """Parts that one sequence holds in order. Equal seeds sample equal text in equal batches.

    ``continued`` tells that a later request will begin with the texts and fills of this one: the
    cache holds its end until then.
    """

    parts: tuple[Part, ...]
    seed: int = 0
    deadline: float | None = None  # seconds from submission
    continued: bool = False

    def __post_init__(self) -> None:
        """Refuse a request without a slot, with two of one name, or a choice by none before it."""
        slots = [part for part in self.parts if isinstance(part, Slot)]
        names = [slot.name for slot in slots]
        if not names:
            raise ValueError("a request needs at least one Slot")
        if len(set(names)) < len(names):
            raise ValueError(f"slot names repeat: {names}")
        for place, slot in enumerate(slots):
            if isinstance(slot.constraint, Dependent) and slot.constraint.slot not in names[:place]:
                raise ValueError(
                    f"slot {slot.name!r}: its constraint is chosen by {slot.constraint.slot!r}, "
                    f"which is none of the slots before it: {names[:place]}"
                )
        if self.deadline is not None:
            _within("deadline", self.deadline, 0.0, math.inf)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text, id and natural-log probability under the model before any reduction.

    Of a text that ``score`` was given also its ``rank`` among all tokens, from 1 (0: not asked),
    and the expectation and variance of the log-probability of a token drawn in its place.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    rank: int = 0
    expected: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True, slots=True)
class Alternative:
    """A text that a slot might hold, with its natural-log probability.

    Of a beam: the sum over the tokens and the end, and ``score`` ranks it. Of a weighed choice:
    the option's share under the constraint, all of them summing to 1, and ``score`` is the same.
    """

    text: str
    logprob: float
    score: float


@dataclass(frozen=True, slots=True)
class Fill:
    """What the model wrote into a slot.

    ``finish`` is ``stop`` (a stop string, stop token or end of turn), ``constraint`` (complete),
    ``length`` (cut at ``max_tokens``, before a constraint was complete too) or ``error`` (as far as
    it was written when the completion's error ended the request). ``generated`` counts
    the sampled tokens, those that a stop string cut off among them, but not the token that ended
    the slot; ``logprob`` sums their natural-log probabilities. ``forced`` ones count 0. Of a beam
    and of a weighed choice ``generated`` counts what all hypotheses sampled and had decoded, and
    ``alternatives`` holds the texts, best first.
    """

    text: str
    finish: str
    generated: int = 0
    forced: int = 0
    logprob: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request: ``prompt`` (program text), of which ``reused`` came from the cache.

    ``prefilled`` counts prompt tokens that were computed, and whatever was computed again: after a
    preemption, or where a stop string took text back. Without those, and where a sampled slot comes
    last, prompt = reused + prefilled. ``forced`` counts the tokens that a constraint left no choice
    about, ``generated`` the sampled ones.
    """

    prompt: int = 0
    prefilled: int = 0
    reused: int = 0
    generated: int = 0
    forced: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Add field by field."""
        return Usage(
            *(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self))
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """The fills of a request by slot name, and the error that ended it if there was one."""

    fills: Mapping[str, Fill] = field(default_factory=dict)
    usage: Usage = Usage()
    seconds: float = 0.0
    error: PromptflowError | None = None

    def text(self, name: str) -> str:
        """Return the text of a slot; raise the completion's error if it has one."""
        if self.error is not None:
            raise self.error
        return self.fills[name].text
