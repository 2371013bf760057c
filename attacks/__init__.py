"""Attacks on live nodes, each with the figure that it reached once, the one of today and the limit: ``./dev attack``.

One module is one family of attacks. It has

- ``ROWS``, a dict from a short name to a ``Row``: what is attacked, where, what is measured, the figure before it was
  mended, and the limit that holds now;
- ``run(short)``, which attacks and returns a dict from these names to the figures measured. With ``short`` it takes a
  few seconds and returns only what a busy machine cannot change: counts and bytes, no times. A name that it leaves out
  was not measured, and is printed as such. It raises ``Skipped`` with a reason when it cannot run here (no root).

``lab`` has what is attacked (``Member``: a node as a process of its own; ``Stream``: bytes that flow between two of
them) and what is measured (move time, keepalive round trip, a newcomer's first ping); ``foe`` has the attacker's tools
(``Foe``: an identity with the mesh key; ``Flood``: a process that sends). `./dev attack` finds the modules itself.
A test holds the page docs/explanation/threat-model.md to the rows: name a new family there. ``--page`` writes the table
of figures in docs/explanation/security.md.
"""

from __future__ import annotations

from dataclasses import dataclass


class Skipped(Exception):
    """An attack that cannot run here, with the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one attack.

    Attributes:
        number: The row of the audit's table that it belongs to; 0 for an attack that is not there.
        grade: ``critical``, ``high``, ``medium`` or ``low``, as it was before.
        attack: What the attacker is and does.
        where: The module that withstands it now.
        measured: What the figure is.
        before: The figure before it was mended; None when it was never measured.
        limit: What holds now: at most this, or at least this with ``more``.
        unit: Of all three figures.
        more: True when more is better.
    """

    number: int
    grade: str
    attack: str
    where: str
    measured: str
    before: float | None
    limit: float
    unit: str = ""
    more: bool = False

    def holds(self, figure: float) -> bool:
        """True when the figure is within the limit."""
        return figure >= self.limit if self.more else figure <= self.limit
