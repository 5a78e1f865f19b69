"""Programs from their folders, built from a registry of modules: no name in a file is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from promptflow import modules
from promptflow.errors import ProgramError, StoreCorrupt, names_options
from promptflow.layout import Decoding
from promptflow.modules.judge import PairJudge
from promptflow.program.classes import find_classes
from promptflow.program.folder import FILE, Saved, lock_of, own_settings, read_folder
from promptflow.program.walk import ITSELF, join, predictors_of
from promptflow.signatures import read_document
from promptflow.storage import canonical


@dataclass(frozen=True, slots=True)
class Kind:
    """How a known module is built: which attributes are modules that its constructor takes.

    Those of ``optional`` may be missing. ``signature`` names the predictor whose document is the
    constructor's ``signature``.
    """

    cls: Callable[..., Any]
    parts: tuple[str, ...] = ()
    signature: str = ""
    optional: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "Predict": Kind(modules.Predict, signature=ITSELF),
    "ChainOfThought": Kind(modules.ChainOfThought, signature="predict"),
    "ZeroShotCoT": Kind(modules.ZeroShotCoT, signature="reason"),
    "SelfConsistency": Kind(modules.SelfConsistency, parts=("module",)),
    "BestOf": Kind(modules.BestOf, parts=("module",)),
    "Refine": Kind(modules.Refine, parts=("module",)),
    "MultiChainComparison": Kind(modules.MultiChainComparison, signature="chain.predict"),
    "LeastToMost": Kind(modules.LeastToMost, signature="predict"),
    "SelfAsk": Kind(modules.SelfAsk, signature="predict"),
    "StepBack": Kind(modules.StepBack, signature="predict"),
    "TreeOfThoughts": Kind(modules.TreeOfThoughts, parts=("propose", "value"), optional=("goal",)),
    "Judge": Kind(modules.Judge, signature="score"),
    "PairJudge": Kind(PairJudge, signature="compare"),
    "GroundedQA": Kind(modules.GroundedQA, signature="answer"),
    "Agent": Kind(modules.Agent, signature="step"),
}


@names_options
def load_program(
    folder: str | Path,
    *,
    into: Any = None,
    types: Mapping[str, Any] | None = None,
    force: bool = False,
    lm: Any = None,
) -> Any:
    """Return the program that ``save_program`` wrote; ``into`` is a fresh module of its class.

    Without ``into``, the classes must be promptflow's own. ``types`` are the user's classes that
    fields have, by name; else they are taken from ``into`` or from modules that are imported:
    loading imports none. The lock is compared with ``lm`` or the
    configured LM, if there is one, and with the indexes; what differs raises ProgramError with both
    sides, unless ``force``. Raises StoreNotFound and StoreCorrupt.
    """
    folder = Path(folder)
    saved = read_folder(folder)
    classes = find_classes(folder, saved.types, into, types or {}, force)
    program = _built(folder, saved, classes) if into is None else into
    _check_class(folder, saved, program)
    _restore(folder, saved, classes, program)
    if not force:
        now = {**lock_of(program, lm), "settings": own_settings(program)}
        _compare(folder, {**saved.lock, "settings": saved.settings}, now)
    return program


def _built(folder: Path, saved: Saved, classes: Mapping[str, Any], name: str = "") -> Any:
    """Build the module at the path ``name``, and what it holds, from the registry alone."""
    entry: dict[str, Any] = {"module": saved.module, "settings": saved.settings}
    if name:
        entry = saved.parts[name]
    wanted, settings = entry["module"], dict(entry.get("settings", {}))
    kind = KINDS.get(wanted)
    if kind is None:
        raise ProgramError(
            f"{folder}: {wanted} is no module of promptflow's own ({', '.join(KINDS)}); "
            f"load it with load_program({str(folder)!r}, into={wanted}(...))"
        )
    code = {key: value for key, value in settings.items() if _is_code(value)}
    if code:
        raise ProgramError(
            f"{folder}: {wanted} was made with code ({', '.join(map(str, code))}), which is not "
            f"saved; load it with load_program({str(folder)!r}, into={wanted}(...))"
        )
    try:
        there = [part for part in kind.optional if join(name, part) in saved.parts]
        parts = (*kind.parts, *there)
        given = {part: _built(folder, saved, classes, join(name, part)) for part in parts}
        if kind.signature:
            path = join(name, "" if kind.signature == ITSELF else kind.signature) or ITSELF
            file = folder / saved.predictors[path]["file"]
            given["signature"] = read_document(file, types=classes).signature
        return kind.cls(**given, **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(
            f"{folder / FILE}: {wanted} cannot be built from it "
            f"({type(error).__name__}: {error}); save the program again"
        ) from error


def _check_class(folder: Path, saved: Saved, program: Any) -> None:
    if type(program).__name__ != saved.module:
        raise ProgramError(
            f"{folder}: saved from a {saved.module}, loaded into a {type(program).__name__}; "
            f"pass into={saved.module}(...)"
        )
    has, holds = set(dict(predictors_of(program))), set(saved.predictors)
    if has != holds:
        raise ProgramError(
            f"{folder}: the saved predictors are {sorted(holds)}, those of the program "
            f"{sorted(has)}; build the program as it was when it was saved"
        )


def _restore(folder: Path, saved: Saved, classes: Mapping[str, Any], program: Any) -> None:
    """Give every predictor the document and the settings that were saved for it."""
    documents = {}
    for name, predictor in predictors_of(program):
        document = read_document(folder / saved.predictors[name]["file"], types=classes)
        sides = [
            (list(s.input_fields), list(s.output_fields))
            for s in (predictor.signature, document.signature)
        ]
        if [set(side) for side in sides[0]] != [set(side) for side in sides[1]]:
            raise ProgramError(
                f"{document.path}: has the fields {sides[1]}, the program's predictor {name} has "
                f"{sides[0]}; fields are matched by name"
            )
        documents[name] = document
    for name, predictor in predictors_of(program):
        document, settings = documents[name], dict(saved.predictors[name].get("settings", {}))
        chooser = settings.pop("chooser", None)
        if chooser is not None and getattr(predictor, "chooser", None) is None:
            raise ProgramError(
                f"{folder}: the demos of {name} are chosen from a pool by {chooser['code']}, which "
                f"is not saved; load it with load_program({str(folder)!r}, into=...)"
            )
        predictor.signature = document.signature
        predictor.demos = [dspy.Example(**demo) for demo in document.demos]
        if document.compiled:
            predictor.compiled = dict(document.compiled)
        predictor.config = dict(settings.get("config", {}))
        if hasattr(predictor, "decoding"):
            saved_decoding = {"layout": document.layout or None, **settings}
            predictor.decoding = _decoding(folder / FILE, saved_decoding)


_KINDS = {"max_tokens": int, "reasoning_tokens": int, "logprobs": int, "until": str, "layout": str}


def _decoding(path: Path, settings: Mapping[str, Any]) -> Decoding:
    try:
        made = Decoding.from_json({k: v for k, v in settings.items() if k != "config"})
        for name, kind in _KINDS.items():
            if (value := getattr(made, name)) is not None and type(value) is not kind:
                raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
        if min(made.max_tokens or 1, made.reasoning_tokens or 1) < 1:
            raise ValueError("max_tokens and reasoning_tokens are 1 or more")
        return made
    except (TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupt(
            f"{path}: settings that no predictor has ({error}); save the program again"
        ) from error


def _compare(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ProgramError with both sides of what is known on both and differs."""
    differing = [
        f"  {key}: saved with {saved[key]}, now {now[key]}"
        for key in saved
        if key in now and canonical(saved[key]) != canonical(now[key])
    ]
    if differing:
        raise ProgramError(
            f"{folder}: the program was saved for something else:\n" + "\n".join(differing) + "\n"
            f"Configure what it was saved for, or load_program({str(folder)!r}, force=True), "
            "which is --force on the command line."
        )


def _is_code(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"code"}
