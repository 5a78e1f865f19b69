"""What is shipped: wheel, sdist, editable and uninstalled, each built or laid out and asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

FIND = """
import promptflow.storage as storage
print(storage.find_document("signatures", "grounded_qa"))
print(storage.find_document("indexes", "guide", bundled_only=True))
"""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a command with ``path`` in front of what this interpreter can import."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: str, out: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, with a built index and a stray file that must not be shipped."""
    folder = tmp_path_factory.mktemp("clone")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run("git", "init", "-q", cwd=folder)  # hatchling reads .gitignore of a repository
    built = folder / "indexes" / "guide" / "built"
    built.mkdir(parents=True)
    (built / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clone, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clone, "sdist", tmp_path_factory.mktemp("sdist"))


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def shipped() -> set[str]:
    """What the wheel should hold of the clone's documents and data, by the name it has there."""
    documents = [*ROOT.glob("signatures/*.toml"), *ROOT.glob("indexes/*/index.toml")]
    data = [
        path
        for path in (ROOT / "promptflow").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return {f"promptflow/_library/{p.relative_to(ROOT).as_posix()}" for p in documents} | {
        p.relative_to(ROOT).as_posix() for p in data
    }


def test_wheel_holds_every_document_and_data_file(wheel: Path):
    missing = shipped() - members(wheel)
    assert not missing
    for needed in (
        "promptflow/py.typed",
        "promptflow/__init__.pyi",
        "promptflow/models.toml",
        "promptflow/layouts/chat.jinja",
        "promptflow/report/report.html.j2",
        "promptflow/_library/signatures/grounded_qa.toml",
        "promptflow/_library/indexes/guide/index.toml",
    ):
        assert needed in members(wheel)


def test_wheel_holds_no_built_index(wheel: Path):
    assert not [name for name in members(wheel) if "/built/" in name]


def test_wheel_has_one_top_level_name(wheel: Path):
    tops = {name.split("/")[0] for name in members(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"promptflow"}


def test_wheel_from_sdist_is_the_wheel_from_the_clone(wheel: Path, sdist: Path, tmp_path: Path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    assert members(build(source, "wheel", tmp_path / "wheel")) == members(wheel)


def test_installed_wheel_finds_its_documents(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    found = run(sys.executable, "-c", FIND, cwd=tmp_path / "elsewhere", path=tmp_path / "site")
    library = tmp_path / "site" / "promptflow" / "_library"
    assert found.split() == [
        str(library / "signatures" / "grounded_qa.toml"),
        str(library / "indexes" / "guide" / "index.toml"),
    ]


def test_editable_install_finds_the_clone(clone: Path, tmp_path: Path):
    """The editable wheel is one .pth file with the clone's folder in it; no document is copied."""
    run(
        sys.executable, "-c", "import sys; from hatchling.build import build_editable as b;"
        "b(sys.argv[1])", tmp_path, cwd=clone,
    )  # fmt: skip
    [editable] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(editable) as archive:
        names = archive.namelist()
        [link] = [name for name in names if name.endswith(".pth")]
        assert archive.read(link).decode().strip() == str(clone)
    assert not [name for name in names if "_library" in name]
    found = run(sys.executable, "-c", FIND, cwd=tmp_path, path=clone)
    assert found.split()[0] == str(clone / "signatures" / "grounded_qa.toml")


def test_uninstalled_clone_finds_its_documents(clone: Path):
    found = run(sys.executable, "-c", FIND, cwd=clone, path=clone)
    assert (clone / found.split()[0]).resolve() == clone / "signatures" / "grounded_qa.toml"
    assert found.split()[1] == str(clone / "indexes" / "guide" / "index.toml")


def test_every_pin_is_one_that_the_project_allows():
    """constraints.txt and the ranges of pyproject.toml agree, and torch is the tested version."""
    import tomllib

    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert pins["torch"] == "2.13.0"
