"""The owner's side: its record reaches the ``R`` nearest nodes, and every newer one reaches them at once."""

from __future__ import annotations

from collections.abc import Callable, Container

from meshnode.base.address import Addr
from meshnode.base.metrics import describe
from meshnode.base.timers import Timer
from meshnode.discovery.dht.effects import Published
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.messages import Reply, Status, Store, Stored
from meshnode.discovery.dht.shared import R, Shared
from meshnode.discovery.dht.table import Contact
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

REFRESH_AFTER_S = 0.3  # a change's lookup: after the direct stores, and once for a burst of changes
SPREAD_AFTER_S = 0.1  # nearer nodes came: wait for more of them
URGENT_SENDS = 6
RETRY_S, MAX_RETRY_S = 1.0, 2_400.0  # after a publication that too few acknowledged; each time twice as long, up to
# the time after which a record that says the same is published again
CONTACT_RETRY_S = 64.0  # at the latest when a contact has come: it may be, or know, one that takes it
UNHEARD_S = 0.5  # without any message after a publication: the network was not there, the next message says it is
MAX_HOLDERS = 4 * R  # half of them with a price

StartFind = Callable[[bytes, float, Callable[[Lookup, float], None]], None]

RETRIES = describe("dht_publish_retries", "publications of the own record made again: too few nodes had taken it")


class Announcer:
    """Keeps this node's newest record at its holders.

    A publication that fewer of them acknowledged than there are, or none because none answers, is made again by itself.
    """

    def __init__(self, shared: Shared, find: StartFind, check: StartFind, late_by: Callable[[], float]) -> None:
        self._late_by = late_by  # the last tick of this process
        self._shared = shared
        self._find = find
        self._check = check
        self.record: EndpointRecord | None = None
        self._holders: dict[NodeId, int] = {}  # peer -> seq that it acknowledged
        self._sending: dict[NodeId, int] = {}
        self._refresh_timer: Timer | None = None
        self._is_known = False  # whether the record says what the last one did, which has its holders
        self._spread_timer: Timer | None = None
        self._reported: tuple[int, int] | None = None
        self._retry_timer = shared.timers.timer(self._retry)
        self._retry_wait = RETRY_S
        self._silent_since: float | None = None  # when the record was published that no message has come since

    @property
    def awaited(self) -> Container[NodeId]:
        """The nodes that have been sent the record and have not answered yet."""
        return self._sending

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Send this node's new record to the nodes that hold the last one, the seeds, and the nearest contacts.

        A lookup follows after ``REFRESH_AFTER_S``, for nodes that are nearer than all of these; a narrow one when the
        record says what the last one said, and that reached enough of them.
        """
        shared = self._shared
        self._is_known = self._is_renewal(record)
        is_elsewhere = not self._says_the_same(record)
        if self.record is not None and record.seq < self.record.seq:  # the clock was ahead once
            self._holders.clear()
            self._sending.clear()
        self.record = record
        self._retry_timer.set(None)
        if is_elsewhere:
            self._retry_wait = RETRY_S
        self._silent_since = now
        shared.store.put(record, "", now, shared.wall(now))
        self._send_out(now)
        self._refresh_in(REFRESH_AFTER_S, now)

    def _is_renewal(self, record: EndpointRecord) -> bool:
        last = self.record
        return last is not None and self._says_the_same(record) and not self._is_thin(last.seq)

    def _says_the_same(self, record: EndpointRecord) -> bool:
        last = self.record
        return last is not None and (last.endpoints, last.relays) == (record.endpoints, record.relays)

    def _is_thin(self, seq: int) -> bool:
        """Return whether fewer nodes acknowledged that record than should, or could."""
        return self._held(seq) < min(R, max(1, len(self._shared.table)))

    def _held(self, seq: int) -> int:
        return sum(held >= seq for held in self._holders.values())

    def _send_out(self, now: float) -> None:
        """Store the record where the last one is, at the seeds, and at the nearest contacts."""
        shared = self._shared
        nearest = [c.node_id for c in shared.table.nearest(shared.key, R, good=True)]
        for peer in dict.fromkeys([*self._holders, *shared.seeds, *nearest]):
            addr = shared.address_of(peer)
            if addr is not None:
                self._store(peer, addr, shared.token_of(peer, now), now, urgent=URGENT_SENDS)

    def on_heard(self, now: float) -> None:
        """Take note of any message.

        The first one since a publication that went into a cut network has the record sent again at once.
        """
        if self._silent_since is None:
            return
        silent, self._silent_since = now - self._silent_since, None
        if silent >= UNHEARD_S + 2 * self._late_by():
            self._sending.clear()  # what is on its way waits longer and longer for an answer
            self._send_out(now)

    def _refresh_in(self, seconds: float, now: float) -> None:
        if self._refresh_timer is None or not self._refresh_timer.live:
            self._refresh_timer = self._shared.timers.at(now + seconds, self._look)

    def _look(self, now: float) -> None:
        """Find the nodes nearest to this node's key now, and store there."""
        look = self._check if self._is_known else self._find
        look(self._shared.key, now, self._found)

    def _found(self, lookup: Lookup, now: float) -> None:
        for candidate in lookup.closest(R):
            self._offer(candidate.id, candidate.addr, candidate.token, now)
        self._prune()
        self._report(now)

    def _offer(self, peer: NodeId, addr: Addr, token: bytes, now: float) -> None:
        if self.record is not None and self._holders.get(peer, -1) < self.record.seq:
            self._store(peer, addr, token, now)

    def on_contact(self, contact: Contact, now: float) -> None:
        """Store the record at a new contact, if it is one of the nearest to this node's key.

        Waits ``SPREAD_AFTER_S``, for more of them to come. A retry that is due later comes within ``CONTACT_RETRY_S``.
        """
        if self._retry_timer.live and self._retry_timer.when > now + CONTACT_RETRY_S:
            self._retry_timer.set(now + self._shared.jittered(CONTACT_RETRY_S))
        if self.record is None or self._holders.get(contact.node_id, -1) >= self.record.seq:
            return
        if self._spread_timer is None or not self._spread_timer.live:
            self._spread_timer = self._shared.timers.at(now + SPREAD_AFTER_S, self.spread)

    def spread(self, now: float) -> None:
        """Store the record at those of the contacts nearest to this node's key that do not have it.

        Those that acknowledged it, and those that are asked at this moment, are left out.
        """
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
            self._report(now)

        def lost(now: float) -> None:
            self._finished(peer, record.seq)
            if self._shared.table.get(peer) is None:
                self._holders.pop(peer, None)
            self._report(now)

        self._shared.rpcs.call(
            peer, addr, lambda tx: Store(tx, token, record.encoded), now, answered, lost, urgent=urgent
        )

    def _finished(self, peer: NodeId, seq: int) -> None:
        if self._sending.get(peer) == seq:
            del self._sending[peer]

    def _report(self, now: float) -> None:
        """Tell of the holders when no answer is awaited any more; try again later when they are too few."""
        if self._sending or self.record is None:
            return
        seq = self.record.seq
        report = (seq, self._held(seq))
        if report != self._reported:
            self._reported = report
            self._shared.effects.append(Published(report[1]))
        if not self._is_thin(seq):
            self._rest()
        elif not self._retry_timer.live:
            self._retry_timer.set(now + self._shared.jittered(self._retry_wait))
            self._retry_wait = min(MAX_RETRY_S, 2 * self._retry_wait)

    def _rest(self) -> None:
        """Need no retry; the next one that is needed comes soon."""
        self._retry_wait = RETRY_S
        self._retry_timer.set(None)

    def _retry(self, now: float) -> None:
        if self.record is not None:
            self._shared.metrics.count(RETRIES)
            self._silent_since = now  # where no answer comes, the first message says that there is a network again
            self.spread(now)
            self._find(self._shared.key, now, self._found)
