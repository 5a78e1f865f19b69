"""Programs on disk: a folder with ``program.toml`` and one signature document for each predictor.

``program.toml`` names the modules, their settings, and the lock: what the program was made for
(model, chat template, index, data). The folder is text that a person can read and edit; nothing in
it is code, and no name in it is imported. Modules that promptflow does not know load ``into`` one.
"""

from promptflow.program.folder import lock_of, save_program
from promptflow.program.load import load_program
from promptflow.program.resolve import find_code, resolve_program

__all__ = ["find_code", "load_program", "lock_of", "resolve_program", "save_program"]
