"""Named models: where each is on this machine, where it can be had, and whether it is the one.

A name stands for one sha256, whichever source served it. A path to any GGUF file, or to a
sentence-transformers folder, is accepted wherever a name is.
"""

from promptflow.catalog.entries import Model, models, user_file
from promptflow.catalog.local import Listed, listing, locate, verify
from promptflow.catalog.sources import fetch
from promptflow.gguf import check_gguf, read_gguf
from promptflow.storage import sha256_cached

__all__ = [
    "Listed",
    "Model",
    "check_gguf",
    "fetch",
    "listing",
    "locate",
    "models",
    "read_gguf",
    "sha256_cached",
    "user_file",
    "verify",
]
