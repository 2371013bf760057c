"""Who behaves: rates of origins, and black marks of peers that hand us what no honest node would.

An honest node verifies before it passes on, so what is forged or malformed is the fault of whoever hands it to us,
and never of the origin that it names: rates are charged only after the signature held.
"""

from __future__ import annotations

from enum import Enum

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_BAN_S,
    GOSSIP_MAX_ORIGINS,
    GOSSIP_MAX_STANDINGS,
    GOSSIP_ORIGIN_BURST,
    GOSSIP_ORIGIN_BYTES,
    GOSSIP_ORIGIN_BYTES_BURST,
    GOSSIP_ORIGIN_RATE,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.token_bucket import RateLimit, TokenBucket
from meshnode.identity.node_id import NodeId

FLOOD = describe("gossip_drop_flood", "entries dropped: their origin is over its rate")
BANS = describe("gossip_bans", "peers that were cut off for lying")
MARKS = describe("gossip_black_marks", "times that a peer's standing was lowered")

BAN_AT = 10.0
FORGIVEN_PER_S = 1 / 30


class Fault(Enum):
    """What a peer did."""

    MALFORMED = "a message or an entry that no program of ours makes"
    FORGED = "an entry that its origin did not sign"
    TOO_MUCH = "one entry of its own over its rate"
    UNTIMELY = "an entry that expired or comes from the future: a wrong clock, as a rule"


# How much that weighs: at 10 points a peer is banned, one is forgiven every 30 s.
WEIGHTS = {
    Fault.MALFORMED: 4.0,
    Fault.FORGED: 4.0,
    # 250 at once. What an honest node may publish comes all at once after its link was held up: 80 and 16 a second of
    # waiting, less the 100 that are allowed, is 250 after 17 s
    Fault.TOO_MUCH: 0.04,
    Fault.UNTIMELY: 0.05,
}


class Reputation:
    """Token buckets of origins and black marks of peers; both bounded, the longest unused go first."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rates: BoundedDict[NodeId, RateLimit] = BoundedDict(GOSSIP_MAX_ORIGINS)
        self._marks: BoundedDict[NodeId, tuple[float, float]] = BoundedDict(GOSSIP_MAX_STANDINGS)
        self._banned: BoundedDict[NodeId, float] = BoundedDict(GOSSIP_MAX_STANDINGS)

    def allows(self, origin: NodeId, size: int, now: float, *, share: float = 1.0) -> bool:
        """Charge one verified entry to its origin; False (counted) when it sends too much."""
        limit = self._rates.get(origin) or _limit_of_origin(share, now)
        self._rates.put(origin, limit)
        allowed = limit.take(size, now)
        if not allowed:
            self._metrics.count(FLOOD)
        oldest = next(iter(self._rates))
        if self._rates[oldest].is_full(now):  # it says no more than that of an origin that was never heard
            del self._rates[oldest]
        return allowed

    def lower(self, peer: NodeId, fault: Fault, now: float) -> bool:
        """Give a black mark; True when the peer is banned by it."""
        self._metrics.count(MARKS)
        points, at = self._marks.pop(peer, (0.0, now))
        points = max(0.0, points - (now - at) * FORGIVEN_PER_S)
        if fault is Fault.UNTIMELY:
            points = max(points, min(BAN_AT / 2, points + WEIGHTS[fault]))  # it may be our own clock that is wrong
        else:
            points += WEIGHTS[fault]
        if points < BAN_AT:
            self._marks[peer] = points, now
            return False
        self._banned[peer] = now + GOSSIP_BAN_S
        self._metrics.count(BANS)
        return True

    def points(self, peer: NodeId) -> float:
        """The black marks of ``peer`` when it got its last one."""
        return self._marks.get(peer, (0.0, 0.0))[0]

    def is_banned(self, peer: NodeId, now: float) -> bool:
        """True while ``peer`` is cut off."""
        until = self._banned.get(peer)
        if until is None:
            return False
        if until <= now:
            del self._banned[peer]
            return False
        return True


def _limit_of_origin(share: float, now: float) -> RateLimit:
    return RateLimit(
        TokenBucket(GOSSIP_ORIGIN_RATE * share, GOSSIP_ORIGIN_BURST * share, now),
        TokenBucket(GOSSIP_ORIGIN_BYTES * share, GOSSIP_ORIGIN_BYTES_BURST * share, now),
    )
