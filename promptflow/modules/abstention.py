"""When to abstain: the probability that an answer is right, by what was seen on the way to it.

A logistic regression over a few signals, fitted for one model and one embedder on questions with
answers (``promptflow tune-abstention``). Answering where a score is high enough, and its curve of
risk over coverage, are El-Yaniv and Wiener 2010 (JMLR 11); a calibrator beside the model's own
probability is Kamath and others 2020 (arXiv 2006.09462).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from promptflow.errors import StoreCorrupt
from promptflow.storage import canonical, read_json, sha256_bytes, write_json

RIDGE = 1.0
"""The penalty on weights of standardised signals: a fit on few questions stays finite."""

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns signals into the probability that an answer is right, and where to abstain.

    An answer is given where its probability reaches ``threshold``. A signal that is missing counts
    as its mean in ``means``. ``model`` and ``embedder`` are the SHA-256 of what it was fitted with;
    ``source`` says for people what it is, ``about`` on what data and how well it was fitted.
    """

    weights: Mapping[str, float]
    means: Mapping[str, float]
    bias: float
    threshold: float
    model: str
    embedder: str
    source: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def probability(self, signals: Mapping[str, float]) -> float:
        """Return the probability that an answer with these signals is right."""
        seen = {**self.means, **signals}
        total = self.bias + math.fsum(w * seen[name] for name, w in self.weights.items())
        return float(_sigmoid(np.float64(total)))

    def save(self, path: str | Path) -> None:
        """Write it to a file, with the file's own hash."""
        table = {"schema": SCHEMA, **asdict(self)}
        write_json(path, {**table, "sha256": sha256_bytes(canonical(table).encode())})

    @classmethod
    def open(cls, path: str | Path) -> Calibration:
        """Read what ``save`` wrote. Raises StoreCorrupt for what is damaged or of another form."""
        try:
            table = read_json(path)
            sealed = table.pop("sha256")
            if sealed != sha256_bytes(canonical(table).encode()) or table.pop("schema") != SCHEMA:
                raise StoreCorrupt("its content is not what its sha256 says")
            return cls(**table)
        except (StoreCorrupt, AttributeError, KeyError, TypeError) as error:
            raise StoreCorrupt(
                f"{path}: damaged ({error}). Fit it again: promptflow tune-abstention"
            ) from error


def file_of(index: Any, model: str) -> Path | None:
    """Return where the calibration of a model stands: beside the built files of an index.

    None for a retriever that is no index, or several.
    """
    index = getattr(index, "index", index)  # a view's
    recipe = getattr(index, "recipe", None)
    return None if recipe is None else Path(recipe.built) / f"abstention-{model[:12]}.json"


def embedder_of(index: Any) -> str:
    """Return the SHA-256 of an index's embedder; empty for a retriever that tells none."""
    manifest = getattr(getattr(index, "index", index), "manifest", None)
    return "" if manifest is None else str(manifest.embedder["sha256"])


def calibration_for(index: Any, lm: Any) -> Calibration:
    """Return the calibration of an index and a model: the fitted one, else the default.

    One that was fitted with another embedder does not count. Raises StoreCorrupt.
    """
    model = str(getattr(getattr(getattr(lm, "text_engine", None), "info", None), "sha256", ""))
    embedder = embedder_of(index)
    path = file_of(index, model) if model else None
    if path is not None and path.is_file():
        fitted = Calibration.open(path)
        if (fitted.model, fitted.embedder) == (model, embedder):
            return fitted
    known = default_calibration()
    same = (known.model, known.embedder) == (model, embedder)
    whose = "this model and embedder" if same else "another model or embedder"
    return replace(
        known,
        source=f"default, fitted with {whose} on SQuAD: promptflow tune-abstention fits your own",
    )


@functools.cache
def default_calibration() -> Calibration:
    """Return the calibration that comes with promptflow: Qwen2.5-Coder-0.5B and all-MiniLM-L6-v2.

    ``benchmarks/grounding.py`` fitted it.
    """
    return Calibration.open(Path(__file__).with_name("abstention.json"))


def logit(probability: float) -> float:
    """Return the log-odds of a probability, within plus and minus 12."""
    bounded = min(max(probability, 6e-6), 1.0 - 6e-6)
    return math.log(bounded / (1.0 - bounded))


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a risk-coverage curve: what a threshold answers, and how much of that is wrong.

    ``coverage`` is the share of the answerable questions that are answered, ``risk`` the share of
    these answers that is wrong, ``false_answers`` the share of the unanswerable that are answered.
    """

    threshold: float
    coverage: float
    risk: float
    false_answers: float


def fit_logistic(
    rows: Sequence[Mapping[str, float]], right: Sequence[bool], names: Sequence[str]
) -> tuple[dict[str, float], float]:
    """Return the weights and the bias that make what is ``right`` most probable.

    Newton's method on the penalised likelihood, over standardised signals.
    """
    signals = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    labels = np.asarray(right, dtype=np.float64)
    mean, spread = signals.mean(axis=0), signals.std(axis=0)
    spread[spread < 1e-12] = 1.0
    design = np.column_stack([(signals - mean) / spread, np.ones(len(signals))])
    penalty = np.diag([RIDGE] * len(names) + [1e-6])
    weights = np.zeros(len(names) + 1)
    for _ in range(100):
        chance = _sigmoid(design @ weights)
        slope = design.T @ (chance - labels) + penalty @ weights
        curve = (design.T * (chance * (1.0 - chance))) @ design + penalty
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    plain = weights[:-1] / spread
    named = {name: float(w) for name, w in zip(names, plain, strict=True)}
    return named, float(weights[-1] - plain @ mean)


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def risk_coverage(
    answerable: Sequence[tuple[float, bool]], unanswerable: Sequence[float]
) -> list[Point]:
    """Return the curve over every threshold that changes it, from answering nothing to all.

    ``answerable`` are (probability, right) of the questions that the documents answer,
    ``unanswerable`` the probabilities of answers to the others.
    """
    scores = np.array([score for score, _ in answerable])
    right = np.array([is_right for _, is_right in answerable], dtype=bool)
    others = np.array(unanswerable)
    points = []
    for threshold in sorted({*scores.tolist(), *others.tolist()}, reverse=True):
        kept = scores >= threshold
        points.append(
            Point(
                threshold,
                float(kept.mean()) if len(kept) else 0.0,
                float((~right[kept]).mean()) if kept.any() else 0.0,
                float((others >= threshold).mean()) if len(others) else 0.0,
            )
        )
    return points


def choose_threshold(points: Sequence[Point], risk: float, false_answers: float) -> Point | None:
    """Return the point that answers most within both bounds; None where no point is."""
    held = [p for p in points if p.risk <= risk and p.false_answers <= false_answers]
    return max(held, key=lambda p: (p.coverage, p.threshold), default=None)
