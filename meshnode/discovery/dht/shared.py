"""State that the parts of one node's DHT share: its table, store, timers, calls, and the effects they produce."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import network_of
from meshnode.base.limits import DHT_MAX_VERIFIED
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.discovery.dht.effects import Effect, SendSealed
from meshnode.discovery.dht.kept import Sets
from meshnode.discovery.dht.rpc import Rpcs
from meshnode.discovery.dht.store import RecordStore
from meshnode.discovery.dht.table import Table
from meshnode.errors import RecordError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, is_ahead, open_record

R = 8  # holders of a record


class Shared:
    """State that several parts use; it decides nothing. ``rpcs`` is set by the core that owns all of it."""

    rpcs: Rpcs

    def __init__(
        self,
        own: NodeId,
        rng: random.Random,
        metrics: Metrics,
        store_limit: int,
        wall_offset: float,
        is_linked: Callable[[NodeId], bool],
        has_price: Callable[[NodeId], bool],
    ) -> None:
        self.own = own
        self.rng = rng
        self.metrics = metrics
        self.timers = Timers()
        self.has_price = has_price
        self.table = Table(own, has_price=has_price)
        self.store = RecordStore(own.dht_key, store_limit, self.is_established)
        self.kept = Sets()  # what is no record
        self._is_linked = is_linked
        self.seeds: dict[NodeId, Addr] = {}
        self.effects: list[Effect] = []
        self.wall_offset = wall_offset
        self.refusal = ""  # why the last record that was opened does not hold
        self._verified: BoundedDict[bytes, EndpointRecord] = BoundedDict(DHT_MAX_VERIFIED)

    @property
    def key(self) -> bytes:
        """Return this node's own DHT key."""
        return self.own.dht_key

    def wall(self, now: float) -> float:
        """Unix seconds at ``now``."""
        return now + self.wall_offset

    def is_established(self, peer: NodeId) -> bool:
        """Return whether ``peer`` has shown more than an id: a contact that answers, a seed, or a live connection.

        Contacts are few of each network (``Table``), so this is no property that a flood of ids has.
        """
        return self.table.is_good(peer) or peer in self.seeds or self._is_linked(peer)

    def home_of(self, peer: NodeId) -> Hashable | None:
        """Return the network where a contact answered, the id itself of a seed; None for all others.

        It stays a contact's while requests to it go unanswered, as they may in a flood, until the table drops it.
        """
        if peer in self.seeds:
            return peer
        contact = self.table.get(peer)
        return network_of(contact.addr.host) if contact is not None else None

    def send(self, peer: NodeId, addr: Addr, body: bytes, unasked: bool = False) -> None:
        """Ask the driver to send a body.

        ``unasked`` when nothing that came from ``addr`` is the reason.
        """
        self.effects.append(SendSealed(peer, addr, body, unasked))

    def open(self, encoded: bytes, now: float, key: bytes | None = None) -> EndpointRecord | None:
        """Verify a record once; None (counted, ``refusal`` says why) when it is not valid now, or not of ``key``.

        A verified record is remembered by its bytes, so that copies cost no second signature check
        (``DHT_MAX_VERIFIED`` of them).
        """
        record = self._verified.get(encoded)
        if record is not None:
            self._verified.move_to_end(encoded)
            wall = self.wall(now)
            if record.expires_ms < wall * 1000 or is_ahead(record, wall):
                self._refuse("expired" if record.expires_ms < wall * 1000 else "future")
                return None
        else:
            try:
                record = open_record(encoded, self.wall(now))
            except RecordError as error:
                self._refuse(error.reason.name.lower())
                return None
            self._verified[encoded] = record
        if key is not None and record.id.dht_key != key:
            self._refuse("wrong_id")
            return None
        return record

    def held(self, key: bytes, now: float) -> EndpointRecord | None:
        """Return the record of ``key`` that this node holds, if it is valid now."""
        item = self.store.fresh(key, self.wall(now))
        return None if item is None else self.open(item.encoded, now, key)

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        self.metrics.count(f"dht_record_{reason}")

    def address_of(self, peer: NodeId, fallback: Addr | None = None) -> Addr | None:
        """Where ``peer`` answered last, else where a seed is configured to be, else ``fallback``."""
        contact = self.table.get(peer)
        return contact.addr if contact is not None else self.seeds.get(peer, fallback)

    def token_of(self, peer: NodeId, now: float) -> bytes:
        """Return the token of ``peer`` for this node's present address, empty when there is none that is fresh.

        Fresh means younger than ``TOKEN_LIFE_S``; a holder honours its tokens for longer.
        """
        contact = self.table.get(peer)
        return b"" if contact is None else contact.fresh_token(now)

    def jittered(self, seconds: float, share: float = 0.2) -> float:
        """``seconds``, give or take ``share`` of it."""
        return seconds * (1 + share * (2 * self.rng.random() - 1))
