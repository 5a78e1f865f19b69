"""One HTML file from a fit of when to abstain: the risk-coverage curve, weights and answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptflow.report.html import SHOWN, environment
from promptflow.storage import write_text

if TYPE_CHECKING:
    from promptflow.evaluation.abstention import Asked, Tuned

LEFT, WIDTH, TOP, HEIGHT = 50, 570, 20, 245


def write_abstention(path: str | Path, tuned: Tuned) -> None:
    """Write the report of a fit to ``path``, one HTML file that needs nothing else."""
    page = environment.get_template("abstention.html.j2").render(**view(tuned))
    write_text(path, page)


def view(tuned: Tuned) -> dict[str, Any]:
    """Return what the template shows of a fit."""
    chosen, fit = tuned.chosen, tuned.calibration
    verdict = "No threshold is within the bounds: nothing was kept."
    if chosen is not None:
        verdict = (
            f"At the threshold {chosen.threshold:.2f}, {chosen.coverage:.2f} of the answerable "
            f"questions are answered, {chosen.risk:.2f} of these wrongly, and "
            f"{chosen.false_answers:.2f} of the questions whose documents were hidden."
        )
    ordered = sorted(tuned.asked, key=lambda one: -one.chance)
    return {
        "title": f"Abstention: {fit.source}, {fit.about.get('model', '')}",
        "verdict": verdict,
        "ticks": [(*_at(n / 4, n / 4), f"{n / 4:g}") for n in range(5)],
        "risk": _line([(p.coverage, p.risk) for p in tuned.curve]),
        "others": _line([(p.coverage, p.false_answers) for p in tuned.curve]),
        "chosen": [] if chosen is None else [_at(chosen.coverage, chosen.risk)],
        "weights": [
            (name, f"{weight:.3f}", f"{fit.means[name]:.3f}")
            for name, weight in fit.weights.items()
        ],
        "rows": [_row(one) for one in ordered[:SHOWN]],
        "hidden": max(0, len(ordered) - SHOWN),
    }


def _row(one: Asked) -> tuple[str, str, str, str, str]:
    found = "right" if one.best.right else "wrong"
    where = found if one.answerable else f"{found}, documents hidden"
    return f"{one.chance:.2f}", one.question, one.best.answer, " / ".join(one.golds), where


def _at(x: float, y: float) -> tuple[float, float]:
    return round(LEFT + WIDTH * x, 1), round(TOP + HEIGHT * (1.0 - y), 1)


def _line(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in (_at(*point) for point in points))
