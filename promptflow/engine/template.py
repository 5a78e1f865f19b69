"""Chat templates of model files, rendered in a limited child that has no globals and no files.

A template is a program from a stranger. Jinja's sandbox keeps it from running code, not from
running for ever (``{{ 9**(9**9) }}``), so it gets a process with limits on CPU time and memory.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from promptflow import child
from promptflow.errors import TemplateError

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30
MAX_SOURCE = 256 * 1024
MAX_RANGE = 10_000
MAX_OUTPUT = 4 << 20
SECONDS = 30  # by the clock: a machine may be busy
OTHERWISE = "use layout='completion'"


def scaffold(template: str, roles: Sequence[str], bos: str, eos: str) -> tuple[str, ...]:
    """Return the texts that ``template`` puts around the contents of turns by ``roles``.

    One more than there are roles; the last opens the assistant's turn unless the last role is
    ``assistant``. A template that refuses a system turn gets its content at the start of the first
    other turn. Raises TemplateError for a template that fails, loops, or alters contents.
    """
    if not template:
        raise TemplateError(
            f"the model file has no chat template: {OTHERWISE}, or a model made for chat"
        )
    try:
        return _around(template, roles, bos, eos)
    except TemplateError:
        if len(roles) < 2 or roles[0] != "system":
            raise
        texts = _around(template, roles[1:], bos, eos)
        return (texts[0], "\n\n", *texts[1:])


def _around(template: str, roles: Sequence[str], bos: str, eos: str) -> tuple[str, ...]:
    # Contents stand for themselves as random words, which no template can tell or forge.
    marks = [secrets.token_hex(16) for _ in roles]
    text = _render_limited(
        {
            "template": template,
            "messages": [
                {"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)
            ],
            "add_generation_prompt": roles[-1] != "assistant",
            "bos_token": bos,
            "eos_token": eos,
        }
    )
    texts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise TemplateError(
                f"the model's chat template does not keep turns by {tuple(roles)} in order: "
                + OTHERWISE
            )
        texts.append(before)
    return (*texts, text)


def _render_limited(job: dict[str, Any]) -> str:
    try:
        done = subprocess.run(
            child.command("promptflow.engine.template"),
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=child.environment(),
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(
            f"the model's chat template did not end within {SECONDS} s: {OTHERWISE}"
        ) from None
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"stopped by its limits (exit {done.returncode})"
        raise TemplateError(
            f"the model's chat template cannot be rendered: {reason[:300]}. {OTHERWISE}"
        )
    return done.stdout.decode("utf-8", "replace")


def render(job: dict[str, Any]) -> str:
    """Render ``job["template"]`` in an immutable sandbox with an allowlist of globals."""
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """A sandbox in which powers are refused and repetition is bounded."""

        intercepted_binops = frozenset(("**", "*"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Refuse what makes huge numbers or texts of small ones."""
            sizes = [len(side) for side in (left, right) if hasattr(side, "__len__")]
            if operator == "**" or sizes:
                raise SecurityError(f"{operator} is not available to chat templates")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise SecurityError(message)

    def bounded_range(*bounds: int) -> range:
        values = range(*bounds)
        if len(values) > MAX_RANGE:
            raise SecurityError(f"a range of {len(values):,} is over {MAX_RANGE:,}")
        return values

    def strftime_now(pattern: str) -> str:
        import datetime

        return datetime.datetime.now().strftime(pattern)

    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
        keep_trailing_newline=True,
    )
    namespace = environment.globals["namespace"]
    environment.globals.clear()
    environment.globals.update(
        namespace=namespace,
        range=bounded_range,
        dict=dict,
        raise_exception=raise_exception,
        strftime_now=strftime_now,
    )
    source = job.pop("template")
    if len(source) > MAX_SOURCE:
        raise SecurityError(f"a template of {len(source):,} characters is over {MAX_SOURCE:,}")
    return environment.from_string(source).render(**job)


def main() -> None:
    """Render the job on stdin to stdout, within limits."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    job = json.loads(sys.stdin.buffer.read())
    try:
        text = render(job)
        if len(text) > MAX_OUTPUT:
            raise ValueError(f"{len(text):,} characters of output are over {MAX_OUTPUT:,}")
    except Exception as error:
        # The one line that the parent reports.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(1) from None
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
