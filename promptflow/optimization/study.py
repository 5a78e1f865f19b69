"""A study: steps that cost model calls, journalled before they are used, under a budget.

An optimizer is a deterministic function of its steps' results. A study gives back the results that
its journal holds, in order, and does the work only after them: a run that was killed repeats at
most the step it was in, and ends as it would have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from promptflow.errors import BudgetExceeded, ResumeMismatch, names_options
from promptflow.program.identity import hash_of
from promptflow.storage import Journal, canonical, lock

FORMAT = 1


@names_options
@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may spend; None is no limit.

    ``calls`` counts runs of the program on one example (metric calls); what the engine failed and
    is tried again counts once. ``tokens`` counts those computed (prefilled, generated and forced;
    reused ones are free), ``seconds`` wall time. Calls are never exceeded; tokens and seconds by
    one batch at most.
    """

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that is not positive."""
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise BudgetExceeded(f"Budget({name}={value!r}): a limit must be above 0")


UNLIMITED = Budget()


@dataclass(frozen=True, slots=True)
class Spent:
    """What has been spent; units as in ``Budget``."""

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        """Add field by field."""
        return Spent(
            self.calls + other.calls, self.tokens + other.tokens, self.seconds + other.seconds
        )


Work = Callable[[], tuple[Any, Spent]]


class Study:
    """Replay finished steps from a journal, then do and journal new ones.

    ``fingerprint`` says what the run depends on, part by part. Without a ``path`` nothing is kept.
    With one, ``before`` is called before the work of each step. ``most`` is what a plan has said:
    more runs are not affordable, whatever the budget.
    Raises ResumeMismatch, naming the part, if the journal was written under another fingerprint,
    and StoreBusy if another process holds it.
    """

    def __init__(
        self,
        path: str | Path | None,
        fingerprint: Mapping[str, Any],
        budget: Budget = UNLIMITED,
        before: Callable[[], None] | None = None,
        most: float = math.inf,
    ) -> None:
        """Open the journal at ``path``, or make one."""
        self._before = before if path is not None else None
        self._most = most
        self.budget = budget
        self.spent = Spent()
        self.replayed = 0
        self.number = 0
        self._journal: Journal | None = None
        self._held = ExitStack()
        if path is not None:
            path = Path(path)
            self._held.enter_context(lock(path.with_name(f"{path.name}.lock")))
            try:
                self._journal = self._held.enter_context(Journal(path))
                self._check({"format": FORMAT, **fingerprint})
            except BaseException:
                self._held.close()
                raise

    def _check(self, fingerprint: dict[str, Any]) -> None:
        assert self._journal is not None
        known = self._journal.meta("fingerprint")
        if known is None:
            self._journal.meta("fingerprint", fingerprint)
            return
        for part in {**known, **fingerprint}:
            had, has = known.get(part), fingerprint.get(part)
            if canonical(had) == canonical(has):
                continue
            if isinstance(had, Mapping) and isinstance(has, Mapping):
                inner = next(k for k in {**had, **has} if had.get(k) != has.get(k))
                part, had, has = f"{part} ({inner})", had.get(inner), has.get(inner)
            if canonical(had) != canonical(has):
                raise ResumeMismatch(
                    f"{self._journal.path} was written with another {part}: it has {had!s:.80}, "
                    f"this run has {has!s:.80}. Give the same {part} to continue, or name another "
                    "journal to start anew."
                )

    def step(self, kind: str, request: Any, work: Work) -> Any:
        """Return the journalled result of this step, or do ``work`` and journal what it gives.

        ``work`` returns JSON data and what it spent. Raises ResumeMismatch if the journal holds
        another step in this place.
        """
        key, asked = f"{self.number:06d}", hash_of([kind, request])
        entry = None if self._journal is None else self._journal.get(key)
        if entry is None:
            if self._before is not None:
                self._before()
            result, spent = work()
            entry = {"kind": kind, "request": asked, "result": result, "spent": asdict(spent)}
            entry = json.loads(json.dumps(entry))  # what a resumed run will read
            if self._journal is not None:
                self._journal.append(key, entry)
        elif entry["request"] != asked:
            raise ResumeMismatch(
                f"step {self.number} of {self._journal and self._journal.path} is {entry['kind']!r}"
                f" with other contents than this run's {kind!r}: another version of promptflow "
                "wrote it. Name another journal to start anew."
            )
        else:
            self.replayed += 1
        self.number += 1
        self.spent += Spent(**entry["spent"])
        return entry["result"]

    def used(self) -> float:
        """Return the largest share of a limit that is spent; 1 and more means stop."""
        limits, spent = asdict(self.budget), asdict(self.spent)
        return max((spent[name] / limit for name, limit in limits.items() if limit), default=0.0)

    def affordable(self) -> float:
        """Return how many more runs the budget pays for, by the mean cost of those so far."""
        runs = min(self._most, self.budget.calls or math.inf) - self.spent.calls
        for name in ("tokens", "seconds"):
            limit, spent = getattr(self.budget, name), getattr(self.spent, name)
            if limit is not None and spent and self.spent.calls:
                runs = min(runs, (limit - spent) / (spent / self.spent.calls))
        return max(0.0, math.floor(runs) if math.isfinite(runs) else runs)

    def close(self) -> None:
        """Close the journal and give up its lock."""
        self._held.close()

    def __enter__(self) -> Study:
        """Return the study, to be closed when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the journal."""
        self.close()
