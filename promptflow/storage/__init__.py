"""Everything that is written to disk: atomic files, SQLite journal and cache, hashes, locks.

No other package opens a file for writing. A reader sees the previous content of a file or the new
one, never a part; what a journal has accepted survives the death of the process.
``PROMPTFLOW_KILL_AT=n`` kills this process with SIGKILL at its n-th storage operation (for tests).
"""

from promptflow.storage.database import Cache, Journal, connect, sqlite_errors
from promptflow.storage.documents import bundled_folder, document_names, find_document
from promptflow.storage.files import (
    appending,
    cache_dir,
    canonical,
    config_dir,
    free_bytes,
    link,
    lock,
    move,
    operation,
    read_json,
    read_text,
    remove_file,
    remove_folder,
    replace_folder,
    scratch_folder,
    sha256_bytes,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from promptflow.storage.hashes import recall_sha256, remember_sha256, sha256_cached
from promptflow.storage.toml import toml_dumps, toml_loads

__all__ = [
    "Cache",
    "Journal",
    "appending",
    "bundled_folder",
    "cache_dir",
    "canonical",
    "config_dir",
    "connect",
    "document_names",
    "find_document",
    "free_bytes",
    "link",
    "lock",
    "move",
    "operation",
    "read_json",
    "read_text",
    "recall_sha256",
    "remember_sha256",
    "remove_file",
    "remove_folder",
    "replace_folder",
    "scratch_folder",
    "sha256_bytes",
    "sha256_cached",
    "sha256_of",
    "sqlite_errors",
    "toml_dumps",
    "toml_loads",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]
