"""Models named on the hub, against a hub on loopback."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from conftest import ROOT
from stub_hub import COMMIT, Repository, stub_hub
from test_gguf import PAIRS, gguf, pair, split_gguf
from typer.testing import CliRunner

from promptflow import catalog, download, storage
from promptflow.catalog.hub import HubName, hub_name
from promptflow.cli import app
from promptflow.engine.options import EngineOptions, worker_settings
from promptflow.errors import (
    DiskFull,
    HashMismatch,
    ModelError,
    ModelInvalid,
    ModelNotFound,
    StoreBusy,
)
from promptflow.lm import LocalLM

SMALL, LARGE, OTHER = gguf(weights=400), gguf(weights=50_000), gguf(weights=444)
BIG = gguf(weights=400) + random.Random(1).randbytes(25_000_000)
SHARDS = split_gguf(3)
FILES = {
    "README.md": b"about",
    "m-Q4_K_M.gguf": SMALL,
    "m-Q8_0.gguf": LARGE,
    "mmproj-m-F16.gguf": OTHER,
    "m-imatrix.gguf": OTHER,
    "BF16/m-BF16-00001-of-00003.gguf": SHARDS[0],
    "BF16/m-BF16-00002-of-00003.gguf": SHARDS[1],
    "BF16/m-BF16-00003-of-00003.gguf": SHARDS[2],
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is asked, and empty caches and settings."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    # The library reads these when it is imported, which another test may have had it do.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    with stub_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        server.repositories["org/repo"] = Repository({"main": dict(FILES)})
        yield server


def snapshot(file, commit=COMMIT, repository="org/repo"):
    name = f"models--{repository.replace('/', '--')}"
    return download.hub_cache() / name / "snapshots" / commit / file


NAMES = {
    "hf:org/repo": HubName("org/repo"),
    "hf:org/repo:Q4_K_M": HubName("org/repo", quant="Q4_K_M"),
    "hf:org/repo@v1.0": HubName("org/repo", revision="v1.0"),
    "hf:org/repo@refs/pr/1": HubName("org/repo", revision="refs/pr/1"),
    "hf:org/repo:q8_0@v1.0": HubName("org/repo", quant="q8_0", revision="v1.0"),
    "hf:org/repo@v1.0:q8_0": HubName("org/repo", quant="q8_0", revision="v1.0"),
    "hf:org/repo@refs/pr/1:UD-Q4_K_XL": HubName(
        "org/repo", quant="UD-Q4_K_XL", revision="refs/pr/1"
    ),
    "hf:org/repo/a.gguf": HubName("org/repo", "a.gguf"),
    "hf:org/repo/sub/dir/A (2).GGUF": HubName("org/repo", "sub/dir/A (2).GGUF"),
    "hf:org/repo/a.gguf@dev/x": HubName("org/repo", "a.gguf", revision="dev/x"),
    "hf:org/repo@dev/sub/a.gguf": HubName("org/repo", "sub/a.gguf", revision="dev"),
    "hf:org/repo@refs/pr/2/sub/a.gguf": HubName("org/repo", "sub/a.gguf", revision="refs/pr/2"),
}


@pytest.mark.parametrize("text", NAMES)
def test_names_are_read(text):
    assert hub_name(text) == NAMES[text]
    assert hub_name(hub_name(text).text) == NAMES[text]


@pytest.mark.parametrize(
    "text",
    [
        "hf:", "hf:org", "hf:org/", "hf:/repo", "hf:../repo", "hf:org/..", "hf:org/repo/",
        "hf:org/repo:", "hf:org/repo@", "hf:org/repo/..", "hf:org/repo/../x.gguf",
        "hf:org/repo//x.gguf", "hf:org/repo/.x.gguf", "hf:org/repo/x.bin", "hf:org/repo/x.py",
        "hf:org/repo/models.toml", "hf:org/repo/a\\b.gguf", "hf:org/repo/C:x.gguf",
        "hf:org/repo/x.gguf@..", "hf:org/repo@../x:Q4_0", "hf:org/repo@a/../b", "hf:org/repo:Q/4",
        "hf:org/repo:../x", "hf:org/repo/x\n.gguf", "hf:org/repo/x.gguf\n", "hf:org/repo?x:Q4_0",
        "hf:https://a/b", "hf:org/repo/-x.gguf", "hf:org/repo/ x.gguf", "hf:org/repo@/etc/x.gguf",
    ],
)  # fmt: skip
def test_what_is_no_name_reaches_nothing(hub, text):
    for find in (catalog.locate, catalog.fetch, catalog.obtain, catalog.verify):
        with pytest.raises(ModelNotFound, match="hf:org/repo:Q4_K_M"):
            find(text)
    assert hub.asked == []


def test_a_model_is_fetched_by_its_quantization_and_kept_in_the_hubs_cache(hub):
    with pytest.raises(ModelNotFound, match=r"promptflow models get hf:org/repo:q4_k_m"):
        catalog.locate("hf:org/repo:q4_k_m")
    assert hub.asked == []
    path = catalog.fetch("hf:org/repo:q4_k_m")
    assert path == snapshot("m-Q4_K_M.gguf")
    assert path.read_bytes() == SMALL
    asked = len(hub.asked)
    for name in ("hf:org/repo:Q4_K_M", "hf:org/repo/m-Q4_K_M.gguf"):
        assert catalog.fetch(name) == catalog.locate(name) == catalog.obtain(name) == path
        assert catalog.verify(name, progress=False)
    assert len(hub.asked) == asked
    library = huggingface_hub.try_to_load_from_cache(
        "org/repo", "m-Q4_K_M.gguf", cache_dir=download.hub_cache()
    )
    assert library == str(path)
    assert huggingface_hub.scan_cache_dir(download.hub_cache()).warnings == []


def test_what_the_hubs_library_fetched_is_used_without_a_network(hub):
    path = huggingface_hub.hf_hub_download(
        "org/repo", "m-Q8_0.gguf", cache_dir=download.hub_cache(), endpoint=hub.address
    )
    asked = len(hub.asked)
    assert str(catalog.obtain("hf:org/repo:Q8_0")) == path
    assert str(catalog.obtain("hf:org/repo")) == path  # the only one here
    assert len(hub.asked) == asked


def test_a_cache_without_links_is_used(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "elsewhere")
    path = snapshot("sub/x-q4_0.gguf")
    path.parent.mkdir(parents=True)
    path.write_bytes(SMALL)
    refs = path.parents[3] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert path.is_relative_to(Path("elsewhere").absolute())
    assert catalog.locate("hf:org/repo/sub/x-q4_0.gguf") == path
    assert catalog.locate("hf:org/repo:Q4_0") == path


def test_an_engine_fetches_what_is_named_on_the_hub(hub):
    settings = worker_settings(EngineOptions(context=64), "hf:org/repo:Q4_K_M")
    assert settings["path"] == str(snapshot("m-Q4_K_M.gguf"))
    assert settings["name"] == "m-Q4_K_M"
    assert settings["sha256"] == storage.sha256_bytes(SMALL)


def test_a_saved_program_of_a_stranger_downloads_nothing(hub):
    state = {"source": "hf:org/repo:Q4_K_M", "options": {}, "kwargs": {}}
    with pytest.raises(ModelNotFound, match="promptflow models get"):
        LocalLM.load_state(state)
    assert hub.asked == []


def test_parts_come_together_and_load_from_the_first(hub):
    names = [f"BF16/m-BF16-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name in ("hf:org/repo:bf16", *(f"hf:org/repo/{file}" for file in reversed(names))):
        assert catalog.fetch(name) == snapshot(names[0])
    assert [snapshot(file).read_bytes() for file in names] == list(SHARDS)
    hashes = "\n".join(map(storage.sha256_bytes, SHARDS))
    settings = worker_settings(EngineOptions(context=64), "hf:org/repo:BF16")
    assert settings["sha256"] == storage.sha256_bytes(hashes.encode())
    assert settings["name"] == "m-BF16"


def test_parts_are_of_one_commit(hub):
    """A branch may move while its files are asked for."""
    catalog.fetch("hf:org/repo/BF16/m-BF16-00001-of-00003.gguf")
    resolved = [line.split("/resolve/")[1].split("/")[0] for line in hub.asked if "HEAD" in line]
    assert resolved == ["main", COMMIT, COMMIT]


def test_parts_of_which_the_hub_lacks_one_are_refused_before_anything_is_fetched(hub):
    missing = "BF16/m-BF16-00002-of-00003.gguf"
    del hub.repositories["org/repo"].files["main"][missing]
    for name in ("hf:org/repo:BF16", "hf:org/repo/BF16/m-BF16-00001-of-00003.gguf"):
        with pytest.raises(ModelNotFound, match=r"00002-of-00003|no such file"):
            catalog.fetch(name)
    assert hub.starts == []


def test_what_is_not_there_is_told_with_what_is(hub):
    with pytest.raises(ModelNotFound) as caught:
        catalog.fetch("hf:org/repo:Q3_K_S")
    message = str(caught.value)
    for name in ("hf:org/repo:Q4_K_M", "hf:org/repo:Q8_0", "hf:org/repo:BF16"):
        assert name in message
    assert "mmproj" not in message
    assert "imatrix" not in message
    with pytest.raises(ModelNotFound, match=r"3 models; name one: hf:org/repo:BF16"):
        catalog.fetch("hf:org/repo")
    with pytest.raises(ModelNotFound, match=r"no such file\. .*hf:org/repo/m-Q4_K_M\.gguf"):
        catalog.fetch("hf:org/repo/other.gguf")
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        catalog.fetch("hf:org/repo:Q4_K_M@v9")
    with pytest.raises(ModelNotFound, match="no repository org/none"):
        catalog.fetch("hf:org/none:Q4_K_M")
    hub.repositories["org/safe"] = Repository({"main": {"model.safetensors": b"x"}})
    with pytest.raises(ModelNotFound, match="no GGUF file of a model"):
        catalog.fetch("hf:org/safe")


@pytest.mark.parametrize("without", [False, True])
def test_the_only_model_needs_no_quantization(hub, without):
    hub.without_siblings = without  # the files are then listed by its tree
    hub.repositories["org/one"] = Repository({"main": {"x.gguf": SMALL, "mmproj.gguf": OTHER}})
    assert catalog.fetch("hf:org/one") == snapshot("x.gguf", repository="org/one")


def test_a_mirror_that_knows_less_is_enough(hub):
    hub.plain = True
    assert catalog.fetch("hf:org/repo:Q4_K_M").read_bytes() == SMALL
    with pytest.raises(ModelNotFound, match="has no Q2_K; it has hf:org/repo:BF16"):
        catalog.fetch("hf:org/repo:Q2_K")
    with pytest.raises(ModelNotFound, match=r"no such file\. .*hf:org/repo/m-Q8_0\.gguf"):
        catalog.fetch("hf:org/repo/none.gguf")
    for name in ("hf:org/none:Q4_K_M", "hf:org/none/x.gguf"):
        with pytest.raises(ModelNotFound, match="no repository org/none"):
            catalog.fetch(name)


def test_a_download_is_hashed_once(hub, monkeypatch):
    read = []
    sha256_of = storage.sha256_of
    monkeypatch.setattr(storage, "sha256_of", lambda *told: read.append(told) or sha256_of(*told))
    catalog.fetch("hf:org/repo:Q4_K_M")
    catalog.obtain("hf:org/repo:Q4_K_M")
    assert len(read) == 1


def test_a_name_of_the_catalogue_is_taken_from_the_hubs_cache(hub, tmp_path, monkeypatch):
    entry = f"""
[mine]
file = "m-Q4_K_M.gguf"
sha256 = "{storage.sha256_bytes(SMALL)}"
size = {len(SMALL)}
hub = "org/repo"
"""
    (tmp_path / "models.toml").write_text(entry)
    catalog.fetch("hf:org/repo:Q4_K_M")
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert catalog.fetch("mine").read_bytes() == SMALL
    assert catalog.locate("mine").is_relative_to(storage.cache_dir())
    assert len(hub.asked) == asked
    (tmp_path / "models.toml").write_text(entry.replace(storage.sha256_bytes(SMALL), "0" * 64))
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set"):
        catalog.fetch("mine")


def test_a_revision_is_another_file_with_a_hash_of_its_own(hub):
    repository = hub.repositories["org/repo"]
    repository.files["v1.0"] = {"m-Q4_K_M.gguf": OTHER}
    repository.commits["v1.0"] = "b" * 40
    assert catalog.fetch("hf:org/repo:Q4_K_M").read_bytes() == SMALL
    for name in ("hf:org/repo:Q4_K_M@v1.0", f"hf:org/repo@{'b' * 40}/m-Q4_K_M.gguf"):
        assert catalog.fetch(name).read_bytes() == OTHER
    assert catalog.locate("hf:org/repo:Q4_K_M").read_bytes() == SMALL


def test_a_changed_file_is_refused_until_it_is_accepted(hub):
    name = "hf:org/repo:Q4_K_M"
    catalog.fetch(name)
    repository = hub.repositories["org/repo"]
    repository.files["main"]["m-Q4_K_M.gguf"] = OTHER
    repository.commits["main"] = "c" * 40
    before, after = map(storage.sha256_bytes, (SMALL, OTHER))
    assert catalog.fetch(name).read_bytes() == SMALL  # what is here is not asked for again
    storage.remove_folder(download.hub_cache())
    with pytest.raises(HashMismatch, match="--accept") as caught:
        catalog.fetch(name)
    assert before in str(caught.value)
    assert after in str(caught.value)
    assert hub.starts == [0]
    run = CliRunner().invoke(app, ["models", "get", name, "--accept"])
    assert run.exit_code == 0, run.output
    assert catalog.locate(name).read_bytes() == OTHER


def test_a_file_that_another_program_updated_is_refused_too(hub):
    name = "hf:org/repo/m-Q4_K_M.gguf"
    catalog.fetch(name)
    repository = hub.repositories["org/repo"]
    repository.files["main"]["m-Q4_K_M.gguf"] = OTHER
    repository.commits["main"] = "c" * 40
    huggingface_hub.hf_hub_download(
        "org/repo", "m-Q4_K_M.gguf", cache_dir=download.hub_cache(), endpoint=hub.address
    )
    with pytest.raises(HashMismatch, match="was recorded when it was first used"):
        catalog.locate(name)
    catalog.fetch(name, accept=True)
    assert catalog.locate(name).read_bytes() == OTHER


def test_a_file_recorded_stays_usable_when_the_branch_moves_on(hub):
    """Another file of the repository was fetched later, from another commit."""
    catalog.fetch("hf:org/repo:Q4_K_M")
    hub.repositories["org/repo"].commits["main"] = "c" * 40
    catalog.fetch("hf:org/repo:Q8_0")
    asked = len(hub.asked)
    assert catalog.obtain("hf:org/repo/m-Q4_K_M.gguf") == snapshot("m-Q4_K_M.gguf")
    assert len(hub.asked) == asked


def test_damage_in_the_cache_is_found(hub):
    path = catalog.fetch("hf:org/repo:Q4_K_M")
    path.resolve().write_bytes(SMALL[:-1] + b"x")
    with pytest.raises(HashMismatch, match="it is damaged"):
        catalog.obtain("hf:org/repo:Q4_K_M")
    status = path.stat()
    path.resolve().write_bytes(SMALL)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert catalog.verify("hf:org/repo:Q4_K_M", progress=False)


def test_bytes_that_are_damaged_on_the_way_are_not_kept(hub):
    hub.spoil = lambda data: data[:-1] + b"?" if data else data
    with pytest.raises(HashMismatch, match="damaged on the way"):
        catalog.fetch("hf:org/repo/m-Q4_K_M.gguf")
    hub.spoil = lambda data: data
    assert catalog.fetch("hf:org/repo/m-Q4_K_M.gguf").read_bytes() == SMALL
    assert hub.starts == [0, 0]


def test_an_interrupted_download_goes_on_where_it_was(hub):
    hub.repositories["org/repo"].files["main"]["big.gguf"] = BIG
    hub.cut_at = 15_000_000
    with pytest.raises(ModelNotFound, match=r"What was downloaded is kept.*models get hf:org/repo"):
        catalog.fetch("hf:org/repo/big.gguf")
    with pytest.raises(ModelNotFound):
        catalog.locate("hf:org/repo/big.gguf")
    hub.broken, hub.cut_at = False, 0
    assert catalog.fetch("hf:org/repo/big.gguf").read_bytes() == BIG
    assert hub.starts[0] == 0
    assert 10_000_000 < hub.starts[-1] <= 15_000_000
    left = [*download.hub_cache().rglob("*incomplete*")]
    assert left == []


def test_a_part_that_is_longer_than_the_file_is_begun_again(hub):
    sha256 = storage.sha256_bytes(SMALL)
    part = snapshot("x").parents[2] / "blobs" / f"{sha256}.promptflow.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(SMALL + b"more")
    assert catalog.fetch("hf:org/repo/m-Q4_K_M.gguf").read_bytes() == SMALL


def test_a_hub_that_is_private_gated_broken_or_dead_is_told(hub, monkeypatch):
    repository = hub.repositories["org/repo"]
    repository.private = True
    for name in ("hf:org/repo:Q4_K_M", "hf:org/repo/m-Q4_K_M.gguf"):
        with pytest.raises(ModelNotFound, match=r"private.*HF_TOKEN"):
            catalog.fetch(name)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(ModelNotFound, match=r"private.*HF_TOKEN"):
            catalog.fetch(name)
        monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert catalog.fetch("hf:org/repo:Q4_K_M").read_bytes() == SMALL
    repository.gated = True
    with pytest.raises(ModelNotFound, match="its terms have to be accepted"):
        catalog.fetch("hf:org/repo:Q8_0")
    hub.broken = True
    with pytest.raises(ModelNotFound, match=r"the hub could not be reached .it answers 503"):
        catalog.fetch("hf:org/repo:Q8_0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("hf:org/repo:Q8_0", "hf:org/repo/m-Q8_0.gguf"):
        with pytest.raises(ModelNotFound, match=r"the hub could not be reached.*refused"):
            catalog.fetch(name)
    assert catalog.obtain("hf:org/repo:Q4_K_M").read_bytes() == SMALL


def test_offline_uses_the_cache_and_nothing_else(hub, monkeypatch):
    catalog.fetch("hf:org/repo:Q4_K_M")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.asked)
    assert catalog.obtain("hf:org/repo:Q4_K_M").read_bytes() == SMALL
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE forbids"):
        catalog.obtain("hf:org/repo:Q8_0")
    assert len(hub.asked) == asked


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda path: 100)
    with pytest.raises(DiskFull, match="HF_HUB_CACHE"):
        catalog.fetch("hf:org/repo:Q4_K_M")
    assert hub.starts == []


def test_one_process_fetches_from_a_repository_at_a_time(hub):
    key = storage.sha256_bytes(b"org/repo")[:16]
    with (
        storage.lock(storage.cache_dir() / "staging" / f"hub-{key}.lock"),
        pytest.raises(StoreBusy, match=f"process {os.getpid()}"),
    ):
        catalog.fetch("hf:org/repo:Q4_K_M")


@pytest.mark.parametrize("etag", ["../../../evil", "..", "a/b", "", ".hidden"])
def test_no_answer_of_a_hub_leads_out_of_the_cache(hub, etag, tmp_path):
    hub.etag = etag or " "
    with pytest.raises(ModelNotFound, match="HF_ENDPOINT"):
        catalog.fetch("hf:org/repo/m-Q4_K_M.gguf")
    hub.etag = ""
    hub.repositories["org/repo"].commits["main"] = "../../x"
    with pytest.raises(ModelNotFound, match="HF_ENDPOINT"):
        catalog.fetch("hf:org/repo/m-Q4_K_M.gguf")
    assert not [*tmp_path.rglob("*.incomplete"), *tmp_path.rglob("evil")]


def test_files_of_a_repository_with_names_of_code_or_hidden_are_no_models(hub):
    files = {"../up.gguf": SMALL, ".hidden.gguf": SMALL, "a\\b.gguf": SMALL, "x.py": SMALL}
    hub.repositories["org/odd"] = Repository({"main": files})
    with pytest.raises(ModelNotFound, match="no GGUF file of a model"):
        catalog.fetch("hf:org/odd")


def test_what_is_no_model_is_refused_by_what_it_is(hub):
    kind = gguf([*PAIRS, pair("general.type", 8, "mmproj")])
    hub.repositories["org/repo"].files["main"]["mmproj-m-F16.gguf"] = kind
    hub.repositories["org/repo"].files["main"]["page.gguf"] = b"<!doctype html>" + bytes(100)
    with pytest.raises(ModelInvalid, match="a projector"):
        catalog.fetch("hf:org/repo/mmproj-m-F16.gguf")
    with pytest.raises(ModelInvalid, match="not a GGUF file"):
        catalog.fetch("hf:org/repo/page.gguf")


def test_the_command_line_takes_hub_names(hub):
    run = CliRunner()
    refused = run.invoke(app, ["models", "path", "hf:org/repo:Q4_K_M"])
    assert refused.exit_code == 2
    assert "promptflow models get hf:org/repo:Q4_K_M" in refused.stderr
    got = run.invoke(app, ["models", "get", "hf:org/repo:Q4_K_M", "hf:org/repo:Q8_0"])
    assert got.stdout.splitlines() == [str(snapshot("m-Q4_K_M.gguf")), str(snapshot("m-Q8_0.gguf"))]
    assert run.invoke(app, ["models", "path", "hf:org/repo:q8_0"]).exit_code == 0
    verified = run.invoke(app, ["models", "verify", "hf:org/repo:Q8_0"])
    assert verified.stdout == "hf:org/repo:Q8_0: as published\n"


def test_a_child_honours_the_environment(hub, tmp_path):
    """With the library read anew, as a person's command does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}

    def command(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-m", "promptflow", *arguments],
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    name = "hf:org/repo/BF16/m-BF16-00003-of-00003.gguf"
    offline = command("models", "get", name, HF_HUB_OFFLINE="1")
    assert (offline.returncode, hub.asked) == (2, [])
    got = command("models", "get", name)
    assert got.stdout.strip() == str(snapshot("BF16/m-BF16-00001-of-00003.gguf")), got.stderr
    listed = command("models", "list", "--found", "--json", HF_HUB_OFFLINE="1")
    assert [one["name"] for one in json.loads(listed.stdout)] == [
        "hf:org/repo/BF16/m-BF16-00001-of-00003.gguf"
    ]


def test_a_record_that_is_damaged_is_no_record(hub):
    catalog.fetch("hf:org/repo:Q4_K_M")
    (pin,) = (storage.config_dir() / "hub").iterdir()
    assert json.loads(pin.read_text())["sha256"] == storage.sha256_bytes(SMALL)
    pin.write_text('{"sha256": 7}')
    with pytest.raises(HashMismatch, match="remove it"):
        catalog.locate("hf:org/repo:Q4_K_M")
    pin.write_text("{")
    with pytest.raises(ModelError):
        catalog.locate("hf:org/repo:Q4_K_M")


def test_a_kill_at_any_operation_leaves_no_half_model(hub, tmp_path):
    """Each run is killed some operations later than the last and goes on where that one was."""
    code = "from promptflow import catalog\nprint(catalog.fetch('hf:org/repo:BF16'))"
    files = [f"BF16/m-BF16-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for step in range(1, 400, 5):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PROMPTFLOW_KILL_AT": str(step)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        for file, data in zip(files, SHARDS, strict=True):
            path = snapshot(file)
            assert not path.exists() or path.read_bytes() == data
        if run.returncode == 0:
            break
        assert run.returncode == -9, run.stderr
    assert run.returncode == 0
    assert step > 20
    assert catalog.locate("hf:org/repo:BF16") == snapshot(files[0])
    assert [*download.hub_cache().rglob("*incomplete*")] == []


# Encoders


@pytest.fixture(scope="module", params=["model.safetensors", "pytorch_model.bin"])
def encoder(request, tmp_path_factory):
    """The files of a small XLM-RoBERTa as bge-m3 and multilingual-e5-small are laid out."""
    import tiny_encoders

    folder = tmp_path_factory.mktemp("encoder")
    torch_only = request.param == "pytorch_model.bin"
    tiny_encoders.write(folder, "xlm-roberta", pooling="cls", torch_only=torch_only)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return files | {"README.md": b"about", "onnx/model.onnx": b"?", "colbert_linear.pt": b"code"}


def test_an_encoder_is_fetched_as_a_folder(hub, encoder):
    from promptflow.retrieval.embed import Embedder, open_embedder

    hub.repositories["org/e5-small"] = Repository({"main": dict(encoder)})
    with pytest.raises(ModelNotFound, match="promptflow models get hf:org/e5-small"):
        catalog.locate("hf:org/e5-small")
    place = catalog.fetch("hf:org/e5-small", progress=False)
    taken = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert taken == encoder.keys() - {"README.md", "onnx/model.onnx", "colbert_linear.pt"}
    hub.broken = True
    assert catalog.locate("hf:org/e5-small") == place
    embedder = open_embedder("hf:org/e5-small")
    assert isinstance(embedder, Embedder)
    assert (embedder.dimension, embedder.name) == (32, "hf:org/e5-small")
    assert embedder.prefixes == ("query: ", "passage: ")
    assert embedder.encode(["the tree", "red"]).shape == (2, 32)


def test_an_encoder_that_changes_under_its_name_is_refused(hub, encoder):
    weights = "pytorch_model.bin" if "pytorch_model.bin" in encoder else "model.safetensors"
    hub.repositories["org/e"] = Repository({"main": dict(encoder)}, {"main": "a" * 40})
    catalog.fetch("hf:org/e", progress=False)
    changed = encoder | {weights: encoder[weights] + b"!"}
    hub.repositories["org/e"] = Repository({"main": changed}, {"main": "b" * 40})
    with pytest.raises(HashMismatch, match="was recorded when it was first used"):
        catalog.fetch("hf:org/e", accept=False) and _again("hf:org/e")
    assert catalog.fetch("hf:org/e", accept=True, progress=False).parts[-1] == "b" * 40


def _again(name):
    storage.remove_folder(download.hub_cache())
    catalog.fetch(name, progress=False)


@pytest.mark.parametrize("gone", ["1_Pooling/config.json", "tokenizer.json", "weights"])
def test_an_encoder_in_the_cache_that_is_not_whole_is_fetched(hub, encoder, gone):
    weights = "pytorch_model.bin" if "pytorch_model.bin" in encoder else "model.safetensors"
    hub.repositories["org/e"] = Repository({"main": dict(encoder)})
    place = catalog.fetch("hf:org/e", progress=False)
    (place / (weights if gone == "weights" else gone)).unlink()
    with pytest.raises(ModelNotFound):
        catalog.locate("hf:org/e")
    assert catalog.fetch("hf:org/e", progress=False) == place
    assert catalog.locate("hf:org/e") == place


@pytest.mark.parametrize("gone", ["tokenizer.json", "config.json"])
def test_an_encoder_that_lacks_a_file_on_the_hub_is_refused_by_it(hub, encoder, gone):
    files = {name: data for name, data in encoder.items() if name != gone}
    hub.repositories["org/e"] = Repository({"main": files})
    with pytest.raises(ModelNotFound, match=f"is an encoder without {gone}"):
        catalog.fetch("hf:org/e", progress=False)


def test_a_gguf_file_comes_before_an_encoder_beside_it(hub, encoder):
    hub.repositories["org/both"] = Repository({"main": {**encoder, "m-Q8_0.gguf": SMALL}})
    assert catalog.fetch("hf:org/both", progress=False).name == "m-Q8_0.gguf"


def test_a_catalogue_names_an_encoder_of_the_hub(hub, encoder, tmp_path):
    from promptflow.retrieval.embed import open_embedder

    weights = "pytorch_model.bin" if "pytorch_model.bin" in encoder else "model.safetensors"
    needed = [name for name in encoder if name.endswith(".json")]
    entry = {
        "kind": "embedder", "file": weights, "hub": "org/e", "hub_files": [weights, *needed],
        "sha256": storage.sha256_bytes(encoder[weights]), "size": len(encoder[weights]),
    }  # fmt: skip
    (tmp_path / "models.toml").write_text(storage.toml_dumps({"mine": entry}))
    hub.repositories["org/e"] = Repository({"main": dict(encoder)})
    catalog.fetch("mine", progress=False)
    assert open_embedder("mine").encode_query("the tree").shape == (32,)
    assert catalog.verify("mine", progress=False)


def test_the_bundled_encoders_name_what_the_hub_has():
    for name, weights in [("multilingual-e5-small", "model.safetensors"),
                          ("bge-m3", "pytorch_model.bin")]:  # fmt: skip
        model = catalog.models()[name]
        assert (model.file, model.hub_files[0], model.kind) == (weights, weights, "embedder")
        assert {"config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"} <= {
            *model.hub_files
        }
