"""Models that are not ours: any ``dspy.LM``, asked through DSPy's own adapter for it.

Every call is one of DSPy's with a rollout of its own, so that its cache cannot give one answer for
several samples, and calls run side by side. What DSPy cannot pass on is refused by name.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import dspy
from dspy.clients.backend_selection import CLIENT_KEYS
from dspy.clients.engines.lm15_engine import LITELLM_PROVIDER_PREFIXES
from dspy.lm15 import registered_providers
from dspy.utils import DummyLM, exceptions as theirs
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from promptflow.engine.request import Fill, Sampling, TokenLogprob, Usage
from promptflow.errors import (
    ContextOverflow,
    EngineError,
    EngineLost,
    ParseError,
    PromptflowError,
    UnknownOption,
    UnsupportedOption,
    UnsupportedType,
)
from promptflow.layout import data_note, needs_note
from promptflow.lm.callbacks import Step, inside
from promptflow.lm.faults import as_dspys, as_ours
from promptflow.lm.options import KNOWN, REFUSED
from promptflow.lm.record import Seen, finish_of, part_of, seed_of, usage_of
from promptflow.marks import data_of, has_data, marked_inputs
from promptflow.notation import Quote

WHOLE = ""
"""The name under which a remote model's answer is one fill: it writes no field apart."""

_PASSED = (
    *CLIENT_KEYS,
    "allowed_openai_params",
    "drop_params",
    "extra_body",
    "modalities",
    "num_retries",
    "organization",
    "project",
    "stream_options",
)
"""What DSPy passes to a provider, beside the options that our own models have a word for."""

_ALONE = ("until", "weigh", "beam", "layout", "reasoning_tokens", "thinking")
"""What only a model that fills slots can do."""

_CHECKED = (
    *(f.name for f in fields(Sampling) if f.name not in ("temperature", "top_p")),
    "logprobs",
    "seed",
    "stop",
)
"""Options that not every provider takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a remote model answered: values, the whole text as a fill, and what it cost."""

    values: Mapping[str, Any]
    fills: Mapping[str, Fill] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    lm_usage: Mapping[str, Any] = field(default_factory=dict)


def check_options(where: str, options: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raise UnknownOption for options that no model has; ``others`` are known too.

    What a model knows and cannot honour, it refuses when it is asked.
    """
    known = {*KNOWN, *REFUSED, *_PASSED, *others}
    if unknown := [name for name in options if name not in known]:
        raise UnknownOption.of(where, unknown, known)


def provider_of(model: str | Path) -> str:
    """Return the provider of a name like ``openai/gpt-4o-mini``; empty for all other names.

    A file or folder of that name comes first.
    """
    text = str(model)
    head, _, rest = text.partition("/")
    if isinstance(model, Path) or not head or not rest or rest.endswith(".gguf"):
        return ""
    if Path(text).expanduser().exists():
        return ""
    declared = {name for provider in registered_providers() for name in provider.spellings}
    if head in LITELLM_PROVIDER_PREFIXES or head in declared or head in _litellms():
        return head
    return ""


def _litellms() -> Iterable[str]:
    # Else it fetches a list of prices over the network when it is imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError:
        return ()
    return {getattr(provider, "value", provider) for provider in litellm.provider_list}


def remote_options(call: Any) -> dict[str, Any]:
    """Return the options of a flow's complete call as DSPy takes them.

    The call's seed becomes the rollout where it is not greedy. Raises UnsupportedOption for what
    cannot be passed on.
    """
    lm, decoding, seed = call.lm, call.decoding, call.seed
    tokens = decoding.max_tokens
    alone = [name for name in _ALONE if getattr(decoding, name) is not None]
    if decoding.reasoning_tokens == tokens:
        alone = [name for name in alone if name != "reasoning_tokens"]
    if decoding.thinking == "auto":
        alone.remove("thinking")
    if alone:
        raise UnsupportedOption(
            f"{lm.model}: a remote model cannot honour {', '.join(alone)}; leave it out, or use a "
            "local model"
        )
    defaults = getattr(lm, "kwargs", {})
    asked = dict(getattr(call.predictor, "config", {}))
    asked |= _sampled(decoding.sampling)
    asked |= {"max_tokens": tokens} if tokens else {}
    asked |= {"stop": list(decoding.stop)} if decoding.stop else {}
    if decoding.logprobs is not None:
        asked |= {"logprobs": True, "top_logprobs": decoding.logprobs or None}
    asked |= call.config
    check_options(lm.model, asked)
    given = {name: value for name, value in asked.items() if value is not None and name != "n"}
    chosen = {**defaults, **given}
    if (defaults.get("n") or 1) > 1:
        given["n"] = 1  # several samples are calls of their own
    if call.sampled and chosen.get("seed") is not None:
        given["seed"] = seed % 2**31  # one for all would be one answer for all
    if chosen.get("temperature") != 0:
        given["rollout_id"] = seed
    _check_supported(lm, given)
    return given


def _sampled(sampling: Sampling | None) -> dict[str, Any]:
    """Return a sampling as DSPy's options, the temperature in any case."""
    if sampling is None:
        return {}
    plain = Sampling()
    found = {f.name: getattr(sampling, f.name) for f in fields(sampling)}
    found = {name: value for name, value in found.items() if value != getattr(plain, name)}
    if "logit_bias" in found:
        found["logit_bias"] = {str(token): bias for token, bias in found["logit_bias"]}
    return {"temperature": sampling.temperature, **found}


def _check_supported(lm: Any, given: Mapping[str, Any]) -> None:
    wanted = [name for name in _CHECKED if given.get(name) is not None]
    if not wanted:
        return
    supported = getattr(lm, "supported_params", ())
    missing = [name for name in wanted if name not in supported]
    if supported and missing:
        raise UnsupportedOption(
            f"{lm.model} does not take {', '.join(missing)}; it takes "
            f"{', '.join(sorted(supported))}"
        )


@dataclass(frozen=True, slots=True)
class Question:
    """One call of a remote model, as DSPy's adapter takes it; made before any is asked."""

    lm: Any
    predictor: Any
    signature: Any
    demos: Sequence[Any]
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    heard: bool

    @classmethod
    def of(cls, call: Any) -> Question:
        """Make it of a flow's call. Raises UnsupportedOption and UnsupportedType."""
        for name, info in call.signature.output_fields.items():
            if any(isinstance(item, Quote) for item in info.metadata):
                raise UnsupportedType(
                    f"output {name!r}: {call.lm.model} cannot be held to a Quote, a verbatim span "
                    "of an input; use a local model, or str"
                )
        try:
            options = remote_options(call)
        except theirs.LMError as error:
            raise fault_of(error, call.lm.model) from error
        signature = call.signature
        for name in [name for name in signature.output_fields if name in call.inputs]:
            # Outputs that the program gives are told to the model, and not asked for.
            info = signature.output_fields[name]
            given = dspy.InputField(desc=info.json_schema_extra.get("desc"))
            signature = signature.delete(name).append(name, given, info.annotation)
        inputs: Mapping[str, Any] = call.inputs
        if has_data(call.signature):
            inputs = marked_inputs(call.signature, inputs)
            if needs_note(signature):
                signature = signature.append_instructions(data_note())
            for name, info in call.signature.input_fields.items():
                if data_of(info) is not None:
                    signature = signature.with_updated_fields(name, type_=str)
        return cls(
            call.lm,
            call.predictor,
            signature,
            list(call.demos or ()),
            inputs,
            options,
            dspy.settings.send_stream is not None and not call.sampled,
        )

    def ask(self) -> Answer | PromptflowError:
        """Return the answer, or what went wrong, with the tokens that it cost."""
        callers = list(dspy.settings.caller_modules or [])
        if callers and callers[-1] is self.predictor:
            return self._asked(callers)
        step = Step("module", self.predictor, {"kwargs": dict(self.inputs)})
        with inside(step):
            answer = self._asked([*callers, self.predictor])
        if isinstance(answer, PromptflowError):
            step.end(exception=answer)
        else:
            step.end(answer.values)
        return answer

    def _asked(self, callers: Sequence[Any]) -> Answer | PromptflowError:
        seen = Seen()
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        context = {"caller_modules": [*callers, seen], **self._stream()}
        with dspy.context(**context), dspy.track_usage() as tracker:
            try:
                [values, *_] = adapter(
                    self.lm,
                    lm_kwargs=dict(self.options),
                    signature=self.signature,
                    demos=list(self.demos),
                    inputs=dict(self.inputs),
                )
                values = self._held(values)
            except PromptflowError as error:
                failed = error
            except Exception as error:
                failed = fault_of(error, self.lm.model, self.signature)
                if isinstance(failed, ParseError) and seen.is_void:
                    failed = EngineError(f"{self.lm.model}: the response holds no text, no tokens")
                failed.__cause__ = error
            else:
                usage, total = usage_of(tracker), tracker.get_total_tokens()
                return Answer(values, _fills(seen), usage, total)
        failed.usage = usage_of(tracker)
        return failed

    def _stream(self) -> dict[str, Any]:
        listeners = dspy.settings.stream_listeners or []
        mine = not listeners or any(one.predict is self.predictor for one in listeners)
        return {"caller_predict": self.predictor} if self.heard and mine else {"send_stream": None}

    def _held(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values that keep the limits of their types, which DSPy's adapters do not read."""
        held = {}
        for name, info in self.signature.output_fields.items():
            value = values.get(name)
            if info.metadata:
                try:
                    kind: Any = Annotated[(info.annotation, *info.metadata)]
                    value = TypeAdapter(kind).validate_python(value)
                except PydanticSchemaGenerationError:
                    pass  # a type of DSPy's own
                except ValidationError as error:
                    why = error.errors()[0]["msg"]
                    text = f"output {name!r}: {value!r:.80} does not fit its type: {why}"
                    failed = ParseError(text)
                    raise as_dspys(failed, self.lm.model, self.signature, repr(value)) from error
            held[name] = value
        return held


def _fills(seen: Seen) -> dict[str, Fill]:
    """Return the last answer as a fill; nothing where DSPy keeps no history."""
    if not seen.history:
        return {}
    entry = seen.history[-1]
    output = entry["outputs"][0] if entry["outputs"] else ""
    text = output.get("text") if isinstance(output, Mapping) else output
    tokens = _tokens(output.get("logprobs") if isinstance(output, Mapping) else None)
    usage = entry.get("usage") or {}
    return {
        WHOLE: Fill(
            text or "",
            "length" if finish_of(entry["response"]) == "length" else "stop",
            generated=len(tokens) or usage.get("completion_tokens") or 0,
            logprob=sum(token.logprob for token in tokens),
            logprobs=tokens,
        )
    }


def _tokens(logprobs: Any) -> tuple[TokenLogprob, ...]:
    found = logprobs if isinstance(logprobs, list | tuple) else part_of(logprobs, "content")
    return tuple(
        TokenLogprob(
            str(part_of(one, "token")),
            -1,
            float(part_of(one, "logprob")),
            tuple(
                (str(part_of(t, "token")), float(part_of(t, "logprob")))
                for t in part_of(one, "top_logprobs") or part_of(one, "top") or ()
            ),
        )
        for one in found or ()
    )


def fault_of(error: Exception, model: str, signature: Any = None) -> PromptflowError:
    """Return our error for one of DSPy's, which it is as well."""
    said = f"{model}: {type(error).__name__}: {error}"
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[PromptflowError]], ...]
    kinds = (
        (theirs.AdapterParseError, ParseError),
        (theirs.ContextWindowExceededError, ContextOverflow),
        (theirs.LMUnsupportedFeatureError, UnsupportedOption),
        ((theirs.LMTransportError, theirs.LMServerError, theirs.LMTimeoutError), EngineLost),
    )
    ours = next((ours for kind, ours in kinds if isinstance(error, kind)), EngineError)
    made = ours(said)
    return as_ours(error, made) if isinstance(error, theirs.DSPyError) else made


def ask(
    questions: Sequence[Question], on_done: Callable[[int], None] | None = None
) -> list[Answer | PromptflowError]:
    """Ask all, side by side in DSPy's ``num_threads`` (8), and return the answers in order.

    What is streamed is asked in this thread, one after the other, and so is a ``DummyLM``, whose
    answers come in the order of its calls.
    """
    answers: list[Any] = [None] * len(questions)
    heard = [n for n, one in enumerate(questions) if one.heard or isinstance(one.lm, DummyLM)]
    rest = [place for place in range(len(questions)) if place not in set(heard)]
    pool = ThreadPoolExecutor(max_workers=max(1, min(dspy.settings.num_threads or 1, len(rest))))
    try:
        waiting: dict[Future[Any], int] = {
            pool.submit(contextvars.copy_context().run, questions[place].ask): place
            for place in rest
        }
        for place in heard:
            answers[place] = questions[place].ask()
            if on_done is not None:
                on_done(place)
        for future in as_completed(waiting):
            answers[waiting[future]] = future.result()
            if on_done is not None:
                on_done(waiting[future])
    finally:
        pool.shutdown(cancel_futures=True)
    return answers


def seeded_option(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the ``seed`` of sample ``number`` where one is chosen: equal ones give equal text."""
    chosen = options.get("seed")
    return {} if chosen is None else {"seed": seed_of(chosen, number) % 2**31}
