"""Payloads that wait for the links to a topic's neighbours. Sans I/O.

Payloads have queues of their own, so that messages about links are not behind them, and those of a pruned link can
still become announcements. At most ``TOPIC_LINK_QUEUE`` bytes wait for a link; then the oldest are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Container

from meshnode.base.limits import TOPIC_LINK_QUEUE
from meshnode.gossip.dissemination.plumtree import frames
from meshnode.identity.node_id import NodeId

MOST_FRAMES = 4  # that one call takes for a neighbour

Items = list[tuple[int, bytes]]


class SendQueues:
    """One queue of payloads, each with its hops, for each neighbour. ``busy`` links take nothing at present."""

    def __init__(self, busy: Container[NodeId] = ()) -> None:
        self.waiting: dict[NodeId, int] = {}  # bytes for each neighbour
        self.dropped = 0
        self._busy = busy
        self._items: dict[NodeId, Items] = {}
        self._behind: dict[NodeId, None] = {}  # neighbours for which payloads were dropped

    def put(self, peer: NodeId, items: Items) -> None:
        """Queue payloads, each with its hops.

        The oldest are dropped while over ``TOPIC_LINK_QUEUE`` bytes wait.
        """
        queue = self._items.setdefault(peer, [])
        size = self.waiting.get(peer, 0)
        for item in items:
            queue.append(item)
            size += len(item[1])
            while size > TOPIC_LINK_QUEUE:
                size -= len(queue.pop(0)[1])
                self._behind[peer] = None
                self.dropped += 1
        self.waiting[peer] = size

    def take(self) -> list[tuple[NodeId, tuple[tuple[int, bytes], ...]]]:
        """Take out the next frames of payloads for each link that is not busy.

        At most ``MOST_FRAMES`` for each, every one with the payloads of one message: together below ``GOSSIP_FRAME``
        bytes, or a single larger one.
        """
        found: list[tuple[NodeId, tuple[tuple[int, bytes], ...]]] = []
        for peer, items in list(self._items.items()):
            parts = [] if peer in self._busy else frames(items)[:MOST_FRAMES]
            found += [(peer, part) for part in parts]
            rest = items[sum(map(len, parts)) :] if parts else items
            if rest:
                self._items[peer] = rest
                self.waiting[peer] -= sum(len(payload) for part in parts for _, payload in part)
            else:
                self.take_back(peer)
        return found

    def remove(self, peer: NodeId) -> None:
        """Forget a neighbour."""
        self.take_back(peer)
        self._behind.pop(peer, None)

    def take_behind(self) -> list[NodeId]:
        """Take out the neighbours that lack dropped payloads and have been sent all others.

        They are to be told the recent ids, for they can ask for what they lack.
        """
        found = [peer for peer in self._behind if peer not in self.waiting]
        for peer in found:
            del self._behind[peer]
        return found

    def take_back(self, peer: NodeId) -> Items:
        """Take out everything that waits for a neighbour; empty when nothing does."""
        self.waiting.pop(peer, None)
        return self._items.pop(peer, [])
