"""Search for a port of a symmetric NAT by the birthday paradox, with bounds (RFC 5128 section 3.5). Sans-IO.

A symmetric NAT maps each flow to a port of its own, so the peer's filter cannot be opened for a port that is not
known. Its side therefore opens many sockets and sends once from each to the peer (``spread``): that many ports now
lead in. The peer, behind a NAT that keeps one port for it, tries ports (``spray``): first those that follow the one
last seen, as NATs that count give out, then random ones. With 256 ports open of 64,512 and 1,024 tries it misses all
of them in exp(-256 * 1024 / 64512) = 1.7 % of searches. One socket would not do: it has one port towards one peer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice

from meshnode.base.address import Addr
from meshnode.base.limits import SEARCH_PROBES
from meshnode.base.path import Path, ViaSocket

FIRST_PORT, LAST_PORT = 1024, 65535
AHEAD, BEHIND = 48, 16  # ports guessed next to the one seen: NATs that count up, with others' flows between; down
SPRAY_STEP, SPRAY_GAP_S = 8, 0.015  # 533 probes a second
SPREAD_STEP, SPREAD_GAP_S = 32, 0.01  # 256 sockets in 80 ms


def guesses(seen: int, rng: random.Random) -> list[int]:
    """Return ``SEARCH_PROBES`` different ports to try, the likeliest first.

    First the 48 ports above ``seen``, then the 16 below (NATs that count), then random ones; all are within 1024 to
    65535.
    """
    near = [seen + d for d in range(1, AHEAD + 1)] + [seen - d for d in range(1, BEHIND + 1)]
    found = dict.fromkeys(port for port in near if FIRST_PORT <= port <= LAST_PORT)
    while len(found) < SEARCH_PROBES:
        found[rng.randint(FIRST_PORT, LAST_PORT)] = None
    return list(found)


class Search:
    """A paced list of paths, each probed once. ``at`` is the deadline of the next step, None when it is over."""

    __slots__ = ("_gap", "_step", "_targets", "at")

    def __init__(self, targets: Iterable[Path], step: int, gap: float, at: float) -> None:
        self.at: float | None = at
        self._targets = iter(targets)
        self._step = step
        self._gap = gap

    def step(self, now: float) -> list[Path]:
        """Return the paths to probe now, and set the next deadline.

        A step that is not full is the last one: ``at`` is None then.
        """
        found = list(islice(self._targets, self._step))
        self.at = now + self._gap if len(found) == self._step else None
        return found


def spread(to: Addr, sides: Iterable[int], at: float) -> Search:
    """Return the search of the symmetric side: one probe to ``to`` from each of these sockets.

    ``sides`` are numbers of extra sockets; 32 are used every 10 ms, from ``at`` on (monotonic seconds).
    """
    return Search((ViaSocket(to, side) for side in sides), SPREAD_STEP, SPREAD_GAP_S, at)


def spray(seen: Addr, rng: random.Random, at: float) -> Search:
    """Return the search of the other side: one probe to each guessed port of the host of ``seen``, the likeliest first.

    8 ports are tried every 15 ms, from ``at`` on (monotonic seconds).
    """
    return Search([Addr(seen.host, port) for port in guesses(seen.port, rng)], SPRAY_STEP, SPRAY_GAP_S, at)
