"""Write a model's weights in another format, in a process of its own: llama.cpp may abort it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from promptflow import child
from promptflow.child import usable_cores
from promptflow.errors import ModelInvalid

PURE = "_pure"
FORMATS = ("q4_0", "q4_0_pure", "iq4_nl", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")
_TENSOR = re.compile(rb"^\[\s*(\d+)/\s*(\d+)\]")
_MODULE = "promptflow.engine.model.quantize"


def quantize(
    source: Path, target: Path, form: str, progress: Callable[[int, int], object] | None = None
) -> None:
    """Write ``source`` to the new file ``target`` in a format of ``FORMATS``, by llama.cpp.

    Llama.cpp keeps the output layer and a few other tensors in more bits than the format says; a
    ``PURE`` format does not. ``progress`` is told how many tensors are done, and of how many.
    Weights that were quantized are read back first, so the loss is that of both formats. Raises
    ModelInvalid with llama.cpp's last words.
    """
    if form not in FORMATS:
        raise ModelInvalid(f"no format {form!r}: the formats are {', '.join(FORMATS)}")
    command = [*child.command(_MODULE), str(source), str(target), form, str(usable_cores())]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=child.environment(),
    )
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=8)
    try:
        for line in process.stderr:
            last.append(line.decode("utf-8", "replace").rstrip())
            if progress is not None and (match := _TENSOR.match(line)):
                progress(int(match[1]), int(match[2]))
    except BaseException:
        process.kill()
        raise
    finally:
        process.stderr.close()
        code = process.wait()
    if code != 0:
        told = "\n  ".join(last) or f"exit code {code}"
        raise ModelInvalid(f"llama.cpp cannot write {source.name} as {form}:\n  {told}")


def main(source: str, target: str, form: str, threads: str) -> None:
    """Do it in this process."""
    from promptflow.engine.model import llama

    llama.log_to_stderr(warnings_only=False)
    pure = form.endswith(PURE)
    llama.quantize(Path(source), Path(target), form.removesuffix(PURE), int(threads), pure)


if __name__ == "__main__":
    main(*sys.argv[1:])
