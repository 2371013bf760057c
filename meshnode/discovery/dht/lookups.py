"""The lookups that are running: each asks, hedges and ends, by itself or by its deadline.

When it ends, contacts that it heard of are pinged for the table, and nodes near the key that answered without the
newest record are given it (as Kademlia section 2.3 does for the nearest one).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import field
from math import inf

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_LOOKUP_DEADLINE_S, DHT_MAX_LOOKUPS
from meshnode.base.metrics import describe
from meshnode.base.timers import Timer
from meshnode.base.value import state
from meshnode.discovery.dht.lookup import ALPHA, Candidate, Lookup
from meshnode.discovery.dht.messages import ContactInfo, Find, Get, Nodes, Reply, Store, Value
from meshnode.discovery.dht.shared import R, Shared
from meshnode.discovery.dht.table import K
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

FIRST_CONTACT_WAIT_S = 2.0  # a lookup that started before any contact answered waits this long for one
CHECK_WIDTH = 2  # nodes, on each path, that say whether a neighbourhood is as it was
ASKED_SEEDS = 2  # by each lookup of a record
MAX_INTRODUCED = K // 2  # contacts that a lookup heard of and did not ask, to be pinged if the table wants them
MAX_REPAIRS = 4  # stores to nodes that should have had the record
CLOCKS = ("expired", "future")  # reasons why a record does not hold that are no lie: clocks differ
RECENT_S, MAX_RECENT = 5.0, 16  # ended lookups whose answers still serve; x about 20 kB

JUNK = describe("dht_junk", "lookup answers with an invalid record or statement")
LOOKUPS = describe("dht_lookups", "lookups started")
LOOKUPS_FULL = describe("dht_lookups_full", "lookups refused: too many at once")
LOOKUP_DEADLINE = describe("dht_lookup_deadline", "lookups ended by their deadline")

OnDone = Callable[[Lookup, float], None]
OnFound = Callable[[EndpointRecord, int, float], None]


@state
class Search:
    """One running lookup and its listeners; ``is_waiting`` until a first contact answers."""

    lookup: Lookup
    on_done: OnDone
    on_found: OnFound | None
    followers: list[OnDone] = field(default_factory=list)
    deadline: Timer | None = None
    most: float = inf  # nodes that it has heard of above which those that it did not ask are not pinged
    is_waiting: bool = False
    is_over: bool = False


class Lookups:
    """All running lookups of a node.

    ``meet(peer, addr, now)`` is told of contacts that were heard of but not asked, ``is_joining()`` says whether a
    first contact may answer soon, ``on_record(record, now)`` gets every record that is the newest of its lookup, and
    ``on_liar(peer, now)`` is told of a node that answered with what no honest one holds.
    """

    def __init__(
        self,
        shared: Shared,
        meet: Callable[[NodeId, Addr, float], None],
        is_joining: Callable[[], bool],
        on_record: Callable[[EndpointRecord, float], None],
        on_liar: Callable[[NodeId, float], None],
    ) -> None:
        self._on_liar = on_liar
        self._shared = shared
        self._meet = meet
        self._is_joining = is_joining
        self._on_record = on_record
        self._running: dict[Search, None] = {}
        self._recent: BoundedDict[tuple[bytes, bool], tuple[Lookup, float]] = BoundedDict(MAX_RECENT)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether one more may begin: fewer run than may at all, and than the budget of requests bears."""
        return len(self._running) < min(DHT_MAX_LOOKUPS, self._shared.rpcs.budget.lookups)

    def check(self, key: bytes, now: float, on_done: OnDone, *, most: float = inf) -> None:
        """Ask the few nodes nearest to ``key``, and those that are nearer by what they say; as ``find``."""
        if not self._share(key, False, CHECK_WIDTH, now, on_done):
            self._start(key, CHECK_WIDTH, False, now, on_done, alpha=CHECK_WIDTH, most=most)

    def find(
        self,
        key: bytes,
        now: float,
        on_done: OnDone,
        *,
        width: int = R,
        asked: Container[NodeId] | None = None,
        most: float = inf,
    ) -> None:
        """Find the ``width`` nodes nearest to ``key``; ``on_done`` comes later, never within this call.

        The lookup that it is given has asked for no record; ``Lookup.closest`` has the nodes, with their tokens. Nodes
        that were ``asked`` by an earlier one are not asked again, and its answers do not serve for this one. Nodes that
        it heard of and did not ask are pinged, unless it has heard of ``most`` or more.
        """
        if asked is not None or not self._share(key, False, width, now, on_done):
            self._start(key, width, False, now, on_done, asked=asked or (), most=most)

    def get(self, key: bytes, now: float, on_done: OnDone) -> None:
        """Find the record of ``key``; as ``find``."""
        if not self._share(key, True, R, now, on_done):
            self._start(key, R, True, now, on_done)

    def _share(self, key: bytes, want_record: bool, width: int, now: float, on_done: OnDone) -> bool:
        """Let a lookup serve that runs or ended within ``RECENT_S``; False when there is none of that kind.

        A node that connects to a peer also watches it, and one that joins also publishes: two questions, one lookup.
        """
        for search in self._running:
            lookup = search.lookup
            if lookup.key == key and lookup.want_record == want_record and lookup.serves(width):
                search.followers.append(on_done)
                return True
        recent, ended = self._recent.get((key, want_record), (None, 0.0))
        if recent is None or now - ended >= RECENT_S or not recent.answers or not recent.serves(width):
            return False
        self._shared.timers.at(now, lambda t: on_done(recent, t))
        return True

    def search(
        self, key: bytes, now: float, on_done: OnDone, on_found: OnFound, *, is_urgent: bool = True
    ) -> Search | None:
        """Start a lookup of a record whose ``on_found`` is called for each newer one.

        Returns None when ``DHT_MAX_LOOKUPS`` run already, or as many as the budget of requests bears; ``on_done`` is
        called in that case too, with nothing found. One that is not ``is_urgent``, for no caller waits, asks few while
        many requests time out.
        """
        return self._start(key, R, True, now, on_done, on_found, is_urgent=is_urgent)

    def cancel(self, search: Search) -> None:
        """End a search without telling its listener, unless others follow it.

        Answers that still come are ignored; the requests themselves run out.
        """
        if search.is_over or search.followers:
            return
        self._running.pop(search, None)
        search.is_over = True
        if search.deadline is not None:
            search.deadline.cancel()

    def on_contact(self, now: float) -> None:
        """Begin the lookups that wait for a first contact.

        They were started before any contact had answered, and would have ended after ``FIRST_CONTACT_WAIT_S``.
        """
        for search in [s for s in self._running if s.is_waiting]:
            search.is_waiting = False
            search.lookup.start(self._starters(search.lookup.key), self._seeds(search.lookup))
            self._advance(search, now)

    # ---- one search

    def _starters(self, key: bytes) -> list[ContactInfo]:
        shared = self._shared
        contacts = shared.table.nearest(key, K, good=True) or shared.table.nearest(key, K)
        known = [ContactInfo(c.node_id, c.addr) for c in contacts]
        if len(known) < R:
            known += [ContactInfo(s, a) for s, a in shared.seeds.items() if shared.table.get(s) is None]
        return known

    def _seeds(self, lookup: Lookup) -> list[ContactInfo]:
        """Return the seeds that a lookup of a record asks besides, by lot: every owner stores at them."""
        seeds = self._shared.seeds if lookup.want_record else {}
        chosen = self._shared.rng.sample(sorted(seeds), min(ASKED_SEEDS, len(seeds)))
        return [ContactInfo(seed, seeds[seed]) for seed in chosen]

    def _start(
        self,
        key: bytes,
        width: int,
        want_record: bool,
        now: float,
        on_done: OnDone,
        on_found: OnFound | None = None,
        *,
        asked: Container[NodeId] = (),
        alpha: int = ALPHA,
        most: float = inf,
        is_urgent: bool = False,
    ) -> Search | None:
        shared = self._shared
        if want_record and not is_urgent and shared.rpcs.budget.congested:
            width, alpha = CHECK_WIDTH, CHECK_WIDTH
        shared.metrics.count(LOOKUPS)
        price = shared.has_price
        lookup = Lookup(
            shared.own, key, now, width=width, want_record=want_record, has_price=price, asked=asked, alpha=alpha
        )
        if not self.has_room:
            shared.metrics.count(LOOKUPS_FULL)
            shared.timers.at(now, lambda t: on_done(lookup, t))
            return None
        search = Search(lookup, on_done, on_found, most=most)
        self._running[search] = None
        starters = self._starters(key)
        lookup.start(starters, self._seeds(lookup))
        search.is_waiting = not starters and self._is_joining()
        wait = FIRST_CONTACT_WAIT_S if search.is_waiting else DHT_LOOKUP_DEADLINE_S
        search.deadline = shared.timers.at(now + wait, lambda t: self._on_deadline(search, t))
        if starters:
            self._advance(search, now)
        elif not search.is_waiting:
            shared.timers.at(now, lambda t: self._advance(search, t))  # never inside the caller's call
        return search

    def _on_deadline(self, search: Search, now: float) -> None:
        until = search.lookup.started + DHT_LOOKUP_DEADLINE_S
        if not search.is_waiting and now < until:  # it waited for a first contact, and got one
            search.deadline = self._shared.timers.at(until, lambda t: self._on_deadline(search, t))
            return
        if not search.is_waiting:
            self._shared.metrics.count(LOOKUP_DEADLINE)
        self._finish(search, now)

    def _advance(self, search: Search, now: float) -> None:
        if search.is_over or search.is_waiting:
            return
        for candidate in search.lookup.take_queries():
            self._ask(search, candidate, now)
        if search.lookup.done:
            self._finish(search, now)

    def _ask(self, search: Search, candidate: Candidate, now: float) -> None:
        lookup = search.lookup
        request = Get if lookup.want_record else Find

        def failed(now: float) -> None:
            lookup.on_failed(candidate)
            self._advance(search, now)

        def slow(now: float) -> None:
            lookup.on_slow(candidate)
            self._advance(search, now)

        known = self._shared.table.get(candidate.id)
        self._shared.rpcs.call(
            candidate.id,
            candidate.addr if known is None else known.addr,
            lambda tx: request(tx, lookup.key),
            now,
            lambda reply, t: self._on_reply(search, candidate, reply, t),
            failed,
            on_slow=slow,
            pad=True,
            wanted=lambda: not search.is_over,
        )

    def _on_reply(self, search: Search, candidate: Candidate, reply: Reply, now: float) -> None:
        if search.is_over or not isinstance(reply, Nodes | Value):
            return
        lookup, record = search.lookup, None
        if isinstance(reply, Value) and reply.record:
            is_lie = False
            kept = self._shared.kept.of(reply.record)
            if kept is not None:
                is_good = kept.put(reply.record, lookup.key)
            else:
                record = self._shared.open(reply.record, now, lookup.key)
                is_good = record is not None
                is_lie = not is_good and self._shared.refusal not in CLOCKS
            if not is_good:
                self._shared.metrics.count(JUNK)
                if is_lie:
                    self._on_liar(candidate.id, now)
                lookup.on_junk(candidate)
                self._advance(search, now)
                return
        is_newest = lookup.on_answer(candidate, reply.contacts, reply.token, record, now)
        if is_newest and record is not None:
            self._on_record(record, now)
            if search.on_found is not None:
                search.on_found(record, lookup.hops, now)
        self._advance(search, now)

    def _finish(self, search: Search, now: float) -> None:
        if search.is_over:
            return
        search.is_over = True
        self._running.pop(search, None)
        if search.deadline is not None:
            search.deadline.cancel()
        lookup = search.lookup
        if not self._shared.rpcs.budget.congested:  # what this lookup was not begun for waits for better times
            for candidate in lookup.unasked(MAX_INTRODUCED if len(lookup.heard) < search.most else 0):
                self._meet(candidate.id, candidate.addr, now)
            self._repair(lookup, now)
        self._recent[lookup.key, lookup.want_record] = lookup, now
        failed: Exception | None = None
        for on_done in (search.on_done, *search.followers):
            try:
                on_done(lookup, now)
            except Exception as error:  # one that fails keeps no other from being told
                failed = error
        if failed is not None:
            raise failed

    def _repair(self, lookup: Lookup, now: float) -> None:
        """Store the newest record at nodes near the key that answered without it."""
        record = lookup.best
        if record is None:
            return
        stale = [c for c in lookup.closest(R) if (c.seq is None or c.seq < record.seq) and c.id != record.id]
        for candidate in stale[:MAX_REPAIRS]:
            token = candidate.token
            self._shared.rpcs.call(
                candidate.id,
                candidate.addr,
                lambda tx, token=token: Store(tx, token, record.encoded),  # type: ignore[misc]
                now,
                lambda _, t: None,
                lambda t: None,
            )
