"""Programs on disk: a folder with ``program.toml`` and one signature document for each predictor.

``program.toml`` names the modules, their settings, and the lock: what the program was made for
(model, chat template, index, data). The folder is text that a person can read and edit; nothing in
it is code, and no name in it is imported. Modules that promptflow does not know load ``into`` one;
classes of fields are given, or found in modules that are imported already.
"""

from promptflow.program.folder import check_savable, lock_of, save_program
from promptflow.program.load import load_program
from promptflow.program.resolve import (
    decode,
    find_code,
    import_code,
    is_folder,
    lay_out,
    resolve_program,
    several,
    think,
)
from promptflow.program.technique import with_technique

__all__ = [
    "check_savable",
    "decode",
    "find_code",
    "import_code",
    "is_folder",
    "lay_out",
    "load_program",
    "lock_of",
    "resolve_program",
    "save_program",
    "several",
    "think",
    "with_technique",
]
