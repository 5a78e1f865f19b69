"""The rules of the code base, read from its syntax trees: layers, exclusive imports, budgets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "promptflow"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors", "child", "encodings", "normal", "patterns", "ranges", "terminal"},
    {"storage", "sandbox", "progress", "notation", "numerals", "plain", "gguf", "schema"},
    {"download", "grammar"},
    {"catalog"},
    {"engine"},
    {"retrieval"},
    {"fields", "marks"},
    {"signatures"},
    {"json_fields"},
    {"prompt"},
    {"layout"},
    {"lm"},
    {"flow"},
    {"modules"},
    {"program"},
    {"evaluation"},
    {"optimization"},
    {"report"},
    {"doctor"},
    {"tune", "requantize"},
    {"cli"},
    {"__main__"},
]
"""A part may import itself and the layers above it in this list, for type checking too."""

OWNERS = {
    "llama_cpp": {"engine/model/llama.py"},
    "llguidance": {"engine/model/constraint.py"},
    "faiss": {"retrieval/dense.py"},
    "sentence_transformers": {"retrieval/embed.py", "retrieval/rerank.py"},
    "transformers": {"retrieval/embed.py", "retrieval/rerank.py"},
    "torch": {"retrieval/bert_batches.py"},
    "semchunk": {"retrieval/chunk.py"},
    "regex": {"retrieval/text.py"},
    "Stemmer": {"retrieval/text.py"},
    "sentencex": {"retrieval/text.py"},
    "pypdfium2": {"retrieval/kinds/pdf.py"},
    "selectolax": {"retrieval/kinds/web.py"},
    "docutils": {"retrieval/kinds/rst.py"},
    "webencodings": {"encodings.py"},
    "tomli_w": {"storage/toml.py"},
    "charset_normalizer": {"encodings.py"},
    "greenlet": {"lm/waiting.py"},
    "lazy_loader": {"__init__.py"},
    "huggingface_hub": {"download.py"},
    "jinja2": {"sandbox.py", "report/html.py"},
    "platformdirs": {"storage/files.py", "catalog.py"},
    "typer": {"cli/"},
    "rich": {"progress.py", "cli/console.py"},
}
"""The files, or folders, that may import a dependency."""

DSPY_FREE = {"errors", "storage", "catalog", "engine", "retrieval", "cli", "doctor"}
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "core", "helpers", "helper", "types", "misc"}
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "diskcache", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
WRITERS = {"write_text", "write_bytes", "touch", "rename", "replace", "mkdir", "unlink", "rmdir"}
OS_WRITERS = {"rename", "replace", "remove", "unlink", "mkdir", "makedirs", "rmdir", "truncate"}
MAX_FUNCTION, MAX_PARAMETERS, MAX_STRING, MAX_DEPTH = 60, 8, 200, 2


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part(path: Path) -> str:
    """The layer's name of a file: its folder, or its own name without the ending."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file, in full; TYPE_CHECKING included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: a relative import"
            if node.module == "promptflow":
                yield from (f"promptflow.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def offenders(found: list[str]) -> None:
    assert not found, "\n".join(["", *found])


def test_every_part_has_a_layer():
    known = set().union(*LAYERS)
    parts = {part(path) for path in FILES} - {"__init__"}
    assert parts <= known, f"no layer for {sorted(parts - known)}"


def test_imports_point_down_the_layers():
    rank = {p: number for number, layer in enumerate(LAYERS) for p in layer}
    offenders(
        [
            f"{name(path)} imports {module}, which is not in a layer below"
            for path in FILES
            if part(path) != "__init__"
            for module in imported(path)
            if module.startswith("promptflow.")
            and (other := module.split(".")[1]) != part(path)
            and rank.get(other, -1) >= rank[part(path)]
        ]
    )


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules() -> dict[str, set[str]]:
    """Every module of the package, the package itself aside, and those that it imports.

    A name taken from a package is its ``__init__``'s, unless it is a module there.
    """
    modules = {module_of(path) for path in FILES} - {"promptflow"}
    found: dict[str, set[str]] = {module: set() for module in modules}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else node.module for name in full]
            else:
                continue
            here = module_of(path)
            if here in found:
                found[here] |= {name for name in names if name in modules and name != here}
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle; none if there is no circle."""
    left = {module: set(others) for module, others in imports.items()}
    while ends := [module for module, others in left.items() if not others & set(left)]:
        for module in ends:
            del left[module]
    if not left:
        return []
    walk = [min(left)]
    while walk[-1] not in walk[:-1]:
        walk.append(min(left[walk[-1]] & set(left)))
    return walk[walk.index(walk[-1]) :]


def test_modules_import_in_no_circle():
    """Imports for type checking and inside functions count."""
    assert not (found := circle(imported_modules())), " -> ".join(found)


def test_what_counts_as_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    imports = imported_modules()
    host = imports["promptflow.engine.process.host"]
    assert "promptflow.engine.model.protocol" in host  # for type checking
    assert "promptflow.catalog" in imports["promptflow.engine.options"]  # inside a function
    assert "promptflow.child" in host  # from promptflow import child


def test_engine_and_retrieval_know_no_programs():
    """Retrieval may use what is below modules, and no flow; the engine knows no retrieval."""
    allowed = {
        "errors",
        "child",
        "encodings",
        "sandbox",
        "storage",
        "terminal",
        "progress",
        "catalog",
    }
    below = {"engine": set(), "retrieval": {"engine"}}
    offenders(
        [
            f"{name(path)} imports {module}"
            for path in FILES
            if part(path) in {"engine", "retrieval"}
            for module in imported(path)
            if module.startswith("promptflow.")
            and module.split(".")[1] not in {*allowed, *below[part(path)], part(path)}
        ]
    )


def test_scheduler_and_prefix_are_pure():
    for pure in ("loop/scheduler", "cache/prefix", "slot/sampling"):
        path = PACKAGE / "engine" / f"{pure}.py"
        modules = {module.split(".")[0] for module in imported(path)}
        assert not modules & set(OWNERS), f"{name(path)} imports {modules & set(OWNERS)}"


def test_a_dependency_has_one_owner():
    offenders(
        [
            f"{name(path)} imports {module}; only {sorted(OWNERS[module.split('.')[0]])} may"
            for path in FILES
            for module in imported(path)
            if not name(path).startswith(tuple(OWNERS.get(module.split(".")[0], {""})))
        ]
    )


def test_dspy_stays_out_of_engine_and_retrieval():
    offenders(
        [
            f"{name(path)} imports {module}"
            for path in FILES
            if part(path) in DSPY_FREE
            for module in imported(path)
            if module.split(".")[0] == "dspy"
        ]
    )


def test_nothing_is_pickled_or_evaluated():
    found = [
        f"{name(path)} imports {module}"
        for path in FILES
        for module in imported(path)
        if module.split(".")[0] in FORBIDDEN_IMPORTS
    ]
    for path in FILES:
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in FORBIDDEN_CALLS
            ):
                found.append(f"{name(path)}:{node.lineno}: {node.func.id}()")
    offenders(found)


def _writes(node: ast.Call) -> bool:
    """Whether a call changes the disk; a call of the storage package does not count."""
    called = node.func
    if isinstance(called, ast.Name) and called.id == "open":
        called = ast.Attribute(ast.Name("builtins"), "open")
    if not isinstance(called, ast.Attribute):
        return False
    owner = called.value.id if isinstance(called.value, ast.Name) else ""
    if called.attr == "open" and not owner[:1].isupper():  # Index.open reads
        return any(
            isinstance(mode, ast.Constant)
            and isinstance(mode.value, str)
            and set(mode.value) & set("wax+")
            and len(mode.value) <= 3
            for mode in [*node.args[1:2], *node.args[:1], *(k.value for k in node.keywords)]
        )
    if owner == "storage":
        return False
    if called.attr in {"replace", "rename"} and owner != "os":
        return len(node.args) == 1 and not node.keywords and owner.endswith("path")
    if owner == "shutil":
        return called.attr not in {"copyfileobj", "which", "disk_usage", "get_terminal_size"}
    return called.attr in (OS_WRITERS if owner == "os" else WRITERS)


def test_only_storage_writes():
    offenders(
        [
            f"{name(path)}:{node.lineno}: {ast.unparse(node)[:80]}"
            for path in FILES
            if part(path) != "storage"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call) and _writes(node)
        ]
    )


@pytest.mark.parametrize(
    ("code", "writes"),
    [
        ("open(p, 'w')", True),
        ("open(p)", False),
        ("p.open('wb')", True),
        ("path.write_text('x')", True),
        ("storage.write_text(path, 'x')", False),
        ("os.replace(a, b)", True),
        ("text.replace('a', 'b')", False),
        ("shutil.rmtree(p)", True),
        ("dataclasses.replace(x, y=1)", False),
        ("Index.open('w')", False),
    ],
)
def test_what_counts_as_writing(code: str, writes: bool):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _writes(call) is writes


def _prints(node: ast.AST) -> bool:
    """Whether a call writes text to a stream that may be a terminal; bytes are no text."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Name):
        return called.id in {"print", "input", "pprint", "echo"}
    if not isinstance(called, ast.Attribute):
        return False
    owner = ast.unparse(called.value)
    return called.attr in {"echo", "secho", "print_exc", "print_exception"} or (
        called.attr in {"write", "writelines"} and owner in {"sys.stdout", "sys.stderr"}
    )


def test_only_the_terminal_prints():
    """What a model or a document wrote could command a terminal: terminal.say shows it."""
    offenders(
        [
            f"{name(path)}:{node.lineno}: {ast.unparse(node)[:80]}"
            for path in FILES
            if name(path) != "terminal.py"
            for node in ast.walk(tree(path))
            if _prints(node)
        ]
    )


@pytest.mark.parametrize(
    ("code", "prints"),
    [
        ("print(x)", True),
        ("typer.echo(x)", True),
        ("sys.stderr.write(x)", True),
        ("sys.stdout.buffer.write(x)", False),
        ("stream.write(x)", False),
        ("say(x)", False),
    ],
)
def test_what_counts_as_printing(code: str, prints: bool):
    assert _prints(ast.parse(code, mode="eval").body) is prints


def test_functions_are_short():
    offenders(
        [
            f"{name(path)}:{node.lineno}: {node.name} has {length} lines"
            for path in FILES
            for node in functions(path)
            if (length := (node.end_lineno or 0) - node.lineno + 1) >= MAX_FUNCTION
        ]
    )


def test_positional_parameters_are_few():
    """What is given by its name says what it is: an honest keyword stays a keyword."""
    found = []
    for path in FILES:
        for node in functions(path):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
            count = len([n for n in names if n not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                found.append(f"{name(path)}:{node.lineno}: {node.name} has {count} parameters")
    offenders(found)


def test_inheritance_is_two_deep():
    bases: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base).split("[")[0] for base in node.bases]
    del bases["PromptflowError"]  # the tree of exceptions is drawn in errors.py

    def depth(cls: str) -> int:
        """How many of the project's classes a class stands on, itself included."""
        return 1 + max((depth(b) for b in bases[cls] if b in bases and b != cls), default=0)

    offenders([f"{cls}: {depth(cls)} deep" for cls in bases if depth(cls) > MAX_DEPTH])


def test_no_drawer_modules():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & FORBIDDEN_NAMES


def test_folders_of_documents_hold_no_python():
    assert not [*(ROOT / "signatures").rglob("*.py"), *(ROOT / "indexes").rglob("*.py")]


def test_no_prompt_hides_in_a_string():
    """Prompts are documents: signatures/*.toml and promptflow/layouts/*.jinja."""
    found = []
    for path in FILES:
        documentation = {
            id(node.value)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.JoinedStr):
                text = "".join(v.value for v in node.values if isinstance(v, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = "" if id(node) in documentation else node.value
            else:
                continue
            if len(text) > MAX_STRING and not text.lstrip().startswith("CREATE TABLE"):
                found.append(f"{name(path)}:{node.lineno}: {len(text)} characters")
    offenders(found)


def test_no_unfinished_business():
    marks = ("TODO", "FIXME", "XXX", "HACK")
    offenders(
        [
            f"{path.relative_to(ROOT)}:{number}"
            for folder in ("promptflow", "examples", "benchmarks")
            for path in sorted((ROOT / folder).rglob("*.py"))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if any(mark in line for mark in marks)
        ]
    )
