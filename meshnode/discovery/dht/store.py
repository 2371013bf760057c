"""Storage for other nodes' records, bounded by key and shared by source network. Each operation takes constant time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush

from meshnode.base.fair_table import FairTable, Groups, source_shares
from meshnode.base.limits import (
    DHT_STORE_TURNOVER,
    DHT_STORE_TURNOVER_PER_S,
    DHT_UPDATES_PER_KEY,
    DHT_UPDATES_PER_KEY_PER_S,
)
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId, known_id
from meshnode.identity.record import EndpointRecord, latest_ms

EXPIRY_MS = 60_000  # records that expire within the same minute are found together
CULLED = 2  # expired records that make room with each new one: more than come, so that they are soon gone
CULLED_AT_ONCE = 4_000  # with each refresh; x 5 us = 20 ms


class Put(Enum):
    """Outcome of ``RecordStore.put``."""

    NEW = "new"
    NEWER = "newer"
    SAME = "same"
    OLD = "old"
    QUOTA = "quota"


@state
class Held:
    """A record that is held: its bytes, and of what they say what the store decides by.

    A parsed record takes three times as much memory.
    """

    owner: bytes
    encoded: bytes
    seq: int
    newest_ms: int  # the later of its time and its seq, which is one
    expires_ms: int
    groups: Groups  # of the source that handed in the first record of this key
    updates: TokenBucket | None = None  # from the first newer record on

    def take(self, record: EndpointRecord) -> None:
        """Become a newer record of the same owner."""
        self.encoded, self.seq = record.encoded, record.seq
        self.newest_ms, self.expires_ms = max(record.issued, record.seq), record.expires_ms


class RecordStore:
    """Newest verified record by key, at most ``limit``.

    Half of the places are for established owners: this node, and those that ``is_established`` names. The others are
    shared by the networks and hosts that the records came from; when all are taken, the one with most gives one up. Ids
    are free, and so is an id's distance from this node's: neither is a reason to keep a record. What has expired goes
    before any other.
    """

    def __init__(
        self, own_key: bytes, limit: int, is_established: Callable[[NodeId], bool] = lambda peer: False
    ) -> None:
        self.is_barred: Callable[[NodeId], bool] = lambda owner: False  # keys whose records are given to none
        self._own = own_key
        self._limit = limit
        self._is_established = is_established
        self._items: dict[bytes, Held] = {}
        self._kept: FairTable[bytes] = FairTable(max(1, limit // 2))
        self._guests: FairTable[bytes] = FairTable(limit + 1)  # evicted from by hand, for both count
        self._expiring: dict[int, OrderedDict[bytes, None]] = {}  # minute -> keys
        self._minutes: list[int] = []  # of these, a heap: a record lasts a day at most, so there are some 1,450
        self._turnover = TokenBucket(DHT_STORE_TURNOVER_PER_S, DHT_STORE_TURNOVER, 0.0)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def put(self, record: EndpointRecord, source: str, now: float, wall: float) -> Put:
        """Offer a verified record; ``source`` is the host that handed it in, whose share pays for the place.

        A new one is always taken; when the store is full, another one gives way.
        """
        key = record.id.dht_key
        item = self._items.get(key)
        if item is not None and item.newest_ms > latest_ms(wall):
            self._drop(key)
            item = None
        if item is not None:
            return self._update(key, item, record, now)
        self._cull(wall, CULLED)
        groups = source_shares(source)
        item = self._items[key] = Held(record.id.raw, b"", 0, 0, 0, groups)
        item.take(record)
        self._note_expiry(key, item)
        if key == self._own or self._is_established(record.id):
            self._keep(key, groups)
        else:
            self._guests.add(key, *groups)
        while len(self._items) > self._limit:
            self._drop(self._guests.first())
        return Put.NEW

    def refuses(self, source: str, now: float) -> bool:
        """True when there is no place for one more record from this host, of an owner that is not established.

        That is when the store is full and the host has most of the most: a new record of it would take the place of
        another one of its own. A few may, so that owners behind one address (``DHT_STORE_TURNOVER``) are not shut out;
        a flood is refused before its records are looked at.
        """
        if len(self._items) < self._limit or not self._guests.would_lose(*source_shares(source)):
            return False
        return not self._turnover.take(1, now)

    def _update(self, key: bytes, item: Held, record: EndpointRecord, now: float) -> Put:
        if key in self._guests:
            if self._is_established(record.id):
                self.keep(record.id)
            else:
                self._guests.touch(key)
        if item.encoded == record.encoded:
            return Put.SAME
        if (record.seq, record.encoded) <= (item.seq, item.encoded):
            return Put.OLD
        if item.updates is None:
            item.updates = TokenBucket(DHT_UPDATES_PER_KEY_PER_S, DHT_UPDATES_PER_KEY, now)
        if not item.updates.take(1, now):
            return Put.QUOTA
        self._forget_expiry(key, item)
        item.take(record)
        self._note_expiry(key, item)
        return Put.NEWER

    def keep(self, owner: NodeId) -> None:
        """Give the record of an owner that is established now, if there is one, a place that newcomers cannot take."""
        key = owner.dht_key
        if key in self._guests:
            self._guests.discard(key)
            self._keep(key, self._items[key].groups)

    def _keep(self, key: bytes, groups: Groups) -> None:
        over = self._kept.add(key, *groups)
        if over is not None:  # it takes its chance among the others
            self._guests.add(over, *self._items[over].groups)

    def fresh(self, key: bytes, wall: float) -> Held | None:
        """Return the record of ``key``; None when there is none, or it has expired or is ahead of the clock."""
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires_ms < wall * 1000 or item.newest_ms > latest_ms(wall) or self.is_barred(known_id(item.owner)):
            self._drop(key)
            return None
        return item

    def cull(self, wall: float) -> None:
        """Drop what has expired in a past minute, at most ``CULLED_AT_ONCE``: others are given to none already."""
        self._cull(wall, CULLED_AT_ONCE)

    def _cull(self, wall: float, most: int) -> None:
        over = int(wall * 1000) // EXPIRY_MS
        while most and self._minutes and self._minutes[0] < over:
            keys = self._expiring[self._minutes[0]]
            if keys:
                self._drop(next(iter(keys)))
                most -= 1
            else:
                del self._expiring[heappop(self._minutes)]

    def _note_expiry(self, key: bytes, item: Held) -> None:
        minute = item.expires_ms // EXPIRY_MS
        if minute not in self._expiring:
            self._expiring[minute] = OrderedDict()
            heappush(self._minutes, minute)
        self._expiring[minute][key] = None

    def _forget_expiry(self, key: bytes, item: Held) -> None:
        del self._expiring[item.expires_ms // EXPIRY_MS][key]

    def _drop(self, key: bytes) -> None:
        self._forget_expiry(key, self._items.pop(key))
        self._kept.discard(key)
        self._guests.discard(key)
