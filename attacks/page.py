"""The table of attacks in docs/explanation/security.md; ``./dev attack --page`` writes it with the figures of a run."""

from __future__ import annotations

import re
from pathlib import Path

from attacks import Row

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "security.md"
BEGIN, END = "<!-- attacks -->\n", "<!-- /attacks -->\n"
HEAD = "| attack | measured | before | now | limit | row |\n|---|---|---|---|---|---|\n"
LINE = re.compile(r"^\|.*\| (?P<now>[^|]*) \| [^|]* \| `(?P<name>[\w.]+)` \|$", re.MULTILINE)


def text(figure: float | None) -> str:
    """Return a figure as tables show it, - when there is none."""
    return "-" if figure is None else f"{figure:,.2g}" if abs(figure) < 100 else f"{figure:,.0f}"


def table(rows: dict[str, Row], now: dict[str, str]) -> str:
    """Return the table: a line for each row, by ``family.name``, with the figures in ``now``."""
    return HEAD + "".join(_line(name, row, now.get(name, "-")) for name, row in rows.items())


def _line(name: str, row: Row, now: str) -> str:
    limit = f"{'at least' if row.more else 'at most'} {text(row.limit)} {row.unit}".rstrip()
    return f"| {row.attack} | {row.measured} | {text(row.before)} | {now} | {limit} | `{name}` |\n"


def figures() -> dict[str, str]:
    """Return the figures of now that the page has, by row."""
    return {found["name"]: found["now"] for found in LINE.finditer(PAGE.read_text(encoding="utf-8"))}


def write(rows: dict[str, Row], measured: dict[str, float]) -> None:
    """Write the table into the page; what was not measured keeps its figure."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    now = figures() | {name: text(figure) for name, figure in measured.items()}
    PAGE.write_text(before + BEGIN + table(rows, now) + END + rest.partition(END)[2], encoding="utf-8")
