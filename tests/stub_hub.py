"""A Hugging Face hub on loopback: what its library asks of one to list and to download files."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from promptflow import storage

COMMIT = "a" * 40


@dataclass
class Repository:
    """Files by revision; ``private`` answers 401 to all without the token."""

    files: dict[str, dict[str, bytes]]
    commits: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, revision):
        return self.commits.get(revision, COMMIT if revision == "main" else revision)

    def at(self, revision):
        for name, files in self.files.items():
            if revision in (name, self.commit(name)):
                return files
        return None


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.server
        path = unquote(urlsplit(self.path).path).strip("/")
        hub.asked.append(f"{self.command} {path}")
        if hub.broken:
            return self.fail(503, "")
        parts = path.removeprefix("api/models/").split("/")
        repository = hub.repositories.get("/".join(parts[:2]))
        if repository is None:
            return self.fail(404, "" if hub.plain else "RepoNotFound")
        if hub.plain and parts[2:3] == ["revision"]:
            return self.fail(404, "")
        if repository.private and self.headers.get("authorization") != "Bearer hf_right":
            return self.fail(401, "RepoNotFound" if not self.headers.get("authorization") else "")
        verb, rest = (parts[2], parts[3:]) if len(parts) > 2 else ("revision", ["main"])
        return getattr(self, verb)(repository, "/".join(parts[:2]), rest)

    def revision(self, repository, name, rest):
        revision = "/".join(rest)
        files = repository.at(revision)
        if files is None:
            return self.fail(404, "RevisionNotFound")
        siblings = [
            {"rfilename": file, "size": len(data), "blobId": "0" * 40}
            for file, data in files.items()
        ]
        if self.server.without_siblings:
            siblings = []
        about = {"id": name, "sha": repository.commit(revision), "siblings": siblings}
        return self.send(json.dumps(about).encode())

    def tree(self, repository, name, rest):
        files = repository.at("/".join(rest)) or {}
        rows = [
            {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
            for file, data in files.items()
        ]
        return self.send(json.dumps(rows).encode())

    def resolve(self, repository, name, rest):
        # A revision may hold slashes: the longest one that is known.
        for cut in range(len(rest) - 1, 0, -1):
            if (files := repository.at(revision := "/".join(rest[:cut]))) is not None:
                break
        else:
            return self.fail(404, "RevisionNotFound")
        if repository.gated:
            return self.fail(403, "GatedRepo")
        data = files.get("/".join(rest[cut:]))
        if data is None:
            return self.fail(404, "" if self.server.plain else "EntryNotFound")
        etag = self.server.etag or storage.sha256_bytes(data)
        return self.send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit(revision)})

    def send(self, data, headers=()):
        start = 0
        if self.command == "GET" and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        if self.command == "GET" and "/resolve/" in self.path:
            self.server.starts.append(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut_at if "/resolve/" in self.path else 0
        self.wfile.write(self.server.spoil(data[start : cut or None]))
        self.wfile.flush()
        if cut:
            self.server.broken = True
            self.close_connection = True

    def fail(self, status, code):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def stub_hub():
    """Run one; ``asked`` lists the requests, ``starts`` the first byte of each download."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    server.repositories, server.asked, server.starts = {}, [], []
    server.broken, server.cut_at, server.etag, server.without_siblings = False, 0, "", False
    server.plain = False  # a mirror without codes of errors, which tells files by their tree alone
    server.spoil = lambda data: data
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
