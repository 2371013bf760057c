"""``./dev bench --peers``: the table of all peers in one run, on the terminal, as JSON and as a chart."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from bench.peers import chart, table
from bench.peers.environments import PEERS
from bench.peers.measure import MEASUREMENTS, SHORT, Work, run


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when this mesh misses a goal."""
    parser = argparse.ArgumentParser(prog="./dev bench --peers", description=__doc__)
    names = [peer.name for peer in PEERS]
    keys = [key for measurement in MEASUREMENTS for key in measurement.keys]
    parser.add_argument("names", nargs="*", metavar="PEER", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--figures", metavar="NAME,...", help=f"measure no others: {', '.join(keys)}")
    parser.add_argument("--rounds", type=int, help="how many rounds the medians are of; 5 by default")
    parser.add_argument("--short", action="store_true", help="one round, fewer bytes, no thousand connections")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to FILE, and a chart beside it (.svg)")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in names:
            parser.error(f"no peer is called {name}; there are {', '.join(names)}")
    wanted = options.figures.split(",") if options.figures else keys
    for key in wanted:
        if key not in keys:
            parser.error(f"no figure is called {key}; there are {', '.join(keys)}")
    work: Work = SHORT if options.short else Work()
    if options.rounds is not None:
        work = replace(work, rounds=options.rounds, dear=min(options.rounds, work.dear))
    peers = tuple(peer for peer in PEERS if peer.name in (options.names or names))
    measurements = tuple(each for each in MEASUREMENTS if set(each.keys) & set(wanted))
    columns = run(peers, work, lambda text: print(text, file=sys.stderr, flush=True), measurements)
    found = table.as_json(columns, work.rounds)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        options.out.with_suffix(".svg").write_text(chart.svg(columns))
    print(json.dumps(found) if options.json else table.render(columns))
    return 1 if found["missed"] else 0
