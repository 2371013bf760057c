"""What neighbours hand over, from its turn to its place: the tree and reconciliation meet the store here. Sans I/O."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from meshnode.base.limits import GOSSIP_LINK_BURST, GOSSIP_LINK_RATE
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import TokenBucket
from meshnode.gossip.dissemination.anti_entropy import AntiEntropy
from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.dissemination.ingest import Ingest, Taken
from meshnode.gossip.dissemination.intake import BUSY, Arrival, Intake, Rank
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.entry import Entry, claimed_origin, id_of
from meshnode.gossip.messages import Eager, Entries
from meshnode.identity.node_id import NodeId

PATIENCE = 128  # entries of a link that wait, above which reconciliation asks it for no more at present


class Arrivals:
    """Handles EAGER and ENTRIES. ``on_taken`` hears of each new entry that counts, its link and the links it came over.

    ``breaks_the_tree`` tells that an entry has to go over all links; ``has_standing`` asks what this node knows of an
    origin by more than hearsay; ``on_flood`` hears of a link for each message of more entries than any honest node has.
    """

    def __init__(
        self,
        timers: Timers,
        metrics: Metrics,
        now: float,
        cores: tuple[Plumtree, AntiEntropy, Ingest, EntryStore],
        on_taken: Callable[[Taken, NodeId, int, float], None],
        breaks_the_tree: Callable[[Entry], bool],
        has_standing: Callable[[NodeId], bool],
        network_of: Callable[[NodeId], Hashable],
        on_flood: Callable[[NodeId, float], object],
    ) -> None:
        self._metrics = metrics
        self._links: dict[NodeId, TokenBucket] = {}
        self._on_flood = on_flood
        self._plumtree, self._anti_entropy, self.ingest, self._store = cores
        self._on_taken = on_taken
        self._breaks_the_tree = breaks_the_tree
        self._has_standing = has_standing
        self.intake = Intake(timers, metrics, now, self._take, self._rank, network_of)

    def on_eager(self, peer: NodeId, message: Eager, now: float) -> None:
        """Take payloads of the tree: each is verified and stored before it is passed on.

        One that was seen is not opened: it shows which of two links is slower.
        """
        if not self._allows(peer, len(message.items), now):
            return
        for hops, payload in message.items:
            item = id_of(payload)
            if not self._is_seen(peer, item, hops, now):
                self.intake.offer(peer, Arrival(item, payload, hops), now)

    def on_entries(self, peer: NodeId, message: Entries, now: float) -> None:
        """Take the entries that anti-entropy brings: new ones are announced to the tree, not pushed."""
        if not self._anti_entropy.expects(peer) and not self._allows(peer, len(message.payloads), now):
            return
        ids = [id_of(payload) for payload in message.payloads]
        for item, payload in zip(ids, message.payloads, strict=True):
            if self._store.lacks(item):
                self.intake.offer(peer, Arrival(item, payload, None), now)
        if self.intake.waiting(peer) > PATIENCE:
            self._anti_entropy.postpone(peer, now)
        self._anti_entropy.on_entries(peer, message, ids, now)

    def remove(self, peer: NodeId) -> None:
        """Forget a link that is over."""
        self._links.pop(peer, None)
        self.intake.remove(peer)

    def _allows(self, peer: NodeId, count: int, now: float) -> bool:
        """Charge entries to their link before any other work on them; False when it pushes too many."""
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = TokenBucket(GOSSIP_LINK_RATE, GOSSIP_LINK_BURST, now)
        if link.take(count, now):
            return True
        self._metrics.count(BUSY, count)
        self._on_flood(peer, now)
        return False

    def _is_seen(self, peer: NodeId, item: bytes, hops: int, now: float) -> bool:
        if item not in self._plumtree.seen:
            return False
        if not self._plumtree.on_overtaken(peer, item, hops, now):
            self._plumtree.on_duplicate(peer, item, now)
        return True

    def _rank(self, payload: bytes) -> Rank:
        origin = claimed_origin(payload)
        if origin is None:
            return Rank.NEW
        if self._has_standing(origin):
            return Rank.STANDING
        return Rank.KNOWN if self._store.is_known(origin) else Rank.NEW

    def _take(self, peer: NodeId, arrival: Arrival, now: float) -> None:
        """Take an entry whose turn it is; it may have come over another link while it waited."""
        item, payload, hops = arrival
        if hops is not None and self._is_seen(peer, item, hops, now):
            return
        taken = self.ingest.take(peer, payload, now) if hops is not None or self._store.lacks(item) else None
        if hops is None:
            if taken is not None:
                self._plumtree.announce(item, payload, peer, now)
                self._on_taken(taken, peer, 0, now)
        elif taken is None:
            self._plumtree.on_rejected(item, now)
        else:
            wide = self._breaks_the_tree(taken.entry)
            self._plumtree.on_payload(peer, item, payload, hops, now, wide=wide)
            self._on_taken(taken, peer, hops + 1, now)
