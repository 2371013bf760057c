"""The table: a line a figure, a column a peer, the goal last; and a line for each peer that could not be measured."""

from __future__ import annotations

import math
import os
import platform
from typing import Any

from bench.peers.columns import FIGURES, OURS, Figure, goal_of, met
from bench.peers.measure import Column

NO_FIGURE = "-"


def number(value: float) -> str:
    """Return a figure with three digits that say something."""
    if math.isinf(value):
        return "dead"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _with_ratio(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    tls = medians.get("tls", {}).get("up")
    return {
        name: found | ({"up_of_tls": found["up"] / tls} if tls and "up" in found else {})
        for name, found in medians.items()
    }


def medians_of(columns: list[Column]) -> dict[str, dict[str, float]]:
    """Return the medians by peer, with what is a ratio of two peers."""
    return _with_ratio({column.name: column.medians() for column in columns})


def _goal(figure: Figure, medians: dict[str, dict[str, float]]) -> str:
    goal = goal_of(figure, medians)
    if goal is None:
        return ""
    value = medians.get(OURS, {}).get(figure.key)
    missed = value is not None and not met(figure, value, goal)
    return number(goal) + (" MISSED" if missed else "")


def missed(columns: list[Column]) -> list[str]:
    """Return the titles of the figures whose goal this mesh does not reach."""
    medians = medians_of(columns)
    return [figure.title for figure in FIGURES if _goal(figure, medians).endswith("MISSED")]


def render(columns: list[Column]) -> str:
    """Return the table as Markdown."""
    medians = medians_of(columns)
    shown = [column for column in columns if not column.reason]
    lines = [
        "| | " + " | ".join(column.name for column in shown) + " | goal |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for figure in FIGURES:
        cells = [medians[column.name].get(figure.key) for column in shown]
        texts = [NO_FIGURE if cell is None else number(cell) for cell in cells]
        lines.append(f"| {figure.title} | {' | '.join(texts)} | {_goal(figure, medians)} |")
    for column in columns:
        if column.reason:
            lines += ["", f"{column.name}: not measured: {column.reason}"]
        elif column.missing:
            why: dict[str, list[str]] = {}
            for key, reason in column.missing.items():
                if key not in column.values:
                    why.setdefault(reason, []).append(key)
            lines += [""] + [f"{column.name}, no {', '.join(keys)}: {reason}" for reason, keys in why.items()]
    return "\n".join(lines) + "\n"


def as_json(columns: list[Column], rounds: int) -> dict[str, Any]:
    """Return all that was measured as plain JSON; a stream that a move ended is "dead"."""

    def plain(value: float) -> float | str:
        return "dead" if math.isinf(value) else round(value, 3)

    medians = medians_of(columns)
    goals = {figure.key: goal_of(figure, medians) for figure in FIGURES}
    return {
        "rounds": rounds,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "titles": {figure.key: figure.title for figure in FIGURES},
        "goals": {key: round(goal, 3) for key, goal in goals.items() if goal is not None},
        "missed": missed(columns),
        "peers": {
            column.name: {"reason": column.reason}
            if column.reason
            else {
                "medians": {key: plain(value) for key, value in medians[column.name].items()},
                "rounds": {key: [plain(value) for value in values] for key, values in column.values.items()},
                "missing": column.missing,
            }
            for column in columns
        },
    }
