"""What cannot run is refused with the numbers that say why; mostly at submission."""

from __future__ import annotations

from collections.abc import Sequence

from promptflow.engine.model.protocol import Model
from promptflow.engine.model.tokenizer import Prompts
from promptflow.engine.request import Choice, Slot
from promptflow.errors import CapacityError, ContextOverflow, EngineError


def check_ids(model: Model, slots: Sequence[Slot]) -> None:
    """Raise EngineError for a token id that the model does not have."""
    for slot in slots:
        ids = [*slot.stop_tokens, *(token for token, _ in slot.sampling.logit_bias)]
        wrong = [token for token in ids if not 0 <= token < model.vocabulary]
        if wrong:
            raise EngineError(
                f"slot {slot.name!r} names token {wrong[0]}, but this model's tokens are 0 to "
                f"{model.vocabulary - 1:,}"
            )


def check_options(prompts: Prompts, slot: Slot) -> None:
    """Raise EngineError for a weighed choice that cannot hold each of its options."""
    if not isinstance(slot.constraint, Choice) or not slot.is_weighed:
        return
    for option in slot.constraint.options:
        size = len(prompts.continuation(slot.lead + option))
        if size > slot.max_tokens:
            raise EngineError(
                f"slot {slot.name!r} weighs the option {option[:60]!r} of {size:,} tokens, and has "
                f"room for {slot.max_tokens:,}: raise max_tokens, or shorten the prompt or option"
            )


def check_length(model: Model, prompt: int, room: int, fits: bool = False) -> None:
    """Raise ContextOverflow where ``prompt`` and ``room`` tokens are more than a sequence holds.

    ``fits`` tells that some slots would be content with less than their ``max_tokens``.
    """
    context = model.info.context
    over = prompt + room - context
    if over > 0:
        asks, lower = (
            ("needs at least", "least or max_tokens") if fits else ("asks for up to", "max_tokens")
        )
        raise ContextOverflow(
            f"the prompt has {prompt:,} tokens and {asks} {room:,} more: {over:,} over "
            f"the context of {context:,}. Shorten the prompt, lower {lower}, or load the "
            "model with EngineOptions(context=...), up to what it was trained for"
        )


def no_rest(slot: Slot, left: int, length: int, context: int) -> ContextOverflow:
    """Return the error of a slot to which the texts and slots before it have left too little."""
    return ContextOverflow(
        f"slot {slot.name!r} needs at least {slot.least:,} tokens, and {max(0, left):,} are left "
        f"of the context of {context:,} after {length:,}: lower max_tokens of the slots before it "
        "or its least, or load the model with EngineOptions(context=...)"
    )


def check_cells(model: Model, length: int, forks: int, fork_limit: int) -> None:
    """Raise CapacityError for a request that the cache could not hold even alone.

    ``forks`` sequences may add up to ``fork_limit`` tokens each to one of ``length``.
    """
    cells = length + forks * fork_limit
    if cells > model.cells:
        beam = f" for a beam of width {forks + 1}" if forks else ""
        raise CapacityError(
            f"the request may need {cells:,} cells{beam}, and the KV cache has {model.cells:,}: "
            "lower max_tokens or the width, or load the model with EngineOptions(context=...)"
        )
    if forks >= model.max_sequences:
        raise CapacityError(
            f"a beam of width {forks + 1} needs as many sequences, and this engine has "
            f"{model.max_sequences}: lower the width, or load with EngineOptions(max_running=...)"
        )


def no_room(model: Model, length: int) -> CapacityError:
    """Return the error of a request of up to ``length`` tokens that found no room while it ran."""
    return CapacityError(
        f"the KV cache of {model.cells:,} cells has no room for this request of up to {length:,} "
        "tokens: load the model with a larger EngineOptions(context=...)"
    )
