"""Outputs whose options depend on the inputs, such as the legal steps of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from promptflow.fields import Confined


def confined(signature: Any, field: str, options: Sequence[str]) -> Any:
    """Return ``signature`` with the text output ``field`` confined to ``options``, verbatim.

    For one call: ``predict.call(signature=confined(...), ...)``. The options decide which tokens
    are allowed and are not shown in the prompt, so calls with other options share its prefix.
    """
    return signature.with_updated_fields(field, type_=Annotated[str, Confined(tuple(options))])
