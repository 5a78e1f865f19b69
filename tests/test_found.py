"""What other programs have put on this machine, in the layouts that they use."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from stub_hub import COMMIT
from test_gguf import PAIRS, STRING, U32, gguf, pair, put_parts, split_gguf, without
from typer.testing import CliRunner

from promptflow import catalog, storage
from promptflow.cli import app
from promptflow.engine.options import EngineOptions, worker_settings
from promptflow.errors import HashMismatch, ModelError, ModelInvalid, ModelNotFound

CHAT = gguf([*PAIRS, pair("general.file_type", U32, 15)])
BASE = gguf([*without("chat_template"), pair("general.file_type", U32, 7)])
PROJECTOR = gguf([*without("architecture"), pair("general.architecture", STRING, "clip")])
BERT = gguf([*without("architecture"), pair("general.architecture", STRING, "nomic-bert")])
ADAPTER = gguf([*PAIRS, pair("general.type", STRING, "adapter")])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of a person with nothing in it."""
    for name in (
        "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS",
        "LLAMA_CACHE",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def in_hub(cache, file, data, repository="org/repo", commit=COMMIT, ref="main"):
    """Lay a file into a cache of the hub as its library does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    blob = put(folder / "blobs" / storage.sha256_bytes(data), data)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(blob, path.parent))
    if ref:
        put(folder / "refs" / ref, commit.encode())
    return path


def in_ollama(root, place, data, *, layers=(), size=None, blob="sha256-"):
    """Lay a model into Ollama's folder: a manifest that names a blob by its hash."""
    sha256 = storage.sha256_bytes(data)
    path = put(root / "blobs" / f"{blob}{sha256}", data)
    model = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{sha256}",
        "size": len(data) if size is None else size,
    }
    about = {"schemaVersion": 2, "config": {}, "layers": [model, *layers]}
    put(root / "manifests" / place, json.dumps(about).encode())
    return path


def found():
    return {one.name: one for one in catalog.found()}


def test_nothing_is_found_where_nothing_is(home):
    assert catalog.found() == []
    run = CliRunner()
    listed = run.invoke(app, ["models", "list", "--found"])
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "no GGUF file of another program in" in listed.stderr
    assert json.loads(run.invoke(app, ["models", "list", "--found", "--json"]).stdout) == []
    for name in ("ollama:x", "lmstudio:a/b/c.gguf", "llama.cpp:x.gguf", "hf:a/b:Q4_0"):
        with pytest.raises(ModelNotFound):
            catalog.locate(name)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/x"}, "x/huggingface/hub"),
        ({"HF_HOME": "$HOME/hf"}, "hf/hub"),
        ({"HF_HOME": "hf", "HF_HUB_CACHE": "~/elsewhere"}, "elsewhere"),
        ({"HUGGINGFACE_HUB_CACHE": "old"}, "old"),
    ],
)
def test_the_cache_of_the_hub_is_where_its_variables_say(home, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("~", str(home)))
    path = in_hub(home / place, "sub/m-Q4_K_M.gguf", CHAT)
    (line,) = catalog.found()
    assert line == catalog.Found(
        "hf:org/repo/sub/m-Q4_K_M.gguf", "Hugging Face", str(path), len(CHAT), "llama", "Q4_K_M",
        "chat", True,
    )  # fmt: skip
    assert catalog.locate(line.name) == path


def test_revisions_of_the_hub_are_named_and_the_same_file_once(home):
    cache = home / ".cache/huggingface/hub"
    in_hub(cache, "a.gguf", CHAT, commit="b" * 40, ref="refs/pr/1")
    in_hub(cache, "a.gguf", CHAT)
    in_hub(cache, "b.gguf", BASE, commit="c" * 40, ref="")
    in_hub(cache, "d/c.gguf", BASE + b"x", commit="b" * 40, ref="")
    lines = found()
    assert list(lines) == [
        "hf:org/repo/a.gguf", "hf:org/repo/d/c.gguf@refs/pr/1", f"hf:org/repo/b.gguf@{'c' * 40}"
    ]  # fmt: skip
    for name, line in lines.items():
        assert str(catalog.locate(name)) == line.path
    with pytest.raises(ModelNotFound, match=f"Other revisions of it are: @{'c' * 40}"):
        catalog.locate("hf:org/repo/b.gguf")


def test_models_of_ollama_are_named_as_it_names_them(home):
    root = home / ".ollama/models"
    places = {
        "registry.ollama.ai/library/llama3.2/3b": "ollama:llama3.2:3b",
        "registry.ollama.ai/library/llama3.2/latest": "ollama:llama3.2:latest",
        "registry.ollama.ai/Someone/model/q8_0": "ollama:Someone/model:q8_0",
        "hf.co/org/Repo-GGUF/Q4_K_M": "ollama:hf.co/org/Repo-GGUF:Q4_K_M",
        "localhost:5000/library/x/v1": "ollama:localhost:5000/library/x:v1",
    }
    paths = {name: in_ollama(root, place, CHAT + name.encode()) for place, name in places.items()}
    assert set(found()) == set(paths)
    for name, path in paths.items():
        assert catalog.locate(name) == path
        assert catalog.verify(name, progress=False)
    assert catalog.locate("ollama:llama3.2") == paths["ollama:llama3.2:latest"]
    assert catalog.locate("ollama:LLAMA3.2:3B") == paths["ollama:llama3.2:3b"]
    long = "ollama:registry.ollama.ai/library/llama3.2:3b"
    assert catalog.locate(long) == paths["ollama:llama3.2:3b"]
    settings = worker_settings(EngineOptions(context=64), "ollama:llama3.2:3b")
    assert settings["name"] == "llama3.2:3b"
    with pytest.raises(ModelNotFound, match=r"Did you mean ollama:llama3\.2:3b.*ollama pull"):
        catalog.locate("ollama:llama3.2:3")


def test_ollamas_folder_may_be_elsewhere_and_its_blobs_named_as_before(home, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "disk"))
    path = in_ollama(home / "disk", "registry.ollama.ai/library/m/1", BASE, blob="sha256:")
    assert catalog.locate("ollama:m:1") == path
    assert found()["ollama:m:1"].use == "completion"
    assert found()["ollama:m:1"].quantization == "Q8_0"


def test_a_blob_of_ollama_is_the_one_that_its_name_says(home):
    path = in_ollama(home / ".ollama/models", "registry.ollama.ai/library/m/1", CHAT)
    path.write_bytes(CHAT[:-1] + b"x")
    with pytest.raises(HashMismatch, match="ollama pull m:1"):
        catalog.locate("ollama:m:1")


def layer(kind):
    return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": "sha256:" + "0" * 64}


def test_what_ollama_has_that_is_no_whole_model_is_listed_and_refused(home):
    root = home / ".ollama/models"
    library = "registry.ollama.ai/library"
    in_ollama(root, f"{library}/adapted/1", CHAT, layers=[layer("adapter")])
    in_ollama(root, f"{library}/pictures/1", CHAT, layers=[layer("projector")])
    in_ollama(root, f"{library}/short/1", CHAT + b"1", size=10_000)
    in_ollama(root, f"{library}/two/1", CHAT, layers=[layer("model")])
    in_ollama(root, f"{library}/gone/1", CHAT + b"2").unlink()
    in_ollama(root, f"{library}/html/1", b"<html>" + bytes(100))
    put(root / "manifests" / library / "text/1", b"not json")
    put(root / "manifests" / library / "list/1", b"[]")
    tensors = {"layers": [layer("tensor"), layer("tensor")]}
    put(root / "manifests" / library / "mlx/1", json.dumps(tensors).encode())
    outside = {"layers": [layer("model") | {"digest": "sha256:../../../etc/passwd"}]}
    put(root / "manifests" / library / "outside/1", json.dumps(outside).encode())
    put(root / "blobs" / f"sha256-{'1' * 64}-partial", b"x")
    put(root / "manifests" / ".DS_Store", b"x")
    lines = found()
    problems = {
        "ollama:adapted:1": "an adapter",
        "ollama:short:1": "not whole",
        "ollama:two:1": "2 GGUF files",
        "ollama:gone:1": "missing",
        "ollama:html:1": "not a GGUF",
        "ollama:text:1": "no manifest",
        "ollama:list:1": "no manifest",
        "ollama:mlx:1": "0 GGUF files",
        "ollama:outside:1": "no sha256",
    }
    for name, problem in problems.items():
        assert problem in lines[name].problem
        assert not lines[name].usable
        with pytest.raises(ModelError, match=problem):
            catalog.locate(name)
    partial = lines.pop(f"ollama:sha256-{'1' * 64}-partial")
    assert partial.problem == "a download that is not finished"
    assert {name for name, line in lines.items() if line.usable} == {"ollama:pictures:1"}


@pytest.mark.parametrize("place", [".lmstudio/models", ".cache/lm-studio/models"])
def test_models_of_lm_studio_are_named_by_their_folders(home, place):
    path = put(home / place / "org/repo/m-Q4_K_M.gguf", CHAT)
    put(home / place / "org/repo/mmproj-m.gguf", PROJECTOR)
    lines = found()
    assert set(lines) == {"lmstudio:org/repo/m-Q4_K_M.gguf", "lmstudio:org/repo/mmproj-m.gguf"}
    assert "projector" in lines["lmstudio:org/repo/mmproj-m.gguf"].use
    for name in (
        "lmstudio:org/repo/m-Q4_K_M.gguf",
        "lmstudio:org/repo",
        "lmstudio:org/repo:q4_k_m",
    ):
        assert catalog.locate(name) == path
    with pytest.raises(ModelNotFound, match=r"Did you mean lmstudio:org/repo/m-Q4_K_M\.gguf"):
        catalog.locate("lmstudio:org/repo/m-Q4_K_S.gguf")
    with pytest.raises(ModelNotFound, match="has no Q8_0; it has lmstudio:org/repo:Q4_K_M"):
        catalog.locate("lmstudio:org/repo:Q8_0")
    with pytest.raises(ModelInvalid, match="a projector"):
        catalog.locate("lmstudio:org/repo/mmproj-m.gguf")
    with pytest.raises(ModelNotFound, match="no sha256"):
        catalog.verify("lmstudio:org/repo")


def test_lm_studios_home_and_folder_may_be_elsewhere(home):
    put(home / ".lmstudio-home-pointer", f"{home}/studio\n".encode())
    one = put(home / "studio/models/org/repo/one.gguf", CHAT)
    chosen = json.dumps({"downloadsFolder": str(home / "disk")}).encode()
    put(home / "studio/settings.json", chosen)
    two = put(home / "disk/org/repo/two.gguf", BASE)
    assert catalog.locate("lmstudio:org/repo/one.gguf") == one
    assert catalog.locate("lmstudio:org/repo/two.gguf") == two
    assert set(found()) == {"lmstudio:org/repo/one.gguf", "lmstudio:org/repo/two.gguf"}
    put(home / "studio/settings.json", b"{")
    assert set(found()) == {"lmstudio:org/repo/one.gguf"}


def test_models_of_llama_cpp_are_named_by_their_files(home, monkeypatch):
    path = put(home / ".cache/llama.cpp/org_repo_m-Q8_0.gguf", BASE)
    put(home / ".cache/llama.cpp/org_repo_m-Q8_0.gguf.json", b"{}")
    put(home / ".cache/llama.cpp/x.gguf.downloadInProgress", b"x")
    assert catalog.locate("llama.cpp:org_repo_m-Q8_0.gguf") == path
    assert {name: line.problem for name, line in found().items()} == {
        "llama.cpp:org_repo_m-Q8_0.gguf": "",
        str(home / ".cache/llama.cpp/x.gguf.downloadInProgress"): "a download that is not finished",
    }
    monkeypatch.setenv("LLAMA_CACHE", str(home / "other"))
    assert found() == {}


def test_parts_are_one_model_and_a_missing_one_is_told(home):
    folder = home / ".lmstudio/models/org/big"
    folder.mkdir(parents=True)
    paths = put_parts(folder, split_gguf(3), "m-Q6_K")
    (line,) = catalog.found()
    assert line.name == "lmstudio:org/big/m-Q6_K-00001-of-00003.gguf"
    assert line.size == sum(path.stat().st_size for path in paths)
    assert line.quantization == "Q6_K"
    for name in (line.name, "lmstudio:org/big", f"lmstudio:org/big/{paths[2].name}"):
        assert catalog.locate(name) == paths[0]
    for missing in (paths[1], paths[0]):
        missing.unlink()
        (line,) = catalog.found()
        assert f"{missing.name}: missing" in line.problem
        assert not line.usable
        with pytest.raises(ModelError, match=r"missing|no GGUF"):
            catalog.locate(line.name)


def test_what_is_damaged_partial_or_no_model_is_listed_as_such(home):
    root = home / ".lmstudio/models/a/b"
    put(root / "half.gguf", CHAT[:-10])
    put(root / "page.gguf", b"<!doctype html>" + bytes(99))
    put(root / "empty.gguf", b"")
    put(root / "bert.gguf", BERT)
    put(root / "lora.gguf", ADAPTER)
    put(root / "downloading_x.gguf.part", b"x")
    (root / "gone.gguf").symlink_to(root / "nowhere")
    (root / "circle").symlink_to(root)
    (root / "folder.gguf").mkdir()
    os.mkfifo(root / "pipe.gguf")
    blob = in_hub(home / ".cache/huggingface/hub", "x.gguf", CHAT).resolve()
    blob.unlink()
    put(blob.with_name("ab.incomplete"), b"x")
    lines = {name.rpartition("/")[2]: line for name, line in found().items()}
    told = {name: line.problem or line.use for name, line in lines.items()}
    assert "truncated" in told["half.gguf"]
    assert "not a GGUF file" in told["page.gguf"]
    assert "not a GGUF file" in told["empty.gguf"]
    assert "embeddings" in told["bert.gguf"]
    assert "adapter" in told["lora.gguf"]
    assert "not finished" in told["downloading_x.gguf.part"]
    assert "nowhere" in told["gone.gguf"]
    assert "nowhere" in told["x.gguf"]
    assert "not finished" in told["repo"]
    assert len(lines) == len(catalog.found()) == 9
    assert not any(line.usable for line in lines.values())


@pytest.mark.parametrize(
    ("architecture", "more", "use", "usable"),
    [
        ("llama", [], "chat", True),
        ("gpt-oss", [], "chat", True),
        ("qwen3", [pair("qwen3.pooling_type", U32, 3)], "embeddings or ranking", False),
        ("jina-bert-v2", [], "an encoder", False),
        ("gemma-embedding", [], "an encoder", False),
        ("t5encoder", [], "an encoder", False),
        ("t5", [], "an encoder with a decoder", False),
        ("llada-moe", [], "a diffusion model", False),
        ("clip", [], "a projector", False),
    ],
)
def test_what_a_file_can_be_used_as_is_told(home, architecture, more, use, usable):
    own = [*without("architecture"), pair("general.architecture", STRING, architecture), *more]
    put(home / ".lmstudio/models/a/b/x.gguf", gguf(own))
    (line,) = catalog.found()
    assert use in line.use
    assert line.usable is usable


def test_folders_that_cannot_be_read_are_passed_over(home, monkeypatch):
    put(home / "file", b"x")
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "file"))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "file"))
    monkeypatch.setenv("LLAMA_CACHE", str(home / "none"))
    put(home / ".lmstudio-home-pointer", b"\xff\xfe\x00")
    assert catalog.found() == []


@pytest.mark.parametrize(
    "name",
    [
        "lmstudio:../secret.gguf", "lmstudio:/etc/x.gguf", "lmstudio:", "lmstudio:..", "lmstudio:.",
        "lmstudio:org/../../x:Q4_0", "llama.cpp:../x.gguf", "ollama:", "ollama:../x:1",
        "ollama:/etc/passwd", "ollama:x:../../y", "llama.cpp:..\\x.gguf",
    ],
)  # fmt: skip
def test_no_name_leads_out_of_a_folder(home, name):
    put(home / ".lmstudio/models/org/x.gguf", CHAT)
    put(home / ".lmstudio/secret.gguf", CHAT)
    put(home / ".cache/llama.cpp/y.gguf", CHAT)
    put(home / ".cache/x.gguf", CHAT)
    in_ollama(home / ".ollama/models", "registry.ollama.ai/library/x/1", CHAT)
    with pytest.raises(ModelNotFound):
        catalog.locate(name)


def test_the_list_is_printed_as_rows_and_as_json(home):
    put(home / ".lmstudio/models/a/b/m-Q4_K_M.gguf", CHAT)
    put(home / ".lmstudio/models/a/b/half.gguf", CHAT[:-1])
    run = CliRunner()
    rows = run.invoke(app, ["models", "list", "--found"]).stdout.splitlines()
    assert "lmstudio:a/b/m-Q4_K_M.gguf\t0 MB\tllama\tQ4_K_M\tchat" in rows
    assert any("half.gguf" in row and "NOT USABLE: half.gguf: truncated" in row for row in rows)
    lines = json.loads(run.invoke(app, ["models", "list", "--found", "--json"]).stdout)
    assert lines == [dataclasses.asdict(line) for line in catalog.found()]
