"""What must hold in a mesh of gossip cores whatever happens to it (``chaos.py``): bounds always, one state at the end.

A container without a bound here is an error by itself: a new one states here how large it may become. Bounds that a
small mesh would never reach are made small first (``narrow``), so that the code has to hold them.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from meshnode.base.limits import (
    GOSSIP_MAX_ACCUSERS,
    GOSSIP_MAX_ACTIVE,
    GOSSIP_MAX_ANNOUNCERS,
    GOSSIP_MAX_FLOORS,
    GOSSIP_MAX_IDS,
    GOSSIP_MAX_SEEDS,
    GOSSIP_MAX_TELL_IDS,
    NAMES_MAX_CLAIMS,
    NAMES_MAX_RIVALS,
)
from meshnode.directory.names import Names
from meshnode.errors import NameChanged, NameDisputed, NotFound
from meshnode.gossip import Entry, Kind, Status
from meshnode.gossip.dissemination.gone import age_of
from meshnode.gossip.entry import EntryReject
from meshnode.gossip.kinds import Member, parse_member
from meshnode.identity.node_id import NodeId
from tests.sim.gossip_sim import GossipNet, GossipNode

STORED = 100  # of a kind, instead of GOSSIP_MAX_STORED
NARROW = {
    "GOSSIP_LISTED": 6,
    "GOSSIP_MAX_ACCUSATIONS": STORED,
    "GOSSIP_MAX_EARLY": 32,
    "GOSSIP_MAX_GIVEN": 64,
    "GOSSIP_MAX_GIVEN_UP": 256,
    "GOSSIP_MAX_LOST": 6,
    "GOSSIP_MAX_MISSING": 64,
    "GOSSIP_MAX_ORIGINS": 10,
    "GOSSIP_MAX_PASSIVE": 6,
    "GOSSIP_MAX_PENDING": 3,
    "GOSSIP_MAX_PER_ORIGIN": 16,
    "GOSSIP_MAX_PROBES": 6,
    "GOSSIP_MAX_RECENT": 32_768,
    "GOSSIP_MAX_SEEN": 512,
    "GOSSIP_MAX_STANDINGS": 1,
    "GOSSIP_MAX_SUSPECTS": 6,
    "GOSSIP_MAX_WAITING": 32,
    "GOSSIP_MAX_WALKS": 8,
}
MIN_NEIGHBOURS = 3  # a node with fewer asks with high priority, which no node may refuse
KINDS = 16  # that are stored
NODES = 24  # keys that there are in one mesh, at most: what is kept for a linked peer, or for one key of a node
TIMERS = 2_000
HEAP = 64 + 2 * STORED + 1  # a heap keeps what was replaced until it surfaces

BOUNDS = {
    "Gossip._effects": 0,
    "Ingest.checks": KINDS,
    "Arrivals._links": GOSSIP_MAX_ACTIVE,
    "Intake._queues": GOSSIP_MAX_ACTIVE,
    "Intake._turns": 2 * GOSSIP_MAX_ACTIVE,
    "Intake._waiting": 2 * GOSSIP_MAX_ACTIVE * NARROW["GOSSIP_MAX_WAITING"],
    "Intake._waiting[]": GOSSIP_MAX_ACTIVE,
    "Ingest._effects": 0,
    "Seeds._contacts": GOSSIP_MAX_SEEDS,
    "Seeds._silent": GOSSIP_MAX_SEEDS,
    "Seeds._waits": GOSSIP_MAX_SEEDS,
    "Timers._heap": TIMERS,
    "Views.active": GOSSIP_MAX_ACTIVE,
    "Views.passive": NARROW["GOSSIP_MAX_PASSIVE"],
    "Views.lost": NARROW["GOSSIP_MAX_LOST"],
    "HyParView.active": GOSSIP_MAX_ACTIVE,
    "HyParView.passive": NARROW["GOSSIP_MAX_PASSIVE"],
    "HyParView._links": NODES,
    "HyParView._pending": NARROW["GOSSIP_MAX_PENDING"],
    "HyParView._full": NARROW["GOSSIP_MAX_PASSIVE"],
    "HyParView._effects": 0,
    "Shuffles._walks": NARROW["GOSSIP_MAX_WALKS"],
    "Shuffles._offered": 1,
    "Shuffles._effects": 0,
    "Plumtree.eager": GOSSIP_MAX_ACTIVE,
    "Plumtree.lazy": GOSSIP_MAX_ACTIVE,
    "Plumtree._early": NARROW["GOSSIP_MAX_EARLY"],
    "Plumtree._pushes": 0,
    "Plumtree.effects": 0,
    "Seen._young": NARROW["GOSSIP_MAX_SEEN"],
    "Seen._old": NARROW["GOSSIP_MAX_SEEN"],
    "RecentPayloads._items": NARROW["GOSSIP_MAX_RECENT"] // 100,
    "Awaited._waits": 2,
    "Awaited._announcers": NARROW["GOSSIP_MAX_MISSING"],
    "Awaited._announcers[]": GOSSIP_MAX_ANNOUNCERS,
    "Awaited._due": NARROW["GOSSIP_MAX_MISSING"],
    "Announcements._waiting": GOSSIP_MAX_ACTIVE,
    "Announcements._waiting[]": 4 * GOSSIP_MAX_IDS,
    "Announcements._effects": 0,
    "Buckets.prints": 256,
    "EntryStore._named": KINDS * STORED,
    "EntryStore._named[]": STORED,
    "Buckets._entries": 256,
    "Buckets._entries[]": KINDS * STORED,
    "EntryStore._places": KINDS,
    "EntryStore._of_origin": KINDS * STORED,
    "EntryStore._of_origin[]": KINDS * NARROW["GOSSIP_MAX_PER_ORIGIN"],
    "EntryStore._expiry": KINDS * HEAP,
    "Gone.floors": GOSSIP_MAX_FLOORS,
    "Gone.lost_floors": GOSSIP_MAX_FLOORS,
    "Gone.given_up": NARROW["GOSSIP_MAX_GIVEN_UP"],
    "EntryStore._effects": 0,
    "Places._settled": STORED,
    "Places._settled_of": STORED,
    "Places._newcomers": STORED,
    "Places._came": STORED,
    "Swim._watches": GOSSIP_MAX_ACTIVE,
    "Swim._effects": 0,
    "Probes._running": NARROW["GOSSIP_MAX_PROBES"],
    "Members._suspects": NARROW["GOSSIP_MAX_SUSPECTS"],
    "Members._left": NARROW["GOSSIP_MAX_SUSPECTS"],
    "Members._effects": 0,
    "Accusations._effects": 0,
    "Reputation._rates": NARROW["GOSSIP_MAX_ORIGINS"],
    "Reputation._marks": NARROW["GOSSIP_MAX_STANDINGS"],
    "Reputation._banned": NARROW["GOSSIP_MAX_STANDINGS"],
    "Reputation._effects": 0,
    "AntiEntropy._neighbours": GOSSIP_MAX_ACTIVE,
    "AntiEntropy._neighbours[]": NARROW["GOSSIP_MAX_GIVEN"],
    "AntiEntropy._allowed": GOSSIP_MAX_ACTIVE,
    "AntiEntropy._exchanges": GOSSIP_MAX_ACTIVE,
    "AntiEntropy._effects": 0,
    "Names._claims": NAMES_MAX_CLAIMS,
    "Names._claims[]": NAMES_MAX_RIVALS,
    "Names._of": NODES,
    "Names._of[]": NARROW["GOSSIP_MAX_PER_ORIGIN"],
    "Names._pins": NODES,
    "Names._told": NODES,
    "Names._effects": 0,
}

FAULTS = [f"gossip_drop_{why}" for why in ("message", *(reject.value for reject in EntryReject))]


class Broken(AssertionError):
    """An invariant does not hold."""


@contextmanager
def narrow() -> Iterator[None]:
    """Small bounds in all modules of gossip, as long as this lasts."""
    before = []
    for name, module in list(sys.modules.items()):
        if name.startswith("meshnode.gossip"):
            for limit, small in NARROW.items():
                if hasattr(module, limit):
                    before.append((module, limit, getattr(module, limit)))
                    setattr(module, limit, small)
    try:
        yield
    finally:
        for module, limit, large in before:
            setattr(module, limit, large)


def check_bounds(node: GossipNode, names: Names | None = None) -> None:
    """Raise Broken when anything that a node keeps is larger than it may be."""
    gossip = node.gossip
    views, tree, store, members = gossip.hyparview, gossip.plumtree, gossip.store, gossip.members
    inner = (views.views, views.shuffles, tree.seen, tree.recent, tree.awaited, tree.announcements, gossip.swim._probes)
    others = (
        gossip.arrivals.ingest,
        gossip.arrivals.intake,
        gossip.swim,
        gossip.accusations,
        gossip.reputation,
        gossip.anti_entropy,
        gossip.seeds,
    )
    parts = (
        gossip,
        views,
        tree,
        store,
        store.buckets,
        store.gone,
        *store._places.values(),
        members,
        *inner,
        *others,
        gossip._timers,
    )
    for part in (*parts, *([names] if names else [])):
        _check_part(node, part)
    _most(node, "bytes of recent payloads", tree.recent.size, NARROW["GOSSIP_MAX_RECENT"])
    _most(node, "entries of a kind", max(map(len, store._places.values()), default=0), STORED)
    for (kind, name), named in store._named.items():
        if kind == Kind.ACCUSATION:
            _most(node, f"accusations of {name}", len(named), GOSSIP_MAX_ACCUSERS)
    for entries in store._of_origin.values():
        of_kind = Counter(entry.kind for entry in entries)
        _most(node, "entries of an origin and kind", max(of_kind.values()), NARROW["GOSSIP_MAX_PER_ORIGIN"])
    for suspect in members._suspects.values():
        _most(node, "accusers", len(suspect.accusers), GOSSIP_MAX_ACCUSERS)
    if len(members._places) != len(members._suspects):
        raise Broken(f"node {node.number}: places without a suspicion, or the other way round")
    for exchange in gossip.anti_entropy._exchanges.values():
        _most(node, "entries asked for", len(exchange.missing), GOSSIP_MAX_TELL_IDS)
    if {*tree.eager, *tree.lazy} != set(views.active):
        raise Broken(f"node {node.number}: the tree's links are not the active view")


def _check_part(node: GossipNode, part: object) -> None:
    for name, value in vars(part).items():
        if isinstance(value, (dict, list, set, deque, OrderedDict)):
            what = f"{type(part).__name__}.{name}"
            if what not in BOUNDS:
                raise Broken(f"no bound is known of {what}")
            _most(node, what, len(value), BOUNDS[what])
            inner = BOUNDS.get(f"{what}[]")
            if inner is not None:
                parts = value.values() if isinstance(value, dict) else value
                _most(node, f"one of {what}", max(map(len, parts), default=0), inner)


def _most(node: GossipNode, what: str, size: int, most: int) -> None:
    if size > most:
        raise Broken(f"node {node.number}: {what} {size} > {most}")


def check_standing(node: GossipNode, dubious: dict[NodeId, None]) -> None:
    """Raise Broken when bad input cost no node anything, or an honest node was cut off for it."""
    for peer in node.gossip.reputation._banned:
        if peer not in dubious:
            raise Broken(f"node {node.number} has cut off an honest node")
    counters = node.metrics.counters
    if sum(counters.get(name, 0) for name in FAULTS) > counters.get("gossip_black_marks", 0):
        raise Broken(f"node {node.number} dropped bad input and blamed no node")


def check_resolution(node: GossipNode, names: Names, label: str, before: NodeId | None, wall: float) -> NodeId | None:
    """Resolve a name; raise Broken when it means another node than ``before`` and no warning is given.

    A name that the node has taken for itself since then means itself.
    """
    try:
        found = names.resolve(label, wall)
    except (NameChanged, NameDisputed, NotFound):
        return before
    if before is not None and found not in (before, node.id):
        raise Broken(f"node {node.number}: the name {label} was taken over in silence")
    return found


def check_agreement(net: GossipNet, nodes: list[GossipNode], amiss: dict[NodeId, None]) -> None:
    """Raise Broken unless these have connected views, one state, and take one another for what they are.

    ``amiss``: keys whose seqs were used twice (twins, a clock behind the past without memory). What such a key
    says may be held back by a node that remembers its past, and no other node is at fault.
    """
    if not net.is_connected(nodes):
        raise Broken("the views of those that live are not connected")
    for node in nodes:
        if len(node.gossip.hyparview.active) < min(MIN_NEIGHBOURS, len(nodes) - 1):
            raise Broken(f"node {node.number} has too few neighbours")
        own = node.gossip.store.get((node.id, Kind.MEMBER, ""))
        member = parse_member(own) if own is not None else None
        listed = node.gossip.own_entries.listing.listed
        if (member is None and listed) or (own is not None and not _is_so(node, member)):
            raise Broken(f"node {node.number} is not what its own entry says")
        for other in nodes:
            status = node.gossip.status(other.id)
            is_right = status is Status.ALIVE or (status is Status.UNKNOWN and not _is_told(other))
            if other is not node and not is_right:
                raise Broken(f"node {node.number} takes node {other.number}, which lives, for {status.value}")
    if all(node.gossip.store.buckets.prints == nodes[0].gossip.store.buckets.prints for node in nodes):
        return
    union = {entry.id: entry for node in nodes for entry in node.gossip.store.buckets}
    for node in nodes:
        for entry in _lacking(node, union.values()):
            if not _excused(net, nodes, node, entry, amiss):
                origin = net.by_id[entry.origin].number
                raise Broken(f"node {node.number} lacks an entry of kind {entry.kind} of node {origin}")


def _is_so(node: GossipNode, member: Member | None) -> bool:
    return member is not None and not member.left and member.record == node.gossip.own_entries.record


def _is_told(node: GossipNode) -> bool:
    """True when all have to know a node."""
    return node.gossip.store.get((node.id, Kind.MEMBER, "")) is not None


def _lacking(node: GossipNode, union: Iterable[Entry]) -> Iterator[Entry]:
    return (entry for entry in union if node.gossip.store.by_id(entry.id) is None)


def _excused(
    net: GossipNet, nodes: list[GossipNode], node: GossipNode, entry: Entry, amiss: dict[NodeId, None]
) -> bool:
    """A node need not have what is over by the clock of some node, what is of a kind that is full there, or older than
    all that fills its origin's share; nor what is newer than what it has, while none of its neighbours has a place for
    it; nor what gave way at its neighbours, of which none has it."""
    store = node.gossip.store
    if any(entry.expires < net.wall(other) for other in nodes):
        return True  # a node that takes it for over does not pass it on
    if entry.origin in amiss and any(_remembers_newer(other, entry) for other in nodes):
        return True  # a node that does holds it back, also from nodes that do not
    if entry.kind == Kind.ACCUSATION:  # such a key has a place among the accusers here, and is held back there
        accusers = [origin for other in nodes for origin in other.gossip.store._named.get(entry.key[1:], ())]
        if any(origin in amiss for origin in accusers):
            return True
    neighbours = [net.by_id[peer] for peer in node.gossip.hyparview.active]
    held_back = not any(_holds(each, entry) for each in neighbours)
    if store.get(entry.key) is not None:  # it would take the newer one; but a full node between them holds that back
        return held_back
    if not store.places(entry.kind).has_room or _gave_way(node, entry):
        return True  # it, or what replaced it, has given way or may do so
    if held_back and any(_gave_way(each, entry) for each in neighbours):
        return True
    own = [e for e in store._of_origin.get(entry.origin, ()) if e.kind == entry.kind]
    full = len(own) >= NARROW["GOSSIP_MAX_PER_ORIGIN"]
    return full and (entry.seq, entry.id) < min((e.seq, e.id) for e in own)


def _holds(node: GossipNode, entry: Entry) -> bool:
    return node.alive and node.gossip.store.by_id(entry.id) is not None


def _gave_way(node: GossipNode, entry: Entry) -> bool:
    return age_of(entry) <= node.gossip.store.gone.lost_floors.get(entry.key, (-1, b""))


def _remembers_newer(node: GossipNode, entry: Entry) -> bool:
    held = node.gossip.store.get(entry.key)
    return entry.seq <= node.gossip.store.gone.floors.get(entry.key, -1) or (held is not None and held.seq > entry.seq)
