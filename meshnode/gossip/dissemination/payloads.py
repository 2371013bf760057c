"""Payloads that were here: ids of the last minutes, and the newest payloads themselves. Sans I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from meshnode.base.limits import GOSSIP_MAX_RECENT, GOSSIP_MAX_SEEN, GOSSIP_SEEN_S

KEEP_PAYLOAD_S = 30.0  # a node that missed an announced payload asks for it within two seconds


class Seen:
    """Ids of payloads, in two generations: each is remembered for one to two times ``GOSSIP_SEEN_S``."""

    def __init__(self, now: float) -> None:
        self._young: dict[bytes, None] = {}
        self._old: dict[bytes, None] = {}
        self._since = now

    def __contains__(self, item: bytes) -> bool:
        return item in self._young or item in self._old

    def __bool__(self) -> bool:
        return bool(self._young or self._old)

    def add(self, item: bytes, now: float) -> None:
        """Remember an id; a full or old generation makes room for the next."""
        if len(self._young) >= GOSSIP_MAX_SEEN or now - self._since > GOSSIP_SEEN_S:
            self._old, self._young, self._since = self._young, {}, now
        self._young[item] = None


class Payload(NamedTuple):
    """Bytes of a payload and the hops that it had come."""

    data: bytes
    hops: int


class RecentPayloads:
    """The newest payloads: at most ``GOSSIP_MAX_RECENT`` bytes, none older than ``KEEP_PAYLOAD_S``."""

    def __init__(self) -> None:
        self._items: OrderedDict[bytes, tuple[Payload, float]] = OrderedDict()
        self.size = 0

    def __contains__(self, item: bytes) -> bool:
        return item in self._items

    def ids(self) -> list[bytes]:
        """Ids, oldest first."""
        return list(self._items)

    def get(self, item: bytes) -> Payload | None:
        """Return the payload of an id, if it is still here."""
        found = self._items.get(item)
        return found[0] if found is not None else None

    def add(self, item: bytes, payload: Payload, now: float) -> None:
        """Keep a payload; the oldest go when there are too many bytes."""
        if item in self._items:
            return
        self._items[item] = payload, now
        self.size += len(payload.data)
        while self.size > GOSSIP_MAX_RECENT or now - next(iter(self._items.values()))[1] > KEEP_PAYLOAD_S:
            self.size -= len(self._items.popitem(last=False)[1][0].data)
