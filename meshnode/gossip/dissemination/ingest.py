"""What neighbours hand us: verified, judged, stored, passed on, and told to whom it concerns. A part of ``Gossip``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshnode.base.metrics import describe
from meshnode.gossip.dissemination.entry_store import Put
from meshnode.gossip.effects import Changed
from meshnode.gossip.entry import REJECTED, Entry, EntryReject, Kind, id_of, open_entry
from meshnode.gossip.kinds import parse_accusation, parse_member
from meshnode.gossip.membership.reputation import Fault
from meshnode.gossip.messages import Eager, Entries
from meshnode.identity.node_id import NodeId

if TYPE_CHECKING:
    from meshnode.gossip.router import Gossip

VOID = describe("gossip_drop_void", "accusations dropped: refuted before they came")

FAULTS = {
    EntryReject.OVERSIZED: Fault.MALFORMED,
    EntryReject.MALFORMED: Fault.MALFORMED,
    EntryReject.NOT_CANONICAL: Fault.MALFORMED,
    EntryReject.UNFIT: Fault.MALFORMED,
    EntryReject.FORGED: Fault.FORGED,
    EntryReject.FUTURE: Fault.UNTIMELY,
    EntryReject.EXPIRED: Fault.UNTIMELY,
}


class Ingest:
    """``checks``: what an entry of a kind must be; kinds that have none are stored and passed on unseen."""

    def __init__(self, gossip: Gossip) -> None:
        self._gossip = gossip
        self.checks: dict[int, Callable[[Entry], bool]] = {
            Kind.MEMBER: lambda entry: parse_member(entry) is not None,
            Kind.ACCUSATION: lambda entry: parse_accusation(entry) is not None,
        }

    def on_eager(self, peer: NodeId, message: Eager, now: float) -> None:
        """Payloads of the tree."""
        gossip = self._gossip
        for hops, payload in message.items:
            item = id_of(payload)
            if gossip.broadcast.knows(item):
                if not gossip.broadcast.on_overtaken(peer, item, hops, now):
                    gossip.broadcast.on_duplicate(peer, item, now)
                continue
            taken = self.take(peer, payload, now)
            if taken is None:
                gossip.broadcast.on_rejected(item, now)
            else:
                gossip.broadcast.on_payload(
                    peer, item, payload, hops, now, wide=gossip.belief.breaks_the_tree(taken[0])
                )
                self._apply(*taken, peer, hops + 1, now)

    def on_entries(self, peer: NodeId, message: Entries, now: float) -> None:
        """What a reconciliation brings."""
        gossip = self._gossip
        ids = [id_of(payload) for payload in message.payloads]
        gossip.reconciler.on_entries(peer, message, ids, now)
        for item, payload in zip(ids, message.payloads, strict=True):
            if gossip.store.by_id(item) is None:
                taken = self.take(peer, payload, now)
                if taken is not None:
                    gossip.broadcast.announce(item, payload, peer, now)
                    self._apply(*taken, peer, 0, now)

    def take(self, peer: NodeId, payload: bytes, now: float) -> tuple[Entry, Entry | None] | None:
        """Verify what a neighbour hands us and store it; with the entry that it replaces.

        None (counted) when it does not count.
        """
        gossip = self._gossip
        entry = open_entry(payload, gossip.wall(now))
        if isinstance(entry, EntryReject):
            gossip.metrics.count(REJECTED[entry])
            gossip.mark(peer, FAULTS[entry], now)
            return None
        if not entry.fleeting and gossip.store.judge(entry) is not Put.NEW:
            if gossip.store.put(entry) is Put.STALE and entry.origin == gossip.id:
                gossip.belief.outlive(entry, now)
            return None
        if not self._fits(peer, entry, now):
            return None
        if entry.origin != gossip.id and not gossip.standing.allows(entry.origin, len(payload), now):
            if entry.origin == peer:
                gossip.mark(peer, Fault.TOO_MUCH, now)
            return None
        if entry.origin == gossip.id:
            gossip.belief.on_own_past(entry, now)
        if entry.fleeting:
            return entry, None
        before = gossip.store.get(entry.key)
        if gossip.store.put(entry) is not Put.NEW:
            return None
        gossip.arm_expiry(now)
        return entry, before

    def _fits(self, peer: NodeId, entry: Entry, now: float) -> bool:
        """What its kind demands of an entry; a void accusation is nobody's fault."""
        gossip = self._gossip
        check = self.checks.get(entry.kind)
        fits = check is None or check(entry)
        if entry.kind == Kind.ACCUSATION and fits and gossip.belief.is_void(entry):
            gossip.metrics.count(VOID)
            return False
        if not fits:
            gossip.metrics.count(REJECTED[EntryReject.UNFIT])
            gossip.mark(peer, Fault.MALFORMED, now)
        return fits

    def _apply(self, entry: Entry, before: Entry | None, via: NodeId, hops: int, now: float) -> None:
        """A new entry counts: whoever is concerned learns of it."""
        gossip = self._gossip
        if entry.kind == Kind.MEMBER:
            gossip.belief.on_member(entry, before, now)
        elif entry.kind == Kind.ACCUSATION:
            gossip.belief.on_accusation(entry, now)
        gossip.tell_of_members(now)  # in the order in which it happened: a node is back before its services are
        gossip.emit(Changed(entry, before, via, hops))
