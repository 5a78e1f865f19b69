"""Named models: where each is on this machine, where it can be had, and whether it is the one.

A name stands for one sha256, whichever source served it. A path to any GGUF file, or to a
sentence-transformers folder, is accepted wherever a name is, and so are names on the Hugging Face
hub and of models that other programs have here: see ``locate``.
"""

from promptflow.catalog.entries import Model, models, user_file
from promptflow.catalog.found import Found, found, looked_in, scheme_of
from promptflow.catalog.hashing import model_sha256
from promptflow.catalog.local import Listed, listing, locate, title, verify
from promptflow.catalog.sources import fetch, obtain
from promptflow.gguf import check_gguf, read_gguf

__all__ = [
    "Found",
    "Listed",
    "Model",
    "check_gguf",
    "fetch",
    "found",
    "listing",
    "locate",
    "looked_in",
    "model_sha256",
    "models",
    "obtain",
    "read_gguf",
    "scheme_of",
    "title",
    "user_file",
    "verify",
]
