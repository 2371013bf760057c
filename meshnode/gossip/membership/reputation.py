"""Rates of origins, and black marks of peers that hand over what no honest node would. Sans I/O.

An honest node verifies before it passes on, so what is forged or malformed is the fault of the peer that hands it over,
and never of the origin that it names: rates are charged only after the signature held.
"""

from __future__ import annotations

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
from meshnode.gossip.effects import Banned, Fault
from meshnode.identity.node_id import NodeId

FLOOD = describe("gossip_drop_flood", "entries dropped: their origin is over its rate")
BANS = describe("gossip_bans", "peers that were banned")
MARKS = describe("gossip_black_marks", "black marks that peers were given")

BAN_AT = 10.0  # points
FORGIVEN_PER_S = 1 / 30
WEIGHTS = {
    Fault.MALFORMED: 4.0,
    Fault.FORGED: 4.0,
    # 250 at once. What an honest node may publish comes all at once after its link was held up: 80 and 16 a second of
    # waiting, less the 100 that are allowed, is 250 after 17 s
    Fault.TOO_MUCH: 0.04,
    Fault.UNTIMELY: 0.05,
}


class Reputation:
    """Rates of origins, black marks and bans of peers; all bounded, the longest unused go first."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rates: BoundedDict[NodeId, RateLimit] = BoundedDict(GOSSIP_MAX_ORIGINS)
        self._marks: BoundedDict[NodeId, tuple[float, float]] = BoundedDict(GOSSIP_MAX_STANDINGS)
        self._banned: BoundedDict[NodeId, float] = BoundedDict(GOSSIP_MAX_STANDINGS)
        self._effects: list[Banned] = []

    def take_effects(self) -> list[Banned]:
        """Return the bans since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def allows(self, origin: NodeId, size: int, now: float, *, share: float = 1.0) -> bool:
        """Charge one verified entry of ``size`` bytes to its origin; False (counted) when it sends too much.

        ``share`` is that of the rate which counts: this node keeps below what others allow it.
        """
        limit = self._rates.get(origin) or _limit_of_origin(share, now)
        allowed = limit.take(size, now)
        if not allowed:
            self._metrics.count(FLOOD)
        self._rates.put(origin, limit)
        oldest, limit = next(iter(self._rates.items()))
        if limit.is_full(now):  # it is like that of an origin never heard
            del self._rates[oldest]
        return allowed

    def lower(self, peer: NodeId, fault: Fault, now: float) -> bool:
        """Give a black mark (counted); returns True when the peer is banned for it, at ``BAN_AT`` points.

        Points are ``WEIGHTS[fault]`` each, and one is forgiven in 30 s. Untimely entries alone make no ban, for the
        clock of this node may be the wrong one.
        """
        self._metrics.count(MARKS)
        points, at = self._marks.pop(peer, (0.0, now))
        points = max(0.0, points - (now - at) * FORGIVEN_PER_S)
        if fault is Fault.UNTIMELY:
            points = max(points, min(BAN_AT / 2, points + WEIGHTS[fault]))  # see above
        else:
            points += WEIGHTS[fault]
        if points < BAN_AT:
            self._marks.put(peer, (points, now))
            return False
        self._banned.put(peer, now + GOSSIP_BAN_S)
        self._metrics.count(BANS)
        self._effects.append(Banned(peer))
        return True

    def points(self, peer: NodeId) -> float:
        """Return the points of ``peer`` as of its last black mark; 0.0 after a ban."""
        return self._marks.get(peer, (0.0, 0.0))[0]

    def is_banned(self, peer: NodeId, now: float) -> bool:
        """Return whether ``peer`` is banned."""
        until = self._banned.get(peer)
        if until is not None and until <= now:
            del self._banned[peer]
            return False
        return until is not None


def _limit_of_origin(share: float, now: float) -> RateLimit:
    return RateLimit(
        TokenBucket(GOSSIP_ORIGIN_RATE * share, GOSSIP_ORIGIN_BURST * share, now),
        TokenBucket(GOSSIP_ORIGIN_BYTES * share, GOSSIP_ORIGIN_BYTES_BURST * share, now),
    )
