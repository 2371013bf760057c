"""``./dev attack [NAMES] [--short] [--json] [--list] [--page]``: each attack, its figure before and now, its limit."""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from typing import Protocol, cast

import attacks
from attacks import Row, Skipped
from attacks.machine import BUSY, clock, others
from attacks.page import text, write
from tools.children import ended_together

CORES = os.cpu_count() or 1


class Family(Protocol):
    """A module of attacks."""

    ROWS: dict[str, Row]
    run: Callable[[bool], dict[str, float]]


def families() -> dict[str, Family]:
    """Return the modules that have rows, by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(attacks.__path__) if found.name != "__main__")
    modules = {name: import_module(f"attacks.{name}") for name in names}
    return {name: cast(Family, module) for name, module in modules.items() if hasattr(module, "ROWS")}


def short_figures(name: str) -> dict[str, float] | str:
    """Return the figures of a family's short form; the reason when it cannot run here."""
    try:
        return families()[name].run(True)
    except Skipped as skipped:
        return str(skipped)


def measure(name: str, family: Family, short: bool) -> Iterator[tuple[str, Row, float | None]]:
    """Yield each row of a family with its figure; None when it was not measured."""
    began = clock()
    try:
        figures = family.run(short)
    except Skipped as skipped:
        print(f"{name}: skipped, {skipped}", file=sys.stderr)
        figures = {}
    print(f"{name}: {clock().at - began.at:.0f} s; others used {text(others(began))} of {CORES} cores", file=sys.stderr)
    if others(began) > BUSY and not short:
        print(f"{name}: the machine was busy, so times of this run mean little", file=sys.stderr)
    for key, row in family.ROWS.items():
        yield key, row, figures.get(key)


def line(row: Row, figure: float | None) -> str:
    """Return a row of the table."""
    limit = f"{'>=' if row.more else '<='} {text(row.limit)} {row.unit}".rstrip()
    held = "not measured" if figure is None else "held" if row.holds(figure) else "NOT HELD"
    texts = (f"{row.number or '':>2}", f"{row.attack[:60]:60}", f"{row.measured[:44]:44}")
    return "  ".join((*texts, f"{text(row.before):>8}", f"{text(figure):>8}", f"{limit:18}", held))


def main() -> int:
    """Run the named families (all by default); 1 when a limit is not held."""
    found = families()
    parser = argparse.ArgumentParser(prog="./dev attack", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(found)}; all by default")
    parser.add_argument("--short", action="store_true", help="only counts and bytes, in seconds")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--list", action="store_true", help="print the attacks, and run none")
    parser.add_argument("--page", action="store_true", help="write the figures into docs/explanation/security.md")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in found]
    if unknown:
        parser.error(f"no attack is called {unknown[0]}; there are {', '.join(found)}")
    if not options.json:
        heads = "  ", "attack".ljust(60), "measured".ljust(44), "  before", "     now", "limit".ljust(18), "held"
        print("  ".join(heads))
    missed = 0
    all_rows = {f"{name}.{key}": row for name, family in found.items() for key, row in family.ROWS.items()}
    for name in options.names or found:
        if options.list:
            tell(name, ((key, row, None) for key, row in found[name].ROWS.items()), options.json)
            continue
        try:
            measured, not_held = tell(name, measure(name, found[name], options.short), options.json)
        except Exception:  # the other families have their turn
            print(f"{name}: FAILED\n{traceback.format_exc()}", file=sys.stderr)
            missed += 1
            continue
        missed += not_held
        if options.page:  # at once, for a run may be interrupted
            write(all_rows, measured)
    return 1 if missed else 0


def tell(name: str, rows: Iterable[tuple[str, Row, float | None]], as_json: bool) -> tuple[dict[str, float], int]:
    """Print the rows of a family; returns the figures by the names that the page has, and how many limits fail."""
    measured, missed = dict[str, float](), 0
    for key, row, figure in rows:
        held = None if figure is None else row.holds(figure)
        missed += held is False
        if figure is not None:
            measured[f"{name}.{key}"] = figure
        found = {"family": name, "name": key, **asdict(row), "now": figure, "held": held}
        print(json.dumps(found) if as_json else line(row, figure))
        sys.stdout.flush()
    return measured, missed


if __name__ == "__main__":
    with ended_together():
        sys.exit(main())
