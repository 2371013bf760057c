"""State that the parts of one node's DHT share: its table, store, timers, calls, and the effects they produce."""

from __future__ import annotations

import random

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_VERIFIED
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.discovery.dht.effects import Effect, SendSealed
from meshnode.discovery.dht.rpc import Rpcs
from meshnode.discovery.dht.store import RecordStore
from meshnode.discovery.dht.table import Table
from meshnode.errors import RecordError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record

R = 8  # holders of a record


class Shared:
    """State that several parts use; it decides nothing. ``rpcs`` is set by the core that owns all of it."""

    rpcs: Rpcs

    def __init__(self, own: NodeId, rng: random.Random, metrics: Metrics, store_limit: int, wall_offset: float) -> None:
        self.own = own
        self.key = own.dht_key
        self.rng = rng
        self.metrics = metrics
        self.timers = Timers()
        self.table = Table(own)
        self.store = RecordStore(self.key, store_limit)
        self.seeds: dict[NodeId, Addr] = {}
        self.effects: list[Effect] = []
        self.wall_offset = wall_offset
        self._verified: BoundedDict[bytes, EndpointRecord] = BoundedDict(DHT_MAX_VERIFIED)

    def wall(self, now: float) -> float:
        """Unix seconds at ``now``."""
        return now + self.wall_offset

    def send(self, peer: NodeId, addr: Addr, body: bytes) -> None:
        """Ask the driver to send a body."""
        self.effects.append(SendSealed(peer, addr, body))

    def open(self, encoded: bytes, now: float, key: bytes | None = None) -> EndpointRecord | None:
        """Verify a record once; None (counted by reason) when it is not valid now, or not of ``key``.

        A verified record is remembered by its bytes, so that copies cost no second signature check
        (``DHT_MAX_VERIFIED`` of them).
        """
        record = self._verified.get(encoded)
        if record is not None:
            self._verified.move_to_end(encoded)
            if record.expires_ms < self.wall(now) * 1000:
                self.metrics.count("dht_record_expired")
                return None
        else:
            try:
                record = open_record(encoded, self.wall(now))
            except RecordError as error:
                self.metrics.count(f"dht_record_{error.reason.name.lower()}")
                return None
            self._verified[encoded] = record
        if key is not None and record.id.dht_key != key:
            self.metrics.count("dht_record_wrong_id")
            return None
        return record

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
