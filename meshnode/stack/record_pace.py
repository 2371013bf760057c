"""The rate at which newer records of a live peer are taken: one that makes too many loses none but those in between.

Each costs a signature check, probes of 16 addresses and what components make of it, some 4 ms. A peer that moves makes
two or three. Past the rate only the newest waits, so the last one always counts.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.limits import RECORDS_BURST, RECORDS_PER_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId

PACED = describe("records_paced", "newer records of live peers that had to wait: too many a second")


class _Peer:
    """Tokens of one peer, and the action that waits for the next."""

    __slots__ = ("bucket", "waiting")

    def __init__(self, now: float) -> None:
        self.bucket = TokenBucket(RECORDS_PER_S, RECORDS_BURST, now)
        self.waiting: Callable[[float], None] | None = None


class RecordPace:
    """One bucket a peer; a peer without a session has none, and is to be forgotten."""

    def __init__(self, timers: Timers, metrics: Metrics) -> None:
        self._timers = timers
        self._metrics = metrics
        self._peers: dict[NodeId, _Peer] = {}

    def run(self, peer: NodeId, action: Callable[[float], None], now: float) -> None:
        """Call ``action(now)`` at once, or in a while.

        A later action of the peer takes the place of one that waits.
        """
        found = self._peers.get(peer)
        if found is None:
            found = self._peers[peer] = _Peer(now)
        if found.waiting is None and found.bucket.take(1, now):
            action(now)
            return
        self._metrics.count(PACED)
        if found.waiting is None:
            self._timers.at(now + found.bucket.wait(1, now), lambda then: self._due(peer, then))
        found.waiting = action

    def _due(self, peer: NodeId, now: float) -> None:
        found = self._peers.get(peer)
        if found is not None and found.waiting is not None:
            action, found.waiting = found.waiting, None
            found.bucket.take(1, now)
            action(now)

    def forget(self, peer: NodeId) -> None:
        """Forget a peer, and what waits."""
        self._peers.pop(peer, None)
