"""Models that other programs have put on this machine: where they lie and what they are called.

The Hugging Face cache, Ollama, LM Studio and llama.cpp. All of it is read, nothing is written.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from promptflow import storage
from promptflow.catalog.candidates import (
    FILE_TYPES,
    Candidate,
    candidates,
    choose,
    is_model_path,
    kind_problem,
    listed,
)
from promptflow.catalog.hashing import Hash, known_sha256
from promptflow.catalog.hub import MAIN, PREFIX, hub_name, locate_hub
from promptflow.download import hub_cache, is_plain_path, is_repository
from promptflow.errors import HashMismatch, ModelInvalid, ModelNotFound
from promptflow.gguf import Gguf, parts_of, read_gguf

OLLAMA, LM_STUDIO, LLAMA_CPP = "ollama:", "lmstudio:", "llama.cpp:"
SCHEMES = (PREFIX, OLLAMA, LM_STUDIO, LLAMA_CPP)
REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
PIECE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]*")
PARTIAL = (".part", ".incomplete", ".downloadinprogress", ".partial", ".tmp", ".crdownload")
LAYER = "application/vnd.ollama.image."
ENCODERS = ("bert", "t5encoder", "gemma-embedding", "eurobert")
DIFFUSION = ("dream", "llada", "rnd1", "diffusion")


@dataclass(frozen=True, slots=True)
class Found:
    """A GGUF file of another program: the ``name`` to type, and what its header says.

    ``use`` is "chat", "completion" (no chat template), or what else than a model of text it is;
    ``usable`` says whether it can be named as a model, ``problem`` what is wrong with the file.
    ``size`` counts the bytes of all parts.
    """

    name: str
    program: str
    path: str
    size: int
    architecture: str = ""
    quantization: str = ""
    use: str = ""
    usable: bool = False
    problem: str = ""


def scheme_of(name: object) -> str:
    """Return the scheme of a name such as ``hf:org/repo``, with its colon; empty if it has none."""
    if not isinstance(name, str):
        return ""
    return next((scheme for scheme in SCHEMES if name.startswith(scheme)), "")


def locate_found(name: str, sha256: Hash | None = None) -> Path:
    """Return the file of a name with a scheme, a model's first part; asks no network.

    ``sha256`` gives the hash of a file, where it is not the one that is known already.
    Raises ModelNotFound with the nearest names, ModelInvalid, and HashMismatch.
    """
    scheme = scheme_of(name)
    if scheme == PREFIX:
        return locate_hub(hub_name(name), sha256)
    if scheme == OLLAMA:
        return _ollama_model(name, sha256)
    roots = lm_studio_folders() if scheme == LM_STUDIO else llama_cpp_folders()
    return _in_folders(name, scheme, roots)


def looked_in() -> list[Path]:
    """Return the folders in which ``found`` looks."""
    return [hub_cache(), *ollama_folders(), *lm_studio_folders(), *llama_cpp_folders()]


def found() -> list[Found]:
    """Return all GGUF files that other programs have here, damaged and partial ones too."""
    lines = [*_of_hub(), *_of_ollama()]
    for scheme, program, roots in (
        (LM_STUDIO, "LM Studio", lm_studio_folders()),
        (LLAMA_CPP, "llama.cpp", llama_cpp_folders()),
    ):
        seen: set[str] = set()
        for root in roots:
            for line in _of_folder(root, program, scheme):
                if line.name not in seen:  # an earlier folder is the one that the name leads to
                    seen.add(line.name)
                    lines.append(line)
    return lines


def ollama_folders() -> list[Path]:
    """Return the folders of Ollama's models: $OLLAMA_MODELS, else the user's and the service's."""
    if named := os.environ.get("OLLAMA_MODELS"):
        return [Path(named).expanduser()]
    return _folders(Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models"))


def lm_studio_folders() -> list[Path]:
    """Return the folders of LM Studio's models, of old and new versions, and the one chosen."""
    home = Path.home()
    homes = [home / ".lmstudio", home / ".cache/lm-studio"]
    if pointed := _line_of(home / ".lmstudio-home-pointer"):
        homes.insert(0, Path(pointed).expanduser())
    chosen = []
    for one in homes:
        settings = _json_of(one / "settings.json")
        folder = settings.get("downloadsFolder") if isinstance(settings, dict) else None
        if isinstance(folder, str) and folder:
            chosen.append(Path(folder).expanduser())
    return _folders(*chosen, *(one / "models" for one in homes))


def llama_cpp_folders() -> list[Path]:
    """Return the folder of what llama.cpp downloaded: $LLAMA_CACHE, else the platform's."""
    if named := os.environ.get("LLAMA_CACHE"):
        return [Path(named).expanduser()]
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama.cpp"
    if sys.platform == "darwin":
        return _folders(usual, Path.home() / "Library/Caches/llama.cpp")
    return _folders(usual)


def _folders(*paths: Path) -> list[Path]:
    return list(dict.fromkeys(path for path in paths if _is_folder(path)))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _line_of(path: Path) -> str:
    try:
        return storage.read_text(path, 10_000).strip().partition("\n")[0].strip()
    except (OSError, ValueError):
        return ""


def _json_of(path: Path) -> object:
    try:
        return json.loads(storage.read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


# Folders of files


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below a folder by its relative path, through links but not in circles."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path


def _models_of(root: Path) -> list[Candidate]:
    files: dict[str, int | None] = {
        file: path.stat().st_size
        for file, path in _walk(root)
        if file.lower().endswith(".gguf") and path.is_file()
    }
    return candidates(files, beside=True)


def _of_folder(root: Path, program: str, before: str, after: str = "") -> Iterator[Found]:
    """Yield what is in a folder; ``before`` and ``after`` a path make the name that is typed."""

    def name_of(file: str) -> str:
        return before + file + after if before and is_model_path(file) else str(root / file)

    for one in _models_of(root):
        yield _read(name_of(one.file), program, root / one.file, one)
    for file, path in _walk(root):
        lower = file.lower()
        if lower.endswith(".gguf") and not path.exists():
            yield Found(name_of(file), program, str(path), 0, problem="a link that leads nowhere")
        elif lower.endswith(PARTIAL) and ".gguf" in lower:
            yield _partial(name_of(file), program, path)


def _partial(name: str, program: str, path: Path) -> Found:
    size = path.stat().st_size if path.exists() else 0
    return Found(name, program, str(path), size, problem="a download that is not finished")


def _read(name: str, program: str, path: Path, one: Candidate | None = None) -> Found:
    """Return what the header of a file says, or what is wrong with it."""
    quant = one.quant if one else ""
    size = one.size if one and one.size is not None else 0
    try:
        header = read_gguf(path)
    except ModelInvalid as error:
        problem = str(error).replace(f"{path.parent}/", "").partition(". Fetch it again")[0]
        if not size and path.exists():
            size = path.stat().st_size
        return Found(name, program, str(path), size, quantization=quant, problem=problem)
    form = header.metadata.get("general.file_type")
    use, usable = _use(header)
    return Found(
        name,
        program,
        str(path),
        header.size,
        header.architecture,
        (FILE_TYPES.get(form, "") if isinstance(form, int) else "") or quant,
        use,
        usable,
    )


def _use(header: Gguf) -> tuple[str, bool]:
    """Return what a file can be used as, and whether that is as a model of text."""
    lower = header.architecture.lower()

    def said(key: str) -> object:
        return header.metadata.get(f"{header.architecture}.{key}")

    if other := kind_problem(header):
        return other, False
    if lower.startswith(DIFFUSION):
        return "a diffusion model, which writes no text from left to right", False
    if lower.endswith(ENCODERS) or "bert" in lower or said("attention.causal") is False:
        return "an encoder for embeddings, not a model of text", False
    if lower == "t5":
        return "an encoder with a decoder, which no engine here runs", False
    if said("pooling_type"):
        return "a model for embeddings or ranking, not of text", False
    return ("chat" if header.chat_template else "completion"), True


def _in_folders(name: str, scheme: str, roots: list[Path]) -> Path:
    """Return the file below one of the roots: a path, a folder with one model, or folder:QUANT."""
    rest = name.removeprefix(scheme)
    if is_model_path(rest):
        for root in roots:
            if any(part.is_file() for part in parts_of(root / rest)):
                return read_gguf(root / rest).path
    folder, _, quant = rest.partition(":")
    for root in roots if is_plain_path(folder) else ():
        if (root / folder).is_dir():
            found = [one for one in _models_of(root / folder) if not one.missing]
            models = candidates({part: None for one in found for part in one.parts})
            return root / folder / choose(models, quant, scheme + folder).file
    known = [scheme + one.file for root in roots for one in _models_of(root)]
    places = ", ".join(map(str, roots)) or "no folder of it is on this machine"
    raise ModelNotFound(f"no model {name!r} ({places}). {_nearest(name, known)}")


def _nearest(name: str, known: list[str]) -> str:
    if close := difflib.get_close_matches(name, known, n=3, cutoff=0.6):
        return f"Did you mean {' or '.join(close)}?"
    if known:
        return f"There are {listed(known)}."
    return "See `promptflow models list --found` for what is on this machine."


# The Hugging Face cache


def _of_hub() -> Iterator[Found]:
    cache = hub_cache()
    for folder in sorted(cache.glob("models--*--*")) if _is_folder(cache) else ():
        yield from _of_repository(folder)


def _of_repository(folder: Path) -> Iterator[Found]:
    repository = folder.name.removeprefix("models--").replace("--", "/")
    refs = _refs(folder)
    seen: set[str] = set()
    snapshots = sorted(folder.glob("snapshots/*"))
    for snapshot in sorted(snapshots, key=lambda path: refs.get(path.name) != MAIN):
        revision = refs.get(snapshot.name, snapshot.name)
        at = "" if revision == MAIN else f"@{revision}"
        before = f"{PREFIX}{repository}/" if is_repository(repository) else ""
        for line in _of_folder(snapshot, "Hugging Face", before, at):
            real = os.path.realpath(line.path)
            if real not in seen:  # most files are the same in every revision
                seen.add(real)
                yield line
    for path in sorted(folder.glob("blobs/*.incomplete")):
        yield _partial(f"{PREFIX}{repository}", "Hugging Face", path)


def _refs(folder: Path) -> dict[str, str]:
    """Return the name of each commit that has one; main before others."""
    found: dict[str, str] = {}
    root = folder / "refs"
    for file, path in _walk(root):
        commit = _line_of(path)
        if is_plain_path(file) and found.get(commit) != MAIN:
            found[commit] = file
    return found


# Ollama


def _of_ollama() -> Iterator[Found]:
    for root in ollama_folders():
        for name, manifest in _ollama_names(root):
            yield _ollama_line(root, name, manifest)
        for path in sorted(root.glob("blobs/sha256*-partial")):
            yield _partial(f"{OLLAMA}{path.name}", "Ollama", path)


def _ollama_names(root: Path) -> Iterator[tuple[str, Path]]:
    for file, path in _walk(root / "manifests"):
        *place, tag = file.split("/")
        if len(place) < 2 or not all(map(PIECE.fullmatch, (*place, tag))):
            continue
        if place[0] == REGISTRY:
            place = place[1:]
            if place[0] == LIBRARY and len(place) > 1:
                place = place[1:]
        yield f"{OLLAMA}{'/'.join(place)}:{tag}", path


def _ollama_line(root: Path, name: str, manifest: Path) -> Found:
    try:
        path, _ = _blob(root, manifest)
    except ModelInvalid as error:
        return Found(name, "Ollama", str(manifest), 0, problem=str(error))
    return _read(name, "Ollama", path)


def _blob(root: Path, manifest: Path) -> tuple[Path, str]:
    """Return the file of a manifest's model, and its sha256. Raises ModelInvalid."""
    read = _json_of(manifest)
    layers = read.get("layers") if isinstance(read, dict) else None
    if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
        raise ModelInvalid(f"{manifest}: no manifest of Ollama; pull the model again")
    of = {str(one.get("mediaType")): one for one in layers}
    models = [one for one in layers if one.get("mediaType") == f"{LAYER}model"]
    if f"{LAYER}adapter" in of:
        raise ModelInvalid(f"{manifest}: has an adapter beside the model, which would be left out")
    if len(models) != 1:
        raise ModelInvalid(f"{manifest}: {len(models)} GGUF files; a model of one file is wanted")
    digest = DIGEST.fullmatch(str(models[0].get("digest")))
    if digest is None:
        raise ModelInvalid(f"{manifest}: names its model by no sha256; pull the model again")
    for name in (f"sha256-{digest[1]}", f"sha256:{digest[1]}"):
        path = root / "blobs" / name
        if path.is_file():
            size = models[0].get("size")
            if type(size) is int and size != path.stat().st_size:
                raise ModelInvalid(
                    f"{path}: {path.stat().st_size:,} bytes of {size:,}: not whole; pull it again"
                )
            return path, digest[1]
    raise ModelInvalid(f"{manifest}: its model is missing ({digest[0]}); pull the model again")


def _ollama_model(name: str, hash_of: Hash | None) -> Path:
    """Return the verified file of Ollama's model; its name without a tag means ``latest``."""
    rest = name.removeprefix(OLLAMA).removeprefix(f"{REGISTRY}/").removeprefix(f"{LIBRARY}/")
    if ":" not in rest.rpartition("/")[2]:
        rest += f":{LATEST}"
    known = [
        (found, root, manifest)
        for root in ollama_folders()
        for found, manifest in _ollama_names(root)
    ]
    same = [one for one in known if one[0] == OLLAMA + rest]
    same = same or [one for one in known if one[0].casefold() == (OLLAMA + rest).casefold()]
    if not same:
        places = ", ".join(map(str, ollama_folders())) or "no folder of Ollama is on this machine"
        near = _nearest(name, [one[0] for one in known])
        raise ModelNotFound(
            f"no model {name!r} ({places}). {near} `ollama pull {rest}` fetches it."
        )
    _, root, manifest = same[0]
    path, sha256 = _blob(root, manifest)
    if (have := hash_of(path) if hash_of else known_sha256(path, name)) != sha256:
        raise HashMismatch(
            f"{name}: {path} has sha256 {have}, and its name says {sha256}: it is damaged. Remove "
            f"it and run `ollama pull {rest}`."
        )
    return read_gguf(path).path
