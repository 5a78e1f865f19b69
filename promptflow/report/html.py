"""One HTML file from an evaluation or an optimization: scores, race, prompts, examples, trees.

The file loads nothing from elsewhere, and a policy in its head forbids it to. Everything that a
model or a document wrote is escaped. Positions in plots are computed here, drawn in the template.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from promptflow.evaluation import Evaluation, Record
from promptflow.storage import write_text
from promptflow.terminal import visible

if TYPE_CHECKING:
    from promptflow.optimization import Optimization

WIDTH, LEFT, RIGHT = 640, 150, 60
RACE_HEIGHT = 260
SHOWN = 500
"""Examples in the table; the rest is counted."""

environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(path: str | Path, result: Evaluation | Optimization) -> None:
    """Write the report of a result to ``path``, one HTML file that needs nothing else."""
    write_text(path, render(result))


def render(result: Evaluation | Optimization) -> str:
    """Return the report of a result as HTML."""
    if isinstance(result, Evaluation):
        view = _evaluation_view(result)
    else:
        view = _optimization_view(result)
    return environment.get_template("report.html.j2").render(**view)


def _evaluation_view(result: Evaluation) -> dict[str, Any]:
    return {
        "title": f"Evaluation: {result.about.get('metric', 'score')}",
        "verdict": (
            f"{result.score:.3f} on {result.n} examples, 95 % interval {result.low:.3f} to "
            f"{result.high:.3f}; {result.errors} left out after errors, {result.ungraded} without "
            f"a gold value; {result.cut} with an answer that ended at its token limit."
            + _beside(result)
        ),
        "about": _about(result.about),
        "bars": score_bars([("program", result)]),
        "plot": {"width": WIDTH, "left": LEFT, "right": WIDTH - RIGHT, "ticks": _ticks()},
        "race": None,
        "candidates": [],
        "costs": [_cost("program", result)],
        "diffs": [],
        "columns": ["program"],
        "rows": example_rows([result.records]),
        "hidden": max(0, len(result.records) - SHOWN),
        "trees": _trees(result.records),
    }


def _beside(result: Evaluation) -> str:
    """Return the scores of further metrics of the same runs, and how labels were confused."""
    shown = [
        f" {name}: {found.mean:.3f}, {found.low:.3f} to {found.high:.3f}."
        for name, found in result.beside.items()
    ]
    for gold, row in result.confusion.items():
        said = ", ".join(f"{label} {count}" for label, count in row.items() if count)
        shown.append(f" {gold} was called: {said}.")
    return "".join(shown)


def _optimization_view(result: Optimization) -> dict[str, Any]:
    pair = [("start", result.start), ("winner", result.winner)]
    if result.kept_start:
        pair[1] = ("best of the race", result.winner)
    spent = {
        "label": "whole search",
        "prompt": None,
        "prefilled": None,
        "reused": None,
        "generated": None,
        "forced": None,
        "computed": result.spent.tokens,
        "runs": result.spent.calls,
        "seconds": round(result.spent.seconds, 1),
    }
    return {
        **_evaluation_view(result.winner),
        "title": f"Optimization: {result.about.get('metric', 'score')}",
        "verdict": result.reason,
        "about": _about({**result.about, "plan": str(result.plan)}),
        "bars": score_bars(pair),
        "race": race_lines(result.candidates),
        "candidates": [candidate.to_json() for candidate in result.candidates],
        "costs": [*(_cost(label, one) for label, one in pair), spent],
        "diffs": prompt_diffs(*result.prompts),
        "columns": [label for label, _ in pair],
        "rows": example_rows([one.records for _, one in pair]),
    }


def _about(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in about.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
        rows.append((key.replace("_", " "), str(value) or "none"))
    return rows


def _cost(label: str, one: Evaluation) -> dict[str, Any]:
    usage = one.usage
    return {
        "label": label,
        "prompt": usage.prompt,
        "prefilled": usage.prefilled,
        "reused": usage.reused,
        "generated": usage.generated,
        "forced": usage.forced,
        "computed": usage.prefilled + usage.generated + usage.forced,
        "runs": len(one.records),
        "seconds": round(one.seconds, 1),
    }


def _x(score: float) -> float:
    """Return the horizontal place of a score of 0 to 1."""
    return round(LEFT + min(max(score, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)


def _ticks() -> list[tuple[float, str]]:
    return [(_x(tenth / 4), f"{tenth / 4:g}") for tenth in range(5)]


def score_bars(scores: Sequence[tuple[str, Evaluation]]) -> list[dict[str, Any]]:
    """Return a row of the score plot for each evaluation that has a score."""
    bars = []
    for number, (label, one) in enumerate(scores):
        if one.n:
            bars.append(
                {
                    "label": label,
                    "y": 24 + 34 * number,
                    "x": _x(one.score),
                    "low": _x(one.low),
                    "high": _x(one.high),
                    "text": f"{one.score:.3f}",
                    "hover": f"{label}: {one.score:.3f} ({one.low:.3f} to {one.high:.3f})",
                }
            )
    return bars


def race_lines(candidates: Sequence[Any]) -> dict[str, Any] | None:
    """Return the race as lines of score by examples seen, or None if nothing was raced."""
    most = max((rung.n for c in candidates for rung in c.rungs), default=0)
    if not most:
        return None

    def place(n: int, score: float) -> tuple[float, float]:
        across = LEFT / 3 + n / most * (WIDTH - LEFT / 3 - RIGHT)
        return round(across, 1), round(20 + (1 - min(max(score, 0), 1)) * (RACE_HEIGHT - 60), 1)

    lines = []
    for number, candidate in enumerate(candidates):
        points = [place(rung.n, rung.score) for rung in candidate.rungs]
        if not points:
            continue
        kind = "start" if number == 0 else "best" if number == 1 else "other"
        lines.append(
            {
                "kind": kind,
                "points": " ".join(f"{x},{y}" for x, y in points),
                "dots": points,
                "label": candidate.variant.label,
                "hover": f"{candidate.variant.label}: "
                + ", ".join(f"{r.score:.3f} on {r.n}" for r in candidate.rungs),
            }
        )
    sizes = sorted({rung.n for c in candidates for rung in c.rungs})
    return {
        "lines": lines[::-1],  # the start and the best are drawn last, on top
        "height": RACE_HEIGHT,
        "across": [(place(n, 0)[0], n) for n in sizes],
        "up": [(place(0, s / 4)[1], f"{s / 4:g}") for s in range(5)],
        "left": LEFT / 3,
    }


def prompt_diffs(before: Mapping[str, str], after: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return each predictor's document as lines marked ``same``, ``gone`` or ``new``."""
    kinds = {" ": "same", "-": "gone", "+": "new"}
    diffs = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "").splitlines(), after.get(name, "").splitlines()
        lines = [
            {"kind": kinds[line[0]], "text": line[2:]}
            for line in difflib.ndiff(old, new)
            if line[0] in kinds
        ]
        diffs.append({"name": name, "lines": lines, "changed": old != new})
    return diffs


def example_rows(columns: Sequence[Sequence[Record]]) -> list[dict[str, Any]]:
    """Return a row for each example: inputs, gold, and what each column's program gave."""
    by_index = [{record.index: record for record in records} for records in columns]
    numbers = sorted(set().union(*by_index))[:SHOWN]
    rows = []
    for number in numbers:
        records = [column.get(number) for column in by_index]
        known = next(record for record in records if record is not None)
        scores = [record.score for record in records if record is not None]
        rows.append(
            {
                "index": number,
                "inputs": _texts(known.inputs),
                "gold": _texts(known.gold),
                "cells": [_cell(record) for record in records],
                "change": _change(scores) if len(columns) > 1 else "",
            }
        )
    return rows


def _change(scores: Sequence[float | None]) -> str:
    first, last = scores[0], scores[-1]
    if first is None or last is None or first == last:
        return ""
    return "up" if last > first else "down"


def _cell(record: Record | None) -> dict[str, Any]:
    if record is None:
        return {"fields": [], "score": "", "error": "not run", "tokens": "", "good": ""}
    usage = record.usage
    score = record.score
    return {
        "fields": _texts({k: v for k, v in record.fields.items() if not _is_tree(v)}),
        "score": "" if score is None else f"{score:.2f}",
        "error": record.error or "",
        "tokens": f"{usage.prefilled}+{usage.reused} in, {usage.generated}+{usage.forced} out",
        "good": "" if score is None else "good" if score >= 0.5 else "bad",
    }


def _texts(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in fields.items()
    ]


def _is_tree(value: Any) -> bool:
    nodes = value.get("thoughts") if isinstance(value, Mapping) else value
    return bool(
        isinstance(nodes, list)
        and nodes
        and all(isinstance(node, Mapping) and "parent" in node for node in nodes)
    )


def _trees(records: Sequence[Record]) -> list[dict[str, Any]]:
    trees = []
    for record in records[:SHOWN]:
        for name, value in record.fields.items():
            if _is_tree(value):
                nodes = value["thoughts"] if isinstance(value, Mapping) else value
                trees.append({"index": record.index, "field": name, "roots": nested(nodes)})
    return trees


def _kind(node: Mapping[str, Any]) -> str:
    """Return how a thought is drawn: solved, kept, pruned, or as one that was not followed."""
    kinds = {"solved": "terminal", "kept": "kept", "pruned": "pruned"}
    return next((kind for kind, name in kinds.items() if node.get(name)), "")


def nested(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the roots of a tree given as rows with ``number`` (or place) and ``parent``."""
    made: dict[Any, dict[str, Any]] = {
        node.get("number", place): {
            "text": str(node.get("text") or node.get("state") or "start"),
            "value": node.get("value"),
            "kind": _kind(node),
            "children": [],
        }
        for place, node in enumerate(nodes)
    }
    roots: list[dict[str, Any]] = []
    for place, node in enumerate(nodes):
        parent = made.get(node["parent"])
        home = roots if parent is None else parent["children"]
        home.append(made[node.get("number", place)])
    return roots
