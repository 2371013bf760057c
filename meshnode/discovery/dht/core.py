"""The DHT of one node, sans I/O: bodies and time in, effects out.

Kademlia with sealed messages and signed, versioned records. Which node sent a body is proven by its seal, where it is
only by an answer to a request that was sent there; so only peers that answered are contacts.
The parts: ``table`` (the contacts), ``contacts`` (its upkeep), ``holder`` (serving), ``lookups``
(asking), ``announce`` (this node's record), ``watching`` (others' records), ``rpc`` (requests). This class owns and
connects them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from functools import lru_cache

from meshnode.base.address import Addr, is_dialable
from meshnode.base.clock import Entropy
from meshnode.base.limits import DHT_MAX_STORED, DHT_MAX_STORED_SEED
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer
from meshnode.base.wire import WireError
from meshnode.discovery.dht.announce import Announcer
from meshnode.discovery.dht.contacts import Contacts, Refresh
from meshnode.discovery.dht.effects import ContactsChanged, Effect, Found, LookupDone, LookupStats
from meshnode.discovery.dht.holder import Holder
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.lookups import Lookups, Search
from meshnode.discovery.dht.messages import (
    ContactsError,
    Find,
    Get,
    Ping,
    Push,
    PushAck,
    Store,
    Watch,
    decode_message,
    encode_message,
)
from meshnode.discovery.dht.rpc import Rpcs
from meshnode.discovery.dht.shared import Shared
from meshnode.discovery.dht.statements import StatementSearch
from meshnode.discovery.dht.store import RecordStore
from meshnode.discovery.dht.table import Contact
from meshnode.discovery.dht.watching import Watching
from meshnode.identity.node_id import NodeId
from meshnode.identity.price import has_price
from meshnode.identity.record import EndpointRecord

REQUESTS = (Ping, Find, Get, Store, Watch)
CHANGED_AFTER_S, MAX_CHANGED_AFTER_S = 0.25, 8.0  # changed contacts are on disk at once at first, later they are many

MALFORMED = describe("dht_malformed", "DHT bodies dropped: not a message")
BAD_CONTACTS = describe("dht_bad_contacts", "DHT answers dropped: too many contacts, or undialable ones")
FROM_SELF = describe("dht_from_self", "DHT bodies dropped: from our own id")
NOT_SERVED = describe("dht_leaf_asked", "DHT requests dropped: this node is a leaf, which stores and answers nothing")
BAD_SOURCE = describe("dht_bad_source", "DHT bodies dropped: a source address that no node can have")

_dialable = lru_cache(maxsize=4096)(is_dialable)


class Dht:
    """One node's DHT. Peer input never raises; effects wait in ``take_effects()``.

    ``now`` is monotonic seconds, ``wall`` Unix seconds; a node with the ``seed_role`` stores more records for others.
    ``is_linked`` tells which peers have a live connection: their records and watches are not displaced by newcomers'.
    A ``leaf`` asks and publishes, and answers nothing: it is no contact of others, and looks after few of its own.
    ``has_price`` tells which ids were paid for: records are stored at the nearest of these too, and lookups ask them.
    ``late_by`` tells how late this process came last: what has come may be unread.
    """

    def __init__(
        self,
        own: NodeId,
        *,
        rng: random.Random,
        entropy: Entropy,
        metrics: Metrics,
        now: float = 0.0,
        wall: float = 0.0,
        seed_role: bool = False,
        leaf: bool = False,
        is_linked: Callable[[NodeId], bool] = lambda peer: False,
        has_price: Callable[[NodeId], bool] = has_price,
        late_by: Callable[[], float] = lambda: 0.0,
    ) -> None:
        limit = DHT_MAX_STORED_SEED if seed_role else DHT_MAX_STORED
        shared = self._shared = Shared(own, rng, metrics, limit, wall - now, is_linked, has_price)
        self._table = shared.table
        self._metrics = metrics
        self._lookups = Lookups(
            shared,
            lambda peer, addr, t: self._contacts.meet(peer, addr, t),
            lambda: self._contacts.is_probing,
            lambda record, t: self._watching.on_record(record, t),
            lambda peer, t: self._contacts.on_liar(peer, t),
        )
        self._announcer = Announcer(shared, self._lookups.find, self._lookups.check, late_by)
        self._watching = Watching(shared, self._lookups.get)
        self._contacts = Contacts(shared, self._lookups, self._on_contact, leaf=leaf)
        if not leaf:
            Refresh(shared, self._lookups, self._cull, self._announcer.spread).start(now)
        answered, failed = self._contacts.answered, self._contacts.failed
        shared.rpcs = Rpcs(shared.timers, entropy, shared.send, metrics, answered, failed, self._contacts.answers)

        def stored(record: EndpointRecord, now: float) -> None:
            if record.is_leaf:
                self._contacts.on_leaf(record.id, now)
            self._watching.on_record(record, now)

        self._holder = Holder(shared, entropy(32), stored, self._contacts.proven)
        self._searches: dict[int, Search | None] = {}
        self._counter = 0
        self._now = now
        self._reported_version = 0
        self._changed_timer: Timer | None = None
        self._changed_wait = CHANGED_AFTER_S
        self._contacts.start(now)

    # ---- pumping

    def handle(self, sender: NodeId, body: bytes, src: Addr, size: int, now: float, wall: float) -> None:
        """Take the body of a sealed datagram of ``size`` bytes, proven to be from ``sender``, seen from ``src``.

        Malformed bodies and impossible sources are dropped and counted. An answer is no longer than its request until a
        token proves the sender's address, and leaves room for the ping of a possible contact.
        """
        shared = self._shared
        shared.wall_offset, self._now = wall - now, now
        if sender == shared.own:
            self._metrics.count(FROM_SELF)
            return
        if not _dialable(src):
            self._metrics.count(BAD_SOURCE)
            return
        try:
            message = decode_message(body)
        except WireError as error:
            self._metrics.count(BAD_CONTACTS if isinstance(error, ContactsError) else MALFORMED)
            return
        self._contacts.last_heard = now
        self._announcer.on_heard(now)
        if isinstance(message, REQUESTS) and self._contacts.is_leaf:
            self._metrics.count(NOT_SERVED)
        elif isinstance(message, REQUESTS):
            self._holder.answer(sender, src, message, min(size, len(body)), now)
            self._contacts.asked(sender, src, now, only_ping=isinstance(message, Ping))
        elif isinstance(message, Push):
            self._on_push(sender, src, message, now)
        elif shared.rpcs.on_reply(sender, src, message, now):
            contact = self._table.get(sender)
            if contact is not None and contact.addr != src:
                self._contacts.meet(sender, src, now, asked_us=True)
        self._note_changes(now)

    def _on_push(self, sender: NodeId, src: Addr, push: Push, now: float) -> None:
        shared = self._shared
        if self._watching.on_push(push, now):
            shared.send(sender, src, encode_message(PushAck(push.tx)))
            record = shared.open(push.record, now)
            if record is not None and record.id.dht_key in shared.store:
                shared.store.put(record, src.host, now, shared.wall(now))

    def tick(self, now: float, wall: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``."""
        self._shared.wall_offset, self._now = wall - now, now
        self._shared.timers.run(now)
        self._note_changes(now)

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is wanted next (monotonic seconds)."""
        return self._shared.timers.next_deadline()

    def take_effects(self) -> list[Effect]:
        """Return everything to do since the last call, in order.

        Call it after every ``handle``, ``tick`` and command; sending later delays, and loses nothing.
        """
        effects, self._shared.effects = self._shared.effects, []
        return effects

    # ---- commands

    def add_contact_hint(self, peer: NodeId, addr: Addr, now: float, *, seed: bool = False) -> None:
        """Ping ``peer`` at ``addr``, where it may be; when it answers it becomes a contact.

        A ``seed`` is configured: pinged again whenever it is missing, and given every STORE and WATCH.
        """
        if peer != self._shared.own and _dialable(addr):
            self._contacts.add_hint(peer, addr, now, seed=seed)

    def lookup(self, peer: NodeId, now: float, *, is_urgent: bool = True) -> int:
        """Search the record of ``peer``; Found (each newer one) and LookupDone carry the returned number.

        Found comes at once for a record that this node holds itself. The lookup ends within
        ``DHT_LOOKUP_DEADLINE_S``, or at once where ``DHT_MAX_LOOKUPS`` run already. One that is not ``is_urgent`` asks
        few nodes while many requests time out.
        """
        self._counter += 1
        number = self._counter
        held = self._shared.held(peer.dht_key, now)
        if held is not None:
            self._shared.effects.append(Found(number, held, 0))

        def found(record: EndpointRecord, hops: int, now: float) -> None:
            if number in self._searches and (held is None or record.seq > held.seq):
                self._shared.effects.append(Found(number, record, hops))

        def done(lookup: Lookup, now: float) -> None:
            if number not in self._searches:
                return
            del self._searches[number]
            best = lookup.best
            if held is not None and (best is None or held.seq > best.seq):
                best = held
            first = None if lookup.first is None else lookup.first - lookup.started
            stats = LookupStats(lookup.rpcs, lookup.hops, len(lookup.answers), lookup.junk, now - lookup.started, first)
            self._shared.effects.append(LookupDone(number, best, stats))

        self._searches[number] = None
        self._searches[number] = self._lookups.search(peer.dht_key, now, done, found, is_urgent=is_urgent)
        return number

    def cancel(self, lookup_id: int) -> None:
        """End a lookup; no more effects of it come."""
        search = self._searches.pop(lookup_id, None)
        if search is not None:
            self._lookups.cancel(search)

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Publish this node's newest record: to its holders and the seeds at once, then to the nodes nearest to it.

        Nodes that are nearer later are given it as they come, and it is sent again while too few have taken it.
        Effects: Published with the number of holders whenever that changes.
        """
        self._announcer.publish(record, now)
        self._holder.push(record, now)
        self._note_changes(now)

    def watch(self, peer: NodeId, now: float, *, known_seq: int = 0, unasked: bool = False) -> None:
        """Give RecordPushed for every record of ``peer`` newer than ``known_seq``, until ``unwatch``.

        A newer record that this node holds itself comes at once. At most ``DHT_MAX_WATCHED`` ids are watched,
        half of them ``unasked``, for peers that came by themselves.
        """
        held = self._shared.held(peer.dht_key, now)
        self._watching.watch(peer, known_seq, now, unasked=unasked)
        if held is not None:
            self._watching.on_record(held, now)

    def rewatch(self, peer: NodeId, now: float) -> None:
        """Ask the holders of the watch of ``peer`` at once: it does not answer where its last record says."""
        self._watching.rewatch(peer, now)

    def unwatch(self, peer: NodeId, now: float | None = None) -> None:
        """Stop watching ``peer``.

        Its holders are told (by default as of the last call that had a time).
        """
        self._watching.unwatch(peer, self._now if now is None else now)

    @property
    def records(self) -> RecordStore:
        """Return the records that this node holds for others."""
        return self._shared.store

    @property
    def statements(self) -> StatementSearch:
        """Return what finds and stores values that are no records."""
        return StatementSearch(self._shared, self._lookups)

    def note_record(self, record: EndpointRecord, now: float) -> None:
        """Note a verified record that came by another way: watches need not tell of it again."""
        self._watching.learn(record)

    def rewatch_all(self, now: float) -> None:
        """Renew every watch from this node's new address, fast; newer records come at once."""
        self._contacts.forget_place()
        self._watching.rewatch_all(now)

    def local_moved(self, now: float) -> None:
        """Let the nearest contacts and the seeds hear from this node's new address, so that they ping it back.

        After a move call ``rewatch_all``, ``publish``, ``local_moved``, in this order: what is urgent first, and a
        record on its way to a contact tells it as well as a ping.
        """
        self._contacts.moved(self._announcer.awaited, now)

    def contacts(self, *, good: bool = False) -> list[tuple[NodeId, Addr]]:
        """Return the contacts to remember for the next start, nearest first, those that failed last.

        ``good`` leaves those out.
        """
        found = self._table.closest(self._shared.key, 10**6, good=good)
        return [(c.node_id, c.addr) for c in sorted(found, key=lambda c: c.fails > 0)]

    def home_of(self, peer: NodeId) -> Hashable | None:
        """Return the network where a contact answered, the id itself of a seed; None for all others."""
        return self._shared.home_of(peer)

    def counts(self) -> dict[str, int]:
        """Return sizes for status pages."""
        return {
            "contacts": len(self._table),
            "records": len(self._shared.store),
            "watchers": len(self._holder.watchers),
            "calls": len(self._shared.rpcs),
            "lookups": len(self._lookups),
        }

    # ---- inside

    def _on_contact(self, contact: Contact, now: float) -> None:
        """Note a new contact: its record keeps its place, and it may be one to store at."""
        self._shared.store.keep(contact.node_id)
        self._announcer.on_contact(contact, now)

    def _cull(self, now: float) -> None:
        """Drop records and watches that have run out."""
        self._shared.store.cull(self._shared.wall(now))
        self._holder.watchers.cull(now)

    def _note_changes(self, now: float) -> None:
        if self._table.version == self._reported_version:
            return
        if self._changed_timer is None or not self._changed_timer.live:
            self._changed_timer = self._shared.timers.at(now + self._changed_wait, self._changed)

    def _changed(self, now: float) -> None:
        self._reported_version = self._table.version
        self._changed_wait = min(2 * self._changed_wait, MAX_CHANGED_AFTER_S)
        self._shared.effects.append(ContactsChanged())


def is_congested(dht: Dht) -> bool:
    """Return whether many requests time out of nodes that answered before: the mesh is short of CPU."""
    return dht._shared.rpcs.budget.congested


def place_of(dht: Dht, peer: NodeId, now: float) -> Addr | None:
    """Return the address of a contact that has just answered there; None for all others."""
    return dht._shared.address_of(peer) if dht._contacts.answers(peer, now) else None
