"""The DHT of one node, sans I/O: bodies and time in, effects out.

Kademlia with sealed messages and signed, versioned records. Who sent a body is proven by its seal, where the
sender is only by an answer to something that we sent there; so only peers that answered us are contacts.
The parts: ``table`` (who we know), ``holder`` (serving), ``lookup`` (asking), ``announce`` (our record),
``watching`` (others' records), ``rpc`` (requests). This class owns them and keeps the table alive.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from meshnode.base.address import NOWHERE, Addr, is_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Entropy
from meshnode.base.limits import (
    DHT_LOOKUP_DEADLINE_S,
    DHT_MAX_HINTS,
    DHT_MAX_LOOKUPS,
    DHT_MAX_PROBES,
    DHT_MAX_SEEDS,
    DHT_MAX_STORED,
    DHT_MAX_STORED_SEED,
)
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer
from meshnode.base.wire import WireError
from meshnode.discovery.dht.announce import Announcer
from meshnode.discovery.dht.effects import ContactsChanged, Effect, Found, LookupDone, LookupStats
from meshnode.discovery.dht.holder import Holder
from meshnode.discovery.dht.lookup import Candidate, Lookup
from meshnode.discovery.dht.messages import (
    ContactInfo,
    ContactsError,
    Find,
    Get,
    Nodes,
    Ping,
    Push,
    PushAck,
    Reply,
    Store,
    Value,
    Watch,
    decode_message,
    encode_message,
)
from meshnode.discovery.dht.rpc import Rpcs
from meshnode.discovery.dht.shared import R, Shared
from meshnode.discovery.dht.table import K
from meshnode.discovery.dht.watching import Watching
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

REQUESTS = (Ping, Find, Get, Store, Watch)
SETTLE_S = (0.35, 1.0, 3.0, 15.0)  # self-lookups after the first contact: others may join in the same second
REFRESH_S = 900.0
REVIVE_S, MAX_REVIVE_S = 1.0, 60.0
WAIT_FOR_CONTACT_S = 2.0  # a lookup started before anybody has answered
MEET = K  # contacts that a lookup heard of and did not ask, to be pinged if the table wants them
REPAIRS = 4  # stores to nodes that should have had the record
MAX_PAST = 64
RECENT_S, MAX_RECENT = 5.0, 16  # ended lookups whose answers still serve; x about 20 kB
CHANGED_AFTER_S, MAX_CHANGED_AFTER_S = 0.25, 8.0  # changed contacts are on disk at once at first, later they are many

MALFORMED = describe("dht_malformed", "DHT bodies dropped: not a message")
BAD_CONTACTS = describe("dht_bad_contacts", "DHT answers dropped: too many contacts, or undialable ones")
FROM_SELF = describe("dht_from_self", "DHT bodies dropped: from our own id")
BAD_SOURCE = describe("dht_bad_source", "DHT bodies dropped: a source address that nobody can have")
JUNK = describe("dht_junk", "lookup answers with an invalid record")
PROBES_FULL = describe("dht_probes_full", "unknown askers not pinged: enough pings outstanding")
HINTS_FULL = describe("dht_hints_full", "contact hints dropped: too many waiting")
LOOKUPS = describe("dht_lookups", "lookups started")
LOOKUPS_FULL = describe("dht_lookups_full", "lookups refused: too many at once")
LOOKUP_DEADLINE = describe("dht_lookup_deadline", "lookups ended by their deadline")
EVICTED = describe("dht_evicted", "contacts that stopped answering")


_dialable = lru_cache(maxsize=4096)(is_dialable)


@dataclass(slots=True)
class _Running:
    lookup: Lookup
    on_found: Callable[[EndpointRecord, int, float], None] | None
    on_done: Callable[[Lookup, float], None]
    deadline: Timer | None = None
    waiting: bool = False
    over: bool = False
    followers: list[Callable[[Lookup, float], None]] = field(default_factory=list)


class Dht:
    """One node's DHT. Peer input never raises; effects wait in ``take_effects()``."""

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
    ) -> None:
        limit = DHT_MAX_STORED_SEED if seed_role else DHT_MAX_STORED
        shared = self._shared = Shared(own, rng, metrics, limit, wall - now)
        self._table = shared.table
        self._rpcs = shared.rpcs = Rpcs(shared.timers, entropy, shared.send, metrics, self._answered, self._failed)
        self._holder = Holder(shared, entropy(32), self._stored)
        self._announcer = Announcer(shared, self._find)
        self._watching = Watching(shared, self._get)
        self._metrics = metrics
        self._probing: dict[tuple[NodeId, Addr], bool] = {}
        self._hints: dict[tuple[NodeId, Addr], bool] = {}
        self._past: BoundedDict[NodeId, Addr] = BoundedDict(MAX_PAST)
        self._running: dict[int, _Running] = {}
        self._lookup_ids: dict[int, int] = {}  # the user's id -> the running lookup's
        self._recent: BoundedDict[bytes, tuple[Lookup, float]] = BoundedDict(MAX_RECENT)
        self._counter = 0
        self._now = now
        self._last_heard = float("-inf")
        self._last_refresh = now
        self._reported_version = 0
        self._changed_timer: Timer | None = None
        self._changed_wait = CHANGED_AFTER_S
        self._joined = False
        self._revive_wait = REVIVE_S
        shared.timers.at(now + REVIVE_S, self._revive)
        shared.timers.at(now + shared.jittered(REFRESH_S), self._refresh)

    # ---- pumping

    def handle(self, sender: NodeId, body: bytes, src: Addr, size: int, now: float, wall: float) -> None:
        """Take the body of a sealed datagram of ``size`` bytes, proven to be from ``sender``, seen from ``src``."""
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
        self._last_heard = now
        if isinstance(message, REQUESTS):
            self._holder.answer(sender, src, message, min(size, len(body)), now)
            self._meet(sender, src, now)
        elif isinstance(message, Push):
            if self._watching.on_push(message, now):
                shared.send(sender, src, encode_message(PushAck(message.tx)))
                record = shared.open(message.record, now)
                if record is not None and shared.store.get(record.id.dht_key) is not None:
                    shared.store.put(record, src.host, now, wall)
        elif self._rpcs.on_reply(sender, src, message, now):
            contact = self._table.get(sender)
            if contact is not None and contact.addr != src:
                self._meet(sender, src, now)
        self._note_changes(now)

    def tick(self, now: float, wall: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``."""
        self._shared.wall_offset, self._now = wall - now, now
        self._shared.timers.run(now)
        self._note_changes(now)

    def next_deadline(self) -> float | None:
        """When ``tick`` is wanted next."""
        return self._shared.timers.next_deadline()

    def take_effects(self) -> list[Effect]:
        """Everything to do since the last call, in order."""
        effects, self._shared.effects = self._shared.effects, []
        return effects

    # ---- verbs

    def add_contact_hint(self, peer: NodeId, addr: Addr, now: float, *, seed: bool = False) -> None:
        """``peer`` may be at ``addr``: ping it; who answers becomes a contact.

        A ``seed`` is configured: pinged again whenever it is missing, and given every STORE and WATCH.
        """
        if peer == self._shared.own or not _dialable(addr):
            return
        if seed and (peer in self._shared.seeds or len(self._shared.seeds) < DHT_MAX_SEEDS):
            self._shared.seeds[peer] = addr
        if not self._table.wants(peer, addr) or (peer, addr) in self._probing:
            return
        if len(self._probing) < DHT_MAX_PROBES:
            self._probe(peer, addr, now, sends=4)
        elif len(self._hints) < DHT_MAX_HINTS:
            self._hints[(peer, addr)] = True
        else:
            self._metrics.count(HINTS_FULL)

    def lookup(self, peer: NodeId, now: float) -> int:
        """Search the record of ``peer``; Found (each newer one) and LookupDone carry the returned number."""
        self._counter += 1
        number = self._counter
        held = self._shared.store.fresh(peer.dht_key, self._shared.wall(now))
        if held is not None:
            self._shared.effects.append(Found(number, held, 0))

        def found(record: EndpointRecord, hops: int, now: float) -> None:
            if number in self._lookup_ids and (held is None or record.seq > held.seq):
                self._shared.effects.append(Found(number, record, hops))

        def done(lookup: Lookup, now: float) -> None:
            if self._lookup_ids.pop(number, None) is None:
                return
            best = lookup.best
            if held is not None and (best is None or held.seq > best.seq):
                best = held
            first = None if lookup.first is None else lookup.first - lookup.started
            stats = LookupStats(lookup.rpcs, lookup.hops, len(lookup.answers), lookup.junk, now - lookup.started, first)
            self._shared.effects.append(LookupDone(number, best, stats))

        self._lookup_ids[number] = 0
        self._lookup_ids[number] = self._start(peer.dht_key, R, True, now, done, found)
        return number

    def cancel(self, lookup_id: int) -> None:
        """No more effects of that lookup."""
        number = self._lookup_ids.pop(lookup_id, 0)
        running = self._running.get(number)
        if running is not None and not running.followers:
            del self._running[number]
            running.over = True
            if running.deadline is not None:
                running.deadline.cancel()

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Our own newest record: to its holders and the seeds at once, then to whoever is nearest."""
        self._announcer.publish(record, now)
        self._holder.push(record, now)
        self._note_changes(now)

    def watch(self, peer: NodeId, now: float, *, known_seq: int = 0) -> None:
        """RecordPushed for every record of ``peer`` newer than ``known_seq``, until ``unwatch``."""
        held = self._shared.store.fresh(peer.dht_key, self._shared.wall(now))
        self._watching.watch(peer, known_seq, now)
        if held is not None:
            self._watching.on_record(held, now)

    def rewatch(self, peer: NodeId, now: float) -> None:
        """``peer`` does not answer where its last record says: ask its watches' holders now, with what we know."""
        self._watching.rewatch(peer, now)

    def unwatch(self, peer: NodeId, now: float | None = None) -> None:
        """Stop watching ``peer``; its holders are told (by default as of the last call that had a time)."""
        self._watching.unwatch(peer, self._now if now is None else now)

    def note_record(self, record: EndpointRecord, now: float) -> None:
        """A verified record came by another way: watches need not tell us of it again."""
        self._watching.learn(record)

    def rewatch_all(self, now: float) -> None:
        """Renew every watch from our new address, fast; newer records come at once."""
        self._forget_place()
        self._watching.rewatch_all(now)

    def local_moved(self, now: float) -> None:
        """Our address changed: nearest contacts and seeds hear from the new one, and ping it back.

        After a move call ``rewatch_all``, ``publish``, ``local_moved``, in this order: what is urgent first.
        """
        self._forget_place()
        nearest = [(c.node_id, c.addr) for c in self._table.closest(self._shared.key, K)]
        for peer, addr in dict.fromkeys([*self._shared.seeds.items(), *nearest]):
            self._probe(peer, addr, now, sends=4)
        self._shared.timers.at(now + 0.5, self._lookup_self)

    def contacts(self) -> list[tuple[NodeId, Addr]]:
        """Who to remember for the next start, nearest to us first."""
        found = self._table.closest(self._shared.key, 10**6)
        return [(c.node_id, c.addr) for c in sorted(found, key=lambda c: c.fails > 0)]

    def counts(self) -> dict[str, int]:
        """Sizes for status pages."""
        return {
            "contacts": len(self._table),
            "records": len(self._shared.store),
            "watchers": len(self._holder.watchers),
            "calls": len(self._rpcs),
            "lookups": len(self._running),
        }

    # ---- contacts

    def _forget_place(self) -> None:
        for contact in self._table.contacts():
            contact.token_at = float("-inf")
        self._rpcs.rtts.forget()

    def _meet(self, peer: NodeId, addr: Addr, now: float) -> None:
        """Somebody sent from ``addr``: if that is news, ping it, for only an answer counts."""
        if addr == NOWHERE or not self._table.wants(peer, addr) or (peer, addr) in self._probing:
            return  # nobody else could reach a peer that is only reached by a detour
        if len(self._probing) >= DHT_MAX_PROBES:
            self._metrics.count(PROBES_FULL)
            return
        self._probe(peer, addr, now)

    def _probe(self, peer: NodeId, addr: Addr, now: float, *, sends: int = 0) -> None:
        self._probing[(peer, addr)] = True

        def over(now: float) -> None:
            self._probing.pop((peer, addr), None)
            while self._hints and len(self._probing) < DHT_MAX_PROBES:
                hint = next(iter(self._hints))
                del self._hints[hint]
                if self._table.wants(*hint):
                    self._probe(*hint, now, sends=2)

        self._rpcs.call(peer, addr, Ping, now, lambda _, t: over(t), over, urgent=sends)

    def _answered(self, peer: NodeId, addr: Addr, token: bytes, now: float) -> None:
        """A peer answered where we asked it."""
        known = self._table.get(peer)
        contact = self._table.answered(peer, addr)
        if contact is None:
            return
        if token:
            contact.token, contact.token_at = token, now
        self._past.pop(peer, None)
        if known is None:
            self._announcer.on_contact(contact, now)
        if not self._joined:
            self._join(now)
        if known is None:
            self._start_waiting(now)

    def _join(self, now: float) -> None:
        """The first answer, or the first after nobody answered any more."""
        self._joined = True
        self._shared.timers.at(now, self._lookup_self)
        for wait in SETTLE_S:
            self._shared.timers.at(now + self._shared.jittered(wait), self._settle)

    def _start_waiting(self, now: float) -> None:
        for running in [r for r in self._running.values() if r.waiting]:
            running.waiting = False
            running.lookup.start(self._starters(running.lookup.key))
            self._advance(running, now)

    def _failed(self, peer: NodeId, addr: Addr, sent: float, now: float) -> None:
        """A request went unanswered. Total silence since then blames our own link, not the peer."""
        contact = self._table.get(peer)
        if contact is None or contact.addr != addr:
            return
        if self._table.failed(peer, evict=self._last_heard > sent):
            self._metrics.count(EVICTED)
            self._past[peer] = addr

    def _settle(self, now: float) -> None:
        """A small mesh becomes fully connected at once; in a large one the first lookup was enough."""
        if len(self._table) < 2 * K:
            self._lookup_self(now)

    def _lookup_self(self, now: float) -> None:
        self._last_refresh = now
        self._start(self._shared.key, K, False, now, lambda lookup, t: None)

    def _refresh(self, now: float) -> None:
        """Every 15 minutes: our own neighbourhood, and the bucket that was refreshed longest ago."""
        shared = self._shared
        shared.timers.at(now + shared.jittered(REFRESH_S), self._refresh)
        shared.store.cull(shared.wall(now))
        self._holder.watchers.cull(now)
        self._lookup_self(now)
        buckets = [b for b in self._table.buckets if b.nodes and not b.has_in_range(self._table.node)]
        if buckets:
            bucket = min(buckets, key=lambda b: b.refreshed_at)
            bucket.refreshed_at = now
            key = shared.rng.randint(*bucket.range).to_bytes(len(shared.key), "big")
            self._start(key, R, False, now, lambda lookup, t: None)

    def _revive(self, now: float) -> None:
        """Seeds that are missing, and, when nobody answers any more, everybody we ever knew."""
        shared = self._shared
        alone = not any(c.fails == 0 for c in self._table.contacts())
        self._revive_wait = min(MAX_REVIVE_S, self._revive_wait * 2) if alone else MAX_REVIVE_S
        past = list(self._past.items())[:2]
        for peer, _ in past:
            self._past.move_to_end(peer)  # every contact gets its turn
        if alone:
            past = [*self._past.items(), *((c.node_id, c.addr) for c in self._table.contacts())][:K]
        if alone and self._joined:
            self._joined = False  # the next answer is a new join
            self._revive_wait = 2 * REVIVE_S
        for peer, addr in [*shared.seeds.items(), *past]:
            if self._table.wants(peer, addr):
                self._meet(peer, addr, now)
        shared.timers.at(now + shared.jittered(self._revive_wait), self._revive)

    def _note_changes(self, now: float) -> None:
        if self._table.version == self._reported_version:
            return
        if self._changed_timer is None or not self._changed_timer.live:
            self._changed_timer = self._shared.timers.at(now + self._changed_wait, self._changed)

    def _changed(self, now: float) -> None:
        self._reported_version = self._table.version
        self._changed_wait = min(2 * self._changed_wait, MAX_CHANGED_AFTER_S)
        self._shared.effects.append(ContactsChanged())

    def _stored(self, record: EndpointRecord, now: float) -> None:
        self._watching.on_record(record, now)

    # ---- lookups

    def _find(self, key: bytes, now: float, on_done: Callable[[Lookup, float], None]) -> None:
        self._start(key, R, False, now, on_done)

    def _get(self, key: bytes, now: float, on_done: Callable[[Lookup, float], None]) -> None:
        """A lookup of a record, or a part in one that runs or has just ended: who connects also watches."""
        for running in self._running.values():
            if running.lookup.key == key and running.lookup.want_record:
                running.followers.append(on_done)
                return
        recent, ended = self._recent.get(key, (None, 0.0))
        if recent is not None and now - ended < RECENT_S and recent.answers:
            self._shared.timers.at(now, lambda t: on_done(recent, t))
        else:
            self._start(key, R, True, now, on_done)

    def _starters(self, key: bytes) -> list[ContactInfo]:
        contacts = self._table.closest(key, K, good=True) or self._table.closest(key, K)
        known = [ContactInfo(c.node_id, c.addr) for c in contacts]
        if len(known) < R:
            known += [ContactInfo(s, a) for s, a in self._shared.seeds.items() if self._table.get(s) is None]
        return known

    def _start(
        self,
        key: bytes,
        width: int,
        want_record: bool,
        now: float,
        on_done: Callable[[Lookup, float], None],
        on_found: Callable[[EndpointRecord, int, float], None] | None = None,
    ) -> int:
        self._metrics.count(LOOKUPS)
        lookup = Lookup(self._shared.own, key, now, width=width, want_record=want_record)
        if len(self._running) >= DHT_MAX_LOOKUPS:
            self._metrics.count(LOOKUPS_FULL)
            self._shared.timers.at(now, lambda t: on_done(lookup, t))
            return 0
        self._counter += 1
        number = self._counter
        running = self._running[number] = _Running(lookup, on_found, on_done)
        starters = self._starters(key)
        lookup.start(starters)
        running.waiting = not starters and bool(self._probing)
        wait = WAIT_FOR_CONTACT_S if running.waiting else DHT_LOOKUP_DEADLINE_S

        def late(now: float) -> None:
            if not running.waiting and now - lookup.started < DHT_LOOKUP_DEADLINE_S:
                remaining = lookup.started + DHT_LOOKUP_DEADLINE_S
                running.deadline = self._shared.timers.at(remaining, late)
                return
            if not running.waiting:
                self._metrics.count(LOOKUP_DEADLINE)
            self._finish(number, running, now)

        running.deadline = self._shared.timers.at(now + wait, late)
        if starters:
            self._advance(running, now)
        elif not running.waiting:
            self._shared.timers.at(now, lambda t: self._advance(running, t))  # never inside the caller's call
        return number

    def _advance(self, running: _Running, now: float) -> None:
        if running.over or running.waiting:
            return
        for candidate in running.lookup.take_queries():
            self._ask(running, candidate, now)
        if running.lookup.done:
            number = next((n for n, r in self._running.items() if r is running), 0)
            self._finish(number, running, now)

    def _ask(self, running: _Running, candidate: Candidate, now: float) -> None:
        lookup = running.lookup
        request = Get if lookup.want_record else Find

        def answered(reply: Reply, now: float) -> None:
            if running.over or not isinstance(reply, Nodes | Value):
                return
            record = None
            if isinstance(reply, Value) and reply.record:
                record = self._shared.open(reply.record, now, lookup.key)
                if record is None:
                    self._metrics.count(JUNK)
                    self._table.failed(candidate.id, evict=True)
                    lookup.on_junk(candidate)
                    self._advance(running, now)
                    return
            newest = lookup.on_answer(candidate, reply.contacts, reply.token, record, now)
            if newest and record is not None:
                self._watching.on_record(record, now)
                if running.on_found is not None:
                    running.on_found(record, lookup.hops, now)
            self._advance(running, now)

        def failed(now: float) -> None:
            lookup.on_failed(candidate)
            self._advance(running, now)

        def slow(now: float) -> None:
            lookup.on_slow(candidate)
            self._advance(running, now)

        addr = candidate.addr
        known = self._table.get(candidate.id)
        if known is not None:
            addr = known.addr
        self._rpcs.call(
            candidate.id, addr, lambda tx: request(tx, lookup.key), now, answered, failed, on_slow=slow, pad=True
        )

    def _finish(self, number: int, running: _Running, now: float) -> None:
        if running.over:
            return
        running.over = True
        self._running.pop(number, None)
        if running.deadline is not None:
            running.deadline.cancel()
        lookup = running.lookup
        for candidate in lookup.unasked(MEET):
            self._meet(candidate.id, candidate.addr, now)
        self._repair(lookup, now)
        if lookup.want_record:
            self._recent[lookup.key] = lookup, now
        for on_done in (running.on_done, *running.followers):
            on_done(lookup, now)

    def _repair(self, lookup: Lookup, now: float) -> None:
        """Nodes near the key without the newest record are given it."""
        record = lookup.best
        if record is None:
            return
        stale = [c for c in lookup.closest(R) if (c.seq is None or c.seq < record.seq) and c.id != record.id]
        for candidate in stale[:REPAIRS]:
            token = candidate.token
            self._rpcs.call(
                candidate.id,
                candidate.addr,
                lambda tx, token=token: Store(tx, token, record.encoded),  # type: ignore[misc]
                now,
                lambda _, t: None,
                lambda t: None,
            )
