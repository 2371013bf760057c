"""Payloads that were announced and have not come: after a while they are asked for. Sans I/O.

The missing-message timers of the Plumtree paper (section 3.5): the first waits for the tree, the following ones for the
announcers, one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from meshnode.base.fair_table import FairTable
from meshnode.base.limits import GOSSIP_MAX_ANNOUNCERS, GOSSIP_MAX_MISSING
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.identity.node_id import NodeId

MISSED = describe("gossip_missed", "payloads that no announcer had any more")
MISSING_FULL = describe("gossip_missing_full", "announcements given up: too many payloads are awaited")

Wanted = dict[NodeId, list[bytes]]


class Awaited:
    """Announcers of each awaited payload, and when to ask one of them.

    ``ask`` is given what is due, by announcer; ``is_linked`` says which announcers can still be asked; ``slack``
    returns seconds by which to postpone what is due at a time.
    """

    def __init__(
        self,
        timers: Timers,
        metrics: Metrics,
        waits: tuple[float, float],
        ask: Callable[[Wanted, float], None],
        is_linked: Callable[[NodeId], bool],
        slack: Callable[[float], float] | None,
    ) -> None:
        self._timers = timers
        self._metrics = metrics
        self._waits = waits  # for the tree, and for each announcer
        self._ask = ask
        self._is_linked = is_linked
        self._slack = slack
        self._announcers: dict[bytes, list[tuple[NodeId, int]]] = {}
        self._places: FairTable[bytes] = FairTable(GOSSIP_MAX_MISSING)  # by the link that announced each first
        self._due: OrderedDict[bytes, float] = OrderedDict()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._announcers)

    def announced(self, peer: NodeId, item: bytes, hops: int, now: float) -> None:
        """Note that ``peer`` has a payload, which is asked for when the tree does not bring it in time.

        When ``GOSSIP_MAX_MISSING`` are awaited, the link with most gives one up, which is counted. Of a payload, only
        the first ``GOSSIP_MAX_ANNOUNCERS`` are kept.
        """
        announcers = self._announcers.get(item)
        if announcers is None:
            self._announcers[item] = [(peer, hops)]
            self._due[item] = now + self._waits[0]
            given_up = self._places.add(item, peer)
            if given_up is not None:
                self._metrics.count(MISSING_FULL)
                self.received(given_up)
        elif len(announcers) < GOSSIP_MAX_ANNOUNCERS and all(known != peer for known, _ in announcers):
            announcers.append((peer, hops))

    def received(self, item: bytes) -> list[tuple[NodeId, int]]:
        """Wait for a payload no longer.

        Returns its announcers with the hops that they told, none when not awaited.
        """
        self._due.pop(item, None)
        self._places.discard(item)
        return self._announcers.pop(item, [])

    def arm(self) -> None:
        """Set the timer for what is due first."""
        if self._due and (self._timer is None or not self._timer.live):
            at = next(iter(self._due.values()))
            self._timer = self._timers.at(self._postponed(at), self._ask_due)

    def _postponed(self, at: float) -> float:
        return at if self._slack is None else at + self._slack(at)

    def _ask_due(self, now: float) -> None:
        self._timer = None
        if self._postponed(next(iter(self._due.values()), now)) <= now:
            self._ask(self._take_due(now), now)
        self.arm()

    def _take_due(self, now: float) -> Wanted:
        """Return each due id under its next announcer."""
        wanted: Wanted = {}
        while self._due:
            item, at = next(iter(self._due.items()))
            if at > now:
                break
            del self._due[item]
            announcers = self._announcers[item]
            peer = next((p for p, _ in announcers if self._is_linked(p)), None)
            if peer is None:
                self.received(item)
                self._metrics.count(MISSED)
                continue
            self._announcers[item] = [pair for pair in announcers if pair[0] != peer]
            wanted.setdefault(peer, []).append(item)
            self._due[item] = now + self._waits[1]
        return wanted
