"""A program that writes an index and may be killed, for tests/test_store.py.

Reads lines ``ACTION KILL_AT FAIL_AT LIMIT``; forks a child for each, which does the action to the
index ``k`` over ``docs`` in the current folder, dies at its KILL_AT-th storage operation if that is
not 0, meets the fault of PROMPTFLOW_FAIL_AT if that is not ``-``, may write files of at most LIMIT
bytes if that is not 0, and is reported as one line: its exit status, and how many storage
operations it did if it ended well.
"""

from __future__ import annotations

import os
import resource
import sys

# What is slow to import is imported once; promptflow reads the environment in each child.
import faiss
import numpy
import semchunk
import sentencex
import Stemmer

SLOW = (sentencex, Stemmer, faiss, numpy, semchunk)


def act(counts: int, action: str, kill_at: str, fail_at: str, limit: str) -> None:
    os.environ["PROMPTFLOW_KILL_AT"] = kill_at
    os.environ["PROMPTFLOW_FAIL_AT"] = fail_at.strip("-")
    if limit != "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    from promptflow import retrieval as r
    from promptflow.errors import DiskFull, StoreError
    from promptflow.storage import files

    embedder = r.HashingEmbedder(64)
    verb, _, path = action.partition(":")
    calls = {
        "build": lambda: r.build_index("k", "docs", embedder=embedder),
        "force": lambda: r.build_index("k", "docs", embedder=embedder, force=True),
        "update": lambda: r.update_index("k", embedder=embedder),
        "add": lambda: r.add_documents("k", path, embedder=embedder),
        "remove": lambda: r.remove_documents("k", path, embedder=embedder),
        "compact": lambda: r.compact_index("k", embedder=embedder),
    }
    try:
        calls[verb]().close()
        os.write(counts, str(files._operations).encode())
    except DiskFull as error:
        print(error, file=sys.stderr)
        os._exit(28)
    except StoreError as error:
        print(error, file=sys.stderr)
        os._exit(5)


def main() -> None:
    for line in sys.stdin:
        counted, counts = os.pipe()
        child = os.fork()
        if child == 0:
            act(counts, *line.split())
            os._exit(0)
        os.close(counts)
        operations = int(os.read(counted, 20) or 0)
        os.close(counted)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, operations, flush=True)


if __name__ == "__main__":
    main()
