"""A bar chart of a few figures as SVG, written by hand: a panel a figure, a bar a peer, this mesh's darker."""

from __future__ import annotations

import math
from html import escape

from bench.peers.columns import FIGURES
from bench.peers.measure import Column
from bench.peers.table import medians_of, number

SHOWN = ("up", "echo_p50", "at_once", "handshakes", "dial_known", "move_both")
OURS = ("aioquic", "qh3")
WIDTH, PANEL, GAP = 360, 3, 24  # width of a panel, panels a line, space between
BAR, LABEL, VALUE, HEAD = 16, 110, 60, 28
STYLE = (
    "text{font:12px sans-serif;fill:#222}.head{font-weight:bold}.bar{fill:#b7c4d4}.mesh{fill:#1f5f99}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.bar{fill:#55677c}.mesh{fill:#6ab0f3}}"
)


def _bar(y: float, name: str, value: float, most: float) -> list[str]:
    room = WIDTH - LABEL - VALUE
    length = room if math.isinf(value) else max(1.0, room * value / most)
    kind = "mesh" if name in OURS else "bar"
    return [
        f'<text x="{LABEL - 6}" y="{y + BAR - 4:g}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{LABEL}" y="{y:g}" width="{length:.1f}" height="{BAR - 3}"/>',
        f'<text x="{LABEL + length + 5:.1f}" y="{y + BAR - 4:g}">{number(value)}</text>',
    ]


def _panel(title: str, more: bool, values: dict[str, float]) -> list[str]:
    most = max([value for value in values.values() if not math.isinf(value)] or [1.0]) or 1.0
    lines = [f'<text class="head" x="0" y="14">{escape(title)} ({"more" if more else "less"} is better)</text>']
    for place, (name, value) in enumerate(values.items()):
        lines += _bar(HEAD + place * BAR, name, value, most)
    return lines


def svg(columns: list[Column]) -> str:
    """Return the chart."""
    medians = medians_of(columns)
    panels = []
    for figure in FIGURES:
        values = {name: found[figure.key] for name, found in medians.items() if figure.key in found}
        if figure.key in SHOWN and values:
            panels.append((figure.title, figure.more, values))
    height = HEAD + BAR * max((len(values) for *_, values in panels), default=0) + GAP
    width = (WIDTH + GAP) * min(PANEL, max(1, len(panels)))
    whole = height * math.ceil(len(panels) / PANEL)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}"><style>{STYLE}</style>']
    for place, panel in enumerate(panels):
        x, y = place % PANEL * (WIDTH + GAP), place // PANEL * height
        lines += [f'<g transform="translate({x},{y})">', *_panel(*panel), "</g>"]
    return "\n".join([*lines, "</svg>"]) + "\n"
