import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from datetime import UTC, time
from decimal import Decimal
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from promptflow import storage
from promptflow.errors import (
    SignatureNotFound,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
)

ROOT = Path(__file__).resolve().parent.parent

WRITER = """
import os
from pathlib import Path
from promptflow import storage

storage.write_bytes("file", b"new" * 1_000_000)
storage.write_json("file.json", {"state": "new"})
with storage.replace_folder("folder") as folder:
    storage.write_text(folder / "a", "new")
    storage.write_text(folder / "b", "new")
with storage.Journal("journal.db") as journal:
    for number in range(3):
        journal.append(f"key {number}", {"number": number})
        os.write(1, f"{number}\\n".encode())
"""


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


def small_disk(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a folder of 2 MB, in namespaces of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    mount = f"mount -t tmpfs -o size=2m tmpfs '{tmp_path}' && cd '{tmp_path}' && exec \"$@\""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    done = subprocess.run(
        [*alone, sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a user namespace: {done.stderr.strip()}")
    return done


def test_a_kill_at_any_operation_leaves_the_previous_content_or_the_new(tmp_path):
    old, new = b"old" * 1_000_000, b"new" * 1_000_000
    for step in range(1, 500):
        folder = tmp_path / str(step)
        (folder / "folder").mkdir(parents=True)
        (folder / "file").write_bytes(old)
        (folder / "file.json").write_text('{"state": "old"}')
        (folder / "folder" / "a").write_text("old")
        (folder / "folder" / "b").write_text("old")
        done = python(WRITER, folder, PROMPTFLOW_KILL_AT=str(step))
        assert (folder / "file").read_bytes() in (old, new)
        assert storage.read_json(folder / "file.json")["state"] in ("old", "new")
        names = sorted(path.name for path in (folder / "folder").iterdir())
        texts = {path.read_text() for path in (folder / "folder").iterdir()}
        assert names == ["a", "b"]
        assert texts in ({"old"}, {"new"})
        with storage.Journal(folder / "journal.db") as journal:
            kept = dict(journal.items())
        for number in done.stdout.split():
            assert kept[f"key {number}"] == {"number": int(number)}
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert python(WRITER, folder).returncode == 0
        assert leftovers(folder) == []
        shutil.rmtree(folder)
    assert done.returncode == 0
    assert step > 20
    assert (folder / "file").read_bytes() == new


@pytest.mark.parametrize("acknowledged", [1, 7, 50])
def test_a_journal_keeps_what_it_acknowledged_when_its_writer_is_killed(tmp_path, acknowledged):
    code = """
import itertools
from promptflow.storage import Journal
journal = Journal("journal.db")
for number in itertools.count():
    journal.append(str(number), {"text": "x" * 5000, "number": number})
    print(number, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for _ in range(acknowledged):
        child.stdout.readline()
    child.kill()
    rest = [line for line in child.stdout.read().split("\n") if line]
    child.wait()
    child.stdout.close()
    with storage.Journal(tmp_path / "journal.db") as journal:
        entries = list(journal.items())
    count = acknowledged + len(rest)
    assert len(entries) in (count, count + 1)
    assert [value["number"] for _, value in entries] == list(range(len(entries)))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "file"
    storage.write_text(path, "old")

    def half_a_file():
        with storage.writing(path) as file:
            file.write(b"half")
            raise KeyError

    def half_a_folder():
        with storage.replace_folder(tmp_path / "deep") as folder:
            (folder / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        half_a_file()
    with pytest.raises(KeyError):
        half_a_folder()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.rglob("*")] == ["deep", "file"]


def test_a_file_size_limit_is_disk_full_and_the_old_file_stays(tmp_path):
    code = """
import resource
from promptflow import storage
from promptflow.errors import DiskFull
storage.write_bytes("file", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for size in (100_001, 5_000_000):
    try:
        storage.write_bytes("file", b"n" * size)
    except DiskFull as error:
        print(error)
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Nothing was replaced. Free some space") == 2
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_a_full_disk_is_disk_full_and_loses_nothing(tmp_path):
    code = """
import os
from promptflow import storage
from promptflow.errors import DiskFull
storage.write_bytes("file", b"old")
journal = storage.Journal("journal.db")
journal.append("first", {"n": 1})
cache = storage.Cache("cache.db", 10_000_000)
cache.put("a", "b")
for write in (
    lambda: storage.write_bytes("file", b"n" * 4_000_000),
    lambda: [storage.write_bytes(f"{n}", b"n" * 90_000) for n in range(500)],
    lambda: journal.append("second", {"text": "x" * 4_000_000}),
):
    try:
        write()
    except DiskFull as error:
        print("full", error)
cache.put("c", "x" * 4_000_000)
assert cache.get("a") in ("b", None)
assert open("file").read() == "old"
assert dict(journal.items()) == {"first": {"n": 1}}
os.unlink("0")
assert not [name for name in os.listdir() if name.endswith(".part")]
journal.append("second", {"n": 2})
print(list(journal.items()))
"""
    done = small_disk(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("full ") == 3
    assert "second" in done.stdout.splitlines()[-1]


def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path):
    folder = tmp_path / "folder"
    with storage.replace_folder(folder) as new:
        (new / "number").write_text("0")
    code = """
import sys
print("ready", flush=True)
seen = 0
while seen < 300:
    seen = int(open("folder/number").read())
print("done")
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    for number in range(1, 301):
        with storage.replace_folder(folder) as new:
            (new / "number").write_text(str(number))
    out, _ = reader.communicate(timeout=60)
    assert out == "done\n"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_is_appended_is_kept_however_the_block_ends(tmp_path):
    def half():
        with storage.appending(tmp_path / "deep" / "file") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    with storage.appending(tmp_path / "deep" / "file") as file:
        assert file.tell() == 4
        file.write(b"whole")
    assert (tmp_path / "deep" / "file").read_bytes() == b"halfwhole"


def test_a_move_takes_the_place_of_a_file_or_a_folder(tmp_path):
    for name in ("new file", "old file"):
        (tmp_path / name).write_text(name)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    storage.move(tmp_path / "new file", tmp_path / "old file")
    storage.move(tmp_path / "new", tmp_path / "old")
    storage.move(tmp_path / "old", tmp_path / "deep" / "other")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"old file", "deep", "deep/other", "deep/other/new"}
    assert (tmp_path / "old file").read_text() == "new file"


def test_a_scratch_folder_of_a_killed_process_is_removed_by_the_next(tmp_path):
    code = """
import os, signal
from promptflow import storage
with storage.scratch_folder("scratch") as folder:
    (folder / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    python(code, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with storage.scratch_folder(tmp_path / "scratch") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_free_bytes_are_those_of_the_nearest_folder(tmp_path):
    free = storage.free_bytes(tmp_path / "not" / "there")
    assert 0 < free <= shutil.disk_usage(tmp_path).total


def test_a_folder_may_be_removed_twice(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    storage.remove_folder(tmp_path / "folder")
    storage.remove_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_writing_where_no_folder_can_be_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        storage.write_text(tmp_path / "file" / "below", "text")
    with pytest.raises(StoreError, match="cannot be written"):
        storage.Journal(tmp_path / "file" / "below")


def test_json_comes_back_as_it_was(tmp_path):
    value = {"text": "é\n\u2028", "lone": "\ud800", "list": [1, 2.5, None, True]}
    storage.write_json(tmp_path / "a.json", value)
    assert storage.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("data", [b"", b"{", b'"\xff"', b"[" * 100_000, b"nul"])
def test_bad_json_is_corrupt_and_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"a\.json"):
        storage.read_json(tmp_path / "a.json")


def test_missing_json_is_not_found(tmp_path):
    with pytest.raises(StoreNotFound, match=r"a\.json"):
        storage.read_json(tmp_path / "a.json")


def test_hashes(tmp_path):
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    sizes = []
    assert storage.sha256_bytes(b"abc") == abc
    assert storage.sha256_of(tmp_path / "abc", sizes.append) == abc
    assert sizes == [3]
    assert storage.canonical({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"\\u00e9"]}'


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path))
    assert storage.cache_dir() == tmp_path
    monkeypatch.delenv("PROMPTFLOW_CACHE")
    assert storage.cache_dir().name == "promptflow"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert storage.config_dir() == tmp_path / "promptflow"


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    code = """
import sys
from promptflow.storage import lock
with lock("lock"):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(StoreBusy, match=f"held by process {holder.pid},"),
        storage.lock(tmp_path / "lock"),
    ):
        pytest.fail("two writers hold one lock")
    holder.kill()
    holder.communicate()
    with storage.lock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    with storage.lock(tmp_path / "lock"):
        pass


def test_a_journal_keeps_order_and_takes_new_values(tmp_path):
    with storage.Journal(tmp_path / "j.db") as journal:
        for key in ("b", "a", "c"):
            journal.append(key, {"key": key})
        journal.append("b", {"key": "new"})
        assert journal.meta("seed") is None
        assert journal.meta("seed", 7) == 7
    with storage.Journal(tmp_path / "j.db") as journal:
        assert list(journal.items()) == [
            ("b", {"key": "new"}),
            ("a", {"key": "a"}),
            ("c", {"key": "c"}),
        ]
        assert journal.get("a") == {"key": "a"}
        assert journal.get("missing") is None
        assert journal.meta("seed") == 7
        assert len(journal) == 3


def test_a_changed_journal_entry_is_corrupt(tmp_path):
    with storage.Journal(tmp_path / "j.db") as journal:
        journal.append("a", {"score": 1})
        journal.append("b", {"score": 2})
    with sqlite3.connect(tmp_path / "j.db") as connection:
        connection.execute("""UPDATE entries SET value = '{"score": 3}' WHERE key = 'a'""")
    connection.close()
    with storage.Journal(tmp_path / "j.db") as journal:
        assert journal.get("b") == {"score": 2}
        with pytest.raises(StoreCorrupt, match="entry 'a'"):
            journal.get("a")
        with pytest.raises(StoreCorrupt, match="entry 'a'"):
            list(journal.items())


def test_a_file_that_is_no_journal_is_corrupt(tmp_path):
    (tmp_path / "j.db").write_bytes(b"not a database, but long enough for a header" * 100)
    with pytest.raises(StoreCorrupt, match=r"j\.db"):
        storage.Journal(tmp_path / "j.db")


def test_a_journal_is_not_used_across_a_fork(tmp_path):
    code = """
import os
from promptflow.errors import ForkedUse
from promptflow.storage import Cache, Journal
journal, cache = Journal("j.db"), Cache("c.db", 1000)
cache.put("a", 1)
if os.fork() == 0:
    cache.put("b", 2)
    assert cache.get("a") is None
    try:
        journal.append("a", {})
    except ForkedUse as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
assert (cache.get("a"), cache.get("b"), len(journal)) == (1, None, 0)
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "open it in this one" in done.stdout


def test_a_cache_drops_the_least_recently_used(tmp_path):
    cache = storage.Cache(tmp_path / "c.db", 10_000)
    cache.put("kept", {"value": 1})
    for number in range(500):
        cache.put(str(number), "x" * 90)
        assert cache.get("kept") == {"value": 1}
    present = [number for number in range(500) if cache.get(str(number)) is not None]
    assert 80 <= len(present) <= 105
    assert present == list(range(500 - len(present), 500))
    cache.put("too large", "x" * 20_000)
    assert cache.get("too large") is None
    cache.close()


def test_a_bit_flip_in_a_cache_is_a_miss_and_never_another_value(tmp_path):
    chance = random.Random(1)
    cache = storage.Cache(tmp_path / "c.db", 1_000_000)
    values = {f"key {n}": {"n": n, "text": chance.randbytes(60).hex()} for n in range(60)}
    for key, value in values.items():
        cache.put(key, value)
    cache.close()
    whole = (tmp_path / "c.db").read_bytes()
    misses = 0
    for number in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path = tmp_path / f"{number}.db"
        path.write_bytes(damaged)
        cache = storage.Cache(path, 1_000_000)
        for key, value in values.items():
            found = cache.get(key)
            assert found in (value, None)
            misses += found is None
        cache.put("key 3", "again")
        assert cache.get("key 3") == "again"
        cache.close()
    assert misses > 50


def test_a_cache_file_that_is_no_database_is_started_anew(tmp_path):
    (tmp_path / "c.db").write_bytes(b"nothing of the kind" * 500)
    cache = storage.Cache(tmp_path / "c.db", 1000)
    cache.put("a", [1])
    assert cache.get("a") == [1]
    cache.close()


def test_a_document_is_found_in_the_project_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "zero_shot_cot"
    assert name in storage.document_names("signatures")
    bundled = storage.find_document("signatures", name)
    assert bundled == storage.bundled_folder("signatures") / f"{name}.toml"
    (tmp_path / "signatures").mkdir()
    own = tmp_path / "signatures" / f"{name}.toml"
    own.write_text("")
    assert storage.find_document("signatures", name).absolute() == own
    assert storage.find_document("signatures", name, bundled_only=True) == bundled
    assert storage.find_document("signatures", own) == own
    assert storage.find_document("signatures", f"./signatures/{name}.toml").absolute() == own


def test_an_index_is_found_by_name_and_by_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = tmp_path / "indexes" / "mine" / "index.toml"
    document.parent.mkdir(parents=True)
    document.write_text("")
    assert storage.find_document("indexes", "mine").absolute() == document
    assert storage.find_document("indexes", document.parent) == document
    assert storage.find_document("indexes", str(document)) == document
    with pytest.raises(StoreNotFound, match="Did you mean mine"):
        storage.find_document("indexes", "mien")


def test_a_missing_document_names_folders_and_close_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signatures").mkdir()
    (tmp_path / "signatures" / "headline.toml").write_text("")
    with pytest.raises(SignatureNotFound) as caught:
        storage.find_document("signatures", "hedline")
    assert str(tmp_path / "signatures") in str(caught.value)
    assert str(storage.bundled_folder("signatures")) in str(caught.value)
    assert "Did you mean headline" in str(caught.value)
    with pytest.raises(SignatureNotFound, match=r"no such file"):
        storage.find_document("signatures", "../signatures/x.toml")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    TEXT | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(
    TEXT, st.lists(st.sampled_from([*'\n"\\\r\t\x7f\x00\x1b\x85\u2028 a', '"""', "\r\n", " \n"]))
)
def test_toml_text_comes_back_as_it_was(text, parts):
    tables = {"a": text, "b": text + "\n" + text, "c": "".join(parts), "s": {text: ["\n" + text]}}
    assert tomllib.loads(storage.toml_dumps(tables)) == tables


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_toml_tables_come_back_as_they_were(tables):
    assert tomllib.loads(storage.toml_dumps(tables)) == tables


TABLES = st.dictionaries(TEXT, VALUES, max_size=5)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(TABLES, st.lists(TABLES, min_size=1, max_size=3))
def test_toml_keeps_the_order_of_keys_in_sections(table, demos):
    """A demo's value is shown to the model as it stands, so that its order is a part of it."""
    tables = {"table": table, "demos": demos}
    read = tomllib.loads(storage.toml_dumps(tables))
    assert read == tables
    assert json.dumps(read, default=str) == json.dumps(tables, default=str)


def test_toml_of_the_writer_before_this_one_reads_the_same():
    """What was saved by hand-written code: quotes unescaped, short lists on one line."""
    text = (
        'layout = "chat"\n'
        'instructions = """\nAnswer.\nSay "unknown".\\u000d\n"""\n'
        'names = ["a", "b"]\n'
        "\n[compiled]\ndev = { score = 0.61, n = 200 }\n"
        '\n[[demos]]\nq = "1"\nvalue = { b = { c = 1 }, a = [2] }\n'
    )
    tables = tomllib.loads(text)
    assert tables["instructions"] == 'Answer.\nSay "unknown".\r\n'
    assert repr(tomllib.loads(storage.toml_dumps(tables))) == repr(tables)


def test_toml_is_laid_out_for_a_diff():
    tables = {
        "layout": "chat",
        "instructions": 'Answer.\nBriefly, with a "quote".\n',
        "names": ["x" * 60, "y" * 60],
        "compiled": {"dev": {"score": 0.61, "n": 200}},
        "demos": [{"q": "1"}, {"q": "2"}],
    }
    assert storage.toml_dumps(tables) == (
        'layout = "chat"\n'
        'instructions = """\nAnswer.\nBriefly, with a \\"quote\\".\n"""\n'
        f'names = [\n    "{"x" * 60}",\n    "{"y" * 60}",\n]\n'
        "\n[compiled]\ndev = { score = 0.61, n = 200 }\n"
        '\n[[demos]]\nq = "1"\n'
        '\n[[demos]]\nq = "2"\n'
    )


class Shade(int, Enum):
    DARK = 1


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a": None}, "'a' is None"),
        ({"a": [1, None]}, "'a' is None"),
        ({"a": {"b": object()}}, "'b' is"),
        ({"a": {"b": [{"c": b"x"}]}}, "'c' is"),
        ({"a": Decimal("1.10")}, "'a' is Decimal"),
        ({"a": Shade.DARK}, "'a' is <Shade.DARK"),
        ({"a": time(1, tzinfo=UTC)}, "'a' is datetime.time"),
        ({"a": {1: "x"}}, "'a' has the key 1"),
        ({"a": "\udc80"}, "lone"),
        ({"a": {"\udc80": 1}}, "lone"),
    ],
)
def test_toml_refuses_what_it_cannot_hold(tables, message):
    with pytest.raises(StoreError, match=message):
        storage.toml_dumps(tables)


def test_text_of_any_origin_is_read_or_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfabcd")
    assert storage.read_text(tmp_path / "x", 7) == "abcd"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "u16").write_bytes("a".encode("utf-16"))
    (tmp_path / "bytes").write_bytes(b"\xff")
    faults = {
        "pipe": "no regular",
        ".": "no regular",
        "u16": "UTF-16",
        "bytes": "not UTF-8",
        "x": "longer",
    }
    for name, says in faults.items():
        with pytest.raises(ValueError, match=says):
            storage.read_text(tmp_path / name, 4)


@pytest.mark.parametrize("key", ["a" + ".a" * 100_000, '"a".' * 100_000 + "b", "a . " * 99 + "a"])
def test_keys_of_many_parts_are_refused_before_they_take_memory(key: str):
    for text in (f"{key}=1", f"[{key}]", f"x={{{key}=1}}", f'x="""\n it\'s """\n{key}=1'):
        with pytest.raises(ValueError, match="32 parts"):
            storage.toml_loads(text)
    for text in (f"x='''{key}'''", f'x="""{key}"""', f"# {key}\nx=1"):
        assert set(storage.toml_loads(text)) == {"x"}
    with pytest.raises(ValueError, match="too deep"):
        storage.toml_loads("x=" + "[" * 9_000)
