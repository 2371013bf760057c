"""Upkeep of the routing table: pings to peers that may become contacts, joining, refreshing, reviving.

Only a peer that answered a request where it was sent is a contact: a seal proves which node sent a message, not that
it receives at the message's source address.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.address import NOWHERE, Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_HINTS, DHT_MAX_PROBES, DHT_MAX_SEEDS
from meshnode.base.metrics import describe
from meshnode.discovery.dht.lookups import Lookups
from meshnode.discovery.dht.messages import Ping
from meshnode.discovery.dht.shared import Shared
from meshnode.discovery.dht.table import Contact, K
from meshnode.identity.node_id import NodeId

SETTLE_S = (0.35, 1.0, 3.0, 15.0)  # self-lookups after the first contact: others may join in the same second
REFRESH_S = 900.0
REVIVE_S, MAX_REVIVE_S = 1.0, 60.0
MOVE_LOOKUP_AFTER_S = 0.5  # after an address change: behind the pings to contacts, which are urgent
HINT_SENDS, QUEUED_HINT_SENDS = 4, 2  # transmissions of the ping to a hint, and to one that waited for its turn
MAX_PAST = 64  # evicted contacts that are pinged when no other answers

PROBES_FULL = describe("dht_probes_full", "unknown askers not pinged: enough pings outstanding")
HINTS_FULL = describe("dht_hints_full", "contact hints dropped: too many waiting")
EVICTED = describe("dht_evicted", "contacts that stopped answering")


class Contacts:
    """Maintenance of one node's routing table.

    ``on_new(contact, now)`` is called for every peer that enters the table, ``cull(now)`` at every refresh, to drop
    what has run out elsewhere.
    """

    def __init__(
        self,
        shared: Shared,
        lookups: Lookups,
        on_new: Callable[[Contact, float], None],
        cull: Callable[[float], None],
    ) -> None:
        self.last_heard = float("-inf")
        self._shared = shared
        self._table = shared.table
        self._lookups = lookups
        self._on_new = on_new
        self._cull = cull
        self._probing: dict[tuple[NodeId, Addr], bool] = {}
        self._hints: dict[tuple[NodeId, Addr], bool] = {}
        self._past: BoundedDict[NodeId, Addr] = BoundedDict(MAX_PAST)
        self._joined = False
        self._revive_wait = REVIVE_S

    def start(self, now: float) -> None:
        """Begin the periodic upkeep."""
        shared = self._shared
        shared.timers.at(now + REVIVE_S, self._revive)
        shared.timers.at(now + shared.jittered(REFRESH_S), self._refresh)

    # ---- peers that may become contacts

    @property
    def is_probing(self) -> bool:
        """True while a ping to a possible contact is outstanding."""
        return bool(self._probing)

    def add_hint(self, peer: NodeId, addr: Addr, now: float, *, seed: bool = False) -> None:
        """Ping ``peer`` at ``addr`` when the table wants it; past ``DHT_MAX_PROBES`` the hint waits for its turn.

        A ``seed`` is remembered and pinged again whenever it is missing.
        """
        seeds = self._shared.seeds
        if seed and (peer in seeds or len(seeds) < DHT_MAX_SEEDS):
            seeds[peer] = addr
        if not self._table.wants(peer, addr) or (peer, addr) in self._probing:
            return
        if len(self._probing) < DHT_MAX_PROBES:
            self._probe(peer, addr, now, sends=HINT_SENDS)
        elif len(self._hints) < DHT_MAX_HINTS:
            self._hints[(peer, addr)] = True
        else:
            self._shared.metrics.count(HINTS_FULL)

    def meet(self, peer: NodeId, addr: Addr, now: float) -> None:
        """Ping a peer that sent from ``addr``, or was said to be there, when the table wants it.

        NOWHERE stands for a peer that was reached by a detour: other nodes could not reach it there.
        """
        if addr == NOWHERE or not self._table.wants(peer, addr) or (peer, addr) in self._probing:
            return
        if len(self._probing) >= DHT_MAX_PROBES:
            self._shared.metrics.count(PROBES_FULL)
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
                    self._probe(*hint, now, sends=QUEUED_HINT_SENDS)

        self._shared.rpcs.call(peer, addr, Ping, now, lambda _, t: over(t), over, urgent=sends)

    # ---- what requests tell of peers

    def answered(self, peer: NodeId, addr: Addr, token: bytes, now: float) -> None:
        """Enter a peer that answered where it was asked, with its ``token`` for this node's address.

        The first answer starts the join; any new contact starts the lookups that waited for one.
        """
        known = self._table.get(peer)
        contact = self._table.answered(peer, addr)
        if contact is None:
            return
        if token:
            contact.token, contact.token_at = token, now
        self._past.pop(peer, None)
        if known is None:
            self._on_new(contact, now)
        if not self._joined:
            self._join(now)
        if known is None:
            self._lookups.on_contact(now)

    def failed(self, peer: NodeId, addr: Addr, sent: float, now: float) -> None:
        """Count a request, sent at ``sent``, that was not answered.

        Total silence since then blames this node's own link and evicts no contact.
        """
        contact = self._table.get(peer)
        if contact is None or contact.addr != addr:
            return
        if self._table.failed(peer, evict=self.last_heard > sent):
            self._shared.metrics.count(EVICTED)
            self._past[peer] = addr

    def moved(self, now: float) -> None:
        """Ping the nearest contacts and the seeds from this node's new address.

        Their answers bring new tokens; a lookup of this node's own key follows ``MOVE_LOOKUP_AFTER_S`` later.
        """
        self.forget_place()
        nearest = [(c.node_id, c.addr) for c in self._table.closest(self._shared.key, K)]
        for peer, addr in dict.fromkeys([*self._shared.seeds.items(), *nearest]):
            self._probe(peer, addr, now, sends=HINT_SENDS)
        self._shared.timers.at(now + MOVE_LOOKUP_AFTER_S, self._look_up_self)

    def forget_place(self) -> None:
        """Drop the tokens and round trips that hold for this node's last address only."""
        for contact in self._table.contacts():
            contact.token_at = float("-inf")
        self._shared.rpcs.rtts.forget()

    # ---- upkeep

    def _join(self, now: float) -> None:
        """Learn the neighbourhood after the first answer, or the first after a time without any."""
        self._joined = True
        self._shared.timers.at(now, self._look_up_self)
        for wait in SETTLE_S:
            self._shared.timers.at(now + self._shared.jittered(wait), self._settle)

    def _settle(self, now: float) -> None:
        """Repeat the self-lookup in a small mesh, which becomes fully connected; in a large one the first is enough."""
        if len(self._table) < 2 * K:
            self._look_up_self(now)

    def _look_up_self(self, now: float) -> None:
        self._lookups.find(self._shared.key, now, lambda lookup, t: None, width=K)

    def _refresh(self, now: float) -> None:
        """Refresh this node's neighbourhood and the bucket that was refreshed longest ago (Kademlia section 2.3)."""
        shared = self._shared
        shared.timers.at(now + shared.jittered(REFRESH_S), self._refresh)
        self._cull(now)
        self._look_up_self(now)
        buckets = [b for b in self._table.buckets if b.nodes and not b.has_in_range(self._table.node)]
        if buckets:
            bucket = min(buckets, key=lambda b: b.refreshed_at)
            bucket.refreshed_at = now
            key = shared.rng.randint(*bucket.range).to_bytes(len(shared.key), "big")
            self._lookups.find(key, now, lambda lookup, t: None)

    def _revive(self, now: float) -> None:
        """Ping seeds that are missing and two evicted contacts; all known peers when no contact answers any more."""
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
            self.meet(peer, addr, now)
        shared.timers.at(now + shared.jittered(self._revive_wait), self._revive)
