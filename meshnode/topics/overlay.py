"""Neighbours of a member of a topic, and the latest messages that it keeps for others. Sans I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from meshnode.base.limits import TOPIC_MAX_REPLAY, TOPIC_MAX_REPLAY_BYTES
from meshnode.identity.node_id import NodeId

CHORDS = 2  # links besides the ring's: about five in all with those that others choose; log N hops


def scope_of(topic: str) -> bytes:
    """Return the 16 bytes that stand for a topic on the wire: BLAKE2b-128 of its name."""
    return hashlib.blake2b(topic.encode(), digest_size=16, person=b"mesh-topic").digest()


class Overlay:
    """Choice of neighbours by hash.

    They are the next member on a ring, which alone connects all, and the ``CHORDS`` members that hash lowest together
    with this node, which keeps paths short. A member that joins or leaves changes two or three links.
    """

    def __init__(self, own: NodeId, scope: bytes) -> None:
        self._own = own
        self._scope = scope
        self._points: dict[NodeId, tuple[bytes, bytes]] = {}
        self._mine = self._hash(own.raw)

    def choose(self, members: Iterable[NodeId]) -> list[NodeId]:
        """Return the members to link to: 1 + ``CHORDS``, fewer where there are fewer.

        ``members`` may contain this node, which is never chosen. The same members give the same choice, in any order.
        """
        found = [(*self._of(peer), peer) for peer in members if peer != self._own]
        if not found:
            return []
        after = [item for item in found if item[0] > self._mine]
        successor = min(after or found, key=lambda item: (item[0], item[2]))[2]
        chosen = {successor: None}
        for _, _, peer in sorted(found, key=lambda item: item[1:])[: CHORDS + 1]:
            if len(chosen) <= CHORDS:
                chosen[peer] = None
        return list(chosen)

    def forget(self, peer: NodeId) -> None:
        """Forget a member that left."""
        self._points.pop(peer, None)

    def _of(self, peer: NodeId) -> tuple[bytes, bytes]:
        found = self._points.get(peer)
        if found is None:
            low, high = sorted((self._own.raw, peer.raw))
            found = self._points[peer] = self._hash(peer.raw), self._hash(low + high)
        return found

    def _hash(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=8, key=self._scope, person=b"mesh-ring").digest()


class LatestMessages:
    """The latest messages of a topic, oldest first: at most 64, at most 128 kB."""

    def __init__(self) -> None:
        self._items: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0

    def __contains__(self, item: bytes) -> bool:
        return item in self._items

    def ids(self) -> tuple[bytes, ...]:
        """Return their ids."""
        return tuple(self._items)

    def add(self, item: bytes, payload: bytes) -> None:
        """Keep a verified message; the oldest go while there are over 64, or over 128 kB."""
        if item in self._items:
            return
        self._items[item] = payload
        self._size += len(payload)
        while len(self._items) > TOPIC_MAX_REPLAY or self._size > TOPIC_MAX_REPLAY_BYTES:
            self._size -= len(self._items.popitem(last=False)[1])

    def get(self, item: bytes) -> bytes | None:
        """Return the payload of an id; None when it is not kept."""
        return self._items.get(item)
