"""What has been added to a request's text, for whoever reads it while it is written.

Only what stands is told: no half of a character, and nothing that a stop string may yet cut off.
What was told is never taken back: a request that starts again keeps its text, or, where its text
must not depend on what was cached, writes the same text once more.
"""

from __future__ import annotations

from promptflow.engine.slot.filling import Filling
from promptflow.engine.slot.job import FillJob


class Deltas:
    """Remembers how much of a job's text has been told."""

    def __init__(self, job: FillJob) -> None:
        """Start with nothing told."""
        self._job = job
        self._told: dict[str, int] = {}  # characters by slot
        self._reading: _Reading | None = None

    def fresh(self) -> list[tuple[str, str]]:
        """Return what has been added since the last call, as slot and text, in order.

        Nothing while the job waits: it may yet be given to another worker, which would tell it all.
        Slots that are searched or weighed are told when they have ended.
        """
        if self._job.sequence.seq_id < 0:
            return []
        told = self._told
        fresh = [(n, fill.text[told.get(n, 0) :]) for n, fill in self._job.fills.items()]
        if (filling := self._job.plain) is not None:
            if self._reading is None or self._reading.filling is not filling:
                self._reading = _Reading(filling)
            name, known = filling.slot.name, self._reading.passed
            fresh.append((name, self._reading.fresh()[max(0, told.get(name, 0) - known) :]))
        for name, text in fresh:
            told[name] = told.get(name, 0) + len(text)
        return [(name, text) for name, text in fresh if text]


class _Reading:
    """Reads the text of an open slot as it grows, less its lead."""

    def __init__(self, filling: Filling) -> None:
        self.filling = filling
        self._read = 0  # bytes
        self.passed = 0  # characters
        self._head: str | None = ""  # what may become the lead; None once that is decided

    def fresh(self) -> str:
        text = self._more()
        self.passed += len(text)
        return text

    def _more(self) -> str:
        end = self.filling.settled
        # No character reaches across: each piece ends where one does.
        text = self.filling.text[self._read : end].decode("utf-8", "replace")
        self._read = end
        if self._head is None:
            return text
        self._head += text
        lead = self.filling.slot.lead
        if len(self._head) < len(lead) and lead.startswith(self._head):
            return ""
        text, self._head = self._head.removeprefix(lead), None
        return text
