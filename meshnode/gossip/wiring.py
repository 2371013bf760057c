"""What an entry, or an effect of one core, means to the other cores of gossip. Sans I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from meshnode.gossip.arrivals import Arrivals
from meshnode.gossip.dissemination.anti_entropy import AntiEntropy
from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.dissemination.ingest import Blame, Taken
from meshnode.gossip.dissemination.own_entries import OwnEntries
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.dissemination.roll import Listed
from meshnode.gossip.effects import (
    Accuse,
    Banned,
    Doubt,
    Estranged,
    MemberChanged,
    NeighbourDown,
    NeighbourUp,
    Publish,
    Reconciled,
    Silent,
    Status,
)
from meshnode.gossip.entry import Entry, Kind
from meshnode.gossip.kinds import Member, parse_accusation, parse_member, record_in
from meshnode.gossip.membership.accusations import MEMBER_TTL_S, Accusations, Unreachable
from meshnode.gossip.membership.hyparview import HyParView
from meshnode.gossip.membership.members import Members
from meshnode.gossip.membership.reputation import Reputation
from meshnode.gossip.membership.seeds import Seeds
from meshnode.gossip.membership.swim import Swim
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId


class Cores(Protocol):
    """The cores of one node: what the router owns."""

    own_entries: OwnEntries
    store: EntryStore
    seeds: Seeds
    hyparview: HyParView
    swim: Swim
    members: Members
    plumtree: Plumtree
    anti_entropy: AntiEntropy
    reputation: Reputation
    accusations: Accusations
    arrivals: Arrivals

    def put_out(self, wanted: Publish, now: float) -> Entry: ...
    def status(self, peer: NodeId) -> Status: ...


def has_standing(gossip: Cores, answered: Callable[[NodeId], bool], peer: NodeId) -> bool:
    """Return whether this node knows ``peer`` by more than hearsay: a neighbour, a seed, or one that answered."""
    return peer in gossip.hyparview.active or peer in gossip.seeds or answered(peer)


def listed_members(gossip: Cores, answered: Callable[[NodeId], bool]) -> Iterator[Listed]:
    """Yield the members that have an entry and are not believed to be gone."""
    for entry in gossip.store.entries(Kind.MEMBER):
        origin = entry.origin
        if not gossip.status(origin).is_away:
            yield Listed(origin, record_in(entry), has_standing(gossip, answered, origin))


def met_nodes(gossip: Cores) -> tuple[int, int]:
    """Return how many nodes but seeds this one has in its views, and how many of those are listed.

    None that counts where it knows no listed member and has no seeds: the mesh begins with it.
    """
    if len(gossip.seeds) == len(gossip.store.places(Kind.MEMBER)) == 0:
        return 0, 0
    met = [peer for peer in (*gossip.hyparview.active, *gossip.hyparview.passive) if peer not in gossip.seeds]
    return len(met), sum(gossip.store.incarnation(peer) is not None for peer in met)


def offering_members(gossip: Cores, answered: Callable[[NodeId], bool], kind: int) -> Iterator[Listed]:
    """Yield, for each stored offer of a kind, its member that is not believed to be gone; without a record if it has no
    member entry."""
    for entry in gossip.store.entries(kind):
        origin = entry.origin
        if entry.value is None or gossip.status(origin).is_away:
            continue
        member = gossip.store.get((origin, Kind.MEMBER, ""))
        record = record_in(member) if member is not None else None
        is_known = origin == gossip.own_entries.id or has_standing(gossip, answered, origin)
        yield Listed(origin, record, is_known)


def breaks_the_tree(gossip: Cores, entry: Entry) -> bool:
    """Return whether an entry is the first accusation of a neighbour that is silent here too, so the tree is broken."""
    accusation = parse_accusation(entry) if entry.kind == Kind.ACCUSATION else None
    if accusation is None or accusation.accused not in gossip.hyparview.active:
        return False
    return gossip.members.accusers(accusation.accused) == 0 and not gossip.swim.hears(accusation.accused)


def publish_member(gossip: Cores, now: float) -> Entry:
    """Publish that this node lives, and its record."""
    member = Member(False, gossip.own_entries.record)
    return gossip.put_out(Publish(Kind.MEMBER, "", member.encoded(), MEMBER_TTL_S), now)


def on_member(gossip: Cores, taken: Taken, now: float) -> None:
    """Take news of a member: it lives, has moved, refutes an accusation, or leaves."""
    peer, seq, member = taken.entry.origin, taken.entry.seq, parse_member(taken.entry)
    if peer == gossip.own_entries.id or member is None:
        return
    gossip.members.on_member(peer, seq, member.left, now, news=taken.before is None)
    gossip.store.void_accusations(peer, seq)
    if member.left:
        gossip.hyparview.forget(peer, now)
    else:
        gossip.hyparview.views.note_record(Contact(peer, member.record))
        gossip.swim.on_refuted(peer)


def on_accusation(gossip: Cores, entry: Entry, via: NodeId, now: float) -> None:
    """Handle an accusation: refute it when it names this node, else suspect and perhaps probe the accused."""
    accusation = parse_accusation(entry)
    if accusation is None:
        return
    accused = accusation.accused
    if accused == gossip.own_entries.id:
        gossip.own_entries.rise_above(accusation.incarnation)
        gossip.swim.blame_itself()
        gossip.accusations.refute(now)
        return
    gossip.members.on_accused(accused, entry.origin, accusation.incarnation, now, via)
    gossip.swim.suspect(accused, now)
    contact = gossip.hyparview.passive.get(accused)
    if contact is not None:
        gossip.accusations.on_accused(contact, now)


def _neighbour_up(gossip: Cores, effect: NeighbourUp, now: float) -> None:
    peer = effect.peer
    if peer in gossip.hyparview.leaves:
        gossip.plumtree.edge.leaves[peer] = None
        gossip.plumtree.add(peer)
    else:
        gossip.plumtree.link(peer)
        if not gossip.hyparview.leaves.own:
            gossip.swim.watch(gossip.hyparview.active[peer], now)
    gossip.anti_entropy.add(peer, now + effect.reconcile_in)
    gossip.seeds.on_neighbour(peer, now)


def _neighbour_down(gossip: Cores, effect: NeighbourDown, now: float) -> None:
    gossip.plumtree.unlink(effect.peer)
    gossip.swim.unwatch(effect.peer)
    gossip.anti_entropy.remove(effect.peer)
    gossip.arrivals.remove(effect.peer)


def _silent(gossip: Cores, effect: Silent, now: float) -> None:
    contact = gossip.hyparview.passive.get(effect.peer)
    if contact is not None:
        gossip.accusations.on_unwatched(contact, now)  # once more: three lost datagrams are no death


def _member_changed(gossip: Cores, effect: MemberChanged, now: float) -> None:
    if effect.status is Status.GONE:
        gossip.hyparview.lose(effect.peer, now)


WIRING: dict[type, Callable[[Cores, Any, float], object]] = {
    NeighbourUp: _neighbour_up,
    NeighbourDown: _neighbour_down,
    Accuse: lambda gossip, effect, now: gossip.accusations.accuse(effect.peer, now),
    Doubt: lambda gossip, effect, now: gossip.members.on_accused(effect.peer, gossip.own_entries.id, 0, now),
    Reconciled: lambda gossip, effect, now: gossip.own_entries.listing.on_reconciled(now),
    Estranged: lambda gossip, effect, now: gossip.hyparview.lose(effect.peer, now),
    Silent: _silent,
    Unreachable: lambda gossip, effect, now: gossip.hyparview.passive.pop(effect.peer, None),
    Publish: lambda gossip, effect, now: gossip.put_out(effect, now),
    Blame: lambda gossip, effect, now: gossip.reputation.lower(effect.peer, effect.fault, now),
    Banned: lambda gossip, effect, now: gossip.hyparview.forget(effect.peer, now),
    MemberChanged: _member_changed,
}
