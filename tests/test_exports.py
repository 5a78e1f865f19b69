"""The public names: sorted, complete, reachable, and light to import."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

import promptflow as pf

HEAVY = {"torch", "dspy", "transformers", "faiss", "llama_cpp", "numpy", "pydantic"}


def _declared() -> set[str]:
    """The names of the stub, which is the one list of them."""
    tree = ast.parse((ROOT / "promptflow" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}


def _loaded_by(script: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a script that prints sys.modules."""
    command = [sys.executable, "-c", f"import sys\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_all_is_what_type_checkers_see():
    assert set(pf.__all__) == _declared()


@pytest.mark.parametrize("name", pf.__all__)
def test_every_public_name_is_reachable(name: str):
    assert getattr(pf, name) is not None
    assert name in dir(pf)


def test_functions_keep_their_names_after_their_packages_are_imported():
    """No module has a public function's name: importing it would hide the function."""
    modules = {path.stem for path in (ROOT / "promptflow").iterdir()}
    assert not modules & set(pf.__all__) - {"errors"}
    for name in ("evaluation.evaluate", "optimization.search", "signatures"):
        importlib.import_module(f"promptflow.{name}")
    for name in ("evaluate", "optimize", "signature"):
        assert callable(getattr(pf, name)), name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Sampler"):
        _ = pf.Sampler


@pytest.mark.parametrize("module", ["promptflow", "promptflow.cli"])
def test_import_is_light(module: str):
    """Importing the package or the command line loads no heavy dependency."""
    loaded = _loaded_by(f"import {module}\nprint(*sys.modules)")
    assert "promptflow" in loaded
    assert not loaded & HEAVY


def test_help_is_light():
    loaded = _loaded_by(
        "sys.argv = ['promptflow', '--help']\n"
        "try: import promptflow.__main__\n"
        "except SystemExit: print(*sys.modules)"
    )
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_every_error_is_in_the_drawn_tree():
    drawn = pf.errors.__doc__ or ""
    for name, value in vars(pf.errors).items():
        if isinstance(value, type) and issubclass(value, pf.errors.PromptflowError):
            assert f" {name} " in f"{drawn} ".replace("\n", " "), name
