"""Upkeep of the routing table: pings to peers that may become contacts, joining, reviving.

Only a peer that answered a request where it was sent, or shows the token of such an answer, is a contact: a seal proves
which node sent a message, not that it receives at the message's source address.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from meshnode.base.address import NOWHERE, Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import FairTable, source_shares
from meshnode.base.limits import DHT_MAX_HINTS, DHT_MAX_PROBES, DHT_MAX_SEEDS
from meshnode.base.metrics import describe
from meshnode.discovery.dht.effects import Proven
from meshnode.discovery.dht.joining import Joining
from meshnode.discovery.dht.lookups import Lookups
from meshnode.discovery.dht.messages import Ping, Reply
from meshnode.discovery.dht.shared import Shared
from meshnode.discovery.dht.table import Contact, K
from meshnode.identity.node_id import NodeId

REVIVE_S, MAX_REVIVE_S = 1.0, 60.0
MOVE_LOOKUP_AFTER_S = 0.5  # after an address change: behind the pings to contacts, which are urgent
HINT_SENDS, QUEUED_HINT_SENDS = 4, 2  # transmissions of the ping to a hint, and to one that waited for its turn
REFRESH_S, MAX_REFRESH_S = 900.0, 3_600.0  # twice as long each time that no contact came or went
FAR_REFRESH_S = 14_400.0  # of a range that lost no contact; what asks this node fills it too
ALIVE_S = 30.0  # after a contact's last request: it may not answer, and is no dead one
LIAR_S = 3_600.0
LEAF_S = 7_200.0  # in which a leaf renews its record
FIRST_CHECK_S, LEAST_CHECK_S, MAX_CHECK_S = 300.0, 60.0, 3_600.0  # after which a silent contact is pinged
CHECK_GROWS, CHECK_SHRINKS = 1.05, 0.65  # with each answer, with each silence: in balance where one in ten is dead
CHECK_PAUSE_S = 0.5  # between two checks
AGAIN_S = 2.0
ASK_BACK_S = 0.5  # a node that asks from a new address proves it meanwhile, if it stores or watches a record here
ANSWERS_S = 60.0  # one that was silent for longer may be dead, and says nothing of the mesh
MAX_PAST = 64  # evicted contacts that are pinged when no other answers
HEARD_OF = ("heard of",) * 3  # the share of those that others named or this node looks for: any address can be named

PROBES_FULL = describe("dht_probes_full", "unknown askers not pinged: enough pings outstanding")
HINTS_FULL = describe("dht_hints_full", "contact hints dropped: too many waiting")
LIARS = describe("dht_liars", "contacts taken out because they answered with a record that is forged, or another's")
EVICTED = describe("dht_evicted", "contacts that stopped answering")


class Contacts:
    """Maintenance of one node's routing table.

    ``on_new(contact, now)`` is called for every peer that enters the table.
    """

    def __init__(
        self,
        shared: Shared,
        lookups: Lookups,
        on_new: Callable[[Contact, float], None],
        *,
        leaf: bool = False,
    ) -> None:
        self.is_leaf = leaf
        self.last_heard = float("-inf")
        self._shared = shared
        self._table = shared.table
        self._lookups = lookups
        self._on_new = on_new
        self._probing: FairTable[tuple[NodeId, Addr]] = FairTable(DHT_MAX_PROBES, newest_goes=True)
        self._hints: dict[tuple[NodeId, Addr], bool] = {}
        self._doubted: FairTable[tuple[NodeId, Addr]] = FairTable(DHT_MAX_PROBES, newest_goes=True)  # asked back soon
        self._past: BoundedDict[NodeId, Addr] = BoundedDict(MAX_PAST)
        self._joined = False
        self._check_s = FIRST_CHECK_S
        self._revive_wait = REVIVE_S

    def start(self, now: float) -> None:
        """Begin the periodic upkeep."""
        shared = self._shared
        shared.timers.at(now + REVIVE_S, self._revive)
        if not self.is_leaf:  # which finds out about its contacts when it needs them
            shared.timers.at(now + shared.jittered(LEAST_CHECK_S), self._check)

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

    def meet(self, peer: NodeId, addr: Addr, now: float, *, asked_us: bool = False) -> None:
        """Ping a peer that sent from ``addr`` (``asked_us``), or was said to be there, when the table wants it.

        When enough pings are outstanding, the network with most of them gives its newest one's place up. NOWHERE stands
        for a peer that was reached by a detour: other nodes could not reach it there.
        """
        if addr == NOWHERE or not self._table.wants(peer, addr) or (peer, addr) in self._probing:
            return
        self._probe(peer, addr, now, unasked=not asked_us)

    def _probe(self, peer: NodeId, addr: Addr, now: float, *, sends: int = 0, unasked: bool = True) -> None:
        """Ping where there is a place, or where that is urgent (``sends``).

        One that gave its place up is awaited still: it has been sent.
        """
        self._probing.discard((peer, addr))
        gone = self._probing.add((peer, addr), *(HEARD_OF if unasked else source_shares(addr.host)))
        if gone is not None:
            self._shared.metrics.count(PROBES_FULL)
        if gone == (peer, addr) and not sends:
            return

        def over(now: float) -> None:
            self._probing.discard((peer, addr))
            while self._hints and len(self._probing) < DHT_MAX_PROBES:
                hint = next(iter(self._hints))
                del self._hints[hint]
                if self._table.wants(*hint):
                    self._probe(*hint, now, sends=QUEUED_HINT_SENDS)

        self._shared.rpcs.call(peer, addr, Ping, now, lambda _, t: over(t), over, urgent=sends, unasked=unasked)

    # ---- what requests tell of peers

    def answered(self, peer: NodeId, addr: Addr, token: bytes, sent: float, now: float) -> None:
        """Enter a peer that answered at ``addr`` what was sent at ``sent``, with its ``token`` for this node's address.

        The first answer starts the join; any new contact starts the lookups that waited for one.
        """
        self._shared.effects.append(Proven(peer, addr, sent))
        known = self._table.get(peer)
        contact = self._table.answered(peer, addr)
        if contact is None:
            return
        contact.answered_at = now
        if token:
            contact.token, contact.token_at = token, now
        self._past.pop(peer, None)
        if known is None:
            self._on_new(contact, now)
        if not self._joined:
            self._joined = True
            if not self.is_leaf:
                Joining(self._shared, self._lookups, now)
        if known is None:
            self._lookups.on_contact(now)

    def asked(self, peer: NodeId, src: Addr, now: float, *, only_ping: bool = False) -> None:
        """Take note of a request: its sender lives, and is asked back when the table wants it.

        Not at once where it is unknown there: what it sends next may prove its address (``proven``). An unknown one
        that sends ``only_ping`` knows of this node and wants nothing.
        """
        contact = self._table.get(peer)
        if contact is not None and contact.addr == src:
            contact.heard_at = now
        elif not self._joined:
            self.meet(peer, src, now, asked_us=True)
        elif (contact is not None or not only_ping) and src != NOWHERE and self._table.wants(peer, src):
            self._ask_back_later(peer, src, now)

    def _ask_back_later(self, peer: NodeId, src: Addr, now: float) -> None:
        place = peer, src
        if place in self._doubted:
            return
        gone = self._doubted.add(place, *source_shares(src.host))
        if gone is not None:
            self._shared.metrics.count(PROBES_FULL)
        if gone == place:
            return

        def ask_back(now: float) -> None:
            if place in self._doubted:
                self._doubted.discard(place)
                self.meet(peer, src, now, asked_us=True)

        self._shared.timers.at(now + ASK_BACK_S, ask_back)

    def proven(self, peer: NodeId, src: Addr, now: float) -> None:
        """Enter a peer whose token shows that it receives at ``src``, or has moved there: no ping would tell more."""
        known = self._table.get(peer)
        if src != NOWHERE and (known is None or known.addr != src) and self._table.wants(peer, src):
            contact = self._table.answered(peer, src)
            if contact is not None:
                contact.heard_at = now
            if contact is not None and known is None:
                self._on_new(contact, now)

    def answers(self, peer: NodeId, now: float) -> bool:
        """Return whether the peer is a contact that answered within ``ANSWERS_S``, and what it was asked last."""
        contact = self._table.get(peer)
        return contact is not None and not contact.fails and now - contact.answered_at < ANSWERS_S

    def failed(self, peer: NodeId, addr: Addr, sent: float, now: float) -> None:
        """Count a request, sent at ``sent``, that was not answered.

        Total silence since the first such request blames this node's own link and evicts no contact; nor does a time in
        which many that answered before do not: then the mesh is short of CPU. One that asks this node something is
        alive, only slow.
        """
        contact = self._table.get(peer)
        if contact is None or contact.addr != addr:
            return
        if not contact.fails:
            contact.failing_since = sent
        is_slow = self._shared.rpcs.budget.congested or now - contact.heard_at < ALIVE_S
        if self._table.failed(peer, evict=self.last_heard > contact.failing_since and not is_slow):
            self._shared.metrics.count(EVICTED)
            self._past[peer] = addr

    def on_leaf(self, peer: NodeId, now: float) -> None:
        """Take a node out that answers nothing, for as long as its record may hold."""
        self._table.ban(peer, now + LEAF_S)

    def on_liar(self, peer: NodeId, now: float) -> None:
        """Take a node out that answered with what no honest one holds, for ``LIAR_S``."""
        self._table.ban(peer, now + LIAR_S)
        self._past.pop(peer, None)
        self._shared.metrics.count(LIARS)

    # ---- contacts that may be dead

    def _check(self, now: float) -> None:
        """Ping the contact that was silent for longest, if that is longer than ``_check_s``.

        That time grows while those that are asked answer, and shrinks with each that does not: one in ten may be dead,
        so that a tenth of half as many are on average (a dead one is found half of that time after its death).
        """
        shared = self._shared
        silent = min(self._table.contacts(), key=_last_sign, default=None)
        since = now if silent is None else _last_sign(silent)
        if silent is not None and now - since >= self._check_s:
            self._ask_whether_alive(silent, now)
            since = now - self._check_s  # the next one may be due too
        wait = min(max(since + self._check_s - now, CHECK_PAUSE_S), MAX_CHECK_S)
        shared.timers.at(now + shared.jittered(wait, 0.1), self._check)

    def _hear_any(self, now: float) -> None:
        """Ping the good contact that answered last."""
        good = [c for c in self._table.contacts() if not c.fails]
        if good:
            best = max(good, key=_last_sign)
            self._shared.rpcs.call(best.node_id, best.addr, Ping, now, lambda reply, t: None, lambda t: None)

    def _ask_whether_alive(self, contact: Contact, now: float) -> None:
        peer, addr = contact.node_id, contact.addr

        def alive(_: Reply, now: float) -> None:
            self._check_s = min(MAX_CHECK_S, self._check_s * CHECK_GROWS)

        def again(now: float) -> None:
            known = self._table.get(peer)
            if known is not None and known.fails:
                self._ask_whether_alive(known, now)

        def silent(now: float) -> None:
            known = self._table.get(peer)
            if known is None or known.fails == 1:
                self._check_s = max(LEAST_CHECK_S, self._check_s * CHECK_SHRINKS)
            if known is not None and known.fails:  # a few seconds decide whether it goes
                self._shared.timers.at(now + min(AGAIN_S * known.fails, LEAST_CHECK_S), again)
                if self.last_heard <= known.failing_since:  # is it this node's own link?
                    self._hear_any(now)

        contact.checked_at = now
        # a peer that gave a token knows this node, and does not ask back: the ping may be short
        self._shared.rpcs.call(peer, addr, Ping, now, alive, silent, shown=contact.token)

    def moved(self, told: Container[NodeId], now: float) -> None:
        """Ping the nearest contacts and the seeds from this node's new address, but for those that are ``told`` of it.

        Their answers bring new tokens; a lookup of this node's own key follows ``MOVE_LOOKUP_AFTER_S`` later.
        """
        self.forget_place()
        nearest = [(c.node_id, c.addr) for c in self._table.closest(self._shared.key, K)]
        for peer, addr in dict.fromkeys([*self._shared.seeds.items(), *nearest]):
            if peer not in told:
                self._probe(peer, addr, now, sends=HINT_SENDS)
        self._shared.timers.at(now + MOVE_LOOKUP_AFTER_S, self._look_up_self)

    def forget_place(self) -> None:
        """Drop the tokens and round trips that hold for this node's last address only."""
        for contact in self._table.contacts():
            contact.token_at = float("-inf")
        self._shared.rpcs.forget_place()

    # ---- upkeep

    def _look_up_self(self, now: float) -> None:
        self._lookups.find(self._shared.key, now, lambda lookup, t: None)

    def _revive(self, now: float) -> None:
        """Ping seeds that are missing and two evicted contacts; all known peers when no contact answers any more.

        Those that were taken out for a time may come back after it.
        """
        shared = self._shared
        self._table.forgive(now)
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


class Refresh:
    """Asks a few nodes about this node's neighbourhood, and about one far range.

    ``cull(now)`` drops what has run out elsewhere, each ``REFRESH_S``; ``on_refreshed(now)`` is called after a lookup.
    """

    def __init__(
        self, shared: Shared, lookups: Lookups, cull: Callable[[float], None], on_refreshed: Callable[[float], None]
    ) -> None:
        self._shared = shared
        self._lookups = lookups
        self._cull = cull
        self._on_refreshed = on_refreshed
        self._wait = REFRESH_S
        self._version = 0  # of the table, then
        self._at = 0.0

    def start(self, now: float) -> None:
        """Begin the periodic refresh.

        The first is ``REFRESH_S`` from now.
        """
        self._shared.timers.at(now + self._shared.jittered(REFRESH_S), self._run)

    def _run(self, now: float) -> None:
        """Drop what has run out; ask for the neighbourhood when that is due."""
        self.start(now)
        self._cull(now)
        table = self._shared.table
        changed = table.version != self._version
        if not changed and now - self._at < self._wait:
            return
        self._version, self._at = table.version, now
        self._wait = REFRESH_S if changed else min(MAX_REFRESH_S, 2 * self._wait)
        self._look_around(now)

    def _look_around(self, now: float) -> None:
        """Ask for this node's neighbourhood, and a far range that lost contacts (the paper says: for each range)."""
        shared, table = self._shared, self._shared.table
        self._lookups.check(shared.key, now, lambda lookup, t: self._on_refreshed(t))
        far = [b for b in table.buckets if b.nodes and not b.has_in_range(table.node)]
        due = [b for b in far if b.lost or now - b.refreshed_at >= FAR_REFRESH_S]
        if due:
            bucket = max(due, key=lambda b: (b.lost, -b.refreshed_at))
            bucket.refreshed_at, bucket.lost = now, 0
            key = shared.rng.randint(*bucket.range).to_bytes(len(shared.key), "big")
            self._lookups.check(key, now, lambda lookup, t: None)


def _last_sign(contact: Contact) -> float:
    return max(contact.heard_at, contact.answered_at, contact.checked_at)
