"""Calls, what they need to be answered, and the predictions that answer them.

Knows how a call becomes an engine's request; knows nothing of how a prompt is worded (``layout``)
or decoded (``engine``), or of who waits for the answer (``drive``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import dspy

from promptflow import layout
from promptflow.engine.interface import TextEngine
from promptflow.engine.request import Completion, Fill, Request, Sampling, Slot, Usage
from promptflow.engine.stream import Delta
from promptflow.errors import EngineLost, PromptflowError, UnsupportedOption, ValueRefused
from promptflow.lm import (
    AGAIN,
    TOOL_OPTIONS,
    Audience,
    Posted,
    Shown,
    Told,
    Turns,
    answers_by_engine,
    as_adapted,
    as_dspys,
    audiences,
    calls_tools,
    decoding_of,
    generate,
    lm_of,
    refuse_unknown,
    seed_of,
    tell,
    trace_call,
    written_text,
)
from promptflow.lm.remote import Answer, Question, ask
from promptflow.prompt import Prompt

_UNCHOSEN = layout.Decoding()


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a predictor. What is not chosen comes from the predictor, then from its LM.

    ``inputs`` may hold output fields too: they are written into the prompt, not generated.
    ``config`` holds DSPy's options for this call alone and comes before all else; of a sampling it
    may set a part. The seed comes from the call's place where nobody chose one. ``sampled`` marks
    one of several tries of which the flow returns one: nobody hears it while it is written.
    ``continued`` tells that the flow's next call begins with this one's prompt and what the model
    wrote: the engine's cache holds it until then, see ``Request``.
    """

    predictor: Any
    inputs: Mapping[str, Any]
    decoding: layout.Decoding = _UNCHOSEN
    seed: int | None = None
    lm: Any = None
    signature: Any = None
    demos: Sequence[Mapping[str, Any]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    sampled: bool = False
    continued: bool = False

    def complete(self, lm: Any, *path: int) -> Call:
        """Return the call with everything chosen; ``path`` is where its seed comes from."""
        own = self.predictor
        lm = lm_of(self.lm or getattr(own, "lm", None) or lm)
        defaults = getattr(lm, "kwargs", {})
        options = {**defaults, **getattr(own, "config", {})}
        asked = {**options, **self.config}
        chosen = self.decoding.over(getattr(own, "decoding", _UNCHOSEN))
        is_local = hasattr(lm, "text_engine")
        if is_local:
            taken = TOOL_OPTIONS if calls_tools(self.signature or own.signature) else ()
            refuse_unknown(asked, lm.model, beside=taken, typed=True)
            chosen = chosen.over(decoding_of(options))
        if _wants_another(defaults, own) and not chosen.weigh:
            chosen = decoding_of({"temperature": defaults["temperature"]}, chosen)
        seed = self.seed
        if seed is None:
            seed = seed_of(asked.get("seed"), asked.get("rollout_id"), *path)
        decoding = decoding_of(self.config, chosen) if is_local else chosen
        if decoding.beam is not None and decoding.sampling not in (None, Sampling()):
            raise UnsupportedOption(
                f"a beam search does not sample, and sampling={decoding.sampling!r} was asked for "
                "too: leave out one of beam, and temperature, n or a module that samples"
            )
        return replace(
            self,
            decoding=decoding,
            seed=seed,
            lm=lm,
            signature=self.signature or own.signature,
            demos=own.demos if self.demos is None else self.demos,
        )


def _wants_another(defaults: Mapping[str, Any], predictor: Any) -> bool:
    """Say whether an LM asks a predictor that is greedy by itself for another answer.

    DSPy's ``BestOfN`` and ``Refine`` give each try an LM with a ``rollout_id`` and a temperature.
    """
    own = getattr(predictor, "decoding", _UNCHOSEN).sampling
    again = defaults.get("rollout_id") is not None and bool(defaults.get("temperature"))
    return again and own is not None and own.temperature == 0


class Attempts(list[Any]):
    """Calls whose failures are sent back as values in their places, not thrown into the flow."""


class Taken(list[Any]):
    """No calls: what a plain program did by itself, for the records of the flows around it."""

    def __init__(self, steps: Sequence[tuple[Any, Mapping[str, Any], Any]], usage: Usage) -> None:
        """Take its steps as ``Prediction.trace`` has them, and its tokens."""
        super().__init__()
        self.steps, self.usage = steps, usage


_BESIDE = frozenset({"cut", "fills", "trace", "usage", "weighed"})


class Chosen(list[Any]):
    """No calls: the sample that a flow returns is told to whoever listens, now that it is known."""

    def __init__(self, sample: Prediction) -> None:
        """Take the sample; its trace is what is told."""
        super().__init__()
        self.sample = sample

    def tell(self) -> None:
        """Send the sample's texts to their listeners."""
        for predictor, _, prediction in self.sample._told or self.sample._trace:
            tell(predictor, prediction)


class Prediction(dspy.Prediction):
    """A ``dspy.Prediction`` that knows what the model wrote and what it cost.

    A field called ``usage``, ``trace``, ``fills``, ``weighed`` or ``cut`` is what that name gives.
    """

    _fills: Mapping[str, Fill] = {}
    _weighed: Mapping[str, Mapping[str, float]] = {}
    _usage: Usage = Usage()
    _trace: tuple[tuple[Any, Mapping[str, Any], Any], ...] = ()
    _cut: bool = False
    _told: tuple[tuple[Any, Mapping[str, Any], Any], ...] = ()  # of samples, the one chosen

    def __getattribute__(self, name: str) -> Any:
        """Return a field before what the prediction knows beside its fields."""
        if name in _BESIDE:
            fields = vars(self).get("_store", {})
            if name in fields:
                return fields[name]
        return super().__getattribute__(name)

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Return what the model wrote, by output field: text, finish, log-probability."""
        return self._fills

    @property
    def weighed(self) -> Mapping[str, Mapping[str, float]]:
        """Return the probability of each option's text, for each output that was weighed."""
        return self._weighed

    @property
    def usage(self) -> Usage:
        """Return the tokens of every call that led here."""
        return self._usage

    @property
    def trace(self) -> tuple[tuple[Any, Mapping[str, Any], Any], ...]:
        """Return each call that led here as (predictor, inputs, prediction), in order."""
        return self._trace

    @property
    def cut(self) -> bool:
        """Say whether anything that led here ended at its token limit, not where it was complete.

        Of samples, that any of them did.
        """
        return self._was_cut()

    def _was_cut(self) -> bool:
        fills = any(fill.finish == "length" for fill in self._fills.values())
        ours = (one for _, _, one in self._trace if isinstance(one, Prediction) and one is not self)
        return self._cut or fills or any(one._was_cut() for one in ours)

    @classmethod
    def of(cls, plain: dspy.Prediction) -> Prediction:
        """Return one of DSPy's predictions as ours."""
        if isinstance(plain, cls):
            return plain
        made = cls()
        made.__dict__.update(plain.__dict__)
        return made

    def extended(self, **fields: Any) -> Prediction:
        """Return a copy with ``fields`` added, or in the place of those of the same name.

        Those added come first: the last field stays the signature's own last, its answer.
        """
        own = dict(self.items())
        added = {name: value for name, value in fields.items() if name not in own}
        made = Prediction(**{**added, **own, **fields})
        made._fills, made._weighed = self._fills, self._weighed
        made._usage, made._trace, made._cut = self._usage, self._trace, self._cut
        return made


def request_of(call: Call) -> Request:
    """Return the engine's request for a complete call: the exact prompt, with its slots."""
    return Request(prompt_of(call).parts, call.seed or 0, continued=call.continued)


def prompt_of(call: Call) -> Prompt:
    """Return the prompt of a complete call, with where each part of it comes from."""
    return _prompted(call)[0]


def _prompted(call: Call) -> tuple[Prompt, list[dict[str, str]], Shown]:
    """Return the prompt, the same as messages, and what it shows of the call."""
    engine = call.lm.text_engine
    chosen = replace(call.decoding, layout=layout.layout_for(engine, call.decoding.layout))
    shown = Shown.of(call.signature, call.inputs, call.config)
    scaffold = Turns(engine.scaffold)
    prompt = layout.render(
        shown.signature, call.demos or (), shown.inputs, scaffold, chosen, shown.turns
    )
    return prompt, scaffold.messages(prompt.parts), shown


def answer(
    calls: Sequence[Call | Posted], on_done: Callable[[int], None] | None = None
) -> list[Any]:
    """Answer complete calls in one batch an engine; what failed is an error in its place.

    A program's request is answered by its completion. Where a validator of a type refuses a value,
    the call is made once more, from another seed.
    """
    return _with_second_tries(calls, _answered(calls, on_done))


def told(call: Call) -> Generator[tuple[Call, Delta], None, Prediction | PromptflowError]:
    """Answer one complete call, and yield its text while it is written, with the call.

    What is no engine's of ours is answered without. Closing the generator cancels the call.
    """
    engine = getattr(call.lm, "text_engine", None)
    if engine is None or not answers_by_engine(call.lm):
        [given] = answer([call])
        return cast(Prediction | PromptflowError, given)
    try:
        asked = _Asked.of(0, call)
    except PromptflowError as error:
        return error
    completion, heard = Completion(), asked.prompt.heard()
    try:
        with engine.stream(asked.request) as deltas:
            for delta in deltas:
                if delta.completion is not None:
                    completion = delta.completion
                for plain in heard(delta):
                    if plain.completion is None:
                        yield call, plain
    except BaseException as error:
        asked.told.ended(error)
        raise
    [given] = _with_second_tries([call], [asked.answered(completion)])
    return cast(Prediction | PromptflowError, given)


def _with_second_tries(calls: Sequence[Any], answers: list[Any]) -> list[Any]:
    refused = {n: error for n, error in enumerate(answers) if isinstance(error, ValueRefused)}
    again = _answered([_again(calls[n]) for n in refused], None) if refused else ()
    for (place, error), second in zip(refused.items(), again, strict=True):
        usage = usage_of_answer(second) + usage_of_answer(error)
        if isinstance(second, Prediction):
            second._usage = usage
        else:
            vars(second)["usage"] = usage
            second.args = (f"{second} (it was asked for twice)",)
        answers[place] = second
    return answers


def usage_of_answer(given: Prediction | Completion | PromptflowError) -> Usage:
    """Return the tokens of an answer, of a failed one too where they are known."""
    if isinstance(given, Completion):
        return given.usage
    return given._usage if isinstance(given, Prediction) else given.usage or Usage()


def _again(call: Call) -> Call:
    """Return a call from another seed, and sampled: a greedy one would write the same again."""
    sampling = call.decoding.sampling or Sampling()
    if sampling.temperature == 0:
        sampling = replace(sampling, temperature=AGAIN)
    decoding = replace(call.decoding, sampling=sampling, beam=None)
    return replace(call, seed=seed_of(call.seed, "again"), decoding=decoding, sampled=True)


def _answered(calls: Sequence[Call | Posted], on_done: Callable[[int], None] | None) -> list[Any]:
    answers: list[Any] = [None] * len(calls)
    batches: dict[int, tuple[TextEngine, list[_Asked | _Passed]]] = {}
    remote: dict[int, tuple[Call, Question]] = {}
    for place, call in enumerate(calls):
        if isinstance(call, Posted):
            passed = _Passed(place, call)
            batches.setdefault(id(call.engine), (call.engine, []))[1].append(passed)
            continue
        engine = getattr(call.lm, "text_engine", None)
        try:
            if engine is None or not answers_by_engine(call.lm):
                remote[place] = call, Question.of(call)
            else:
                asked = _Asked.of(place, call)
                batches.setdefault(id(engine), (engine, []))[1].append(asked)
            continue
        except PromptflowError as error:
            answers[place] = error
        if on_done is not None:
            on_done(place)
    for engine, batch in batches.values():
        heard = _heard(batch)
        completions = generate(engine, [asked.request for asked in batch], heard, on_done)
        _ask_lost(engine, batch, completions, heard)
        for item, completion in zip(batch, completions, strict=True):
            answers[item.place] = item.answered(completion)
    given = ask([question for _, question in remote.values()], on_done)
    for (place, (call, _)), one in zip(remote.items(), given, strict=True):
        answers[place] = _told(call, one)
    return answers


def _heard(batch: Sequence[_Asked | _Passed]) -> dict[int, Audience]:
    """Return who hears which of a batch, by place: of several tries nobody hears any."""
    loud = [
        (n, asked)
        for n, asked in enumerate(batch)
        if isinstance(asked, _Asked) and not asked.call.sampled
    ]
    if not loud:
        return {}
    asking = [(asked.call.predictor, asked.request, asked.prompt) for _, asked in loud]
    found = audiences(asking, loud[0][1].call.lm.model)
    return {loud[n][0]: audience for n, audience in found.items()}


def _ask_lost(
    engine: TextEngine, batch: Sequence[_Asked | _Passed], completions: list[Completion], heard: Any
) -> None:
    """Ask again what was lost with the engine's process, as often as the LM's ``num_retries``.

    Once all together; then each alone, so that one that kills the process takes no other with it.
    What somebody heard is not said again.
    """
    for attempt in range(max(asked.retries for asked in batch)):
        lost = [
            n
            for n, asked in enumerate(batch)
            if isinstance(completions[n].error, EngineLost)
            and n not in heard
            and attempt < asked.retries
        ]
        for places in [lost] if attempt == 0 else [[n] for n in lost]:
            again = engine.generate([batch[n].request for n in places]) if places else []
            for n, completion in zip(places, again, strict=True):
                completions[n] = completion


@dataclass(frozen=True, slots=True)
class _Passed:
    """A program's request on its way to the engine: the program reads the completion itself."""

    place: int
    posted: Posted
    retries: int = 0  # DSPy asks again

    @property
    def request(self) -> Request:
        """Return the request."""
        return self.posted.request

    def answered(self, completion: Completion) -> Completion:
        """Return the completion, with its error if it has one."""
        return completion


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call on its way to the engine, and what DSPy's callbacks were told of it."""

    place: int
    call: Call
    request: Request
    prompt: Prompt
    shown: Shown
    told: Told

    @classmethod
    def of(cls, place: int, call: Call) -> _Asked:
        """Make the prompt. Raises what the call may not ask for."""
        told = Told(call.predictor, call.lm, call.inputs)
        try:
            signature, demos, inputs = as_adapted(
                call.lm, call.signature, call.demos or (), call.inputs
            )
            step = told.formatting(signature, demos, inputs)
            try:
                prompt, messages, shown = _prompted(
                    replace(call, signature=signature, demos=demos, inputs=inputs)
                )
                request = Request(prompt.parts, call.seed or 0, continued=call.continued)
            except BaseException as error:
                step.end(exception=error)
                raise
            step.end(messages)
            told.asking(messages, _options(call, request))
        except BaseException as error:
            told.ended(error)
            raise
        return cls(place, call, request, prompt, shown, told)

    @property
    def retries(self) -> int:
        """Return how often it is asked again where the engine's process was lost."""
        return int(self.call.lm.num_retries)

    def answered(self, completion: Completion) -> Prediction | PromptflowError:
        """Return the prediction, or what went wrong."""
        result: Prediction | PromptflowError
        if completion.error is not None:
            result = as_dspys(completion.error, self.call.lm.model)
        else:
            result = self._read(completion)
        self.told.ended(result)
        return result

    def _read(self, completion: Completion) -> Prediction | PromptflowError:
        call, told = self.call, self.told
        usage = told.answered(self.request, completion)
        text = written_text(self.request, completion)
        step = told.parsing(call.signature, text)
        completion = self.prompt.plain(completion)
        try:
            values = self.shown.read(completion)
        except PromptflowError as error:
            failed = as_dspys(error, call.lm.model, call.signature, text)
            failed.usage = completion.usage
            step.end(exception=failed)
            return failed
        step.end(values)
        prediction: Prediction = Prediction.from_completions([values], signature=call.signature)
        prediction._fills = completion.fills
        prediction._weighed = {
            part.name: {
                a.text: math.exp(a.logprob) for a in completion.fills[part.name].alternatives
            }
            for part in self.request.parts
            if isinstance(part, Slot) and part.is_weighed
        }
        prediction._usage = completion.usage
        prediction.set_lm_usage(usage)
        trace_call(call.predictor, call.inputs, prediction)
        return prediction


def _options(call: Call, request: Request) -> dict[str, Any]:
    """Return what was asked of the model as the options of one of DSPy's calls."""
    chosen = call.decoding.to_json()
    return {**chosen.pop("sampling", {}), **chosen, "seed": request.seed}


def _told(call: Call, given: Answer | PromptflowError) -> Prediction | PromptflowError:
    """Return what a remote model answered as a prediction."""
    if isinstance(given, PromptflowError):
        return given
    values = dict(given.values)
    prediction: Prediction = Prediction.from_completions([values], signature=call.signature)
    prediction._fills, prediction._usage = given.fills, given.usage
    prediction.set_lm_usage(dict(given.lm_usage))
    trace_call(call.predictor, call.inputs, prediction)
    return prediction
