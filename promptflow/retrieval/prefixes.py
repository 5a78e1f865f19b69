"""What an embedder reads: the prefixes that it was trained with, and how long a text counts."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

from promptflow.retrieval.bert import read_json_file
from promptflow.storage import read_text, toml_loads

Prefixes = tuple[str, str]
"""What is put before a query, and before a passage."""
WIDEST = 12
"""Characters that one token may stand for: word pieces call a long run of letters one unknown."""
FAMILIES = Path(__file__).with_name("prefixes.toml")
PROMPTS = ("query",), ("document", "passage", "corpus")
"""Names of the prefixes in config_sentence_transformers.json, the usual ones first."""


def least_tokens(text: str) -> int:
    """Return the fewest tokens that ``text`` counts as, whatever a vocabulary makes of it."""
    return math.ceil(len(text) / WIDEST)


def own_prefixes(folder: Path, name: str) -> Prefixes:
    """Return the prefixes that a model states itself, else those its publisher says, else none."""
    stated = read_json_file(folder / "config_sentence_transformers.json").get("prompts") or {}
    found = [next((str(stated[key]) for key in keys if stated.get(key)), "") for keys in PROMPTS]
    if any(found):
        return found[0], found[1]
    built_from = str(read_json_file(folder / "config.json").get("_name_or_path", ""))
    # A snapshot of the hub's cache lies two folders below the repository's.
    names = (name, built_from, folder.name, *(path.name for path in folder.parents[1:2]))
    return next((prefixes for one in names if (prefixes := family_prefixes(one))), ("", ""))


def family_prefixes(name: str) -> Prefixes | None:
    """Return the prefixes of the family that a model's name belongs to."""
    found = (prefixes for pattern, prefixes in _families() if re.search(pattern, name))
    return next(found, None)


@cache
def _families() -> tuple[tuple[str, Prefixes], ...]:
    """Return the pattern of each family's names, and its prefixes."""
    families = toml_loads(read_text(FAMILIES))["families"]
    return tuple((one["pattern"], (one["query"], one["passage"])) for one in families)
