"""Which files of a folder or repository are models, and which of them a person means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from promptflow.errors import ModelInvalid, ModelNotFound
from promptflow.gguf import Gguf, parts_of, stem_of

SHOWN = 30
BESIDE = re.compile(
    r"(^|[^a-z0-9])(mmproj|imatrix|loras?|adapters?|vocab|cvector|control[-_]vector)([^a-z0-9]|$)",
    re.IGNORECASE,
)
"""In the names of GGUF files that are no models themselves."""
QUANT = re.compile(
    r"(?<![A-Za-z0-9])((?:UD[-_])?(?:I?Q[1-9]|TQ[1-9]|MXFP[48]|NVFP4|BF16|FP?16|FP?32)"
    r"(?:_(?:MOE|K|KS|KSS|KT|KL|S|M|L|P|NL|XS|XXS|XL|XXL|[0-9]+|R[0-9]+))*)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""Names of ``general.file_type``."""
OTHER_KINDS = {
    "adapter": "an adapter (LoRA), not a model: merge it into its model first",
    "mmproj": "a projector of pictures or sounds, not a language model",
    "projector": "a projector of pictures or sounds, not a language model",
    "imatrix": "an importance matrix for quantizing, not a model",
    "control_vector": "a control vector, not a model",
    "clip": "a projector of pictures or sounds, not a language model",
}
"""What a GGUF file is by its ``general.type`` or architecture, where it is no model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model among files: the first of its ``parts``, those that are ``missing``, its bytes."""

    file: str
    parts: tuple[str, ...]
    missing: tuple[str, ...]
    size: int | None
    quant: str


def is_model_path(text: str) -> bool:
    """Whether ``text`` is the relative path of a GGUF file, on any system, none of it hidden."""
    parts = text.split("/")
    return text.lower().endswith(".gguf") and all(
        part == part.strip()
        and part.isprintable()
        and not part.startswith((".", "-", "~"))
        and not set(part) & set('\\:@*?"<>|')
        and part
        for part in parts
    )


def part_files(file: str) -> tuple[str, ...]:
    """Return what ``gguf.parts_of`` does as relative paths; the file alone for part 3 of 2."""
    try:
        return tuple(part.as_posix() for part in parts_of(file))
    except ModelInvalid:
        return (file,)


def quant_of(file: str) -> str:
    """Return the quantization that a file's name tells, or its folder's; empty if none does."""
    for name in reversed(PurePosixPath(file).with_suffix("").parts):
        if found := QUANT.findall(name):
            return str(found[-1]).upper()
    return ""


def kind_problem(header: Gguf) -> str:
    """Say what else than a model a GGUF file is; empty for a model."""
    kind = str(header.metadata.get("general.type", "model")).lower()
    return OTHER_KINDS.get(kind) or OTHER_KINDS.get(header.architecture.lower(), "")


def candidates(files: Mapping[str, int | None], *, beside: bool = False) -> list[Candidate]:
    """Return the models among ``files`` (bytes by path), in parts or whole.

    ``beside`` takes projectors, adapters and the like too.
    """
    found: dict[str, Candidate] = {}
    for file in sorted(files):
        first, *rest = parts = part_files(file)
        if first in found or not is_model_path(file):
            continue
        if not beside and BESIDE.search(PurePosixPath(file).name):
            continue
        sizes = [files[part] for part in parts if part in files]
        known = [size for size in sizes if size is not None]
        found[first] = Candidate(
            first,
            (first, *rest),
            tuple(part for part in parts if part not in files),
            sum(known) if len(known) == len(parts) else None,
            quant_of(first),
        )
    return list(found.values())


def choose(found: Sequence[Candidate], quant: str, place: str, revision: str = "") -> Candidate:
    """Return the one that ``quant`` names, or the only one where it is empty.

    ``place`` is what stands before a quantization, as in ``hf:org/repo``, and ``revision`` what
    stands last. Raises ModelNotFound with the names that can be typed.
    """
    if not found:
        raise ModelNotFound(
            f"{place}{revision} holds no GGUF file of a model. Look for a repository or folder "
            "that does: their names often end in -GGUF."
        )
    chosen = list(found) if not quant else _matching(found, quant)
    if len(chosen) == 1:
        return chosen[0]
    # A quantization is told only where all files of the place leave no other for it.
    by_file = dict(zip((one.file for one in found), names_of(found, place, revision), strict=True))
    names = listed(
        by_file[one.file] + ("" if one.size is None else f" ({one.size / 1e6:,.0f} MB)")
        for one in chosen or found
    )
    where = place + revision
    if chosen and quant:
        raise ModelNotFound(f"{where} has {len(chosen)} files of {quant}; name one: {names}")
    if chosen:
        raise ModelNotFound(f"{where} has {len(chosen)} models; name one: {names}")
    raise ModelNotFound(f"{where} has no {quant}; it has {names}")


def _matching(found: Sequence[Candidate], quant: str) -> list[Candidate]:
    wanted = _folded(quant)
    for same in (
        lambda one: _folded(one.quant) == wanted,
        lambda one: _folded(one.quant).removeprefix("ud_") == wanted,
        lambda one: re.search(rf"(^|[^a-z0-9]){re.escape(wanted)}$", _folded(stem_of(one.file))),
    ):
        if chosen := [one for one in found if same(one)]:
            return chosen
    return []


def _folded(text: str) -> str:
    return re.sub(r"fp(16|32)", r"f\1", text.casefold()).replace("-", "_")


def names_of(found: Sequence[Candidate], place: str, revision: str = "") -> list[str]:
    """Return what can be typed for each, by quantization where that tells them apart."""
    quants = [_folded(one.quant) for one in found]
    names = []
    for one, quant in zip(found, quants, strict=True):
        alone = quant and quants.count(quant) == 1
        name = f"{place}:{one.quant}" if alone else f"{place}/{one.file}"
        names.append(name + revision)
    return names


def listed(names: Iterable[str]) -> str:
    """Return names for people, the first of very many."""
    every = list(names)
    more = f", and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
