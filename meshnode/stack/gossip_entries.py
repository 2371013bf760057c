"""Gossip's entries for the components above it: publish, subscribe to kinds, watch members."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.errors import RateLimited
from meshnode.gossip import Changed, Contact, Entry, Fault, Gossip, Kind, MemberChanged, Status, parse_member
from meshnode.gossip.entry import Put
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.stack.component import tell
from meshnode.stack.context import Context

POSTPONE_S = 0.5

OnEntry = Callable[[Changed, float], None]
OnMember = Callable[[MemberChanged, float], None]


LEFT_OVER_MS = 10_000  # how much later than this process an earlier one may have dated its last entry


class GossipEntries:
    """What is said to all members, and by them. ``carry_out`` is called after each command to the core."""

    def __init__(self, context: Context, core: Gossip, carry_out: Callable[[float], None]) -> None:
        self._context = context
        self._core = core
        self._carry_out = carry_out
        self._subscribers: dict[int, list[OnEntry]] = {}
        self._expiries: list[Callable[[Entry, float], None]] = []
        self._watchers: list[OnMember] = []
        self._barred: list[Callable[[NodeId, float], None]] = []
        self._postponed: dict[tuple[Kind, str], tuple[bytes | None, int]] = {}  # bounded: this node's own names are
        self._unlisted: dict[tuple[Kind, str], tuple[bytes | None, int]] = {}  # what only listed members publish
        self._begun_ms = context.clock.wall() * 1000
        self._others = 0  # member entries of this node that another process has published

    # ---- verbs

    def check(self, kind: int, fits: Callable[[Entry], bool]) -> None:
        """Drop entries of a kind for which ``fits`` returns False, and blame the peers that pass them on.

        One check for each kind: a second one replaces the first.
        """
        self._core.arrivals.ingest.checks[kind] = fits

    def publish(self, kind: int, name: str, value: bytes | None, ttl: int, now: float) -> Entry:
        """Sign and spread an entry, which lives ``ttl`` seconds; None as ``value`` withdraws an earlier one.

        Raises ValueError when it is too large, RateLimited when other nodes would drop it.
        """
        entry = self._core.publish(kind, name, value, ttl, now)
        self._carry_out(now)
        return entry

    def publish_soon(self, kind: Kind, name: str, value: bytes | None, ttl: int, now: float) -> None:
        """Publish; what is over the rate waits, and is tried again each ``POSTPONE_S``.

        Of several that wait under one kind and name, only the newest is published. Grants wait until this node is
        listed: before that, none but its peers ask for its roles, and they have them from it.
        """
        if kind is Kind.GRANTS and not self._core.own_entries.listing.listed:
            self._unlisted[kind, name] = value, ttl
            return
        self._postponed.pop((kind, name), None)
        try:
            self.publish(kind, name, value, ttl, now)
        except RateLimited:
            if not self._postponed:
                self._context.timers.at(now + POSTPONE_S, self._publish_postponed)
            self._postponed[kind, name] = value, ttl

    def _publish_postponed(self, now: float) -> None:
        postponed, self._postponed = self._postponed, {}
        for (kind, name), (value, ttl) in postponed.items():
            self.publish_soon(kind, name, value, ttl, now)

    def stored(self, kind: int) -> list[Entry]:
        """Return the entries of a kind that are in force, tombstones included."""
        return list(self._core.store.entries(kind))

    def count(self, kind: int) -> int:
        """Return how many entries of a kind are in force here, tombstones included."""
        return len(self._core.store.places(kind))

    def moved(self) -> None:
        """Note that this node has other addresses: seeds that did not answer are tried soon."""
        self._core.seeds.on_moved()

    def found_elsewhere(self, which: Callable[[Entry], bool]) -> None:
        """Leave own entries for which ``which`` is true untold where gossip has no place for them."""
        self._core.own_entries.telling.elsewhere = which

    def is_news(self, entry: Entry) -> bool:
        """Return whether an entry that came by another way tells more than those that are here, or were."""
        return self._core.store.judge(entry) in (Put.NEW, Put.FULL)

    def add_record(self, record: EndpointRecord, now: float) -> None:
        """Take a node that a source of records has found: it may become a neighbour."""
        self._core.add_contact(Contact(record.id, record.encoded), now)
        self._carry_out(now)

    def subscribe(self, kind: int, callback: OnEntry) -> None:
        """Have ``callback`` called with every new entry of that kind, this node's own included.

        Its ``via`` is None for those.
        """
        self._subscribers.setdefault(kind, []).append(callback)

    def on_expiry(self, callback: Callable[[Entry, float], None]) -> None:
        """Have ``callback`` called with stored entries of any kind that expired."""
        self._expiries.append(callback)

    def on_barred(self, callback: Callable[[NodeId, float], None]) -> None:
        """Have ``callback`` called with nodes whose key is revoked."""
        self._barred.append(callback)

    def watch(self, callback: OnMember) -> None:
        """Have ``callback`` called when the believed state of a member changes."""
        self._watchers.append(callback)

    def blame(self, peer: NodeId, now: float, *, forged: bool = False) -> None:
        """Count a fault against a peer that sent a component above what no honest node passes on."""
        self._core.blame(peer, Fault.FORGED if forged else Fault.MALFORMED, now)
        self._carry_out(now)

    def bar(self, peer: NodeId, now: float) -> None:
        """Forget a node whose key is revoked, and all its entries; ``Context.is_barred`` keeps new ones out."""
        core = self._core
        for entry in core.store.of_origin(peer):
            if entry.kind == Kind.MEMBER:
                core.members.on_member(peer, entry.seq + 1, True, now, news=False)
            core.store.drop(entry)
            self.on_expired(entry, now)
        core.hyparview.forget(peer, now)
        tell(self._barred, self._context.timers.on_error, peer, now)
        self._carry_out(now)

    def lives(self, peer: NodeId) -> bool:
        """Return whether a member is believed to live."""
        return self._core.status(peer) is Status.ALIVE

    def status(self, peer: NodeId) -> Status:
        """Return the believed state of a member."""
        return self._core.status(peer)

    # ---- what the core tells

    def on_changed(self, change: Changed, now: float) -> None:
        """Tell subscribers of an entry; that of a member brings its record."""
        entry = change.entry
        if entry.kind == Kind.MEMBER and change.via is None:
            unlisted, self._unlisted = self._unlisted, {}
            for (kind, name), (value, ttl) in unlisted.items():
                self.publish_soon(kind, name, value, ttl, now)
        elif entry.kind == Kind.MEMBER:
            if entry.origin == self._context.identity.id:
                self._on_own_member(entry, now)
            member = parse_member(entry)
            if member is not None and member.record:
                self._context.records.offer(member.record, "gossip", now)
        tell(self._subscribers.get(entry.kind, ()), self._context.timers.on_error, change, now)

    def _on_own_member(self, entry: Entry, now: float) -> None:
        """Take an entry that says that this node lives, and that it did not publish.

        One may be of an earlier process, by a clock that was a little ahead; else another host has this node's key.
        """
        if entry.issued > self._begun_ms:
            self._others += 1
            if self._others > 1 or entry.issued > self._begun_ms + LEFT_OVER_MS:
                self._context.note_twin(entry.origin, now)

    def on_member(self, change: MemberChanged, now: float) -> None:
        """Tell watchers of a member."""
        tell(self._watchers, self._context.timers.on_error, change, now)

    def on_expired(self, entry: Entry, now: float) -> None:
        """Tell of an entry that expired."""
        tell(self._expiries, self._context.timers.on_error, entry, now)
