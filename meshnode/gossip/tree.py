"""A topic's tree: Plumtree for hundreds of messages a second. Sans I/O.

At such rates some payloads of a link are on their way when we prune it. When they happen to come first, plain Plumtree
takes the link back without a word to its other end, then prunes the link that it lives by, for its copies come second;
and is soon without any, until announcements mend it. So what still comes over a pruned link is taken, and changes nothing.
"""

from __future__ import annotations

import random
from collections import OrderedDict

from meshnode.gossip.broadcast import Broadcast
from meshnode.identity import NodeId
from meshnode.limits import TOPIC_MAX_STRAYS
from meshnode.metrics import Metrics
from meshnode.timers import Timers

ANNOUNCE_S = 0.2  # ids for a lazy link wait so long: at 200 messages a second 40 share a packet, and its acknowledgement


class Tree(Broadcast):
    """One topic's. Announces more rarely than the mesh's tree."""

    announce_s = ANNOUNCE_S

    def __init__(self, rng: random.Random, timers: Timers, metrics: Metrics, now: float, scope: bytes) -> None:
        super().__init__(rng, timers, metrics, now, scope)
        self._strays: OrderedDict[bytes, None] = OrderedDict()

    def on_payload(
        self, peer: NodeId, item: bytes, payload: bytes, hops: int, now: float, *, wide: bool = False
    ) -> None:
        """A payload that we had not, and that counts: pass it on."""
        pruned = self.lazy.get(peer)
        super().on_payload(peer, item, payload, hops, now, wide=wide)
        if pruned is not None and peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = pruned
            self._strays[item] = None
            if len(self._strays) > TOPIC_MAX_STRAYS:
                self._strays.popitem(last=False)

    def on_duplicate(self, peer: NodeId, item: bytes, now: float) -> None:
        """A payload that we had: the link is superfluous, unless the first copy was a stray."""
        if item not in self._strays:
            super().on_duplicate(peer, item, now)
