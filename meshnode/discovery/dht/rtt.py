"""Adaptive timeouts (RFC 6298, with the bounds that were measured to serve a DHT best)."""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.rtt import RttEstimator
from meshnode.identity.node_id import NodeId

MIN_RTO_S = 0.15
MAX_RTO_S = 6.0  # both ends hold what they receive for 2 s at most (MAX_QUEUED_S), and the CPU may be busy meanwhile
INITIAL_RTO_S = 1.0
MIN_SOFT_S = 0.03
MAX_SOFT_S = 1.0
INITIAL_SOFT_S = 0.25
UNKNOWN_RTO_S = 0.5
URGENT_FIRST_S = 0.05
MAX_URGENT_FIRST_S = 0.5
FEW_PEERS = 16  # known peers, below which their round trips do not show what others are like
MAX_PEERS = 2_048  # peers whose RTT we remember; x about 200 B


def rto(estimator: RttEstimator) -> float:
    """Return the seconds after which a request is given up."""
    return estimator.timeout(MIN_RTO_S, MAX_RTO_S, unknown=INITIAL_RTO_S)


def soft(estimator: RttEstimator) -> float:
    """Return the seconds after which a request is hedged: sent again and to another peer, its answer still awaited."""
    return estimator.timeout(MIN_SOFT_S, MAX_SOFT_S, unknown=INITIAL_SOFT_S, deviations=2)


class RttBook:
    """RTT estimators by peer, and one over all peers for those without a sample."""

    def __init__(self) -> None:
        self.overall = RttEstimator()
        self._peers: BoundedDict[NodeId, RttEstimator] = BoundedDict(MAX_PEERS)
        self.was_slow = False  # before this node's place changed: a mesh short of CPU is slow from anywhere

    def sample(self, peer: NodeId, rtt: float) -> None:
        """One round trip to ``peer`` took ``rtt`` seconds."""
        estimator = self._peers.get(peer) or RttEstimator()
        self._peers.put(peer, estimator)
        estimator.sample(rtt)
        self.overall.sample(rtt)

    def of(self, peer: NodeId) -> RttEstimator:
        """Return the peer's estimator, or the overall one."""
        return self._peers.get(peer, self.overall)

    def patient(self, peer: NodeId) -> tuple[float, ...]:
        """Waits of an ordinary request: one early retransmission, then the RTO.

        Near neighbours' RTTs say little about a peer that we never met, so that one gets at least half a second.
        """
        own = self._peers.get(peer)
        if own is None:
            first, last = soft(self.overall), max(UNKNOWN_RTO_S, rto(self.overall))
            if len(self._peers) < FEW_PEERS:
                first = self.overall.timeout(MIN_SOFT_S, MAX_SOFT_S, unknown=INITIAL_SOFT_S)
        else:
            first, last = soft(own), rto(own)
        return first, max(last - first, first)

    def urgent(self, peer: NodeId, sends: int) -> tuple[float, ...]:
        """Return the waits of a request that must get through now, doubling.

        The first follows from the peer's RTT: 30 ms to 0.5 s, 50 ms where it is unknown, unless the last place of this
        node saw round trips of half a second and more. ``sends`` counts all transmissions.
        """
        own = self._peers.get(peer, RttEstimator())
        unknown = MAX_URGENT_FIRST_S if self.was_slow else URGENT_FIRST_S
        first = own.timeout(MIN_SOFT_S, MAX_URGENT_FIRST_S, unknown=unknown, deviations=2)
        return tuple(first * 2**i for i in range(sends))

    def forget(self) -> None:
        """Forget everything that was measured.

        For a node whose own place in the network has changed: no earlier round trip holds.
        """
        if self.overall.srtt is not None:  # else nothing was heard since it was forgotten last
            self.was_slow = self.overall.srtt >= MAX_URGENT_FIRST_S
        self._peers.clear()
        self.overall = RttEstimator()
