"""Recipes: what index.toml may say, what is refused, and where built files go."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from promptflow.errors import EmptyCorpus, StoreError, StoreNotFound
from promptflow.retrieval.recipe import Recipe, find_recipe, read_recipe
from promptflow.storage import cache_dir


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "papers").mkdir()
    return tmp_path


def write(project: Path, text: str, name: str = "k") -> Path:
    path = project / "indexes" / name / "index.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_and_places(project: Path) -> None:
    path = write(project, 'documents = "papers"\n')
    recipe = find_recipe("k")
    assert (recipe.name, recipe.chunk_size, recipe.factory) == ("k", 200, "Flat")
    assert recipe.embedder == "all-minilm-l6-v2"
    assert recipe.folder == project / "papers"
    assert recipe.built == project / "indexes" / "k" / "built"
    assert recipe.rebuild == "promptflow index build k"
    assert read_recipe(path).settings() == find_recipe(path.parent).settings()


def test_a_recipe_outside_indexes_is_relative_to_itself(project: Path) -> None:
    path = project / "elsewhere" / "index.toml"
    (project / "elsewhere" / "texts").mkdir(parents=True)
    path.write_text('documents = "texts"\n')
    recipe = find_recipe(path)
    assert recipe.folder == project / "elsewhere" / "texts"
    assert recipe.built == project / "elsewhere" / "built"
    assert recipe.rebuild == f"promptflow index build {path}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("documents = 3", "documents is 3, expected text"),
        ("chunk_size = true", "chunk_size is True, expected a whole number"),
        ("chunk_size = 4", "chunk_size is 4, expected at least 8 tokens"),
        ("chunk_overlap = 200", "chunk_overlap is 200, expected 0 to 199"),
        ("chunk_overlap = -1", "chunk_overlap is -1"),
        ('factory = "Flatt"', "factory is 'Flatt', expected auto, or a FAISS factory"),
        ("globs = []", r"globs is \[\], expected patterns"),
        ("globs = [1]", r"globs is \[1\]"),
        ("sizes = 3", "unknown key 'sizes'. Known: documents, globs"),
        ("[[metadata]]\nyear = 3", "needs a glob"),
        ("documents = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_recipe_names_the_key(project: Path, text: str, message: str) -> None:
    path = write(project, text)
    with pytest.raises(StoreError, match=message) as caught:
        find_recipe("k")
    assert str(path.relative_to(project)) in str(caught.value)


def test_metadata_is_given_by_glob_later_entries_last(project: Path) -> None:
    write(
        project,
        '[[metadata]]\nglob = "a/**"\nyear = 1\nday = 2024-05-06\n'
        '[[metadata]]\nglob = "**/*.md"\nyear = 2\ntags = ["x"]\n',
    )
    recipe = find_recipe("k")
    assert recipe.values_for("a/b.txt") == {"year": 1, "day": "2024-05-06"}
    assert recipe.values_for("a/b.md") == {"year": 2, "day": "2024-05-06", "tags": ["x"]}
    assert recipe.values_for("b.txt") == {}


def test_a_new_recipe_is_made_for_documents(project: Path) -> None:
    recipe = find_recipe("new", Path("papers"))
    assert recipe.path == Path("indexes/new/index.toml")
    assert recipe.documents == "papers"
    assert not recipe.path.exists()
    recipe.save()
    assert find_recipe("new") == recipe


def test_documents_outside_the_project_are_kept_as_a_full_path(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    recipe = find_recipe("new", outside)
    assert recipe.documents == str(outside)
    assert recipe.folder == outside


def test_given_documents_stand_in_for_those_of_a_recipe(project: Path) -> None:
    write(project, 'documents = "gone"\nchunk_size = 50\n')
    with pytest.raises(EmptyCorpus, match="Correct `documents` in"):
        _ = find_recipe("k").folder
    recipe = find_recipe("k", Path("papers"))
    assert (recipe.folder, recipe.chunk_size) == (project / "papers", 50)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a b", "x" * 65, "a\0b", "-x", "\u00e9"])
def test_a_new_index_has_a_plain_name(project: Path, name: str) -> None:
    with pytest.raises(StoreError):
        find_recipe(name, Path("papers"))
    assert not (project / "indexes").exists()


def test_an_unknown_name_says_how_to_make_it(project: Path) -> None:
    with pytest.raises(StoreNotFound, match="promptflow index build new --documents FOLDER"):
        find_recipe("new")


def test_a_recipe_in_an_installed_package_builds_in_the_cache(project: Path) -> None:
    home = project / "lib" / "site-packages" / "promptflow" / "_library" / "indexes" / "guide"
    home.mkdir(parents=True)
    recipe = Recipe("guide", home / "index.toml")
    assert recipe.built.parent == cache_dir() / "indexes"
    assert recipe.built.name.startswith("guide-")
    other = Recipe("guide", project / "other" / "site-packages" / "guide" / "index.toml")
    assert other.built != recipe.built


def test_the_guide_comes_with_promptflow(project: Path) -> None:
    recipe = find_recipe("guide")
    assert recipe.rebuild == "promptflow index build guide"
    assert recipe.path.is_relative_to(ROOT / "indexes")
    assert recipe.folder == ROOT / "docs"
    named = {path.name for glob in recipe.globs for path in recipe.folder.glob(glob)}
    pages = {path.name for path in recipe.folder.glob("*.md")}
    assert named == pages - {"architecture.md", "conformance.md"}  # lists, and no pages to ask


def test_a_bundled_recipe_without_its_documents_says_what_to_do(project: Path) -> None:
    bundled = find_recipe("guide")
    moved = Recipe("guide", bundled.path, documents="no-such-docs")
    with pytest.raises(EmptyCorpus, match="comes with promptflow, its documents do not") as caught:
        _ = moved.folder
    assert "--documents FOLDER" in str(caught.value)
