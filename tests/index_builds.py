"""A program that builds an index and may be killed, for tests/test_store.py.

Reads lines ``KILL_AT LIMIT``; forks a child for each, which builds the index ``k`` over ``docs`` in
the current folder, dies at its KILL_AT-th storage operation if that is not 0, may write files of at
most LIMIT bytes if that is not 0, and is reported as one line with its exit status.
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


def build(kill_at: str, limit: str) -> None:
    os.environ["PROMPTFLOW_KILL_AT"] = kill_at
    if limit != "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    from promptflow.errors import DiskFull
    from promptflow.retrieval import HashingEmbedder, build_index

    try:
        build_index("k", "docs", embedder=HashingEmbedder(64)).close()
    except DiskFull as error:
        print(error, file=sys.stderr)
        os._exit(28)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            build(*line.split())
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    main()
