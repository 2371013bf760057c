"""What one linked peer may cause: random walks, by the neighbour that passes them here, and answers. Sans I/O."""

from __future__ import annotations

from meshnode.base.limits import GOSSIP_WALK_BURST, GOSSIP_WALK_RATE
from meshnode.base.metrics import Metrics, describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId

TOLD_S = 1.0  # a peer that was told that it is no neighbour knows it by then
PASS_ON, DIAL = 1.0, 8.0  # tokens that a walk costs: for the message that passes it on, for the dial where it ends

WALKS = describe("gossip_drop_walks", "random walks dropped: too many from one neighbour")


class WalkBudget:
    """One token bucket for each linked peer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._buckets: dict[NodeId, TokenBucket] = {}
        self._told: dict[NodeId, float] = {}  # linked peers that took this node for a neighbour, and when

    def __contains__(self, peer: NodeId) -> bool:
        return peer in self._buckets

    def add(self, peer: NodeId, now: float) -> None:
        """Give a linked peer a full bucket."""
        self._buckets[peer] = TokenBucket(GOSSIP_WALK_RATE, GOSSIP_WALK_BURST, now)

    def remove(self, peer: NodeId) -> None:
        """Forget a peer whose link is over."""
        self._buckets.pop(peer, None)
        self._told.pop(peer, None)

    def may_tell(self, peer: NodeId, now: float) -> bool:
        """Return whether to tell a linked peer that it is no neighbour: once for all that it has sent meanwhile."""
        if peer not in self._buckets or now - self._told.get(peer, now - TOLD_S) < TOLD_S:
            return False
        self._told[peer] = now
        return True

    def allows(self, peer: NodeId, now: float, cost: float = PASS_ON) -> bool:
        """Charge a walk to the peer that passed it here; False, counted, when it has too few tokens.

        A peer without a link is charged nothing: what it sends is dropped elsewhere.
        """
        bucket = self._buckets.get(peer)
        allowed = bucket is None or bucket.take(cost, now)
        if not allowed:
            self._metrics.count(WALKS)
        return allowed
