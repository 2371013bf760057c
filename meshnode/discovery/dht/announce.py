"""The owner's side: its record reaches the ``R`` nearest nodes, and every newer one reaches them at once."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.timers import Timer
from meshnode.discovery.dht.effects import Published
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.messages import Reply, Status, Store, Stored
from meshnode.discovery.dht.shared import R, Shared
from meshnode.discovery.dht.table import Contact
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

REPUBLISH_S = 1_500.0
REFRESH_AFTER_S = 0.3  # a change's lookup: after the direct stores, and once for a burst of changes
SPREAD_AFTER_S = 0.1  # nearer nodes came: wait for more of them
URGENT_SENDS = 6
MAX_HOLDERS = 4 * R  # half of them with a price

StartFind = Callable[[bytes, float, Callable[[Lookup, float], None]], None]


class Announcer:
    """Keeps this node's newest record at its holders."""

    def __init__(self, shared: Shared, find: StartFind) -> None:
        self._shared = shared
        self._find = find
        self.record: EndpointRecord | None = None
        self._holders: dict[NodeId, int] = {}  # peer -> seq that it acknowledged
        self._sending: dict[NodeId, int] = {}
        self._refresh_timer: Timer | None = None
        self._republish_timer: Timer | None = None
        self._spread_timer: Timer | None = None
        self._reported: tuple[int, int] | None = None

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Send this node's new record to the nodes that hold the last one, the seeds, and the nearest contacts.

        A lookup follows after ``REFRESH_AFTER_S``, for nodes that are nearer than all of these.
        """
        shared = self._shared
        if self.record is not None and record.seq < self.record.seq:  # the clock was ahead once
            self._holders.clear()
            self._sending.clear()
        self.record = record
        shared.store.put(record, "", now, shared.wall(now))
        nearest = [c.node_id for c in shared.table.nearest(shared.key, R, good=True)]
        for peer in dict.fromkeys([*self._holders, *shared.seeds, *nearest]):
            addr = shared.address_of(peer)
            if addr is not None:
                self._store(peer, addr, shared.token_of(peer, now), now, urgent=URGENT_SENDS)
        self._refresh_in(REFRESH_AFTER_S, now)

    def _refresh_in(self, seconds: float, now: float) -> None:
        if self._refresh_timer is None or not self._refresh_timer.live:
            self._refresh_timer = self._shared.timers.at(now + seconds, self.refresh)

    def refresh(self, now: float) -> None:
        """Find the nodes nearest to this node's key now, and store there; again in 25 minutes."""
        if self._republish_timer is not None:
            self._republish_timer.cancel()
        self._republish_timer = self._shared.timers.at(now + self._shared.jittered(REPUBLISH_S), self.refresh)
        if self.record is not None:
            self._find(self._shared.key, now, self._found)

    def _found(self, lookup: Lookup, now: float) -> None:
        for candidate in lookup.closest(R):
            self._offer(candidate.id, candidate.addr, candidate.token, now)
        self._prune()

    def _offer(self, peer: NodeId, addr: Addr, token: bytes, now: float) -> None:
        if self.record is not None and self._holders.get(peer, -1) < self.record.seq:
            self._store(peer, addr, token, now)

    def on_contact(self, contact: Contact, now: float) -> None:
        """Store the record at a new contact, if it is one of the nearest to this node's key.

        Waits ``SPREAD_AFTER_S``, for more of them to come.
        """
        if self.record is None or self._holders.get(contact.node_id, -1) >= self.record.seq:
            return
        if self._spread_timer is None or not self._spread_timer.live:
            self._spread_timer = self._shared.timers.at(now + SPREAD_AFTER_S, self._spread)

    def _spread(self, now: float) -> None:
        for contact in self._shared.table.nearest(self._shared.key, R, good=True):
            self._offer(contact.node_id, contact.addr, contact.fresh_token(now), now)
        self._prune()

    def _prune(self) -> None:
        if len(self._holders) <= MAX_HOLDERS:
            return
        own = int.from_bytes(self._shared.key, "big")
        by_distance = sorted(self._holders, key=lambda p: int.from_bytes(p.dht_key, "big") ^ own)
        priced = [peer for peer in by_distance if self._shared.has_price(peer)]
        keep = {*by_distance[: MAX_HOLDERS // 2], *priced[: MAX_HOLDERS // 2]}
        for peer in by_distance:
            if peer not in keep:
                del self._holders[peer]

    def _store(
        self, peer: NodeId, addr: Addr, token: bytes, now: float, *, urgent: int = 0, again: bool = True
    ) -> None:
        record = self.record
        if record is None or self._sending.get(peer, -1) >= record.seq:
            return
        self._sending[peer] = record.seq

        def answered(reply: Reply, now: float) -> None:
            self._finished(peer, record.seq)
            status = reply.status if isinstance(reply, Stored) else Status.INVALID
            if status is Status.NEED_TOKEN and again and isinstance(reply, Stored):
                self._store(peer, addr, reply.token, now, urgent=urgent, again=False)
            elif status in (Status.OK, Status.HAVE_NEWER):
                self._holders[peer] = max(record.seq, self._holders.get(peer, -1))
            else:
                self._holders.pop(peer, None)
                self._shared.metrics.count("dht_store_refused")
            self._report()

        def lost(now: float) -> None:
            self._finished(peer, record.seq)
            if self._shared.table.get(peer) is None:
                self._holders.pop(peer, None)
            self._report()

        self._shared.rpcs.call(
            peer, addr, lambda tx: Store(tx, token, record.encoded), now, answered, lost, urgent=urgent
        )

    def _finished(self, peer: NodeId, seq: int) -> None:
        if self._sending.get(peer) == seq:
            del self._sending[peer]

    def _report(self) -> None:
        if self._sending or self.record is None:
            return
        seq = self.record.seq
        report = (seq, sum(held >= seq for held in self._holders.values()))
        if report != self._reported:
            self._reported = report
            self._shared.effects.append(Published(report[1]))
