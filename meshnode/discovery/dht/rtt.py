"""Adaptive timeouts (RFC 6298, with the bounds that were measured to serve a DHT best)."""

from __future__ import annotations

from collections import OrderedDict

from meshnode.identity.node_id import NodeId

MIN_RTO_S = 0.15
MAX_RTO_S = 3.0
INITIAL_RTO_S = 1.0
INITIAL_SOFT_S = 0.25
UNKNOWN_RTO_S = 0.5
URGENT_FIRST_S = 0.05
MAX_PEERS = 2_048  # peers whose RTT we remember; x about 200 B


class RttEstimator:
    """Smoothed RTT and its deviation, in seconds."""

    __slots__ = ("srtt", "var")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.var = 0.0

    def sample(self, rtt: float) -> None:
        """Take one measured round trip (Karn: never of a retransmitted request)."""
        if self.srtt is None:
            self.srtt, self.var = rtt, rtt / 2
        else:
            self.var = 0.75 * self.var + 0.25 * abs(self.srtt - rtt)
            self.srtt = 0.875 * self.srtt + 0.125 * rtt

    def rto(self) -> float:
        """When to give a request up."""
        if self.srtt is None:
            return INITIAL_RTO_S
        return min(MAX_RTO_S, max(MIN_RTO_S, self.srtt + 4 * self.var))

    def soft(self) -> float:
        """When to hedge: retransmit once and ask somebody else too, while the answer is still awaited."""
        if self.srtt is None:
            return INITIAL_SOFT_S
        return min(1.0, max(0.03, self.srtt + 2 * self.var))


class RttBook:
    """RTTs by peer, and one over all peers for those that we do not know yet."""

    def __init__(self) -> None:
        self.overall = RttEstimator()
        self._peers: OrderedDict[NodeId, RttEstimator] = OrderedDict()

    def sample(self, peer: NodeId, rtt: float) -> None:
        """One round trip to ``peer`` took ``rtt`` seconds."""
        estimator = self._peers.setdefault(peer, RttEstimator())
        self._peers.move_to_end(peer)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        estimator.sample(rtt)
        self.overall.sample(rtt)

    def of(self, peer: NodeId) -> RttEstimator:
        """The peer's estimator, or the overall one."""
        return self._peers.get(peer, self.overall)

    def patient(self, peer: NodeId) -> tuple[float, ...]:
        """Waits of an ordinary request: one early retransmission, then the RTO.

        Near neighbours' RTTs say little about a peer that we never met, so that one gets at least half a second.
        """
        own = self._peers.get(peer)
        if own is None:
            soft, rto = self.overall.soft(), max(UNKNOWN_RTO_S, self.overall.rto())
        else:
            soft, rto = own.soft(), own.rto()
        return soft, max(rto - soft, soft)

    def urgent(self, peer: NodeId, sends: int) -> tuple[float, ...]:
        """Waits of a request that must get through now: from the peer's RTT (50 ms unknown), doubling."""
        own = self._peers.get(peer)
        first = URGENT_FIRST_S if own is None or own.srtt is None else min(0.5, max(0.03, own.srtt + 2 * own.var))
        return tuple(first * 2**i for i in range(sends))

    def forget(self) -> None:
        """Our own place in the network changed: nothing that was measured holds."""
        self._peers.clear()
        self.overall = RttEstimator()
